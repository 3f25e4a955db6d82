package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/gateway/database"
	"tidegate/gateway/ledger"
)

// ledgerTimeout is how long the database may take to give a sign of life.
const ledgerTimeout = 10 * time.Second

// openLedger opens the ledger and its database. close closes both.
func openLedger(c storeConfig, log *slog.Logger, reg prometheus.Registerer) (l *ledger.Ledger, closeAll func() error, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), ledgerTimeout)
	defer cancel()
	db, err := database.Open(ctx, c.DSN)
	if err != nil {
		return nil, nil, fmt.Errorf("store.dsn: %w", err)
	}
	l, err = ledger.Open(ledger.Parts{Dir: c.JournalDir, DB: db, Log: log, Registry: reg})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("store.journal_dir: %w", err), db.Close())
	}
	return l, func() error { return errors.Join(l.Close(), db.Close()) }, nil
}

// storeOf is the store section of a configuration file, or the one that a gateway
// without a file has. The rest of the file may need secrets that only the gateway
// is given, so it is not looked at.
func (p *process) storeOf(file string) (storeConfig, error) {
	c := defaultConfig()
	named := file != ""
	if !named {
		file, named = p.env("TIDEGATE_CONFIG")
	}
	if file == "" {
		file, named = defaultFile, false
	}
	source, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist) && !named:
	case err != nil:
		return c.Store, usageError{err}
	default:
		if err := decode(source, &c); err != nil {
			return c.Store, &configError{[]string{explainYAML(file, source, err)}}
		}
	}
	return c.Store, p.overStore(&c.Store)
}

// overStore lets the environment have its say on the store.
func (p *process) overStore(c *storeConfig) error {
	if err := overlay(reflect.ValueOf(c).Elem(), "TIDEGATE_STORE", p.env); err != nil {
		return &configError{[]string{err.Error()}}
	}
	var faults []error
	c.validate(func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	})
	if len(faults) > 0 {
		return usageError{errors.Join(faults...)}
	}
	return nil
}

// storeHere is the store of a gateway that is told nothing: in the working
// directory, or, where that cannot be written to, in a new temporary one, which
// is said.
func (p *process) storeHere(c *storeConfig) error {
	if *c != defaultConfig().Store || writable(".") {
		return nil
	}
	dir, err := os.MkdirTemp("", "tidegate-")
	if err != nil {
		return err
	}
	c.DSN, c.JournalDir = "sqlite://"+filepath.Join(dir, "tidegate.db"), filepath.Join(dir, "journal")
	fmt.Fprintf(p.stderr, "tidegate: the working directory cannot be written to; usage is kept in %s\n", dir)
	return nil
}

func writable(dir string) bool {
	f, err := os.CreateTemp(dir, ".tidegate-")
	if err != nil {
		return false
	}
	f.Close()
	return os.Remove(f.Name()) == nil
}

// sqliteFile is the file of a SQLite database; false: it is another one.
func sqliteFile(dsn string) (string, bool) { return strings.CutPrefix(dsn, "sqlite://") }
