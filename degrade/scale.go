package degrade

import (
	"math"
	"time"
)

// signal is one thing that may raise a backend's level.
type signal int

const (
	temperature signal = iota
	throttle
	memory
	memoryUsed
	kvCache
	queue
	preemptions
	ttft
	signals         // how many there are
	noSignal signal = -1
)

// String is the signal's name in the configuration, in metrics and in headers.
func (s signal) String() string {
	if s < 0 || s >= signals {
		return ""
	}
	return [...]string{"gpu_temperature", "gpu_throttle", "gpu_memory", "gpu_memory_used", "kv_cache", "queue", "preemptions", "ttft"}[s]
}

// Reasons are all that a Verdict's Reason may be, but for none.
func Reasons() (all []string) {
	for s := range signals {
		all = append(all, s.String())
	}
	return append(all, "pin")
}

// ofGPU reports whether the signal is read from the cards.
func (s signal) ofGPU() bool { return s <= memoryUsed }

// begins is the pressure at which a level begins; past L4 it is the end of the scale.
func begins(l Level) float64 { return [...]float64{0, .50, .65, .80, .95, 1}[l] }

// grain is the step in which pressure is told, so that noise publishes nothing.
const grain = 1e-3

// within is a pressure as it may be told of something that stands at a level: no
// part of it shows before it is confirmed, nor is it gone before the level is left.
func within(p float64, l Level) float64 {
	if top := begins(l + 1); l < Canned && p > top-grain {
		p = top - grain
	}
	// The grain of a grain keeps .65 from being told as .649.
	return max(math.Floor(p/grain+grain)*grain, begins(l))
}

// levelAt is the level of a pressure. Sums of what is exactly at a beginning may
// fall short of it by their rounding.
func levelAt(p float64) Level {
	l := Full
	for l < Canned && p >= begins(l+1)-1e-9 {
		l++
	}
	return l
}

// calmMargin is how many degrees before L1 the margin counts as no pressure at all:
// a healthy H200 that burns has 35, with L1 at 12.
const calmMargin = 20

// scale is a table in the direction in which more is worse: the margin's is negated.
type scale struct {
	enter [4]float64 // L1 to L4 begin at
	leave [4]float64 // and are left at, or below
	zero  float64    // no pressure up to here
	sign  float64    // -1 where it is negated
}

// entry is where a level begins, as it is read; NaN: nowhere.
func (c *scale) entry(l Level) float64 {
	if !c.has(l) {
		return math.NaN()
	}
	return c.sign * c.enter[l-1]
}

// exit is where a level is left, as it is read; NaN: nowhere.
func (c *scale) exit(l Level) float64 {
	if !c.has(l) {
		return math.NaN()
	}
	return c.sign * c.leave[l-1]
}

func (c *scale) has(l Level) bool { return c != nil && c.sign != 0 && l > Full && l <= Canned }

func newScale(s signal, t Table) scale {
	c := scale{sign: 1}
	for i, v := range t.Levels {
		switch s {
		case temperature:
			c.enter[i], c.leave[i] = -v, -v-t.Exit
		case queue, ttft:
			c.enter[i], c.leave[i] = v, v*t.Exit
		default:
			c.enter[i], c.leave[i] = v, v-t.Exit
		}
	}
	if s == temperature {
		c.zero, c.sign = c.enter[0]-calmMargin, -1
	}
	return c
}

// ask is what a signal asks for now.
type ask struct {
	known    bool
	enter    Level   // the highest level that it calls for
	keep     Level   // the highest that it does not let go, enter or more
	pressure float64 // 0 to 1
	value    float64 // as it was read
	scale    *scale  // that value is judged by; nil: it has none
}

// asked is what a value asks for; it must be finite.
func (c *scale) asked(v float64) ask {
	a := ask{known: true, value: c.sign * v, scale: c}
	for i := range c.enter {
		l := Level(i + 1)
		if v >= c.enter[i] {
			a.enter = l
		}
		if v > c.leave[i] {
			a.keep = l
		}
	}
	a.keep = max(a.keep, a.enter)
	a.pressure = c.pressure(v)
	return a
}

// pressure is piecewise linear through the beginnings of the levels; above L4 the
// last piece goes on.
func (c *scale) pressure(v float64) float64 {
	from := c.zero
	for i, to := range c.enter {
		if v < to {
			low, high := begins(Level(i)), begins(Level(i+1))
			return between(v, from, to, low, high)
		}
		from = to
	}
	return min(between(v, c.enter[2], c.enter[3], begins(SmallerModel), begins(Canned)), 1)
}

