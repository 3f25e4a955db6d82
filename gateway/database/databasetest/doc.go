// Package databasetest runs tests on both databases: SQLite in a temporary file,
// and a real PostgreSQL server that it starts from the system's packages and
// stops with the test. Where PostgreSQL is not installed that part is skipped with
// one line, which .ci/test shows and .ci/run takes for a failure.
package databasetest

import (
	"path/filepath"
	"testing"
)

// Each runs f on an empty SQLite file and on an empty database of a PostgreSQL
// server, each in a subtest. The server starts in about two seconds, so a test
// had better call Each once, with subtests inside.
func Each(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, Postgres(t)) })
}

// SQLite is the DSN of a file that is not there yet.
func SQLite(t testing.TB) (dsn string) {
	t.Helper()
	return "sqlite://" + filepath.Join(t.TempDir(), "test.db")
}

// Postgres starts a server for this test and returns the DSN of an empty database.
func Postgres(t testing.TB) (dsn string) {
	t.Helper()
	return StartServer(t).Database(t)
}
