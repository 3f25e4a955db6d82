package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
)

func (p *process) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, list, change, rotate and revoke API keys",
		Long: "Works on the store of the configuration (store.dsn, by default tidegate.db in this\n" +
			"directory) directly, whether gateways run or not; those that do follow within two seconds.",
		Example: "  KEY=$(tidegate key create --user ann)\n  tidegate key list\n  tidegate key set ann --ttl 30d\n  tidegate key revoke ann",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.keyCreateCommand(), p.keyListCommand(), p.keySetCommand(), p.keyRotateCommand(), p.keyRevokeCommand())
	return cmd
}

// operator returns the name, in the audit log, of the person who runs a command.
func operator() string {
	if u, err := user.Current(); err == nil {
		return "cli:" + u.Username
	}
	return "cli"
}

func (p *process) keyCreateCommand() *cobra.Command {
	var (
		file  string
		n     account.NewKey
		level string
		tier  string
	)
	cmd := &cobra.Command{
		Use:   "create --user NAME",
		Short: "Make a key and print it, once",
		Long: "Prints the key, which is kept nowhere, to stdout, and all else to stderr. A user,\n" +
			"project or department that is not there yet is made. With --name, a name whose key is\n" +
			"expired or revoked can be used again by the same user.",
		Example: "  KEY=$(tidegate key create --user ann)\n" +
			"  tidegate key create --user ci --project apollo --department space --models Qwen3-0.6B --ips 10.0.0.0/8 --tier batch --ttl 30d\n" +
			"  tidegate key create --user root --admin",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n.Tier, n.MaxLevel = account.Tier(tier), level
			if err := checkListed(cmd, &n.Models, &n.IPs); err != nil {
				return err
			}
			c, err := p.storeConfig(file)
			if err == nil {
				err = checkKnown(n.Models, c.modelNames())
			}
			if err != nil {
				return err
			}
			if n.User == "" {
				return usageError{errors.New("the user whose key it is to be is missing: give --user NAME")}
			}
			// A store that is not there yet is made for a good key alone.
			if err := account.New(c.Auth, nil).CheckKey(n); err != nil {
				return usageError{err}
			}
			return p.withStore(cmd.Context(), &c, true, func(s *account.Store) error {
				m, err := account.New(c.Auth, s).CreateKey(cmd.Context(), operator(), n)
				if err != nil {
					return err
				}
				p.printMade(m)
				return nil
			})
		},
	}
	f := cmd.Flags()
	configFlag(cmd, &file)
	f.StringVar(&n.User, "user", "", "whose key it is (required)")
	f.StringVar(&n.Project, "project", "", "project of a user that is not there yet (default \"default\")")
	f.StringVar(&n.Department, "department", "", "department of a project that is not there yet (default \"default\")")
	f.StringVar(&n.Name, "name", "", "name of the key, for reports and limits (default the user's, with a number where that is taken)")
	f.StringVar(&n.TTL, "ttl", "", "how long it is good, such as 30d or 12h, or never (default auth.key_ttl)")
	f.StringSliceVar(&n.Models, "models", nil, "models it may use, separated by commas, or all (default all)")
	f.StringSliceVar(&n.IPs, "ips", nil, "addresses or networks it may be used from, separated by commas, or all (default all)")
	f.StringVar(&tier, "tier", "", "critical, standard or batch (default standard)")
	f.StringVar(&level, "max-level", "", "the furthest level of degradation it accepts, L0 to L4 (default L4)")
	f.BoolVar(&n.Admin, "admin", false, "it may administer the gateway")
	return cmd
}

// tell prints a new key, alone on stdout.
func (p *process) printMade(m account.CreatedKey) {
	for _, made := range m.Created {
		fmt.Fprintf(p.stderr, "made %s\n", cell(made))
	}
	fmt.Fprintf(p.stderr, "key %s (id %s) of user %s, project %s, department %s; %s; shown only now:\n",
		cell(m.Key.Name), m.Key.ID, cell(m.Key.User), cell(m.Key.Project), cell(m.Key.Department), expiryText(m.Key.Expires))
	fmt.Fprintln(p.stdout, m.Secret)
}

func expiryText(t *time.Time) string {
	if t == nil {
		return "never expires"
	}
	return "expires " + t.Format(time.RFC3339)
}