func between(v, from, to, low, high float64) float64 {
	if v <= from || to <= from {
		return low
	}
	return low + (high-low)*(v-from)/(to-from)
}

// flat is what a signal without a scale asks for.
func flat(value float64, enter, keep Level) ask {
	return ask{known: true, enter: enter, keep: max(keep, enter), pressure: begins(enter), value: value}
}

// worse takes in what another card asks for: the worst of several counts.
func (a *ask) worse(b ask) {
	if !b.known {
		return
	}
	if !a.known {
		*a = b
		return
	}
	enter, keep := max(a.enter, b.enter), max(a.keep, b.keep)
	if b.pressure > a.pressure {
		*a = b
	}
	a.enter, a.keep = enter, keep
}

// Times of the way up and down.
const (
	again   = 120 * time.Second // a level that comes back within this doubles the dwell
	forgets = 600 * time.Second // without a step down the dwell is the first again
)

// claim is for how long levels have been asked for, by one card or one engine: no
// other's samples confirm what it asks.
type claim [Canned + 1]asking

// asking is how long a level has been asked for, by every sample.
type asking struct {
	since   time.Time
	samples int
}

// proof is what a signal must show before its level rises.
type proof int

const (
	// eachLevel: samples that ask for it, for some time, confirm each level by itself.
	eachLevel proof = iota
	// anyLevel: they confirm that something is asked for; from then on, and as long as
	// it stands above L0, what is asked for counts at once. It is for what is smoothed,
	// which confirms each level already, and which rises faster than three seconds of
	// proof for each level allow: a card that loses its cooling at L1 can be at its
	// limit in four.
	anyLevel
	none
)

// proof is what the signal must show.
func (s signal) proof() proof {
	switch s {
	case temperature:
		return anyLevel
	case throttle:
		return none
	}
	return eachLevel
}

// step takes in what is asked for, and returns the highest level that is confirmed
// by that. sample says that it comes of something that was not judged before, raised
// that the signal stands above L0. All kinds of proof are monotone: what asks for
// more is never later.
func (c *claim) step(a ask, sample, raised bool, need proof, d *Dwell, now time.Time) (target Level) {
	for l := StreamingOff; l <= Canned; l++ {
		of := &c[l]
		switch {
		case a.enter < l:
			*of = asking{}
			continue
		case of.samples == 0:
			*of = asking{now, 1}
		case sample:
			of.samples = min(of.samples+1, d.UpSamples)
		}
		if need == anyLevel {
			of = &c[StreamingOff]
		}
		proven := of.samples >= d.UpSamples && now.Sub(of.since) >= d.Up || need == anyLevel && raised
		if need == none || sample && proven {
			target = l
		}
	}
	return target
}

// rung is where one thing stands, and how it moves: up when it is confirmed, straight
// to the level that is asked for; down one level at a time, after a dwell.
type rung struct {
	level   Level
	changed time.Time     // when it came here; zero: it was always here
	lowered time.Time     // when it last went down; zero: never
	dwell   time.Duration // before the next step down; 0: the first
	retry   time.Time     // when it may go down; zero: it is down
}

// step moves it by at most one change: to target where that is higher, or one down
// where keep is lower and it is not held. A level that comes back soon doubles the
// dwell, once for each time that it had gone down. Where what it stands on lasts it
// may go down a dwell from now, in whole seconds so that it tells that seldom.
func (r *rung) step(target, keep Level, held bool, d *Dwell, now time.Time) {
	if r.dwell < d.Down || now.Sub(r.lowered) > forgets {
		r.dwell = d.Down
	}
	r.dwell = min(r.dwell, max(d.DownMax, d.Down))
	switch {
	case target > r.level:
		if now.Sub(r.lowered) < again && r.changed.Equal(r.lowered) {
			r.dwell = min(2*r.dwell, max(d.DownMax, d.Down))
		}
		r.level, r.changed = target, now
	case r.level > Full && keep < r.level && !held && now.Sub(r.changed) >= r.dwell:
		r.level--
		r.changed, r.lowered = now, now
	}
	if r.retry = (time.Time{}); r.level > Full {
		r.retry = r.changed.Add(r.dwell)
		if lasts := now.Add(r.dwell).Truncate(time.Second); (held || keep >= r.level) && lasts.After(r.retry) {
			r.retry = lasts
		}
	}
}
