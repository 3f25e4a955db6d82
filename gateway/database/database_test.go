package database

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pressly/goose/v3/lock"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect"
	"go.uber.org/goleak"

	"tidegate/gateway/database/databasetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dsn string) *bun.DB {
	t.Helper()
	db, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestBadNames(t *testing.T) {
	for dsn, want := range map[string]string{
		"":                                          "must begin with sqlite:// or postgres://",
		"tidegate.db":                               "must begin with",
		"mysql://root:hunter2@h/db":                 "must begin with",
		"sqlite://":                                 "must name a file",
		"sqlite://:memory:":                         "must name a file",
		"sqlite://a.db?mode=ro":                     "must name a file",
		"sqlite:///var/lib/":                        "must name a file",
		"postgres://u:hunter2/x@h/db":               "is no URL",
		"postgres://u:hunter2@h:port/db":            "is no URL",
		"postgres://u:hunter%zz@h/db":               "is no URL",
		"postgres://u:hunter2@h:99999/db":           "is not understood",
		"postgres://u:hunter2@h/db?sslmode=x":       "is not understood",
		"postgres://h/db?sslmode=x":                 "sslmode is invalid",
		"postgres://h/d?password=hunter2&sslmode=x": "is not understood",
	} {
		err := Validate(dsn)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", dsn, err, want)
			continue
		}
		if strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: the password is told: %v", dsn, err)
		}
		if _, again := Open(t.Context(), dsn); again == nil || again.Error() != err.Error() {
			t.Errorf("%s: Open says %v", dsn, again)
		}
	}
	if got := Name("postgres://u:hunter2@h:1/db?x=y"); got != "postgres://h:1/db" {
		t.Error(got)
	}
	// Nobody listens there; the error says where, and no more.
	_, err := Open(t.Context(), "postgres://u:hunter2@127.0.0.1:1/db")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || strings.Contains(err.Error(), "hunter") {
		t.Error(err)
	}
}

func TestSQLiteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a b%20c.db")
	db := open(t, "sqlite://"+path)
	stat, err := os.Stat(path)
	if err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", stat, err)
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		var got string
		if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), expected %q", pragma, got, err, want)
		}
	}
	if _, err := Open(t.Context(), "sqlite://"+dir+"/none/a.db"); err == nil || !strings.Contains(err.Error(), dir+"/none is not there") {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte(strings.Repeat("no database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), "sqlite://"+dir+"/text"); err == nil || !strings.Contains(err.Error(), "not a database") {
		t.Error(err)
	}
}

// TestWriters adds to one row from many goroutines: each transaction reads before
// it writes, which without the lock at its beginning would fail or lose.
func TestWriters(t *testing.T) {
	databasetest.Run(t, func(t *testing.T, dsn string) {
		db := open(t, dsn)
		if _, err := db.ExecContext(t.Context(), "CREATE TABLE n (n BIGINT); INSERT INTO n VALUES (0)"); err != nil {
			t.Fatal(err)
		}
		const writers, each = 4, 10
		var group sync.WaitGroup
		for range writers {
			group.Go(func() {
				for range each {
					err := db.RunInTx(t.Context(), nil, func(ctx context.Context, tx bun.Tx) error {
						if _, err := tx.ExecContext(ctx, "UPDATE n SET n = n + 0"); err != nil { // PostgreSQL's lock is the row's
							return err
						}
						var n int
						if err := tx.QueryRowContext(ctx, "SELECT n FROM n").Scan(&n); err != nil {
							return err
						}
						_, err := tx.ExecContext(ctx, "UPDATE n SET n = ?", n+1)
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM n").Scan(&n); err != nil || n != writers*each {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// migrations makes n of them; each adds a row, so that one which ran twice shows.
func migrations(n int) fs.FS {
	files := fstest.MapFS{}
	for i := range n {
		text := fmt.Sprintf("-- +goose Up\nINSERT INTO ran VALUES (%d);\n", i+1)
		if i == 0 {
			text = "-- +goose Up\nCREATE TABLE ran (n BIGINT NOT NULL);\nINSERT INTO ran VALUES (1);\n"
		}
		files[fmt.Sprintf("%05d_step.sql", i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

// TestMigrateTogether starts several gateways on one empty database.
func TestMigrateTogether(t *testing.T) {
	databasetest.Run(t, func(t *testing.T, dsn string) {
		const gateways, steps = 4, 5
		var group sync.WaitGroup
		for range gateways {
			db := open(t, dsn)
			group.Go(func() {
				if err := Migrate(t.Context(), db, "test", migrations(steps)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		db := open(t, dsn)
		check := func(want int) {
			t.Helper()
			var rows, distinct int
			if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*), COUNT(DISTINCT n) FROM ran").Scan(&rows, &distinct); err != nil || rows != want || distinct != want {
				t.Errorf("%d rows, %d distinct (%v), expected %d", rows, distinct, err, want)
			}
		}
		check(steps)
		if err := Migrate(t.Context(), db, "test", migrations(steps+1)); err != nil {
			t.Fatal(err)
		}
		check(steps + 1)
		if db.Dialect().Name() == dialect.PG {
			// With nothing to do, somebody else's migration is not waited for.
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ExecContext(t.Context(), "SELECT pg_advisory_lock(?)", lock.DefaultLockID); err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := Migrate(short, db, "test", migrations(steps+1)); err != nil {
				t.Error(err)
			}
			if _, err := conn.ExecContext(t.Context(), "SELECT pg_advisory_unlock(?)", lock.DefaultLockID); err != nil {
				t.Error(err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
		// A set has versions of its own, and a failing migration leaves nothing.
		bad := fstest.MapFS{"00001_bad.sql": &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE half (n BIGINT);\nCREATE NONSENSE;\n")}}
		if err := Migrate(t.Context(), db, "other", bad); err == nil || !strings.HasPrefix(err.Error(), "migrate other: ") {
			t.Error(err)
		}
		if _, err := db.ExecContext(t.Context(), "SELECT * FROM half"); err == nil {
			t.Error("half a migration stayed")
		}
	})
}

// TestOutage freezes and crashes the server under a pool that is in use.
func TestOutage(t *testing.T) {
	s := databasetest.StartServer(t)
	db := open(t, s.Database(t))
	within := func(d time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var one int
		return db.QueryRowContext(ctx, "SELECT 1").Scan(&one)
	}
	s.Pause(t)
	for range 2 { // on the connection that is there, and on a new one
		if err := within(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("paused: %v", err)
		}
	}
	s.Resume(t)
	if err := within(time.Minute); err != nil {
		t.Errorf("resumed: %v", err)
	}
	s.Stop(t)
	if err := within(time.Minute); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopped: %v", err)
	}
	s.Start(t)
	if err := within(time.Minute); err != nil {
		t.Errorf("started again: %v", err)
	}
}
