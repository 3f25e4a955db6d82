package limit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Override gives one department, project, user or key other numbers of a rule or quota, at all
// hours: the rule's schedules do not apply to it. Of several that meet a request, that of the
// smallest owner applies.
type Override struct {
	Rule    string
	Scope   string            // department | project | user | key
	Name    string            // name of the department, project, user or key
	Numbers map[string]string // limits by metric, written as in a rule: requests: 50/1m, concurrency: 8; units or tokens of a quota
}

// owner identifies the owner of an override.
type owner struct {
	kind subject
	name string
}

// owners returns the tenants of a request, the smallest first.
func (s *Subjects) owners() [4]owner {
	return [...]owner{{byKey, s.Key}, {byUser, s.User}, {byProject, s.Project}, {byDepartment, s.Department}}
}

// variant returns the counter that applies to a request.
func (c *counter) variant(s *Subjects) *counter {
	if len(c.variants) == 0 {
		return c
	}
	for _, o := range s.owners() {
		if v := c.variants[o]; v != nil && o.name != "" {
			return v
		}
	}
	return c
}

// WithOverrides returns the set with other overrides than before. Those that cannot be used
// are left out and named by the error; the others apply all the same.
func (s *Set) WithOverrides(overrides []Override) (*Set, error) {
	out := *s
	out.counters = slices.Clone(s.counters)
	for i := range out.counters {
		out.counters[i].variants = nil
	}
	var errs []error
	for i := range overrides {
		if err := out.override(&overrides[i]); err != nil {
			errs = append(errs, fmt.Errorf("override of %s for %s %s: %w", overrides[i].Rule, overrides[i].Scope, overrides[i].Name, err))
		}
	}
	return &out, errors.Join(errs...)
}

func (s *Set) override(o *Override) error {
	var kind subjectKinds
	if kind, _ = parseSubjectKinds(o.Scope); len(kind) != 1 || kind[0] > byKey {
		return fmt.Errorf("must be of a department, project, user or key, not %q", o.Scope)
	}
	if o.Name == "" {
		return errors.New("names nobody")
	}
	var matching []*counter
	for i := range s.counters {
		if c := &s.counters[i]; c.rule == o.Rule {
			matching = append(matching, c)
		}
	}
	if len(matching) == 0 {
		return errors.New("there is no such rule or quota")
	}
	if counted := matching[0].subjects[0]; counted > byKey || kind[0] > counted {
		return fmt.Errorf("the rule counts per %s, which no %s owns", matching[0].scope, o.Scope)
	}
	changed, err := o.adjusted(matching)
	if err != nil {
		return err
	}
	for i, v := range changed {
		if v != nil {
			matching[i].variants = maps.Clone(matching[i].variants)
			if matching[i].variants == nil {
				matching[i].variants = map[owner]*counter{}
			}
			matching[i].variants[owner{kind[0], o.Name}] = v
		}
	}
	return nil
}

// adjusted returns the counters with the override's numbers; nil where it has none. What it
// leaves out stays as the rule has it.
func (o *Override) adjusted(counters []*counter) ([]*counter, error) {
	out := make([]*counter, len(counters))
	left := maps.Clone(o.Numbers)
	for i, c := range counters {
		v, base := *c, c.amounts[len(c.amounts)-1]
		v.schedule, v.variants = nil, nil
		text, hasLimit := left[c.metric.String()]
		burst, bursts := left["burst"]
		bursts = bursts && bursting(counters) == c
		if !hasLimit && !bursts {
			continue
		}
		if hasLimit {
			if fault := v.parseLimit(text, &base); fault != "" {
				return nil, fmt.Errorf("%s: %s", c.metric, fault)
			}
			delete(left, c.metric.String())
		}
		if bursts {
			n, fault := parseCount(burst)
			if fault == "" && (n > base.limit || n > maxExact/v.windowMs) {
				fault = "is more than the whole window"
			}
			if fault != "" {
				return nil, fmt.Errorf("burst: %s", fault)
			}
			base.burst = n
			delete(left, "burst")
		}
		if base.burst >= base.limit {
			base.burst = 0 // a burst of the whole window is none
		}
		v.amounts, v.largest = []amount{base}, capacity(base.limit, base.burst)
		out[i] = &v
	}
	switch {
	case len(o.Numbers) == 0:
		return nil, errors.New("has no numbers")
	case len(left) > 0:
		return nil, fmt.Errorf("the rule does not limit %v", slices.Sorted(maps.Keys(left)))
	}
	return out, nil
}

// bursting returns the counter that a burst belongs to: that of requests, else the one rate
// there is.
func bursting(counters []*counter) (found *counter) {
	for _, c := range counters {
		switch {
		case c.kind != Window:
		case c.metric == Requests:
			return c
		case found != nil:
			return nil
		default:
			found = c
		}
	}
	return found
}

// parseLimit reads a limit into base, and a window into c.
func (c *counter) parseLimit(text string, base *amount) (fault string) {
	if c.kind != Window {
		base.limit, fault = parseCount(text)
		if c.metric == Units {
			base.limit *= 1000
		}
		return fault
	}
	r, ok := ParseRate(text)
	if !ok {
		return "must be a count and a window, such as 50/1m"
	}
	if fault = r.fault(); fault == "" {
		c.bucketMs = ceilDiv(r.Window.Milliseconds(), ceilDiv(c.windowMs, c.bucketMs))
		c.windowMs, base.limit = r.Window.Milliseconds(), r.Count
	}
	return fault
}

func parseCount(text string) (int64, string) {
	var n Count
	_ = n.UnmarshalText([]byte(text)) // the fault is in n
	return int64(n), n.fault()
}

// Rules are the limits and quotas in force by name, each with whether it is a quota.
func (l *Limiter) Rules() map[string]bool {
	set, rules := l.set.Load(), map[string]bool{}
	for i := range set.counters {
		rules[set.counters[i].rule] = set.counters[i].kind == Quota
	}
	return rules
}

// CheckOverride returns the error for which an override cannot be used with the rules in
// force.
func (l *Limiter) CheckOverride(o Override) error {
	_, err := l.set.Load().WithOverrides([]Override{o})
	return err
}
