package degrade

import (
	"fmt"
	"slices"
	"time"

	"tidegate/nvml"
)

const (
	quickly    = 0.5              // weight of a new margin that is smaller than the mean
	slowly     = 0.1              // and of one that is larger
	fastest    = 10               // degrees a second that a margin may fall
	clearFor   = 10 * time.Second // without a reason, or a preemption, before its level may be left
	hotFor     = 10 * time.Second // of HW thermal slowdown: the card cannot be held by less than L4
	gapFor     = 10 * time.Second // for which a card that no source has is as it was
	maxSamples = 256              // of those
)

// book is a configuration as the steps read it.
type book struct {
	config Config
	engine *ruleSet // of signals that are of no card
}

func newBook(c Config) *book { return &book{c, c.rules("")} }

// card is what is remembered of one GPU of a backend.
type card struct {
	uuid, ref string
	name      string
	from      *nvml.GPU // that it was named by
	seen      time.Time // when a source last had it
	rules     *ruleSet  // nil: nothing is known of it
	of        *book
	at        time.Time                 // of the reading that was judged last
	told      [memoryUsed + 1]time.Time // when each signal last had a value; zero: never, or the GPU was lost since
	fresh     [memoryUsed + 1]bool      // it has a value that was not judged before
	asks      [memoryUsed + 1]ask
	claims    [memoryUsed + 1]claim

	warm      float64 // margin, smoothed
	hasMargin bool
	margin    float64   // the last one
	marginAt  time.Time // when that was
	down      [5]bool   // of the last samples: heat or a power brake held the clocks down
	sw        [5]bool   // likewise: SW thermal slowdown did
	swLast    time.Time // when that was seen last
	hwLast    time.Time // HW thermal slowdown or power brake
	hotSince  time.Time // since when every sample has had HW thermal slowdown

	since    time.Time // when the first of samples was taken
	samples  []float64 // free bytes
	baseline float64   // their median, in bytes; 0: not known yet

	lostAt time.Time // when it was first seen lost; zero: it is not
	broke  time.Time // when its last fatal XID was; zero: it had none since it was reset
	xid    uint64    // which that was
	gone   string    // why the GPU must not be used
	code   uint64    // of the XID that this names; 0: it is lost
}

// known finds the card's name and its rules, and reports whether there is anything
// to judge. A card that no source has is as it was for a time, as while a source is
// configured anew; then all is forgotten but what was free beside the engine.
func (c *card) known(k *book, g *nvml.GPU, now time.Time) bool {
	switch {
	case g != nil:
		if c.uuid != g.UUID {
			*c = card{uuid: g.UUID}
		}
		if c.seen = now; c.from != g {
			if ref := g.Ref(); c.ref != ref {
				c.ref, c.gone = ref, ""
			}
			c.from = g
		}
		if c.name != g.Name {
			c.name, c.of = g.Name, nil
		}
	case now.Sub(c.seen) > gapFor:
		*c = card{uuid: c.uuid, baseline: c.baseline}
		return false
	}
	if c.of != k {
		c.of, c.rules = k, k.engine
		if len(k.config.GPUModels) > 0 {
			c.rules = k.config.rules(c.name)
		}
	}
	return true
}

// clear forgets why the clocks were held down.
func (c *card) clear() {
	c.down, c.sw, c.swLast, c.hwLast, c.hotSince = [len(c.down)]bool{}, [len(c.sw)]bool{}, time.Time{}, time.Time{}, time.Time{}
}

// take judges a reading; nil: there is none. One that was seen before is no second
// sample, however often it is looked at. A value that a reading lacks stays as it was
// told last, and grows old; what a lost GPU left says nothing.
func (c *card) take(g *nvml.GPU, up, absolute bool, now time.Time) {
	c.fresh = [len(c.fresh)]bool{}
	switch {
	case g == nil:
	case g.State == nvml.StateLost:
		c.at, c.told = time.Time{}, [len(c.told)]time.Time{}
	case !g.At.Equal(c.at):
		c.at = g.At
		c.read(g, up, absolute, now)
	}
	for s := range c.asks {
		if !c.rules[s].Off && !c.told[s].IsZero() && nvml.AtAge(now.Sub(c.told[s])) != nvml.Dropped {
			continue
		}
		switch c.asks[s] = (ask{}); signal(s) {
		case temperature:
			c.hasMargin = false
		case throttle:
			c.clear()
		}
	}
	if at := c.told[throttle]; !c.rules[throttle].Off && !at.IsZero() && nvml.AtAge(now.Sub(at)) != nvml.Dropped {
		c.asks[throttle] = c.throttled(now)
	}
}

// read takes in the values of a new reading.
func (c *card) read(g *nvml.GPU, up, absolute bool, now time.Time) {
	has := func(s signal) { c.told[s], c.fresh[s] = g.At, true }
	if g.Margin != nil {
		has(temperature)
		c.smooth(float64(*g.Margin), g.At)
		c.asks[temperature] = c.rules[temperature].scale.asked(-c.warm)
	}
	if g.Reasons != nil {
		has(throttle)
		c.remember(g, now)
	}
	total, used, free, reserved := bytesOf(g.MemoryTotal), bytesOf(g.MemoryUsed), bytesOf(g.MemoryFree), max(bytesOf(g.MemoryReserved), 0)
	if free < 0 && total > 0 && used >= 0 {
		free = max(total-used-reserved, 0)
	}
	switch {
	case absolute && used >= 0 && total > reserved:
		has(memoryUsed)
		c.asks[memoryUsed] = c.rules[memoryUsed].scale.asked(min(used/(total-reserved), 1))
	case !absolute && free >= 0 && total > 0:
		has(memory)
		if c.baseline == 0 && up && g.Freshness(now) == nvml.Fresh {
			c.measure(free, now)
		}
		// A server that leaves no room beside it never had any to burn.
		if floor := max(256<<20, total/400); c.baseline > floor {
			burned := (c.baseline - free) / (c.baseline - floor)
			c.asks[memory] = c.rules[memory].scale.asked(min(max(burned, 0), 1))
		}
	}
}

