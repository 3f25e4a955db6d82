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

// Amount is a number of an Override: a rate such as 50/1m, or a count. JSON may hold a
// count as a number.
type Amount string

// UnmarshalJSON accepts a string or a number.
func (a *Amount) UnmarshalJSON(raw []byte) error {
	var n json.Number
	if !bytes.HasPrefix(raw, []byte(`"`)) && json.Unmarshal(raw, &n) == nil {
		*a = Amount(n) // empty for null
		return nil
	}
	return json.Unmarshal(raw, (*string)(a))
}

// Override replaces numbers of a rule or quota for one department, project, user or key.
// Empty numbers stay as the rule sets them.
type Override struct {
	Rule            string `json:"rule"` // name of the rule or quota
	Scope           string `json:"of"`   // department | project | user | key
	Name            string `json:"name"` // name of the subject, which need not exist yet
	Requests        Amount `json:"requests,omitempty"`
	Tokens          Amount `json:"tokens,omitempty"` // rate for a rate rule, count for a quota
	InputTokens     Amount `json:"input_tokens,omitempty"`
	OutputTokens    Amount `json:"output_tokens,omitempty"`
	ReasoningTokens Amount `json:"reasoning_tokens,omitempty"`
	Concurrency     Amount `json:"concurrency,omitempty"`
	Burst           Amount `json:"burst,omitempty"`
	Units           Amount `json:"units,omitempty"`
}

// Numbers returns the amounts that are set, by the metric that they limit.
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

// maxAmount is the longest amount, in bytes.
const maxAmount = 32

// Validate returns the Fault for which the store rejects the override. It does not check
// the numbers, which the rules know.
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

// SetOverride creates or replaces the override of one rule for one subject. The caller
// checks that it fits the rules.
func (s *Store) SetOverride(ctx context.Context, actor string, o Override) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return s.change(ctx, actor, func(c *change) error {
		_, err := c.setOverride(o)
		return err
	})
}

// setOverride creates or replaces an override, and reports whether that changed anything.
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

// DeleteOverride deletes an override, so that the rule's own numbers apply again.
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

// deleteOverride deletes the override of a rule for a stored subject.
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

// subject finds the subject of an override as owner does: usage is counted by the name of
// its row. A missing subject is no error.
func (c *change) subject(scope, name string) (live, deleted *ownerRow, err error) {
	if !slices.Contains(Kinds(), Kind(scope)) {
		return nil, nil, nil
	}
	return c.owner(Kind(scope), name)
}

// subject returns scope, name and rule for the audit log.
func (o *Override) subject() string { return o.Scope + " " + o.Name + " " + o.Rule }

// override returns the stored override, or nil if there is none.
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

// Path returns the unique path of the override: SCOPE/NAME/RULE.
func (o *Override) Path() string { return o.Scope + "/" + o.Name + "/" + o.Rule }

// StoredOverrides lists the overrides of the database by subject and rule. The page's
// cursor is a Path.
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

// AllOverrides reads all pages of StoredOverrides.
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

// Overrides returns the overrides that this replica applies, ordered by subject and rule.
// The caller must not change them. Hooks.Applied reports possible changes.
func (s *Store) Overrides() []Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overrides
}
