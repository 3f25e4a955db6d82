// Package database opens the store that accounts and usage records live in: a SQLite
// file, which needs nothing else, or a PostgreSQL server, which several gateways can
// share. One code serves both, through bun. Statements and migrations keep to what the
// two have in common (TEXT, BIGINT, INTEGER, BOOLEAN).
//
// # SQLite
//
// The file is in WAL mode: readers never wait. Transactions take the write lock when they
// begin (BEGIN IMMEDIATE), so there is one writer. Others wait for it, up to five seconds,
// instead of failing in the middle. Commits are synchronous=FULL. With NORMAL a power cut
// may undo the last commits: a revoked key would work again, and usage whose journal is
// deleted would be lost.
//
// # PostgreSQL
//
// The server keeps no prepared statements, so a pooler such as pgbouncer may stand in
// between. Migrations take a lock of the session, but only if there is something to
// migrate. Behind a pooler that assigns connections per transaction, run tidegate migrate
// directly on the server first. Every call ends with its context, even if the server
// hangs.
package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	_ "modernc.org/sqlite" // registers the driver
)

// The connection pools. A gateway queries little: its keys are in memory, and its usage
// goes out in batches.
const (
	sqliteConns = 8
	pgConns     = 16
	pgIdle      = 5 * time.Minute
	pgLifetime  = 30 * time.Minute
	pgConnect   = 5 * time.Second
)

const sqliteScheme = "sqlite://"

// Validate returns an error that names the fault of a DSN, without its password. It opens
// nothing.
func Validate(dsn string) error {
	if path, ok := strings.CutPrefix(dsn, sqliteScheme); ok {
		if path == "" || path == ":memory:" || strings.ContainsAny(path, "?#") || strings.HasSuffix(path, "/") {
			return errors.New("must name a file, such as sqlite://tidegate.db or sqlite:///var/lib/tidegate/tidegate.db")
		}
		return nil
	}
	_, err := postgres(dsn)
	return err
}

// DB is an open database. Any number of goroutines may use it.
type DB = bun.DB

// Open opens the database of a DSN, sqlite://PATH or postgres://USER:PASSWORD@HOST/NAME,
// and checks within ctx that it answers. It creates a missing SQLite file, readable by its
// owner alone. Errors never contain the password. The caller closes the database.
func Open(ctx context.Context, dsn string) (*bun.DB, error) {
	if err := Validate(dsn); err != nil {
		return nil, err
	}
	var db *bun.DB
	if path, ok := strings.CutPrefix(dsn, sqliteScheme); ok {
		if err := createFile(path); err != nil {
			return nil, err
		}
		pool, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_txlock=immediate")
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		pool.SetMaxOpenConns(sqliteConns)
		pool.SetMaxIdleConns(sqliteConns)
		db = bun.NewDB(pool, sqlitedialect.New())
	} else {
		config, err := postgres(dsn)
		if err != nil {
			return nil, err
		}
		pool := stdlib.OpenDB(*config)
		pool.SetMaxOpenConns(pgConns)
		pool.SetMaxIdleConns(pgConns)
		pool.SetConnMaxIdleTime(pgIdle)
		pool.SetConnMaxLifetime(pgLifetime)
		db = bun.NewDB(pool, pgdialect.New())
	}
	var one int
	if err := db.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return nil, errors.Join(fmt.Errorf("reach %s: %w", Name(dsn), err), db.Close())
	}
	return db, nil
}

// Name returns a valid DSN without user and password, fit for logs and pages.
func Name(dsn string) string {
	if u, err := url.Parse(dsn); err == nil && u.Host != "" && !strings.HasPrefix(dsn, sqliteScheme) {
		return u.Scheme + "://" + u.Host + u.Path
	}
	return dsn
}

// createFile creates the file if it is missing. It must not open an existing one: closing
// it would drop the locks that SQLite holds on it in this process.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot create %s: the directory %s is not there", path, filepath.Dir(path))
	case err != nil:
		return fmt.Errorf("cannot create %s, is its directory writable?: %w", path, err)
	}
	return f.Close()
}

// postgres parses the DSN of a PostgreSQL server. Errors of the parsers may quote pieces
// of the password, so their text is passed on only where the DSN has none.
func postgres(dsn string) (*pgx.ConnConfig, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return nil, errors.New("must begin with sqlite:// or postgres://")
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, errors.New("is no URL; expected postgres://USER:PASSWORD@HOST:5432/NAME, with @ : / ? # in the password written as %40 %3A %2F %3F %23")
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		text := "is not understood; expected postgres://USER:PASSWORD@HOST:5432/NAME?sslmode=require"
		if inner := errors.Unwrap(err); inner != nil && u.User == nil && !u.Query().Has("password") {
			text += ": " + inner.Error()
		}
		return nil, errors.New(text)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = pgConnect
	}
	if config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	return config, nil
}

// lockTries is the number of times, a second apart, that a gateway asks for the lock while
// another one migrates.
const lockTries = 300

// Migrate brings the tables of one set up to date. A set is a short word such as account,
// and the table SET_migrations records its versions. files holds SQL migrations of goose
// at its top, and each runs in a transaction. Gateways that start at once may all call
// Migrate: each migration is applied once.
func Migrate(ctx context.Context, db *bun.DB, set string, files fs.FS) error {
	kind, table := goose.DialectSQLite3, set+"_migrations"
	options := []goose.ProviderOption{goose.WithTableName(table), goose.WithDisableGlobalRegistry(true)}
	pg := db.Dialect().Name() == dialect.PG
	if pg {
		kind = goose.DialectPostgres
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, lockTries))
		if err != nil {
			return fmt.Errorf("migrate %s: %w", set, err)
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	// The provider is not closed: that would close the database.
	p, err := goose.NewProvider(kind, db.DB, files, options...)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", set, err)
	}
	if pg {
		if _, err = p.Up(ctx); err != nil {
			return fmt.Errorf("migrate %s: %w", set, err)
		}
		return nil
	}
	if err := migrateSQLite(ctx, db, p, table); err != nil {
		return fmt.Errorf("migrate %s: %w", set, err)
	}
	return nil
}

// migrateSQLite migrates without a lock across processes, which SQLite does not have. Of
// two processes that run the same migration the second fails as a whole, since the table
// holds a version only once. It then looks again at what is left to do.
func migrateSQLite(ctx context.Context, db *bun.DB, p *goose.Provider, table string) error {
	version, err := p.GetDBVersion(ctx) // creates the table
	if err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, "CREATE UNIQUE INDEX IF NOT EXISTS "+table+"_once ON "+table+" (version_id)"); err != nil {
		return err
	}
	for {
		if _, err = p.Up(ctx); err == nil {
			return nil
		}
		current, versionErr := p.GetDBVersion(ctx)
		if versionErr != nil || current <= version {
			return err
		}
		version = current
	}
}
