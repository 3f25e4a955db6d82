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
	Scope           string `json:"of"`   // department | project | user | key
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
	switch o.Scope {
	case "department", "project", "user", "key":
	default:
		return newFault(ErrInvalid, "of", "of: must be department, project, user or key, not %.40q", o.Scope)
	}
	if err := checkRef("name", o.Name); err != nil {
		return err
	}
	if err := checkName("rule", o.Rule); err != nil {
		return err
	}
	for field, amount := range o.Numbers() {
		if len(amount) > maxAmount {
			return newFault(ErrInvalid, field, "%s: is longer than %d characters", field, maxAmount)
		}
	}
	return nil
}

// SetOverride makes or replaces the override of one rule for one subject. That it
// can be used with the rules is for the caller to check.
func (s *Store) SetOverride(ctx context.Context, actor string, o Override) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return s.change(ctx, actor, func(c *change) error {
		_, err := c.setOverride(o)
		return err
	})
}

// setOverride makes or replaces an override, and reports whether that changed anything.
func (c *change) setOverride(o Override) (changed bool, err error) {
	row, deleted, err := c.subject(o.Scope, o.Name)
	switch {
	case err != nil:
		return false, err
	case row != nil:
		o.Name = row.Name
	case deleted != nil:
		return false, deletedFault(Kind(o.Scope), o.Name, deleted)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return false, fmt.Errorf("write the override: %w", err)
	}
	old, err := c.override(o.Scope, o.Name, o.Rule)
	if err != nil || old != nil && *old == o {
		return false, err
	}
	if err := c.exec(`INSERT INTO account_overrides (scope, name, rule, numbers) VALUES (?, ?, ?, ?)
		ON CONFLICT (scope, name, rule) DO UPDATE SET numbers = excluded.numbers`, o.Scope, o.Name, o.Rule, string(text)); err != nil {
		return false, err
	}
	return true, c.writeAudit("override.set", o.subject(), old, o)
}

// DeleteOverride takes an override away, so that the rule's own numbers hold again.
func (s *Store) DeleteOverride(ctx context.Context, actor, scope, name, rule string) error {
	return s.change(ctx, actor, func(c *change) error {
		row, _, err := c.subject(scope, name)
		if err != nil {
			return err
		}
		if row != nil {
			name = row.Name
		}
		return c.deleteOverride(scope, name, rule)
	})
}

func (c *change) deleteOverride(scope, name, rule string) error {
	old, err := c.override(scope, name, rule)
	if err != nil {
		return err
	}
	if old == nil {
		return newFault(ErrNotFound, "rule", "there is no override of %q for the %s %q", rule, scope, name)
	}
	if err := c.exec("DELETE FROM account_overrides WHERE scope = ? AND name = ? AND rule = ?", scope, name, rule); err != nil {
		return err
	}
	return c.writeAudit("override.delete", old.subject(), old, nil)
}

// subject finds the subject of an override as owner does: its numbers hold for what is
// counted by the name of its row. It need not be there.
func (c *change) subject(scope, name string) (live, deleted *ownerRow, err error) {
	if !slices.Contains(Kinds(), Kind(scope)) {
		return nil, nil, nil
	}
	return c.owner(Kind(scope), name)
}

func (o *Override) subject() string { return o.Scope + " " + o.Name + " " + o.Rule }

func (c *change) override(scope, name, rule string) (*Override, error) {
	text, ok, err := c.queryText("SELECT numbers FROM account_overrides WHERE scope = ? AND name = ? AND rule = ?", scope, name, rule)
	if err != nil || !ok {
		return nil, err
	}
	var o Override
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return nil, fmt.Errorf("the store's override of %s for the %s %s: %w", rule, scope, name, err)
	}
	return &o, nil
}

// Path names the override among all: OF/NAME/RULE.
func (o *Override) Path() string { return o.Scope + "/" + o.Name + "/" + o.Rule }

// StoredOverrides lists the overrides of the database by subject and rule; the
// page begins after a Path.
func (s *Store) StoredOverrides(ctx context.Context, p Page) (items []Override, hasMore bool, err error) {
	cursor := strings.Split(p.Cursor, "/")
	if p.Cursor == "" {
		cursor = make([]string, 3)
	}
	if len(cursor) != 3 {
		return nil, false, newFault(ErrInvalid, "after", "after must be OF/NAME/RULE of an override")
	}
	var bad error
	items, hasMore, err = page(ctx, s, p, func(text string) (o Override) {
		bad = errors.Join(bad, json.Unmarshal([]byte(text), &o))
		return o
	}, "SELECT numbers FROM account_overrides WHERE (scope, name, rule) > (?, ?, ?) ORDER BY scope, name, rule", cursor[0], cursor[1], cursor[2])
	if bad != nil {
		return nil, false, fmt.Errorf("the store's overrides: %w", bad)
	}
	return items, hasMore, err
}

// AllOverrides reads every page of StoredOverrides.
func (s *Store) AllOverrides(ctx context.Context) (overrides []Override, err error) {
	overrides = []Override{}
	for p, hasMore := (Page{}), true; hasMore; p.Cursor = overrides[len(overrides)-1].Path() {
		var items []Override
		if items, hasMore, err = s.StoredOverrides(ctx, p); err != nil || len(items) == 0 {
			return overrides, err
		}
		overrides = append(overrides, items...)
	}
	return overrides, nil
}

// Overrides are those that this replica has taken over, in the order of subject
// and rule; the caller must not change them. Hooks.Applied says when they may differ.
func (s *Store) Overrides() []Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overrides
}