// smooth takes in a margin of a moment. It falls no faster than a card can heat, so
// that one wild sample is worth as much as a second's fall.
func (c *card) smooth(margin float64, at time.Time) {
	if c.hasMargin {
		margin = max(margin, c.margin-fastest*max(at.Sub(c.marginAt), time.Second).Seconds())
	}
	switch {
	case !c.hasMargin:
		c.warm, c.hasMargin = margin, true
	case margin < c.warm:
		c.warm += quickly * (margin - c.warm)
	default:
		c.warm += slowly * (margin - c.warm)
	}
	c.margin, c.marginAt = margin, at
}

// remember notes why the clocks of a new sample are held down. HW slowdown without
// one of its two causes is left out: it blinks when a card changes its clocks.
func (c *card) remember(g *nvml.GPU, now time.Time) {
	soft, hot := slices.Contains(g.Reasons, "sw_thermal"), slices.Contains(g.Reasons, "hw_thermal")
	hard := hot || slices.Contains(g.Reasons, "hw_power_brake")
	copy(c.sw[1:], c.sw[:])
	if c.sw[0] = soft; soft {
		c.swLast = now
	}
	copy(c.down[1:], c.down[:])
	if c.down[0] = soft || hard; hard {
		c.hwLast = now
	}
	if !hot {
		c.hotSince = time.Time{}
	} else if c.hotSince.IsZero() {
		c.hotSince = now
	}
}

// throttled is what the clocks ask for. Its value is in how many of the last five
// samples they were held down.
func (c *card) throttled(now time.Time) ask {
	enter, keep, soft, down := Full, Full, 0, 0.0
	for i := range c.sw {
		if c.sw[i] {
			soft++
		}
		if c.down[i] {
			down++
		}
	}
	recent := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) < clearFor }
	if recent(c.swLast) {
		keep = ThinkingOff
		if soft >= 2 {
			enter = ThinkingOff
		}
	}
	if recent(c.hwLast) {
		enter, keep = SmallerModel, Canned
		if !c.hotSince.IsZero() && c.hwLast.Sub(c.hotSince) > hotFor {
			enter = Canned
		}
	}
	return flat(down, enter, keep)
}

// bytesOf are a count of them; negative: not known.
func bytesOf(v *uint64) float64 {
	if v == nil {
		return -1
	}
	return float64(*v)
}

// measure finds the baseline: the median of what was free at first.
func (c *card) measure(free float64, now time.Time) {
	if len(c.samples) == 0 {
		c.since = now
	}
	if len(c.samples) < maxSamples {
		c.samples = append(c.samples, free)
	}
	if now.Sub(c.since) >= c.of.config.Baseline {
		slices.Sort(c.samples)
		c.baseline, c.samples = c.samples[len(c.samples)/2], nil
	}
}

// restart begins the baseline anew, as an engine has started on the card: the
// backend's own, or one beside it.
func (c *card) restart() { c.baseline, c.samples, c.asks[memory] = 0, nil, ask{} }

// judge says why the GPU may not be used; empty: it may. g is nil where no source has
// it. A lost one may be used when it is back, which nothing but a reset does. After a
// fatal XID it may when it was lost and is back, or when an engine was started after
// it, which a GPU that needs a reset would not have let: that the source is silent of
// it says nothing, as an agent forgets all errors when it is restarted. Nor is a
// source that has died believed for ever. started is when the engine was last seen to
// have been started anew; zero: it was not.
func (c *card) judge(g *nvml.GPU, started, now time.Time) string {
	silent := g == nil
	if g != nil {
		told := g.At.Add(time.Duration(g.AgeMs) * time.Millisecond)
		silent = nvml.AtAge(now.Sub(told)) == nvml.Dropped
		switch lost := g.State == nvml.StateLost; {
		case lost && c.lostAt.IsZero():
			c.lostAt = now
		case !lost && !c.lostAt.IsZero():
			c.lostAt, c.broke = time.Time{}, time.Time{}
		}
		for _, x := range g.XIDs {
			if at := told.Add(-time.Duration(x.AgeMs) * time.Millisecond); x.Fatal && at.After(c.broke) {
				c.broke, c.xid = at, x.Code
			}
		}
	}
	switch {
	case !c.lostAt.IsZero() && !(silent && started.After(c.lostAt)):
		return c.because(0)
	case !c.broke.IsZero() && !started.After(c.broke):
		return c.because(c.xid)
	}
	c.gone = ""
	return ""
}

// because is why the GPU is not to be used, in words that are made once; code 0: it
// is lost.
func (c *card) because(code uint64) string {
	switch {
	case c.gone != "" && c.code == code:
	case code == 0:
		c.gone = "GPU " + c.ref + " is lost"
	default:
		c.gone = fmt.Sprintf("GPU %s needs a reset after XID %d", c.ref, code)
	}
	c.code = code
	return c.gone
}
