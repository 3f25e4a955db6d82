package account

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Amount is a number of an Override: a rate such as 50/1m, or a count. In JSON a
// count may stand as a number.
type Amount string

// UnmarshalJSON reads a text or a number.
func (a *Amount) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		err := json.Unmarshal(raw, &text)
		*a = Amount(text)
		return err
	}
	*a = Amount(bytes.TrimSpace(raw))
	if *a == "null" {
		*a = ""
	}
	return nil
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

// rate and count are the two forms of an Amount: 1 to 10^12, in 1 s to 1 h.
const (
	rateForm  = `[1-9][0-9]{0,11}/[0-9]{0,4}[smh]`
	countForm = `[1-9][0-9]{0,11}`
)

func (o *Override) check() error {
	switch o.Of {
	case "department", "project", "user", "key":
	default:
		return fault(ErrInvalid, "of", "of: must be department, project, user or key, not %q", o.Of)
	}
	if err := checkName("name", o.Name); err != nil {
		return err
	}
	if err := checkName("rule", o.Rule); err != nil {
		return err
	}
	given := false
	for _, f := range []struct {
		field  string
		amount Amount
		form   string
		say    string
	}{
		{"requests", o.Requests, rateForm, "a rate such as 50/1m"},
		{"tokens", o.Tokens, rateForm + "|" + countForm, "a rate such as 100000/1m, or for a quota a count"},
		{"input_tokens", o.InputTokens, rateForm, "a rate such as 100000/1m"},
		{"output_tokens", o.OutputTokens, rateForm, "a rate such as 100000/1m"},
		{"reasoning_tokens", o.ReasoningTokens, rateForm, "a rate such as 100000/1m"},
		{"concurrency", o.Concurrency, countForm, "a count such as 8"},
		{"burst", o.Burst, countForm, "a count such as 8"},
		{"units", o.Units, countForm, "a count such as 1000000"},
	} {
		if f.amount == "" {
			continue
		}
		given = true
		if ok, err := regexp.MatchString("^(?:"+f.form+")$", string(f.amount)); err != nil || !ok || !window(f.amount) {
			return fault(ErrInvalid, f.field, "%s: must be %s, not %.40q", f.field, f.say, string(f.amount))
		}
	}
	if !given {
		return fault(ErrInvalid, "requests", "an override must give at least one number, such as requests: 50/1m")
	}
	return nil
}

// window reports whether a rate's window, if it has one, is from 1 s to 1 h.
func window(a Amount) bool {
	_, text, ok := strings.Cut(string(a), "/")
	if !ok {
		return true
	}
	n := 1
	if digits := text[:len(text)-1]; digits != "" {
		n, _ = strconv.Atoi(digits) // the form has been checked
	}
	seconds := n * map[byte]int{'s': 1, 'm': 60, 'h': 3600}[text[len(text)-1]]
	return seconds >= 1 && seconds <= 3600
}

// SetOverride makes or replaces the override of one rule for one subject.
func (s *Store) SetOverride(ctx context.Context, who string, o Override) error {
	if err := o.check(); err != nil {
		return err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("write the override: %w", err)
	}
	return s.change(ctx, who, func(c *change) error {
		before, err := c.override(o.Of, o.Name, o.Rule)
		if err != nil {
			return err
		}
		if err := c.exec(`INSERT INTO account_overrides (scope, name, rule, numbers) VALUES (?, ?, ?, ?)
			ON CONFLICT (scope, name, rule) DO UPDATE SET numbers = excluded.numbers`, o.Of, o.Name, o.Rule, string(text)); err != nil {
			return err
		}
		return c.note("override.set", o.subject(), before, o)
	})
}

// DeleteOverride takes an override away, so that the rule's own numbers hold again.
func (s *Store) DeleteOverride(ctx context.Context, who, of, name, rule string) error {
	return s.change(ctx, who, func(c *change) error {
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
	})
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

// StoredOverrides reads all overrides, by subject and rule, from the database.
func (s *Store) StoredOverrides(ctx context.Context) ([]Override, error) {
	var texts []string
	if err := s.db.NewRaw("SELECT numbers FROM account_overrides ORDER BY scope, name, rule").Scan(ctx, &texts); err != nil {
		return nil, fmt.Errorf("read the overrides: %w", err)
	}
	out := make([]Override, len(texts)) // not nil, so that it is a list in JSON
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &out[i]); err != nil {
			return nil, fmt.Errorf("the store's overrides: %w", err)
		}
	}
	return out, nil
}

// Overrides are those that this replica has taken over, in the order of subject
// and rule; the caller must not change them. Hooks.Applied says when they may differ.
func (s *Store) Overrides() []Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overrides
}
