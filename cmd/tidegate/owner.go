package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
)

// ownerCommand is the command of one kind of owners of keys.
func (p *process) ownerCommand(k account.Kind) *cobra.Command {
	kind, name := string(k), ownerExample(k)
	cmd := &cobra.Command{
		Use:   kind,
		Short: fmt.Sprintf("Make, list, change and delete %ss", kind),
		Long: "Works on the store of the configuration directly, whether gateways run or not; those\n" +
			"that do follow within two seconds. Every change is in the audit log.",
		Example: fmt.Sprintf("  tidegate %s list\n  tidegate %s set %s --disable", kind, kind, name),
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.ownerCreateCommand(k), p.ownerListCommand(k), p.ownerSetCommand(k), p.ownerDeleteCommand(k))
	if k == account.UserKind {
		cmd.AddCommand(p.userImportCommand())
	}
	return cmd
}

func ownerExample(k account.Kind) string {
	switch k {
	case account.UserKind:
		return "ann"
	case account.ProjectKind:
		return "apollo"
	}
	return "space"
}

// oneOwner is the check of a command that takes one name.
func oneOwner(k account.Kind) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("name one %s, as tidegate %s list shows them; got %d names", k, k, len(args))}
		}
		return nil
	}
}

// parentFlag is the flag that names what an owner belongs to.
func parentFlag(cmd *cobra.Command, k account.Kind, target *string, standard, usage string) {
	if parentKind := k.Parent(); parentKind != "" {
		cmd.Flags().StringVar(target, string(parentKind), standard, usage)
	}
}

func (p *process) ownerCreateCommand(k account.Kind) *cobra.Command {
	var file, parent string
	example := fmt.Sprintf("  tidegate %s create %s", k, ownerExample(k))
	if parentKind := k.Parent(); parentKind != "" {
		example += fmt.Sprintf(" --%s %s", parentKind, ownerExample(parentKind))
	}
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   fmt.Sprintf("Make a %s", k),
		Long:    fmt.Sprintf("The name of a deleted %s can come again: the new one stands under the name with a\nnumber, such as %s#2, so that usage and limits of the two are not mixed up.", k, ownerExample(k)),
		Example: example,
		Args:    oneOwner(k),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withAccounts(cmd.Context(), file, true, func(d *account.Directory) error {
				o, err := d.Store().CreateOwner(cmd.Context(), operator(), k, args[0], parent)
				if err == nil {
					fmt.Fprintf(p.stderr, "made %s %s\n", k, cell(o.Name))
				}
				return err
			})
		},
	}
	configFlag(cmd, &file)
	parentFlag(cmd, k, &parent, "default", fmt.Sprintf("%s that it is to belong to", k.Parent()))
	return cmd
}

func (p *process) ownerListCommand(k account.Kind) *cobra.Command {
	var (
		file, parent string
		asJSON       bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   fmt.Sprintf("List %ss", k),
		Example: fmt.Sprintf("  tidegate %s list\n  tidegate %s list --json", k, k),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				owners, err := allOwners(cmd.Context(), d.Store(), k, parent)
				if err != nil {
					return err
				}
				if asJSON {
					return p.writeJSON(owners)
				}
				return p.ownerTable(owners)
			})
		},
	}
	configFlag(cmd, &file)
	parentFlag(cmd, k, &parent, "", fmt.Sprintf("of this %s only", k.Parent()))
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func allOwners(ctx context.Context, s *account.Store, k account.Kind, parent string) ([]account.Owner, error) {
	owners := []account.Owner{}
	for page, more := (account.Page{}), true; more; page.Cursor = owners[len(owners)-1].Name {
		items, next, err := s.Owners(ctx, k, parent, page)
		if err != nil || len(items) == 0 {
			return owners, err
		}
		owners, more = append(owners, items...), next
	}
	return owners, nil
}

func (p *process) ownerTable(owners []account.Owner) error {
	lines := table{{"NAME", "STATUS", "PROJECT", "DEPARTMENT", "CREATED"}}
	for _, o := range owners {
		status := "active"
		if o.Disabled != nil {
			status = "disabled since " + o.Disabled.Format("2006-01-02 15:04Z")
		}
		lines = append(lines, []string{o.Name, status, o.Project, o.Department, o.Created.Format(time.DateOnly)})
	}
	return lines.write(p.stdout)
}

func (p *process) ownerSetCommand(k account.Kind) *cobra.Command {
	var (
		file, parent    string
		disable, enable bool
	)
	example := fmt.Sprintf("  tidegate %s set %s --disable\n  tidegate %s set %s --enable", k, ownerExample(k), k, ownerExample(k))
	if parentKind := k.Parent(); parentKind != "" {
		example += fmt.Sprintf("\n  tidegate %s set %s --%s other", k, ownerExample(k), parentKind)
	}
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: fmt.Sprintf("Move, disable or enable a %s", k),
		Long: "The keys of what is disabled are refused, and the requests that they have under way\n" +
			"end within five seconds. What was used before a move stays where it was used.",
		Example: example,
		Args:    oneOwner(k),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ch account.OwnerChange
			if cmd.Flags().Changed(string(k.Parent())) {
				ch.Parent = &parent
			}
			switch {
			case disable && enable:
				return usageError{errors.New("give either --disable or --enable")}
			case disable || enable:
				ch.Disabled = &disable
			}
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				o, err := d.Store().ChangeOwner(cmd.Context(), operator(), k, args[0], ch)
				if err != nil {
					return err
				}
				return p.ownerTable([]account.Owner{o})
			})
		},
	}
	configFlag(cmd, &file)
	parentFlag(cmd, k, &parent, "", fmt.Sprintf("%s that it moves to", k.Parent()))
	cmd.Flags().BoolVar(&disable, "disable", false, "refuse its keys until it is enabled")
	cmd.Flags().BoolVar(&enable, "enable", false, "take its keys again")
	return cmd
}

func (p *process) ownerDeleteCommand(k account.Kind) *cobra.Command {
	var file string
	long := fmt.Sprintf("Nobody may be in it: move or delete its %ss first.", map[account.Kind]account.Kind{account.ProjectKind: account.UserKind, account.DepartmentKind: account.ProjectKind}[k])
	if k == account.UserKind {
		long = "Its keys are revoked and its overrides go."
	}
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Short:   fmt.Sprintf("Delete a %s; what it used stays in the reports", k),
		Long:    long + " Usage keeps the name.",
		Example: fmt.Sprintf("  tidegate %s delete %s", k, ownerExample(k)),
		Args:    oneOwner(k),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				keys, err := d.Store().DeleteOwner(cmd.Context(), operator(), k, args[0])
				if err == nil {
					p.tellRevoked(keys)
					fmt.Fprintf(p.stderr, "deleted %s %s\n", k, cell(args[0]))
				}
				return err
			})
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// tellRevoked lists keys that were revoked.
func (p *process) tellRevoked(keys []account.Key) {
	for _, k := range keys {
		fmt.Fprintf(p.stderr, "revoked %s (id %s) of user %s\n", cell(k.Name), k.ID, cell(k.User))
	}
}
