package limit

import (
	"slices"
	"time"
)

// Shrunk is the effect of pressure on a limit. The zero value means none.
type Shrunk struct {
	Level  int    // level of pressure, 1 to 4
	Reason string // reason of the level; empty where unknown
	Factor Factor // part of the limit that is left, in thousandths
	Whole  int64  // limit without pressure, in the metric's own unit
}

// shrunk returns the effect of pressure on the limit of one dimension.
func (p *plan) shrunk(i int, now time.Time) Shrunk {
	c := p.counters[i]
	factor := c.factors[p.tier][p.level]
	if factor == 1000 {
		return Shrunk{}
	}
	var whole Dim
	c.limit(&whole, 1000, now)
	return Shrunk{Level: p.level, Reason: p.reason, Factor: Factor(factor), Whole: roundedUp(c.metric, whole.Limit)}
}

// String writes a factor as a configuration does, such as 0.5.
func (f Factor) String() string { return thousandths(int64(f)) }

// Shrunken is a rule of which pressure leaves a part.
type Shrunken struct {
	Rule   string
	Factor Factor // smallest part that is left of it for any tier, in thousandths
}

// Shrunken returns the rules that are smaller while a model is at a level from 1 to 4, in the
// order of their counters.
func (s *Set) Shrunken(level int) (rules []Shrunken) {
	for i := range s.counters {
		c := &s.counters[i]
		smallest := int64(1000)
		for tier := range c.factors {
			smallest = min(smallest, c.factors[tier][level])
		}
		if smallest < 1000 && !slices.ContainsFunc(rules, func(one Shrunken) bool { return one.Rule == c.rule }) {
			rules = append(rules, Shrunken{c.rule, Factor(smallest)})
		}
	}
	return rules
}
