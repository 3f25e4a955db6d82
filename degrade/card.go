package degrade

import (
	"time"

	"tidegate/nvml"
)

// gapFor is the time for which a card that no source reports stays as it was, as while a
// source is reconfigured.
const gapFor = 10 * time.Second

// rules is a configuration in the form that the steps read.
type rules struct {
	config Config
	engine *ruleSet // for signals that belong to no card
}

func newRules(c Config) *rules { return &rules{c, c.rules("")} }

// card is the state of one GPU of a backend. Each of its four parts has its own step:
// thermal, throttling, headroom and health; identify, judge and restart may reset them.
type card struct {
	uuid, ref string
	name      string
	named     *nvml.GPU // reading that ref was taken from
	seen      time.Time // last time at which a source reported the GPU
	ruleSet   *ruleSet  // rules for the card's name; nil while nothing is known of it
	basis     *rules    // configuration that ruleSet was made from
	judgedAt  time.Time // time of the last reading that was judged

	lastValue     [cardSignals]time.Time // last value of each signal; zero where there was none, or none since the GPU was lost
	fresh         [cardSignals]bool      // signals with a value that was not judged before
	assessments   [cardSignals]assessment
	confirmations [cardSignals]confirmation

	thermal    thermal
	throttling throttling
	headroom   headroom
	health     health
}

// identify finds the card's name and its rules, and reports whether there is anything to
// judge. A card that no source reports stays as it was for gapFor; then all is forgotten but
// the baseline of its memory.
func (c *card) identify(k *rules, g *nvml.GPU, now time.Time) bool {
	switch {
	case g != nil:
		if c.uuid != g.UUID {
			*c = card{uuid: g.UUID}
		}
		if c.seen = now; c.named != g {
			if ref := g.Ref(); c.ref != ref {
				c.ref, c.health.reason = ref, ""
			}
			c.named = g
		}
		if c.name != g.Name {
			c.name, c.basis = g.Name, nil
		}
	case now.Sub(c.seen) > gapFor:
		*c = card{uuid: c.uuid, headroom: headroom{baseline: c.headroom.baseline}}
		return false
	}
	if c.basis != k {
		c.basis, c.ruleSet = k, k.engine
		if len(k.config.GPUModels) > 0 {
			c.ruleSet = k.config.rules(c.name)
		}
	}
	return true
}

// judge assesses a reading; g is nil if no source reports the card. A reading that was seen before does
// not count as a second sample. A value that a reading lacks stays as it was
// last read, and grows old. The values of a lost GPU do not count.
func (c *card) judge(g *nvml.GPU, running, absolute bool, now time.Time) {
	c.fresh = [len(c.fresh)]bool{}
	switch {
	case g == nil:
	case g.State == nvml.StateLost:
		c.judgedAt, c.lastValue = time.Time{}, [len(c.lastValue)]time.Time{}
	case !g.MeasuredAt.Equal(c.judgedAt):
		c.judgedAt = g.MeasuredAt
		c.read(g, running, absolute, now)
	}
	for s := range c.assessments {
		if c.counts(signal(s), now) {
			continue
		}
		switch c.assessments[s] = (assessment{}); signal(s) {
		case temperature:
			c.thermal = thermal{}
		case throttle:
			c.throttling = throttling{}
		}
	}
	if c.counts(throttle, now) {
		c.assessments[throttle] = c.throttling.assess(now)
	}
}

// counts reports whether a signal is on and its last value is young enough to count.
func (c *card) counts(s signal, now time.Time) bool {
	return !c.ruleSet[s].Disabled && !c.lastValue[s].IsZero() && nvml.FreshnessAtAge(now.Sub(c.lastValue[s])) != nvml.Dropped
}

// read assesses the values of a new reading.
func (c *card) read(g *nvml.GPU, running, absolute bool, now time.Time) {
	note := func(s signal) { c.lastValue[s], c.fresh[s] = g.MeasuredAt, true }
	if g.Margin != nil {
		note(temperature)
		c.thermal = c.thermal.step(float64(*g.Margin), g.MeasuredAt)
		c.assessments[temperature] = c.ruleSet[temperature].scale.assess(-c.thermal.smoothed)
	}
	if g.Reasons != nil {
		note(throttle)
		c.throttling = c.throttling.step(g.Reasons, now)
	}
	m := memoryOf(g)
	switch {
	case absolute && m.used >= 0 && m.total > m.reserved:
		note(memoryUsed)
		c.assessments[memoryUsed] = c.ruleSet[memoryUsed].scale.assess(min(m.used/(m.total-m.reserved), 1))
	case !absolute && m.free >= 0 && m.total > 0:
		note(memory)
		if c.headroom.baseline == 0 && running && g.Freshness(now) == nvml.Fresh {
			c.headroom = c.headroom.step(m.free, c.basis.config.Baseline, now)
		}
		if burned, ok := c.headroom.burned(m); ok {
			c.assessments[memory] = c.ruleSet[memory].scale.assess(burned)
		}
	}
}

// restart begins the baseline anew, since an engine has started on the card: the
// backend's own, or one beside it.
func (c *card) restart() { c.headroom, c.assessments[memory] = headroom{}, assessment{} }

// unusable returns why the GPU must not be used; empty where it may be.
func (c *card) unusable(g *nvml.GPU, started, now time.Time) string {
	c.health = c.health.step(g, c.ref, started, now)
	return c.health.reason
}