func (p *process) keyListCommand() *cobra.Command {
	var (
		file, owner string
		asJSON      bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List keys, never their text",
		Example: "  tidegate key list\n  tidegate key list --user ann --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				keys, err := allKeys(cmd.Context(), d.Store(), owner)
				if err != nil {
					return err
				}
				if asJSON {
					return p.writeJSON(keys)
				}
				return p.table(keys)
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&owner, "user", "", "of this user only")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func allKeys(ctx context.Context, s *account.Store, owner string) ([]account.Key, error) {
	rows := []account.Key{}
	for page, more := (account.Page{}), true; more; page.Cursor = rows[len(rows)-1].ID {
		keys, next, err := s.Keys(ctx, owner, page)
		if err != nil || len(keys) == 0 {
			return rows, err
		}
		rows, more = append(rows, keys...), next
	}
	return rows, nil
}

func (p *process) table(keys []account.Key) error {
	lines := table{{"NAME", "STATUS", "EXPIRES", "USER", "PROJECT", "DEPARTMENT", "TIER", "LEVEL", "ADMIN", "MODELS", "IPS", "ID"}}
	for _, k := range keys {
		expires, models, ips := "never", "all", "all"
		if k.Expires != nil {
			expires = k.Expires.Format("2006-01-02 15:04Z")
		}
		if len(k.Models) > 0 {
			models = strings.Join(k.Models, ",")
		}
		if len(k.IPs) > 0 {
			ips = strings.Join(k.IPs, ",")
		}
		lines = append(lines, []string{
			k.Name, string(k.Status), expires, k.User, k.Project, k.Department, string(k.Tier), fmt.Sprint(k.MaxLevel), fmt.Sprint(k.Admin), models, ips, k.ID,
		})
	}
	return lines.write(p.stdout)
}

func (p *process) keyRotateCommand() *cobra.Command {
	var (
		file string
		text string
	)
	cmd := &cobra.Command{
		Use:   "rotate NAME|ID",
		Short: "Replace a key by a new one of the same name and rights",
		Long: "Prints the new key, once, to stdout. The old one stays good for the overlap, or until\n" +
			"its own end if that is sooner. The new one lives as long as the old one was to.",
		Example: "  KEY=$(tidegate key rotate ann)\n  tidegate key rotate ann --overlap 0s",
		Args:    oneKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			overlap, err := account.ParseDuration(text)
			if err != nil {
				return usageError{fmt.Errorf("--overlap: %w", err)}
			}
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				m, err := d.RotateKey(cmd.Context(), operator(), args[0], overlap)
				if err != nil {
					return err
				}
				fmt.Fprintf(p.stderr, "the old key (id %s) %s\n", m.Old.ID, expiryText(m.Old.Expires))
				p.printMade(m)
				return nil
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&text, "overlap", "1d", "how long the old key stays good, such as 12h or 0s")
	return cmd
}

func oneKey(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("name one key by its name or id, as tidegate key list shows them; got %d", len(args))}
	}
	return nil
}

