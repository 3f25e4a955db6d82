package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"

	"tidegate/admission/limit"
	"tidegate/gateway"
)

func (p *process) checkCommand() *cobra.Command {
	var (
		file                 string
		schema, strict, live bool
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration file without starting anything",
		Long: "Reads the file as serve would, the environment included, with the certificates and\n" +
			"secrets that it names, and says what is wrong with line and column. What is probably\n" +
			"not meant is a warning; --strict fails on warnings too. With --live it also asks the\n" +
			"backends, Redis, the store, the journal and the sources of GPU readings, each for 10 s\n" +
			"at most, and fails (exit code 1) where one does not answer as it should; it costs no\n" +
			"tokens and makes nothing. With --schema it prints the JSON Schema of the file instead,\n" +
			"for editors.",
		Example: "  tidegate check --config tidegate.yaml\n  tidegate check --strict --live --config tidegate.yaml\n  tidegate check --schema > tidegate.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if schema {
				return p.printSchema()
			}
			return p.check(cmd.Context(), file, strict, live)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default $TIDEGATE_CONFIG, else tidegate.yaml)")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of the configuration file")
	cmd.Flags().BoolVar(&live, "live", false, "ask backends, Redis, store, journal and sources of GPU readings too")
	cmd.Flags().BoolVar(&strict, "strict", false, "fail on warnings too")
	return cmd
}

// check says what is wrong with a configuration, what may be, and what it sets up.
func (p *process) check(ctx context.Context, flag string, strict, live bool) error {
	load, err := p.loader(serveFlags{file: flag})
	if err != nil {
		return err
	}
	c, err := load()
	if err != nil {
		return err
	}
	file := p.configFile(flag)
	source, err := os.ReadFile(file)
	if err != nil {
		return usageError{err}
	}
	if faults := c.startFaults(); len(faults) > 0 {
		return &configError{locate(file, source, errors.Join(faults...))}
	}
	warnings := locate(file, source, errors.Join(c.warnings(p.names, time.Now())...))
	for _, w := range warnings {
		fmt.Fprintf(p.stderr, "warning: %s\n", w)
	}
	if strict && len(warnings) > 0 {
		return usageError{fmt.Errorf("%d warnings, and --strict fails on them", len(warnings))}
	}
	backends := 0
	for _, m := range c.Models {
		backends += len(m.Backends)
	}
	auth := "auth " + string(c.Auth.Mode)
	if len(c.Auth.Keys) > 0 { // those in the store are not counted: they are not the file's
		auth += fmt.Sprintf(" with %d keys in the file", len(c.Auth.Keys))
	}
	fmt.Fprintf(p.stdout, "ok: %d models, %d backends, %s, listening on %s\n", len(c.Models), backends, auth, c.Server.Listen)
	if live {
		return p.checkLive(ctx, &c)
	}
	return nil
}

// printSchema derives the schema from the types that the file is read into.
func (p *process) printSchema() error {
	r := jsonschema.Reflector{
		FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true, DoNotReference: true, Anonymous: true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[time.Duration]():
				return &jsonschema.Schema{Type: "string", Description: "a duration such as 10s, 1m30s or 30d", Pattern: `^([0-9.]+d)?([0-9.]+(ns|us|µs|ms|s|m|h))*$`}
			case reflect.TypeFor[limit.Rate]():
				return &jsonschema.Schema{Type: "string", Description: "so many in a window of 1s to 1h, such as 50/1m", Pattern: `^[0-9]+/[0-9]*(ns|us|µs|ms|s|m|h)[0-9a-z]*$`}
			case reflect.TypeFor[limit.Count]():
				return &jsonschema.Schema{Type: "integer", Minimum: "1"}
			case reflect.TypeFor[limit.Milli](), reflect.TypeFor[limit.Factor]():
				return &jsonschema.Schema{Type: "number", Minimum: "0", Description: "a decimal with at most three places, such as 0.25"}
			case reflect.TypeFor[gateway.Size]():
				return &jsonschema.Schema{Description: "a size such as 8MiB, or a number of bytes", Pattern: `^[0-9]+ *(B|KiB|MiB|GiB)?$`}
			}
			return nil
		},
	}
	s := r.Reflect(&config{})
	s.Title = "Tidegate configuration"
	out, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		_, err = fmt.Fprintln(p.stdout, string(out))
	}
	return err
}
