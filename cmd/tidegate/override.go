package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tidegate/admission/limit"
	"tidegate/gateway/account"
)

func (p *process) overrideCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "override",
		Short: "Give one department, project, user or key other numbers of a limit or quota",
		Long: "Works on the store of the configuration directly; running gateways follow within two\n" +
			"seconds. What an override leaves out stays as the rule of the configuration says.",
		Example: "  tidegate override set user-rate --user ann --requests 200/1m\n  tidegate override list\n  tidegate override delete user-rate --user ann",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.overrideSetCommand(), p.overrideListCommand(), p.overrideDeleteCommand(), p.overrideImportCommand())
	return cmd
}

// subjectFlags are the flags of which one says whom an override is for.
type subjectFlags map[string]*string

func newSubjectFlags(cmd *cobra.Command) subjectFlags {
	s := subjectFlags{}
	for _, kind := range []string{"department", "project", "user", "key"} {
		s[kind] = cmd.Flags().String(kind, "", "the "+kind+" that it is for")
	}
	return s
}

// subject is the one that is given.
func (s subjectFlags) subject() (kind, name string, err error) {
	for k, value := range s {
		if *value == "" {
			continue
		}
		if kind != "" {
			return "", "", usageError{fmt.Errorf("give one of --department, --project, --user and --key, not two")}
		}
		kind, name = k, *value
	}
	if kind == "" {
		return "", "", usageError{fmt.Errorf("say whom it is for: one of --department, --project, --user and --key")}
	}
	return kind, name, nil
}

func oneRule(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("name one rule of limits or quotas of the configuration; got %d", len(args))}
	}
	return nil
}

// amounts are the numbers that an override can have, by their names.
func amounts(o *account.Override) map[string]*account.Amount {
	return map[string]*account.Amount{
		"requests": &o.Requests, "tokens": &o.Tokens, "input_tokens": &o.InputTokens, "output_tokens": &o.OutputTokens,
		"reasoning_tokens": &o.ReasoningTokens, "concurrency": &o.Concurrency, "burst": &o.Burst, "units": &o.Units,
	}
}

// overrideCheck returns what says why an override could not be used with the rules of
// a configuration.
func (c *config) overrideCheck() (func(*account.Override) error, error) {
	rules, err := c.limitSet()
	if err != nil {
		return nil, usageError{fmt.Errorf("limits and quotas of the configuration: %w (tidegate check says more)", err)}
	}
	return func(o *account.Override) error {
		if err := o.Validate(); err != nil {
			return err
		}
		_, err := rules.WithOverrides([]limit.Override{{Rule: o.Rule, Scope: o.Scope, Name: o.Name, Numbers: o.Numbers()}})
		return err
	}, nil
}

func (p *process) overrideSetCommand() *cobra.Command {
	var (
		file    string
		o       account.Override
		subject subjectFlags
	)
	cmd := &cobra.Command{
		Use:   "set RULE",
		Short: "Make or replace an override",
		Long: "Rates are written 50/1m, counts as numbers. An override that could not hold with the\n" +
			"limits and quotas of the configuration is refused.",
		Example: "  tidegate override set user-rate --user ann --requests 200/1m --burst 20\n  tidegate override set daily --project apollo --units 5000000",
		Args:    oneRule,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.Rule = args[0]
			if o.Scope, o.Name, err = subject.subject(); err != nil {
				return err
			}
			for name, amount := range amounts(&o) {
				text, _ := cmd.Flags().GetString(strings.ReplaceAll(name, "_", "-")) // every one is a flag of text
				*amount = account.Amount(text)
			}
			c, err := p.storeConfig(file)
			if err != nil {
				return err
			}
			check, err := c.overrideCheck()
			if err == nil {
				err = check(&o)
			}
			if err != nil {
				return usageError{err}
			}
			return p.withStore(cmd.Context(), &c, false, func(s *account.Store) error {
				if err := s.SetOverride(cmd.Context(), operator(), o); err != nil {
					return err
				}
				fmt.Fprintf(p.stderr, "set %s of %s %s: %s\n", cell(o.Rule), o.Scope, cell(o.Name), numbersText(&o))
				return nil
			})
		},
	}
	configFlag(cmd, &file)
	subject = newSubjectFlags(cmd)
	for name := range amounts(&o) {
		usage := "a rate such as 50/1m"
		switch name {
		case "concurrency", "burst", "units":
			usage = "a count"
		case "tokens":
			usage = "a rate such as 50000/1m, or of a quota a count"
		}
		cmd.Flags().String(strings.ReplaceAll(name, "_", "-"), "", usage)
	}
	return cmd
}

// numbersText writes the numbers of an override in the order of their names.
func numbersText(o *account.Override) string {
	var parts []string
	for name, number := range o.Numbers() {
		parts = append(parts, name+" "+number)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func (p *process) overrideListCommand() *cobra.Command {
	var (
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the overrides of the store",
		Example: "  tidegate override list\n  tidegate override list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				overrides, err := d.Store().AllOverrides(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return p.writeJSON(overrides)
				}
				lines := table{{"RULE", "OF", "NAME", "NUMBERS"}}
				for i := range overrides {
					lines = append(lines, []string{overrides[i].Rule, overrides[i].Scope, overrides[i].Name, numbersText(&overrides[i])})
				}
				return lines.write(p.stdout)
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (p *process) overrideDeleteCommand() *cobra.Command {
	var (
		file    string
		subject subjectFlags
	)
	cmd := &cobra.Command{
		Use:     "delete RULE",
		Short:   "Take an override away, so that the rule's own numbers hold again",
		Example: "  tidegate override delete user-rate --user ann",
		Args:    oneRule,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, err := subject.subject()
			if err != nil {
				return err
			}
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				err := d.Store().DeleteOverride(cmd.Context(), operator(), kind, name, args[0])
				if err == nil {
					fmt.Fprintf(p.stderr, "deleted %s of %s %s\n", cell(args[0]), kind, cell(name))
				}
				return err
			})
		},
	}
	configFlag(cmd, &file)
	subject = newSubjectFlags(cmd)
	return cmd
}

// writeJSON prints a value for programs.
func (p *process) writeJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