func (p *process) keyRevokeCommand() *cobra.Command {
	var (
		file, owner string
		secret      bool
	)
	cmd := &cobra.Command{
		Use:   "revoke NAME|ID",
		Short: "End keys at once: one, all of a user, or the one whose text was found",
		Long: "By name, all keys of that name end, also one that was rotated and is in its overlap;\n" +
			"by id, that one. With --user all keys of the user end. With --secret the text of the key\n" +
			"is read from stdin, or asked for without showing it, and never printed. Running gateways\n" +
			"refuse the keys within two seconds, and end the requests under way with them within five.",
		Example: "  tidegate key revoke ann\n  tidegate key revoke 01K0ABCDEFGHJKMNPQRSTVWXYZ\n" +
			"  tidegate key revoke --user ann\n  tidegate key revoke --secret < found.txt",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case secret && len(args) > 0:
				return usageError{errors.New("--secret takes the key from stdin, never from the command line, where others see it: revoke a key that stood there, for the shell keeps it")}
			case owner != "" && (secret || len(args) > 0):
				return usageError{errors.New("give one of a name or id, --user and --secret")}
			case owner != "" || secret:
				return nil
			}
			return oneKey(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var text string
			if secret {
				if text, err = p.readSecret("Paste the key, which is not shown: "); err != nil {
					return err
				}
			}
			return p.withAccounts(cmd.Context(), file, false, func(d *account.Directory) error {
				var keys []account.Key
				switch {
				case secret:
					keys, err = d.RevokeSecret(cmd.Context(), operator(), text)
				case owner != "":
					keys, err = d.Store().RevokeUser(cmd.Context(), operator(), owner)
				default:
					keys, err = d.Store().RevokeKey(cmd.Context(), operator(), args[0])
				}
				if p.tellRevoked(keys); err == nil && len(keys) == 0 {
					fmt.Fprintln(p.stderr, "no key of the user was good any more")
				}
				return err
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&owner, "user", "", "all keys of this user")
	cmd.Flags().BoolVar(&secret, "secret", false, "the key whose text comes from stdin")
	return cmd
}

func (p *process) keySetCommand() *cobra.Command {
	var (
		file, name, ttl, expires, tier, level string
		models, ips                           []string
	)
	cmd := &cobra.Command{
		Use:   "set NAME|ID",
		Short: "Change what a key may do, how long it is good, or its name",
		Long: "What is not given stays. A list replaces the list that the key has; all takes the\n" +
			"restriction away. Running gateways follow within two seconds; requests under way keep\n" +
			"what they began with. Under a new name, usage until now stays under the old one.",
		Example: "  tidegate key set ann --ttl 30d\n  tidegate key set ci --models Qwen3-0.6B,Qwen3-1.7B --ips 10.0.0.0/8\n" +
			"  tidegate key set ci --ips all --tier batch --max-level L2\n  tidegate key set ann --name ann-laptop",
		Args: oneKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkListed(cmd, &models, &ips); err != nil {
				return err
			}
			changed := func(flag string) bool { return cmd.Flags().Changed(flag) }
			var ch account.KeyChange
			for flag, set := range map[string]func(){
				"name": func() { ch.Name = &name }, "ttl": func() { ch.TTL = &ttl }, "expires-at": func() { ch.Expires = &expires },
				"models": func() { ch.Models = &models }, "ips": func() { ch.IPs = &ips },
				"tier": func() { ch.Tier = (*account.Tier)(&tier) }, "max-level": func() { ch.MaxLevel = &level },
			} {
				if changed(flag) {
					set()
				}
			}
			c, err := p.storeConfig(file)
			if err == nil {
				err = checkKnown(models, c.modelNames())
			}
			if err != nil {
				return err
			}
			return p.withStore(cmd.Context(), &c, false, func(s *account.Store) error {
				k, err := account.New(c.Auth, s).ChangeKey(cmd.Context(), operator(), args[0], ch)
				if err != nil {
					return err
				}
				return p.table([]account.Key{k})
			})
		},
	}
	f := cmd.Flags()
	configFlag(cmd, &file)
	f.StringVar(&name, "name", "", "its new name")
	f.StringVar(&ttl, "ttl", "", "how long it is good from now, such as 30d, or never")
	f.StringVar(&expires, "expires-at", "", "until when it is good, such as 2027-01-31T12:00:00Z")
	f.StringSliceVar(&models, "models", nil, "models it may use, separated by commas, or all")
	f.StringSliceVar(&ips, "ips", nil, "addresses or networks it may be used from, or all")
	f.StringVar(&tier, "tier", "", "critical, standard or batch")
	f.StringVar(&level, "max-level", "", "the furthest level of degradation it accepts, L0 to L4")
	return cmd
}

// checkListed reads the lists that the flags models and ips hold: all stands for no
// restriction. An empty one, perhaps of a variable that is not set, is refused: it would
// take the restriction away.
func checkListed(cmd *cobra.Command, models, ips *[]string) error {
	for name, list := range map[string]*[]string{"models": models, "ips": ips} {
		if !cmd.Flags().Changed(name) {
			continue
		}
		if len(*list) == 0 {
			return usageError{fmt.Errorf("--%s: is empty, perhaps because a variable is not set: list what is allowed, or say all for no restriction", name)}
		}
		if len(*list) == 1 && (*list)[0] == "all" {
			*list = []string{}
		}
	}
	return nil
}

// modelNames are the names and aliases of the models of the configuration; none: it
// does not name them.
func (c *config) modelNames() (names []string) {
	for i := range c.Models {
		names = append(append(names, c.Models[i].Name), c.Models[i].Aliases...)
	}
	return names
}

// checkKnown refuses models that the configuration does not have, where it names any.
func checkKnown(models, known []string) error {
	if len(known) == 0 {
		return nil
	}
	if err := account.CheckModels(models, known); err != nil {
		return usageError{err}
	}
	return nil
}
