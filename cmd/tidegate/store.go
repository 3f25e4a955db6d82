package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
	"tidegate/gateway/database"
)

// openTimeout bounds the first sign of life of a database.
const openTimeout = 15 * time.Second

// usesStore reports whether accounts need a store. In open mode nobody is asked for
// a key, so a gateway without a file touches no disk; one that names a store of its
// own gets it, for its administrators.
func (c *config) usesStore() bool {
	return c.Auth.Mode == account.Keys || c.Store.DSN != defaultConfig().Store.DSN
}

// openStore opens the store and brings its tables up to date.
func openStore(ctx context.Context, s storeConfig, log *slog.Logger) (*account.Store, func() error, error) {
	within, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	db, err := database.Open(within, s.DSN)
	if err != nil {
		return nil, nil, fmt.Errorf("store.dsn: %w", err)
	}
	if err := account.Migrate(ctx, db); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("store.dsn: %w", err), db.Close())
	}
	return account.NewStore(db, account.Hooks{Log: log}), db.Close, nil
}

// openAccounts opens the store where one is used, and makes the first key. A store
// that nobody configured and that cannot be had, as in a directory that is read-only,
// is no reason not to start while the file names keys.
func (d *daemon) openAccounts(ctx context.Context) error {
	c := &d.config
	if !c.usesStore() {
		return nil
	}
	store, closeStore, err := openStore(ctx, c.Store, d.log)
	if err != nil {
		if c.Store.DSN == defaultConfig().Store.DSN && len(c.Auth.Keys) > 0 {
			d.log.Warn("running without a store: only the keys of the configuration file are known; set store.dsn to keep others", "error", err)
			return nil
		}
		return err
	}
	d.accounts, d.close = store, closeStore
	if err = store.Sync(ctx); err == nil {
		d.firstKey, err = account.New(c.Auth, store).Bootstrap(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("store.dsn: %w", err), closeStore())
	}
	return nil
}

// storeConfig reads what commands need that work on the store alone: the sections
// store and auth of the file, or the defaults where there is no file. Keys that the
// file names and their secrets are of no concern.
func (p *process) storeConfig(file string) (config, error) {
	c := defaultConfig()
	named := file != ""
	if !named {
		file, named = p.env("TIDEGATE_CONFIG")
	}
	if file == "" {
		file = defaultFile
	}
	source, err := os.ReadFile(file)
	if err != nil && (named || !errors.Is(err, os.ErrNotExist)) {
		return c, usageError{err}
	}
	if err := decode(source, &c); err != nil {
		return c, &configError{[]string{explainYAML(file, source, err)}}
	}
	if err := overlay(reflect.ValueOf(&c).Elem(), "TIDEGATE", p.env); err != nil {
		return c, &configError{[]string{err.Error()}}
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

// withAccounts runs f on the accounts of a configuration's store. Only with create
// is a SQLite file made that is not there: in the wrong directory that would hide
// the mistake.
func (p *process) withAccounts(ctx context.Context, file string, create bool, f func(*account.Directory) error) error {
	c, err := p.storeConfig(file)
	if err != nil {
		return err
	}
	if path, ok := strings.CutPrefix(c.Store.DSN, "sqlite://"); ok {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if !create {
				return usageError{fmt.Errorf("there is no %s here: run this where the gateway runs, or give --config FILE with its store.dsn", path)}
			}
			fmt.Fprintf(p.stderr, "making a new store: %s\n", path)
		}
	}
	store, closeStore, err := openStore(ctx, c.Store, nil)
	if err != nil {
		return err
	}
	err = f(account.New(c.Auth, store))
	if errors.Is(err, account.ErrInvalid) || errors.Is(err, account.ErrNotFound) {
		err = usageError{err}
	}
	return errors.Join(err, closeStore())
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
