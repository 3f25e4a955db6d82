package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"tidegate/gateway/account"
	"tidegate/gateway/alert"
	"tidegate/gateway/database"
	"tidegate/gateway/ledger"
)

// openTimeout bounds the first sign of life of a database.
const openTimeout = 15 * time.Second

// openStore opens the store and brings its tables up to date.
func openStore(ctx context.Context, s storeConfig, hooks account.Hooks) (*database.DB, *account.Store, error) {
	limited, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	db, err := database.Open(limited, s.DSN)
	if err != nil {
		return nil, nil, fmt.Errorf("store.dsn: %w", err)
	}
	if err := errors.Join(account.Migrate(ctx, db), ledger.Migrate(ctx, db), alert.Migrate(ctx, db)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("store.dsn: %w", err), db.Close())
	}
	return db, account.NewStore(db, hooks), nil
}

// openStore opens accounts and ledger over one database, and makes the first key.
func (d *daemon) openStore(ctx context.Context, registry prometheus.Registerer) error {
	c := &d.config
	db, accounts, err := openStore(ctx, c.Store, d.hooks())
	if err != nil {
		return err
	}
	d.close = func() error { return errors.Join(db.Close(), d.counters.close()) }
	if err = accounts.Sync(ctx); err == nil {
		d.firstKey, err = account.New(c.Auth, accounts).Bootstrap(ctx)
	}
	if errors.As(err, new(*account.Fault)) { // callers are served all the same
		d.log.Warn(err.Error())
		err = nil
	}
	if err != nil {
		return fmt.Errorf("store.dsn: %w", err)
	}
	usage, err := ledger.Open(ledger.Parts{Dir: c.Store.JournalDir, DB: db, Retention: c.Store.Retention, Log: d.log, Registry: registry})
	if err != nil {
		return fmt.Errorf("store.journal_dir: %w", err)
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_accounts_up", Help: "1 if the store of accounts answered when it was last asked.",
	}, func() float64 {
		if accounts.Healthy() {
			return 1
		}
		return 0
	}))
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_keys_expiring", Help: "Keys of the store that are good, have no successor and expire within auth.expiry_warn; those that were made to live no longer than that are left out.",
	}, func() float64 { return float64(accounts.Expiring().Count) }))
	d.accounts, d.ledger = accounts, usage
	if d.alerts, err = d.newAlerts(db, registry); err != nil {
		return errors.Join(err, usage.Close())
	}
	d.counters.override(accounts.Overrides())
	d.ladder.SetPins(pinned(accounts))
	d.close = func() error { return errors.Join(usage.Close(), db.Close(), d.counters.close()) }
	return nil
}

// overStore lets the environment have its say on the store.
func (p *process) overStore(c *storeConfig) error {
	if unread := overlay(reflect.ValueOf(c).Elem(), "TIDEGATE_STORE", p.env); len(unread) > 0 {
		return &configError{strings.Split(errors.Join(unread...).Error(), "\n")}
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

// storeConfig reads what commands need that work on the store alone: the sections
// store and auth of the file, or the defaults where there is no file. Keys that the
// file names and their secrets are of no concern.
func (p *process) storeConfig(file string) (config, error) {
	c := defaultConfig()
	_, named := p.env("TIDEGATE_CONFIG")
	named = named || file != ""
	file = p.configFile(file)
	source, err := os.ReadFile(file)
	if err != nil && (named || !errors.Is(err, os.ErrNotExist)) {
		return c, usageError{err}
	}
	if c, err = readSettings(file, source, p.env); err != nil {
		return c, err
	}
	c.Auth.Keys = nil
	var faults []error
	for _, e := range flatten(c.Auth.Validate()) {
		faults = append(faults, fmt.Errorf("auth.%w", e))
	}
	c.Store.validate(func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	})
	if len(faults) > 0 {
		return c, &configError{locate(file, source, errors.Join(faults...))}
	}
	return c, nil
}

// withAccounts runs f on the accounts of a configuration's store, as withStore does.
func (p *process) withAccounts(ctx context.Context, file string, create bool, f func(*account.Directory) error) error {
	c, err := p.storeConfig(file)
	if err != nil {
		return err
	}
	return p.withStore(ctx, &c, create, func(s *account.Store) error { return f(account.New(c.Auth, s)) })
}

// withStore runs f on the store of a configuration. Only with create is a SQLite
// file made that is not there: in the wrong directory that would hide the mistake.
func (p *process) withStore(ctx context.Context, c *config, create bool, f func(*account.Store) error) error {
	return p.withDatabase(ctx, c, create, func(db *database.DB) error { return f(account.NewStore(db, account.Hooks{})) })
}

// withDatabase runs f on the database of a configuration's store, as withStore does.
func (p *process) withDatabase(ctx context.Context, c *config, create bool, f func(*database.DB) error) error {
	if path, ok := sqliteFile(c.Store.DSN); ok {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if !create {
				return usageError{fmt.Errorf("there is no %s here: run this where the gateway runs, or give --config FILE with its store.dsn", path)}
			}
			fmt.Fprintf(p.stderr, "making a new store: %s\n", path)
		}
	}
	db, _, err := openStore(ctx, c.Store, account.Hooks{})
	if err != nil {
		return err
	}
	err = f(db)
	if errors.Is(err, account.ErrInvalid) || errors.Is(err, account.ErrNotFound) {
		err = usageError{err}
	}
	return errors.Join(err, db.Close())
}

func (p *process) migrateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the store's tables up to date",
		Long: "Makes or updates the tables of store.dsn. The gateway does so itself when it starts;\n" +
			"this is for those who want it to happen before. It may run while gateways do.",
		Example: "  tidegate migrate --config tidegate.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withAccounts(cmd.Context(), file, true, func(*account.Directory) error {
				fmt.Fprintln(p.stdout, "ok: the store is up to date")
				return nil
			})
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "configuration file with store.dsn (default $TIDEGATE_CONFIG, else tidegate.yaml if there is one)")
}
