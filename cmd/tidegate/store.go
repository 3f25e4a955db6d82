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

// storeConfig says where what must outlive the process is kept.
type storeConfig struct {
	DSN        string `yaml:"dsn"`         // sqlite://FILE or postgres://USER:PASSWORD@HOST/NAME
	JournalDir string `yaml:"journal_dir"` // usage on its way to the database; of this gateway alone
}

func (c *storeConfig) validate() error {
	var faults []error
	if err := database.Validate(c.DSN); err != nil {
		faults = append(faults, fmt.Errorf("dsn: %w", err))
	}
	if c.JournalDir == "" {
		faults = append(faults, errors.New("journal_dir: is empty; expected a directory such as ./journal"))
	}
	return errors.Join(faults...)
}

// openTimeout is how long a database may take to give a sign of life.
const openTimeout = 10 * time.Second

// openLedger opens the ledger and its database. close closes both.
func openLedger(c storeConfig, log *slog.Logger, reg prometheus.Registerer) (l *ledger.Ledger, closeAll func() error, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
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
	if err := c.validate(); err != nil {
		return usageError{fmt.Errorf("store.%w", err)}
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
