package degrade

import (
	"fmt"
	"slices"
	"time"

	"tidegate/nvml"
)

const (
	quickly      = 0.5              // weight of a new margin that is smaller than the mean
	slowly       = 0.1              // and of one that is larger
	clearFor     = 10 * time.Second // without a reason, or a preemption, before its level may be left
	hotFor       = 10 * time.Second // of HW thermal slowdown: the card cannot be held by less than L4
	maxSamples   = 256              // of those
	restartTakes = 10 * time.Second // at least: no engine loads a model in less
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
	rules     *ruleSet
	of        *book
	at        time.Time // of the values that were judged last; zero: none, or they were dropped
	asks      [memoryUsed + 1]ask

	warm      float64 // margin, smoothed
	hasMargin bool
	sw        [5]bool   // of the last samples: SW thermal slowdown
	swLast    time.Time // when that was seen last
	hwLast    time.Time // HW thermal slowdown or power brake
	hotSince  time.Time // since when every sample has had HW thermal slowdown

	since    time.Time // when the first of samples was taken
	samples  []float64 // free bytes
	baseline float64   // their median, in bytes; 0: not known yet

	gone   string    // why the GPU must not be used: lost, or a fatal XID
	code   uint64    // of the XID; 0: it is lost
	lostAt time.Time // when it was first seen lost
}

// set names the card and finds its rules, where either has changed.
func (c *card) set(k *book, g *nvml.GPU) {
	if c.uuid != g.UUID {
		*c = card{uuid: g.UUID, ref: g.Ref()}
	}
	if c.of != k || c.name != g.Name {
		c.of, c.name = k, g.Name
		c.rules = k.engine
		if len(k.config.GPUModels) > 0 {
			c.rules = k.config.rules(g.Name)
		}
	}
}

// forget drops what was made of values that are too old, or that a lost GPU left.
// What the memory was like at the beginning stays true.
func (c *card) forget() {
	c.at, c.hasMargin, c.asks = time.Time{}, false, [len(c.asks)]ask{}
	c.clear()
}

func (c *card) clear() {
	c.sw, c.swLast, c.hwLast, c.hotSince = [len(c.sw)]bool{}, time.Time{}, time.Time{}, time.Time{}
}

// take judges a reading that is not dropped, and reports whether it is a new one.
// A reading that was seen before is no second sample, however often it is looked at.
func (c *card) take(g *nvml.GPU, up, absolute bool, now time.Time) bool {
	fresh := !g.At.Equal(c.at)
	if fresh {
		c.at = g.At
		c.asks = [len(c.asks)]ask{}
		if g.Margin == nil {
			c.hasMargin = false
		} else {
			c.smooth(float64(*g.Margin))
			c.asks[temperature] = c.rules[temperature].scale.asked(-c.warm)
		}
		c.remember(g, now)
		c.weigh(g, up, absolute, now)
	}
	c.asks[throttle] = ask{}
	if g.Reasons != nil {
		c.asks[throttle] = c.throttled(now)
	}
	for s := range c.asks {
		if c.rules[s].Off {
			c.asks[s] = ask{}
		}
	}
	return fresh
}

func (c *card) smooth(margin float64) {
	switch {
	case !c.hasMargin:
		c.warm, c.hasMargin = margin, true
	case margin < c.warm:
		c.warm += quickly * (margin - c.warm)
	default:
		c.warm += slowly * (margin - c.warm)
	}
}

// remember notes why the clocks of a new sample are held down. HW slowdown without
// one of its two causes is left out: it blinks when a card changes its clocks.
func (c *card) remember(g *nvml.GPU, now time.Time) {
	if g.Reasons == nil {
		c.clear()
		return
	}
	soft, hot := slices.Contains(g.Reasons, "sw_thermal"), slices.Contains(g.Reasons, "hw_thermal")
	copy(c.sw[1:], c.sw[:])
	if c.sw[0] = soft; soft {
		c.swLast = now
	}
	if hot || slices.Contains(g.Reasons, "hw_power_brake") {
		c.hwLast = now
	}
	if !hot {
		c.hotSince = time.Time{}
	} else if c.hotSince.IsZero() {
		c.hotSince = now
	}
}

// throttled is what the clocks ask for. Its value is the level.
func (c *card) throttled(now time.Time) ask {
	enter, keep, soft := Full, Full, 0
	for _, is := range c.sw {
		if is {
			soft++
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
	return flat(float64(enter), enter, keep)
}

// weigh judges the memory of a new sample.
func (c *card) weigh(g *nvml.GPU, up, absolute bool, now time.Time) {
	total, used, free, reserved := bytesOf(g.MemoryTotal), bytesOf(g.MemoryUsed), bytesOf(g.MemoryFree), bytesOf(g.MemoryReserved)
	if reserved < 0 {
		reserved = 0
	}
	if free < 0 && total > 0 && used >= 0 {
		free = max(total-used-reserved, 0)
	}
	if absolute {
		if used >= 0 && total > reserved {
			c.asks[memoryUsed] = c.rules[memoryUsed].scale.asked(min(used/(total-reserved), 1))
		}
		return
	}
	if free < 0 || total <= 0 {
		return
	}
	if c.baseline == 0 && up {
		c.measure(free, now)
	}
	// A server that leaves no room beside it never had any to burn.
	if floor := max(256<<20, total/400); c.baseline > floor {
		burned := (c.baseline - free) / (c.baseline - floor)
		c.asks[memory] = c.rules[memory].scale.asked(min(max(burned, 0), 1))
	}
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

// restart begins the baseline anew, for an engine that has started.
func (c *card) restart() { c.baseline, c.samples = 0, nil }

// judge says whether the GPU may be used at all. A lost one may when it is back.
// What the source says goes first for as long as it says it: it forgets the errors
// of a GPU that was reset. But a source may have died, and a dcgm-exporter keeps
// telling the last error for ever, so an engine that was started after the error
// counts as well: a GPU that needs a reset takes no new one. restarted is when the
// engine last came up after a time that a start takes; zero: it was not seen to.
func (c *card) judge(g *nvml.GPU, restarted, now time.Time) string {
	told := g.At.Add(time.Duration(g.AgeMs) * time.Millisecond)
	if g.State == nvml.StateLost {
		if c.lostAt.IsZero() {
			c.lostAt = now
		}
		return c.because(nvml.AtAge(now.Sub(told)) != nvml.Dropped || !restarted.After(c.lostAt), 0)
	}
	c.lostAt = time.Time{}
	for _, x := range g.XIDs {
		if x.Fatal && !restarted.After(told.Add(-time.Duration(x.AgeMs)*time.Millisecond)) {
			return c.because(true, x.Code)
		}
	}
	return c.because(false, 0)
}

// because is why the GPU is not to be used, in words that are made once; code 0: it
// is lost.
func (c *card) because(is bool, code uint64) string {
	switch {
	case !is:
		c.gone = ""
	case c.gone != "" && c.code == code:
	case code == 0:
		c.gone = "GPU " + c.ref + " is lost"
	default:
		c.gone = fmt.Sprintf("GPU %s needs a reset after XID %d", c.ref, code)
	}
	c.code = code
	return c.gone
}
