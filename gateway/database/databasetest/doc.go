// Package databasetest runs tests on both databases: SQLite in a temporary file, and a
// real PostgreSQL server. It starts that server from the system's packages and stops it
// with the test. Where PostgreSQL is not installed, it skips that part with one line,
// which .ci/test shows and .ci/run counts as a failure.
package databasetest

import (
	"path/filepath"
	"testing"
)

// Run runs f in two subtests: on an empty SQLite file and on an empty database of a
// PostgreSQL server. The server takes about two seconds to start, so a test should call
// Run once, with subtests inside.
func Run(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, Postgres(t)) })
}

// SQLite returns the DSN of a file that does not exist yet.
func SQLite(t testing.TB) (dsn string) {
	t.Helper()
	return "sqlite://" + filepath.Join(t.TempDir(), "test.db")
}

// Postgres starts a server for this test and returns the DSN of an empty database.
func Postgres(t testing.TB) (dsn string) {
	t.Helper()
	return StartServer(t).Database(t)
}
