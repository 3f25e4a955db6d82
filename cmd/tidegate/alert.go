package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"tidegate/gateway/alert"
	"tidegate/gateway/alert/channel"
	"tidegate/gateway/database"
)

// newAlerts makes what watches quotas and tells of them.
func (d *daemon) newAlerts(db *database.DB, registry prometheus.Registerer) (*alert.Alerts, error) {
	channels, err := d.config.alertChannels()
	if err != nil {
		return nil, err
	}
	parts := alert.Parts{DB: db, Quotas: d.counters, ActiveSubjects: d.counters.everyone, Log: d.log, Registry: registry}
	if d.counters.redis != nil {
		parts.Claims = claims{d.counters.redis}
	}
	return alert.New(parts, channels), nil
}

// alertChannels are the channels of a configuration that is valid.
func (c *config) alertChannels() (out []alert.Channel, err error) {
	for i := range c.Alerts {
		ch, err := channel.New(c.Alerts[i])
		if err != nil {
			return nil, fmt.Errorf("alerts[%d].%w", i, err)
		}
		out = append(out, alert.NewChannel(ch))
	}
	return out, nil
}

// resolveAlerts reads the secrets of channels.
func (c *config) resolveAlerts(read func(path, variable, file string, target *string)) {
	for i := range c.Alerts {
		a := &c.Alerts[i]
		path := fmt.Sprintf("alerts[%d].", i)
		read(path+"url", a.URLEnv, a.URLFile, &a.URL)
		read(path+"secret", a.SecretEnv, a.SecretFile, &a.Secret)
		read(path+"password", a.PasswordEnv, a.PasswordFile, &a.Password)
	}
}

// claims is alert.Claims in Redis.
type claims struct{ client redis.UniversalClient }

var _ alert.Claims = claims{}

// claimScript takes a key that is free, or lets one that is ours last longer, never
// shorter.
const claimScript = `
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
if not owner or redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1`

// Claim implements alert.Claims.
func (c claims) Claim(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	mine, err := c.client.Eval(ctx, claimScript, []string{"tg:alert:" + key}, owner, ttl.Milliseconds()).Int()
	return mine == 1, err
}

func (p *process) alertCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "alert",
		Short:   "Try alert channels, and list alerts that are not sent",
		Example: "  tidegate alert test ops --config tidegate.yaml\n  tidegate alert list",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do: tidegate alert test CHANNEL, or tidegate alert list")}
		},
	}
	cmd.AddCommand(p.alertTestCommand(), p.alertListCommand())
	return cmd
}

func (p *process) alertTestCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "test CHANNEL",
		Short: "Send a test message to a channel now",
		Long: "Sends a message that says that it is a test to each target of a channel of the\n" +
			"configuration, and says for each whether the other side took it. It works without a\n" +
			"gateway; the secrets that the channel names must be in this environment.",
		Example: "  tidegate alert test ops --config tidegate.yaml",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return p.alertTest(cmd.Context(), file, args[0]) },
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default $TIDEGATE_CONFIG, else tidegate.yaml)")
	return cmd
}

// channelConfig reads the section alerts of a configuration, of which only one channel
// has to be right: the secrets of others may be elsewhere.
func (p *process) channelConfig(file, name string) (alert.Channel, error) {
	var noChannel alert.Channel
	file = p.configFile(file)
	source, err := os.ReadFile(file)
	if err != nil {
		return noChannel, usageError{err}
	}
	c, err := readSettings(file, source, p.env)
	if err != nil {
		return noChannel, err
	}
	var names []string
	for i := range c.Alerts {
		names = append(names, c.Alerts[i].Name)
		if c.Alerts[i].Name != name {
			continue
		}
		path := fmt.Sprintf("alerts[%d]", i)
		var faults []error
		read := reader(p.env, &faults)
		c.resolveAlerts(func(place, variable, file string, target *string) {
			if strings.HasPrefix(place, path+".") {
				read(place, variable, file, target)
			}
		})
		if len(faults) == 0 {
			for _, e := range flatten(c.Alerts[i].Validate()) {
				faults = append(faults, fmt.Errorf("%s.%w", path, e))
			}
		}
		if len(faults) > 0 {
			return noChannel, &configError{locate(file, source, errors.Join(faults...))}
		}
		ch, err := channel.New(c.Alerts[i])
		if err != nil {
			return noChannel, usageError{fmt.Errorf("%s.%w", path, err)}
		}
		return alert.NewChannel(ch), nil
	}
	if len(names) == 0 {
		return noChannel, usageError{fmt.Errorf("%s has no channel: add one to its section alerts", file)}
	}
	return noChannel, usageError{fmt.Errorf("%s has no channel %q; it has %s", file, name, strings.Join(names, ", "))}
}

func (p *process) alertTest(ctx context.Context, file, name string) error {
	c, err := p.channelConfig(file, name)
	if err != nil {
		return err
	}
	now := time.Now()
	message := channel.Alert{
		ID: "test-" + rand.Text(), Quota: "test", Scope: "user", Subject: "nobody", Unit: "tokens", Percent: 80, Severity: channel.Warning,
		Used: 80_000, Limit: 100_000, ResetsAt: now.Add(time.Hour).Truncate(time.Hour), Time: now, Test: true,
	}
	failed := 0
	for _, target := range c.Targets {
		receiver := c.Name
		if target != "" {
			receiver += " " + target
		}
		began := time.Now()
		if err := c.Send(ctx, target, message); err != nil {
			failed++
			fmt.Fprintf(p.stdout, "%s: failed: %s\n", receiver, note(err.Error()))
			continue
		}
		fmt.Fprintf(p.stdout, "%s: ok, taken in %v\n", receiver, time.Since(began).Round(time.Millisecond))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d test messages of %s were not taken", failed, len(c.Targets), c.Name)
	}
	return nil
}

func (p *process) alertListCommand() *cobra.Command {
	var (
		file          string
		every, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the alerts that are still to be sent or were given up",
		Long: "Reads the outbox in the store of the configuration: what is pending, with the error of\n" +
			"its last try, and what was given up after a day or dropped with its channel; with --all\n" +
			"also what was sent. The newest come first, a thousand at most.",
		Example: "  tidegate alert list\n  tidegate alert list --all --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.storeConfig(file)
			if err != nil {
				return err
			}
			return p.withDatabase(cmd.Context(), &c, false, func(db *database.DB) error {
				lines, err := alert.List(cmd.Context(), db, every)
				if err != nil {
					return err
				}
				return p.showAlerts(lines, asJSON)
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&every, "all", false, "also what was sent")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (p *process) showAlerts(lines []alert.Line, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(append([]alert.Line{}, lines...))
	}
	if len(lines) == 0 {
		fmt.Fprintln(p.stdout, "nothing is pending or given up")
		return nil
	}
	out := table{{"AT", "QUOTA", "WHO", "PERCENT", "CHANNEL", "STATE", "TRIES", "NEXT TRY", "LAST ERROR"}}
	for _, l := range lines {
		channel, next := l.Channel, ""
		if l.Recipient != "" {
			channel += " " + l.Recipient
		}
		if l.Next != nil {
			next = l.Next.Format(time.RFC3339)
		}
		out = append(out, []string{l.Time.Format(time.RFC3339), l.Quota, l.Subject, fmt.Sprint(l.Percent), channel, l.State, fmt.Sprint(l.Attempts), next, l.Error})
	}
	return out.write(p.stdout)
}
