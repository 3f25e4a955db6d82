package limit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Override gives one department, project, user or key other numbers of a rule or
// quota, at all hours: the rule's schedules do not hold for it. Of several that
// meet a request, that of the smallest owner holds.
type Override struct {
	Rule    string
	Of      string            // department | project | user | key
	Name    string            // of the department, project, user or key
	Numbers map[string]string // by metric, written as in a rule: requests: 50/1m, concurrency: 8; units or tokens of a quota
}

// owner is whom an override is for.
type owner struct {
	of   subject
	name string
}

// owners are the tenants of a request, the smallest first.
func (s *Subjects) owners() [4]owner {
	return [...]owner{{byKey, s.Key}, {byUser, s.User}, {byProject, s.Project}, {byDepartment, s.Department}}
}

// variant is the counter that holds for a request.
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

// With is the set with other overrides than before. Those that cannot be used are
// left out and named by the error; the others hold all the same.
func (s *Set) With(overrides []Override) (*Set, error) {
	out := *s
	out.counters = slices.Clone(s.counters)
	for i := range out.counters {
		out.counters[i].variants = nil
	}
	var all []error
	for i := range overrides {
		if err := out.override(&overrides[i]); err != nil {
			all = append(all, fmt.Errorf("override of %s for %s %s: %w", overrides[i].Rule, overrides[i].Of, overrides[i].Name, err))
		}
	}
	return &out, errors.Join(all...)
}

func (s *Set) override(o *Override) error {
	var of per
	if of, _ = parsePer(o.Of); len(of) != 1 || of[0] > byKey {
		return fmt.Errorf("must be of a department, project, user or key, not %q", o.Of)
	}
	if o.Name == "" {
		return errors.New("names nobody")
	}
	var mine []*counter
	for i := range s.counters {
		if c := &s.counters[i]; c.rule == o.Rule {
			mine = append(mine, c)
		}
	}
	if len(mine) == 0 {
		return errors.New("there is no such rule or quota")
	}
	if by := mine[0].by[0]; by > byKey || of[0] > by {
		return fmt.Errorf("the rule counts per %s, which no %s owns", mine[0].per, o.Of)
	}
	changed, err := o.changed(mine)
	if err != nil {
		return err
	}
	for i, v := range changed {
		if v != nil {
			mine[i].variants = maps.Clone(mine[i].variants)
			if mine[i].variants == nil {
				mine[i].variants = map[owner]*counter{}
			}
			mine[i].variants[owner{of[0], o.Name}] = v
		}
	}
	return nil
}

// changed are the counters with the override's numbers; nil where it has none.
func (o *Override) changed(counters []*counter) ([]*counter, error) {
	out := make([]*counter, len(counters))
	used := 0
	for i, c := range counters {
		text, given := o.Numbers[c.metric.String()]
		if !given {
			continue
		}
		used++
		v := *c
		v.schedule, v.variants = nil, nil
		fault := ""
		switch c.kind {
		case Window:
			r, ok := ParseRate(text)
			if fault = r.fault(); !ok {
				fault = "must be a count and a window, such as 50/1m"
			}
			v.windowMs = r.Window.Milliseconds()
			v.bucketMs = ceilDiv(v.windowMs, ceilDiv(c.windowMs, c.bucketMs))
			v.amounts = []amount{{limit: r.Count}}
		default:
			var n Count
			_ = n.UnmarshalText([]byte(text)) // the fault is in n
			fault = n.fault()
			v.amounts = []amount{{limit: int64(n)}}
			if c.metric == Units {
				v.amounts[0].limit *= 1000
			}
		}
		if fault != "" {
			return nil, fmt.Errorf("%s: %s", c.metric, fault)
		}
		v.largest = capacity(v.amounts[0].limit, 0)
		out[i] = &v
	}
	if used != len(o.Numbers) {
		return nil, fmt.Errorf("names %v, of which the rule limits %d", slices.Sorted(maps.Keys(o.Numbers)), used)
	}
	if used == 0 {
		return nil, errors.New("has no numbers")
	}
	return out, nil
}
