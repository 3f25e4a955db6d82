package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
)

func (p *process) pinCommand() *cobra.Command {
	var (
		file   string
		n      account.NewPin
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "pin [MODEL LEVEL]",
		Short: "Hold a model at a level of degradation, or list what is held",
		Long: "Holds a model at a level, L0 (nothing degraded) to L4, whatever its pressure is, until\n" +
			"a time that --for or --until gives, at most 7 days away; a pin that the model has is\n" +
			"replaced. Without arguments it lists the pins in force. It works on the store of the\n" +
			"configuration directly, as tidegate key does; running gateways follow within two\n" +
			"seconds. The change is in the audit log.",
		Example: "  tidegate pin Qwen3-1.7B L2 --for 30m --why \"a fan is out\"\n" +
			"  tidegate pin Qwen3-1.7B L0 --until 2026-11-22T12:00:00Z\n" +
			"  tidegate pin",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && (cmd.Flags().Changed("for") || cmd.Flags().Changed("until") || cmd.Flags().Changed("why")):
				return usageError{errors.New("name a model and its level, such as tidegate pin Qwen3-1.7B L2 --for 30m")}
			case len(args) == 2 && asJSON:
				return usageError{errors.New("--json is for the list")}
			case len(args) != 0 && len(args) != 2:
				return usageError{fmt.Errorf("expected a model and its level, or nothing for the list; got %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.storeConfig(file)
			if err != nil {
				return err
			}
			return p.withStore(cmd.Context(), &c, false, func(s *account.Store) error {
				if len(args) == 0 {
					pins, err := s.StoredPins(cmd.Context())
					if err != nil {
						return err
					}
					return p.showPins(pins, asJSON)
				}
				configured, known := c.model(args[0])
				if !known && len(c.Models) > 0 {
					return usageError{fmt.Errorf("the configuration has no model %q", args[0])}
				}
				n.Model, n.Level = configured, args[1]
				pin, err := s.SetPin(cmd.Context(), operator(), n)
				if err == nil {
					fmt.Fprintf(p.stderr, "pinned %s to L%d until %s\n", pin.Model, pin.Level, pin.Expires.Format(time.RFC3339))
				}
				return err
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&n.Duration, "for", "", "how long, such as 30m")
	cmd.Flags().StringVar(&n.Expires, "until", "", "until when, such as 2026-11-22T12:00:00Z")
	cmd.Flags().StringVar(&n.Reason, "why", "", "the reason, for those who find the pin")
	cmd.Flags().BoolVar(&asJSON, "json", false, "list as JSON")
	return cmd
}

func (p *process) showPins(pins []account.Pin, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(pins)
	}
	if len(pins) == 0 {
		fmt.Fprintln(p.stdout, "nothing is pinned")
		return nil
	}
	lines := table{{"MODEL", "LEVEL", "UNTIL", "BY", "SINCE", "WHY"}}
	for _, pin := range pins {
		lines = append(lines, []string{pin.Model, fmt.Sprintf("L%d", pin.Level), pin.Expires.Format(time.RFC3339), pin.Actor, pin.Created.Format(time.RFC3339), pin.Reason})
	}
	return lines.write(p.stdout)
}

func (p *process) unpinCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "unpin MODEL",
		Short: "Let a model's level follow its pressure again",
		Long: "Lifts the pin of a model before its time, also of one that is not in the configuration\n" +
			"any more. Running gateways follow within two seconds.",
		Example: "  tidegate unpin Qwen3-1.7B",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("name one model, as tidegate pin lists them; got %d", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.storeConfig(file)
			if err != nil {
				return err
			}
			return p.withStore(cmd.Context(), &c, false, func(s *account.Store) error {
				configured, _ := c.model(args[0])
				pin, err := s.LiftPin(cmd.Context(), operator(), configured, args[0])
				if err == nil {
					fmt.Fprintf(p.stderr, "lifted the pin of %s to L%d\n", pin.Model, pin.Level)
				}
				return err
			})
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// model is the own name of the model that a name or an alias means; the name itself
// where the configuration does not know it, or names no models at all.
func (c *config) model(name string) (configured string, known bool) {
	for i := range c.Models {
		if m := &c.Models[i]; m.Name == name || slices.Contains(m.Aliases, name) {
			return m.Name, true
		}
	}
	return name, false
}
