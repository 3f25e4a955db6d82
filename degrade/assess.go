package degrade

import "math"

// signal is one measured reason to raise a backend's level.
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
	signals                      // number of signals
	cardSignals        = kvCache // number of the signals that are read from cards; those of engines follow
	noSignal    signal = -1
)

// String returns the name of the signal in the configuration, metrics and headers.
func (s signal) String() string {
	if s < 0 || s >= signals {
		return ""
	}
	return [...]string{"gpu_temperature", "gpu_throttle", "gpu_memory", "gpu_memory_used", "kv_cache", "queue", "preemptions", "ttft"}[s]
}

// Reasons returns every Reason that a Verdict may have, beside the empty one.
func Reasons() (names []string) {
	for s := range signals {
		names = append(names, s.String())
	}
	return append(names, "pin")
}

// ofGPU reports whether the signal is read from the cards.
func (s signal) ofGPU() bool { return s < cardSignals }

// begins returns the pressure at which a level begins; past L4, the end of the scale.
func begins(l Level) float64 { return [...]float64{0, .50, .65, .80, .95, 1}[l] }

// pressureStep is the resolution of a published pressure: noise publishes nothing.
const pressureStep = 1e-3

// clampTo returns a pressure within the range of the level that holds: it shows nothing of a
// level that is not confirmed, and all of one that is not yet left.
func clampTo(p float64, l Level) float64 {
	if top := begins(l + 1); l < Canned && p > top-pressureStep {
		p = top - pressureStep
	}
	// A thousandth of a step keeps .65 from being published as .649.
	return max(math.Floor(p/pressureStep+pressureStep)*pressureStep, begins(l))
}

// levelAt returns the level of a pressure. A mean of pressures that are exactly at the
// beginning of a level may fall short of it by rounding.
func levelAt(p float64) Level {
	l := Full
	for l < Canned && p >= begins(l+1)-1e-9 {
		l++
	}
	return l
}

// calmMargin is the number of degrees above the margin of L1 from which the margin is no
// pressure: a healthy H200 under full load has a margin of 35, with L1 at 12.
const calmMargin = 20

// scale is a table in the direction in which more is worse: the margin's is negated.
type scale struct {
	enter [4]float64 // values at which L1 to L4 begin
	leave [4]float64 // values at or below which they are left
	zero  float64    // highest value without pressure
	sign  float64    // -1 where values are negated, else 1; 0 where there is no table
}

// entry returns the reading at which a level begins; NaN where it never does.
func (c *scale) entry(l Level) float64 {
	if !c.holds(l) {
		return math.NaN()
	}
	return c.sign * c.enter[l-1]
}

// exit returns the reading at which a level is left; NaN where it never is.
func (c *scale) exit(l Level) float64 {
	if !c.holds(l) {
		return math.NaN()
	}
	return c.sign * c.leave[l-1]
}

func (c *scale) holds(l Level) bool { return c != nil && c.sign != 0 && l > Full && l <= Canned }

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

// assessment is the level that a signal calls for now.
type assessment struct {
	known    bool
	enter    Level   // highest level that it calls for
	keep     Level   // highest level that it does not release, enter or more
	pressure float64 // 0 to 1
	value    float64 // reading, in the signal's unit
	scale    *scale  // scale of the value; nil where it has none
}

// assess returns the level that a value calls for. The value must be finite.
func (c *scale) assess(v float64) assessment {
	a := assessment{known: true, value: c.sign * v, scale: c}
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

// pressure returns the pressure of a value. It is piecewise linear through the beginnings of
// the levels; above L4 the last piece goes on.
func (c *scale) pressure(v float64) float64 {
	begin := c.zero
	for i, end := range c.enter {
		if v < end {
			low, high := begins(Level(i)), begins(Level(i+1))
			return interpolate(v, begin, end, low, high)
		}
		begin = end
	}
	return min(interpolate(v, c.enter[2], c.enter[3], begins(SmallerModel), begins(Canned)), 1)
}

func interpolate(v, begin, end, low, high float64) float64 {
	if v <= begin || end <= begin {
		return low
	}
	return low + (high-low)*(v-begin)/(end-begin)
}

// flat returns the assessment of a signal without a scale.
func flat(value float64, enter, keep Level) assessment {
	return assessment{known: true, enter: enter, keep: max(keep, enter), pressure: begins(enter), value: value}
}

// worse merges the assessment of another card: the worst of several counts.
func (a *assessment) worse(b assessment) {
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
