package account

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Amount is a number of an Override: a rate such as 50/1m, or a count. In JSON a
// count may stand as a number.
type Amount string

// UnmarshalJSON reads a text or a number.
func (a *Amount) UnmarshalJSON(raw []byte) error {
	var n json.Number
	if !bytes.HasPrefix(raw, []byte(`"`)) && json.Unmarshal(raw, &n) == nil {
		*a = Amount(n) // empty for null
		return nil
	}
	return json.Unmarshal(raw, (*string)(a))
}

// Override replaces numbers of a rule or quota of the configuration for one
// department, project, user or key. What is empty stays as the rule says.
type Override struct {
	Rule            string `json:"rule"` // the name of the rule or quota
	Of              string `json:"of"`   // department | project | user | key
	Name            string `json:"name"` // which one; it need not exist yet
	Requests        Amount `json:"requests,omitempty"`
	Tokens          Amount `json:"tokens,omitempty"` // of a rate rule a rate, of a quota a count
	InputTokens     Amount `json:"input_tokens,omitempty"`
	OutputTokens    Amount `json:"output_tokens,omitempty"`
	ReasoningTokens Amount `json:"reasoning_tokens,omitempty"`
	Concurrency     Amount `json:"concurrency,omitempty"`
	Burst           Amount `json:"burst,omitempty"`
	Units           Amount `json:"units,omitempty"`
}

// Numbers are the amounts that are given, by the metric that they limit.
func (o *Override) Numbers() map[string]string {
	out := map[string]string{}
	for metric, amount := range map[string]Amount{
		"requests": o.Requests, "tokens": o.Tokens, "input_tokens": o.InputTokens, "output_tokens": o.OutputTokens,
		"reasoning_tokens": o.ReasoningTokens, "concurrency": o.Concurrency, "burst": o.Burst, "units": o.Units,
	} {
		if amount != "" {
			out[metric] = string(amount)
		}
	}
	return out
}

// maxAmount bounds an amount, in bytes.
const maxAmount = 32

// Validate says, as a Fault, why the store would refuse the override. Whether its
// numbers make sense, the rules know.
func (o *Override) Validate() error {
	switch o.Of {
	case "department", "project", "user", "key":
	default:
		return fault(ErrInvalid, "of", "of: must be department, project, user or key, not %.40q", o.Of)
	}
	if err := checkRef("name", o.Name); err != nil {
		return err
	}
	if err := checkName("rule", o.Rule); err != nil {
		return err
	}
	for field, amount := range o.Numbers() {
		if len(amount) > maxAmount {
			return fault(ErrInvalid, field, "%s: is longer than %d characters", field, maxAmount)
		}
	}
	return nil
}

// SetOverride makes or replaces the override of one rule for one subject. That it
// can be used with the rules is for the caller to check.
func (s *Store) SetOverride(ctx context.Context, who string, o Override) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return s.change(ctx, who, func(c *change) error {
		_, err := c.setOverride(o)
		return err
	})
}

// setOverride makes or replaces an override, and reports whether that changed anything.
func (c *change) setOverride(o Override) (changed bool, err error) {
	row, deleted, err := c.subject(o.Of, o.Name)
	switch {
	case err != nil:
		return false, err
	case row != nil:
		o.Name = row.Name
	case deleted != nil:
		return false, deletedFault(Kind(o.Of), o.Name, deleted)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return false, fmt.Errorf("write the override: %w", err)
	}
	before, err := c.override(o.Of, o.Name, o.Rule)
	if err != nil || before != nil && *before == o {
		return false, err
	}
	if err := c.exec(`INSERT INTO account_overrides (scope, name, rule, numbers) VALUES (?, ?, ?, ?)
		ON CONFLICT (scope, name, rule) DO UPDATE SET numbers = excluded.numbers`, o.Of, o.Name, o.Rule, string(text)); err != nil {
		return false, err
	}
	return true, c.note("override.set", o.subject(), before, o)
}

// DeleteOverride takes an override away, so that the rule's own numbers hold again.
func (s *Store) DeleteOverride(ctx context.Context, who, of, name, rule string) error {
	return s.change(ctx, who, func(c *change) error {
		row, _, err := c.subject(of, name)
		if err != nil {
			return err
		}
		if row != nil {
			name = row.Name
		}
		return c.deleteOverride(of, name, rule)
	})
}

func (c *change) deleteOverride(of, name, rule string) error {
	before, err := c.override(of, name, rule)
	if err != nil {
		return err
	}
	if before == nil {
		return fault(ErrNotFound, "rule", "there is no override of %q for the %s %q", rule, of, name)
	}
	if err := c.exec("DELETE FROM account_overrides WHERE scope = ? AND name = ? AND rule = ?", of, name, rule); err != nil {
		return err
	}
	return c.note("override.delete", before.subject(), before, nil)
}

// subject finds the subject of an override as owner does: its numbers hold for what is
// counted by the name of its row. It need not be there.
func (c *change) subject(of, name string) (live, deleted *ownerRow, err error) {
	if !slices.Contains(Kinds(), Kind(of)) {
		return nil, nil, nil
	}
	return c.owner(Kind(of), name)
}

func (o *Override) subject() string { return o.Of + " " + o.Name + " " + o.Rule }

func (c *change) override(of, name, rule string) (*Override, error) {
	text, ok, err := c.one("SELECT numbers FROM account_overrides WHERE scope = ? AND name = ? AND rule = ?", of, name, rule)
	if err != nil || !ok {
		return nil, err
	}
	var o Override
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return nil, fmt.Errorf("the store's override of %s for the %s %s: %w", rule, of, name, err)
	}
	return &o, nil
}

// Path names the override among all: OF/NAME/RULE.
func (o *Override) Path() string { return o.Of + "/" + o.Name + "/" + o.Rule }

// StoredOverrides lists the overrides of the database by subject and rule; the
// page begins after a Path.
func (s *Store) StoredOverrides(ctx context.Context, p Page) (items []Override, more bool, err error) {
	after := strings.Split(p.After, "/")
	if p.After == "" {
		after = make([]string, 3)
	}
	if len(after) != 3 {
		return nil, false, fault(ErrInvalid, "after", "after must be OF/NAME/RULE of an override")
	}
	var bad error
	items, more, err = page(ctx, s, p, func(text string) (o Override) {
		bad = errors.Join(bad, json.Unmarshal([]byte(text), &o))
		return o
	}, "SELECT numbers FROM account_overrides WHERE (scope, name, rule) > (?, ?, ?) ORDER BY scope, name, rule", after[0], after[1], after[2])
	if bad != nil {
		return nil, false, fmt.Errorf("the store's overrides: %w", bad)
	}
	return items, more, err
}

// AllOverrides reads every page of StoredOverrides.
func (s *Store) AllOverrides(ctx context.Context) (all []Override, err error) {
	all = []Override{}
	for p, more := (Page{}), true; more; p.After = all[len(all)-1].Path() {
		var items []Override
		if items, more, err = s.StoredOverrides(ctx, p); err != nil || len(items) == 0 {
			return all, err
		}
		all = append(all, items...)
	}
	return all, nil
}

// Overrides are those that this replica has taken over, in the order of subject
// and rule; the caller must not change them. Hooks.Applied says when they may differ.
func (s *Store) Overrides() []Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overrides
}
