package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
	"tidegate/gateway/backend"
)

const defaultFile = "tidegate.yaml"

// serveFlags are the flags of tidegate serve.
type serveFlags struct {
	file, listen, ops, log string
	backends               []string
}

func (p *process) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: "Runs the gateway with a configuration file, or in front of the vLLM servers that\n" +
			"--backend names, without any file: then callers need no key and it listens on the\n" +
			"loopback interface only. SIGHUP or a changed file reloads the configuration;\n" +
			"SIGTERM and Ctrl-C drain.",
		Example: "  tidegate serve --backend http://localhost:8000\n  tidegate serve --config tidegate.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.serve(cmd.Context(), f)
		},
	}
	cmd.Flags().StringVar(&f.file, "config", "", "configuration file (default $TIDEGATE_CONFIG, else tidegate.yaml)")
	cmd.Flags().StringArrayVar(&f.backends, "backend", nil, "URL of a vLLM server, instead of a file; may be given more than once")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address for callers, over server.listen")
	cmd.Flags().StringVar(&f.ops, "ops-listen", "", "address for operators, over server.ops_listen")
	cmd.Flags().StringVar(&f.log, "log", "", "json or text, over telemetry.log")
	return cmd
}

// serve loads what the flags name and runs it.
func (p *process) serve(ctx context.Context, f serveFlags) error {
	load, err := p.loader(f)
	if err != nil {
		return err
	}
	c, err := load()
	if err != nil {
		return err
	}
	if len(f.backends) > 0 {
		if err := p.storeHere(&c.Store); err != nil {
			return err
		}
	}
	d, err := newDaemon(ctx, c, p)
	if err != nil {
		return err
	}
	d.load = load
	if d.firstKey != "" {
		fmt.Fprintf(p.stdout, "The store has no administrator's key, so this one was made. It is shown only now:\n\n  %s\n\n", d.firstKey)
	}
	if len(f.backends) > 0 {
		return d.run(ctx, d.discover(f.backends))
	}
	return d.run(ctx, d.watch)
}

// loader returns what reads the configuration, now and again at each reload.
func (p *process) loader(f serveFlags) (func() (config, error), error) {
	override := func(c *config) {
		for _, o := range []struct {
			flag    string
			setting *string
		}{{f.listen, &c.Server.Listen}, {f.ops, &c.Server.OpsListen}, {f.log, &c.Telemetry.Log}} {
			if o.flag != "" {
				*o.setting = o.flag
			}
		}
	}
	if len(f.backends) > 0 {
		if f.file != "" {
			return nil, usageError{errors.New("--backend and --config exclude each other: put the backend into the file")}
		}
		return func() (config, error) { return p.withoutFile(f.backends, override) }, nil
	}
	file := p.configFile(f.file)
	return func() (config, error) {
		source, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) && f.file == "" {
			return config{}, usageError{fmt.Errorf("there is no %s here: give --config FILE, or --backend URL to run without a file", file)}
		}
		if err != nil {
			return config{}, usageError{err}
		}
		c, err := readConfig(file, source, p.env)
		override(&c)
		if faults := c.Server.listenFaults(); err == nil && len(faults) > 0 {
			return c, usageError{errors.Join(faults...)} // of the flags
		}
		return c, err
	}, nil
}

// configFile returns the configuration file that a flag, the environment or the default
// names.
func (p *process) configFile(flag string) string {
	named, _ := p.env("TIDEGATE_CONFIG")
	return cmp.Or(flag, named, defaultFile)
}

// withoutFile is the configuration of a gateway that is only told its backends.
func (p *process) withoutFile(urls []string, override func(*config)) (config, error) {
	c := defaultConfig()
	c.Server.Listen = "127.0.0.1:8080"
	c.Auth.Mode = account.Open
	c.Telemetry.Log = "text"
	override(&c)
	if faults := c.Server.listenFaults(); len(faults) > 0 {
		return c, usageError{errors.Join(faults...)}
	}
	if err := p.overStore(&c.Store); err != nil {
		return c, err
	}
	for _, url := range urls {
		b := backend.Config{URL: url}
		if err := b.Validate(); err != nil {
			return c, usageError{fmt.Errorf("--backend %w", err)}
		}
	}
	return c, nil
}
