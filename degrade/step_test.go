package degrade

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"
	"time"

	"tidegate/nvml"
)

// rig is one backend whose readings a test sets, second by second.
type rig struct {
	t   *testing.T
	k   *rules
	w   *watched
	r   Readings
	gpu nvml.GPU
	now time.Time
	old bool // the GPU's source says nothing new
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, k: newRules(DefaultConfig()), w: &watched{gauge: NewGauge("a", 1, nil)}, now: time.Unix(1e9, 0)}
	r.r = Readings{InRotation: true, KV: -1, Waiting: -1, Preempted: -1}
	r.gpu = nvml.GPU{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK}, Source: "here", At: r.now}
	return r
}

// run lets seconds pass, and returns the level of each of them.
func (r *rig) run(seconds int) string {
	var levels strings.Builder
	for range seconds {
		r.now = r.now.Add(time.Second)
		if !r.old {
			r.gpu.At = r.now
		}
		g := r.gpu
		r.r.GPUs = []*nvml.GPU{&g}
		r.w.step(r.k, &r.r, r.now)
		levels.WriteByte('0' + byte(r.w.standings[acting].level))
	}
	return levels.String()
}

func (r *rig) want(what, got, want string) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("%s: levels %s, want %s", what, got, want)
	}
}

func TestConfirmation(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 25
	r.want("L3 at once when it is confirmed", r.run(5), "00033")
	r = newRig(t)
	r.r.Waiting = 25
	r.want("asking", r.run(3), "000")
	r.r.Waiting = 0
	r.want("a spike", r.run(3), "000")
	r.r.Waiting = 25
	r.want("asking again", r.run(4), "0003")
	r.r.Waiting = 50
	r.want("L4 is confirmed by itself", r.run(4), "3334")
	// A reading that was seen before is no second sample.
	r = newRig(t)
	r.r.EngineAt, r.r.KV = r.now.Add(10*time.Second), .99
	r.want("one sample, looked at often", r.run(8), "00000000")
	r.r.EngineAt = r.r.EngineAt.Add(time.Millisecond)
	r.want("a second one", r.run(1), "4")
	r = newRig(t)
	r.r.EngineAt, r.r.KV = r.now, .99
	r.run(1)
	r.r.EngineAt = r.now
	r.want("two that are too near to each other", r.run(3), "000")
	r.r.EngineAt = r.now
	r.want("and one that is not", r.run(1), "4")
}

func TestHysteresisAndDwell(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 12
	r.want("up", r.run(4), "0002")
	r.r.Waiting = 6
	r.want("above half of L2", r.run(60), strings.Repeat("2", 60))
	r.r.Waiting = 5
	r.want("at half of L2, long enough after", r.run(1), "1")
	r.want("above half of L1", r.run(60), strings.Repeat("1", 60))
	r.r.Waiting = 0
	r.want("down", r.run(1), "0")
	r.r.Waiting = 12
	r.want("up again", r.run(4), "0002")
	r.r.Waiting = 0
	r.want("the dwell has doubled", r.run(61), strings.Repeat("2", 59)+"11")
	for range 4 {
		r.r.Waiting = 12
		r.run(4)
		r.r.Waiting = 0
		r.run(300)
	}
	r.r.Waiting = 12
	r.run(4)
	if got := r.w.stages[queue].dwell; got > 300*time.Second {
		t.Errorf("a dwell of %v", got)
	}
	r.r.Waiting = 0
	r.run(1300)
	if got := r.w.stages[queue].dwell; got != 30*time.Second {
		t.Errorf("a dwell of %v after it has been calm", got)
	}
}

func TestThrottle(t *testing.T) {
	r := newRig(t)
	r.gpu.Reasons = []string{"sw_power_cap", "gpu_idle", "hw_slowdown"}
	r.want("what is normal", r.run(5), "00000")
	r.gpu.Reasons = []string{"sw_thermal"}
	r.want("two of five", r.run(2), "02")
	r = newRig(t)
	r.gpu.Reasons = []string{"hw_power_brake"}
	r.want("at once", r.run(20), strings.Repeat("3", 20))
	r.gpu.Reasons = []string{"hw_thermal"}
	r.want("hot for more than 10 s", r.run(12), "333333333334")
	r.gpu.Reasons = []string{}
	r.want("clear", r.run(90), strings.Repeat("4", 29)+strings.Repeat("3", 30)+strings.Repeat("2", 30)+"1")
}

func TestPreemptions(t *testing.T) {
	r := newRig(t)
	r.r.Preempted = 1
	step := func(n int) string {
		var got string
		for range n {
			r.r.EngineAt = r.now.Add(time.Second)
			got += r.run(1)
		}
		return got
	}
	r.want("some", step(4), "0002")
	r.r.Preempted = 6
	r.want("many", step(4), "2223")
	r.r.Preempted = 0
	r.want("none for a while, then by steps", step(61), strings.Repeat("3", 29)+strings.Repeat("2", 30)+"11")
}

func TestHeadroom(t *testing.T) {
	r := newRig(t)
	r.gpu.MemoryTotal, r.gpu.MemoryFree = new(uint64(80<<30)), new(uint64(6<<30))
	r.want("the first minute", r.run(61), strings.Repeat("0", 61))
	if got := r.w.cards[0].headroom.baseline; got != 6<<30 {
		t.Fatalf("a baseline of %v", got)
	}
	r.gpu.MemoryFree = new(uint64(3 << 30)) // (6-3)/(6-.25) = 0.52
	r.want("half of it gone", r.run(4), "0001")
	if a := r.w.assessments[memory]; math.Abs(a.value-3/5.75) > .02 { // the floor is 256 MiB, or 0.25 % of 80 GiB
		t.Errorf("%v burned", a.value)
	}
	r.r.InRotation = false
	r.run(40)
	r.r.InRotation = true
	if got := r.run(62); got != strings.Repeat("1", 62) || r.w.cards[0].headroom.baseline != 6<<30 {
		t.Errorf("out of rotation for a while, which is no start: %s, a baseline of %v", got, r.w.cards[0].headroom.baseline)
	}
	r.r.Started = r.now
	r.run(62)
	if got := r.w.cards[0].headroom.baseline; got != 3<<30 {
		t.Errorf("after a restart a baseline of %v", got)
	}

	r = newRig(t)
	r.r.Absolute = true
	r.gpu.MemoryTotal, r.gpu.MemoryReserved, r.gpu.MemoryUsed = new(uint64(81<<30)), new(uint64(1<<30)), new(uint64(74<<30))
	r.want("used fraction", r.run(4), "0002")
	if got := r.w.assessments[memoryUsed].value; got != .925 {
		t.Errorf("%v used", got)
	}
}

func TestStale(t *testing.T) {
	r := newRig(t)
	r.gpu.Margin = new(40)
	r.r.InFlight = 17
	r.run(10)
	r.gpu.Margin = new(4)
	r.run(40)
	r.r.InFlight = 50 // which is not known to be good
	r.run(1)
	if r.w.standings[acting].level != SmallerModel {
		t.Fatalf("at %v", r.w.standings[acting].level)
	}
	r.old = true
	r.want("held", r.run(10), strings.Repeat("3", 10))
	if r.w.inFlightCap != 0 {
		t.Errorf("a cap of %d while the reading is held", r.w.inFlightCap)
	}
	r.want("dropped: down by steps", r.run(61), "2"+strings.Repeat("2", 29)+strings.Repeat("1", 30)+"0")
	if r.w.inFlightCap != 17 {
		t.Errorf("a cap of %d", r.w.inFlightCap)
	}
	r.old = false
	r.gpu.Margin = new(40)
	r.run(1)
	if r.w.inFlightCap != 0 {
		t.Errorf("a cap of %d on a fresh reading", r.w.inFlightCap)
	}
	r = newRig(t)
	r.gpu.Margin, r.old = new(40), true
	r.run(20)
	if r.w.inFlightCap != 1 {
		t.Errorf("a cap of %d where nothing good is known", r.w.inFlightCap)
	}
	// What is only observed holds only what would be.
	r = newRig(t)
	c := DefaultConfig()
	c.Signals.GPUTemperature.Observe, c.Signals.GPUThrottle.Disabled, c.Signals.GPUMemory.Disabled, c.Signals.GPUMemoryUsed.Disabled = true, true, true, true
	r.k = newRules(c)
	r.gpu.Margin = new(40)
	r.run(1)
	r.old = true
	if r.run(5); r.w.held != [sides]bool{false, true} {
		t.Errorf("an observed reading that is held holds %v", r.w.held)
	}
	if r.run(10); r.w.inFlightCap != 0 {
		t.Errorf("a cap of %d for want of what is only observed", r.w.inFlightCap)
	}
	// What was never reported is not stale.
	r = newRig(t)
	r.r.GPUs = []*nvml.GPU{nil}
	r.w.step(r.k, &r.r, r.now)
	if r.w.inFlightCap != 0 || r.w.blind[acting] || r.w.held[acting] {
		t.Errorf("cap %d, blind %v, held %v for a GPU of which nothing is known", r.w.inFlightCap, r.w.blind, r.w.held)
	}
}

func TestOut(t *testing.T) {
	r := newRig(t)
	out := func(what, want string) {
		t.Helper()
		if r.w.outReason != want {
			t.Errorf("%s: out %q, want %q", what, r.w.outReason, want)
		}
		if r.w.standings[acting].level != Full {
			t.Errorf("%s: at %v", what, r.w.standings[acting].level)
		}
	}
	r.gpu.Margin = new(40)
	r.run(3)
	r.gpu.State, r.gpu.Margin = nvml.StateLost, new(-5)
	r.run(20)
	out("lost", "GPU here/0 is lost")
	r.gpu.State, r.gpu.Margin = nvml.StateOK, new(20)
	r.run(1)
	out("back", "")
	if got := r.w.cards[0].thermal.smoothed; got != 20 {
		t.Errorf("back at a margin of %v: it remembers what was before it was lost", got)
	}
	r.gpu.XIDs = []nvml.XID{{Code: 13, AgeMs: 100}, {Code: 79, AgeMs: 500, Fatal: true}}
	r.run(1)
	out("fatal", "GPU here/0 needs a reset after XID 79")
	for range 30 {
		r.gpu.XIDs[1].AgeMs += 1000
		r.run(1)
	}
	out("still", "GPU here/0 needs a reset after XID 79")
	age := func(n int) {
		for range n {
			r.gpu.XIDs[1].AgeMs += 1000
			r.run(1)
		}
	}
	r.r.InRotation = false // a breaker that opens is no start
	age(40)
	r.r.InRotation = true
	age(5)
	out("out of rotation for a while", "GPU here/0 needs a reset after XID 79")
	r.r.Started = r.now
	age(1)
	out("the engine has started on it", "")
	r.gpu.XIDs[1] = nvml.XID{Code: 48, Fatal: true}
	r.run(1)
	out("another", "GPU here/0 needs a reset after XID 48")
	r.gpu.XIDs = nil
	r.run(1)
	out("the agent has been restarted, and has forgotten", "GPU here/0 needs a reset after XID 48")
	r.gpu.State = nvml.StateLost
	r.run(1)
	out("it is being reset", "GPU here/0 is lost")
	r.gpu.State = nvml.StateOK
	r.run(1)
	out("it was reset", "")
	r.gpu.State, r.old = nvml.StateLost, true
	r.run(5)
	r.r.Started = r.now
	r.run(1)
	out("an engine on a lost GPU", "GPU here/0 is lost")
	r.run(20)
	out("an engine on a GPU whose source has died", "")
	r.old = false
	r.k = newRules(Config{Observe: true, Dwell: DefaultConfig().Dwell})
	r.gpu.State = nvml.StateLost
	r.run(1)
	out("a ladder that observes", "")
}

func TestWorstGPU(t *testing.T) {
	r := newRig(t)
	hot, cool := r.gpu, r.gpu
	hot.UUID, hot.Margin, cool.Margin = "GPU-1", new(8), new(60)
	for range 5 {
		r.now = r.now.Add(time.Second)
		hot.At, cool.At = r.now, r.now
		a, b := hot, cool
		r.r.GPUs = []*nvml.GPU{&b, &a}
		r.w.step(r.k, &r.r, r.now)
	}
	if a := r.w.assessments[temperature]; r.w.standings[acting].level != ThinkingOff || a.value != 8 {
		t.Errorf("at %v by %v", r.w.standings[acting].level, a.value)
	}
}

// TestSmoothing: half of a fall counts, a tenth of a rise, and each sample once; and
// it falls by 10 degrees a second at most.
func TestSmoothing(t *testing.T) {
	r := newRig(t)
	for _, step := range []struct {
		margin int
		old    bool
		want   float64
	}{{40, false, 40}, {30, false, 35}, {30, true, 35}, {30, true, 35}, {45, false, 36}, {45, true, 36}, {-60, false, 30.5}, {-60, false, 22.75}, {-60, false, 13.875}, {-60, false, 4.4375}, {-60, false, -5.28125}, {40, false, -0.753125}} {
		r.gpu.Margin, r.old = new(step.margin), step.old
		if r.run(1); math.Abs(r.w.cards[0].thermal.smoothed-step.want) > 1e-9 {
			t.Errorf("after %+v the margin is %v", step, r.w.cards[0].thermal.smoothed)
		}
	}
}

// TestScale: levels begin and end where the table says, and a level that is asked
// for is kept, even where it begins and ends at the same value.
func TestScale(t *testing.T) {
	margin, kv := newScale(temperature, Table{Levels: []float64{12, 9, 6, 2}, Exit: 5}), newScale(kvCache, Table{Levels: []float64{.2, .4, .6, .8}})
	for _, test := range []struct {
		scale       *scale
		value       float64
		enter, keep Level
		pressure    float64
	}{
		{&margin, -33, Full, Full, 0},
		{&margin, -22, Full, Full, .25},
		{&margin, -16, Full, StreamingOff, .4},
		{&margin, -12, StreamingOff, ThinkingOff, .5},
		{&margin, -10.5, StreamingOff, SmallerModel, .575},
		{&margin, -2, Canned, Canned, .95},
		{&margin, 50, Canned, Canned, 1},
		{&kv, .4, ThinkingOff, ThinkingOff, .65},
		{&kv, .1, Full, Full, .25},
	} {
		a := test.scale.assess(test.value)
		if a.enter != test.enter || a.keep != test.keep || math.Abs(a.pressure-test.pressure) > 1e-9 {
			t.Errorf("%v: enters %v, keeps %v, pressure %v; want %+v", test.value, a.enter, a.keep, a.pressure, test)
		}
	}
}

// TestMean: the model's level is the mean of its backends', by weight.
func TestMean(t *testing.T) {
	k := newRules(DefaultConfig())
	for _, test := range []struct {
		pressures []float64
		weights   []int
		want      Level
	}{
		{[]float64{.65}, []int{1}, ThinkingOff},
		{[]float64{.65, .65, .65}, []int{3, 1, 7}, ThinkingOff},
		{[]float64{.95, 0}, []int{1, 1}, Full},
		{[]float64{.95, 0}, []int{3, 1}, ThinkingOff},
		{[]float64{.95, .65}, []int{1, 1}, SmallerModel},
		{nil, nil, Full},
	} {
		var ws []*watched
		for i, p := range test.pressures {
			w := &watched{gauge: NewGauge("a", test.weights[i], nil)}
			w.life.inRotation, w.standings[acting] = true, standing{levelAt(p), p, queue, time.Time{}}
			ws = append(ws, w)
		}
		var p states
		p.step(ws, k, time.Unix(1e9, 0))
		if got := p[acting].stage.level; got != test.want {
			t.Errorf("%v by %v: %v, want %v", test.pressures, test.weights, got, test.want)
		}
	}
}

// TestModelHolds: a model is not relaxed while half of what is known of it is held,
// nor in the first moment without any backend.
func TestModelHolds(t *testing.T) {
	k := newRules(DefaultConfig())
	for name, test := range map[string]struct {
		held []int // weights of backends that are held
		gone bool  // all of them are
		want Level
	}{
		"none is":   {nil, false, StreamingOff},
		"half is":   {[]int{2}, false, ThinkingOff},
		"a part is": {[]int{1}, false, StreamingOff},
		"all gone":  {nil, true, ThinkingOff},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			p := newStates()
			var ws []*watched
			for _, weight := range []int{1, 1, 2} {
				w := &watched{gauge: NewGauge("a", weight, nil)}
				w.life.inRotation = true
				ws = append(ws, w)
			}
			for second := range 41 {
				for _, w := range ws {
					w.standings = [sides]standing{{ThinkingOff, .65, queue, now}, {ThinkingOff, .65, queue, now}}
				}
				if second == 40 {
					for _, w := range ws {
						w.standings, w.life.inRotation = [sides]standing{{signal: noSignal}, {signal: noSignal}}, !test.gone
					}
					for _, weight := range test.held {
						for _, w := range ws {
							if w.gauge.Weight() == weight && !w.held[acting] {
								w.held = [sides]bool{true, true}
								break
							}
						}
					}
				}
				now = now.Add(time.Second)
				p.step(ws, k, now)
			}
			if a, b := p[acting].stage.level, p[wouldBe].stage.level; a != test.want || b != test.want {
				t.Errorf("at %v, would be at %v, want %v", a, b, test.want)
			}
			for range 60 {
				now = now.Add(time.Second)
				p.step(ws, k, now)
			}
			if got := p[acting].stage.level; test.gone && got != Full {
				t.Errorf("a minute without any backend: at %v", got)
			}
		})
	}
}

// FuzzStep steps with whatever numbers, at whatever times: nothing panics, and a
// verdict is always one.
func FuzzStep(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ012345"))
	f.Add(make([]byte, 400))
	f.Fuzz(func(t *testing.T, raw []byte) {
		next := func() uint64 {
			var b [8]byte
			raw = raw[copy(b[:], raw):]
			return binary.LittleEndian.Uint64(b[:])
		}
		k := newRules(DefaultConfig())
		w := &watched{gauge: NewGauge("a", 1, nil)}
		var p states
		start := time.Unix(1e9, 0)
		for len(raw) > 0 {
			bits := next()
			now := start.Add(time.Duration(next()))
			r := Readings{
				Absolute: bits&1 != 0, InRotation: bits&2 != 0, KV: math.Float64frombits(next()), Waiting: int(next()), Preempted: int(next()),
				TTFT: time.Duration(next()), Objective: time.Duration(next()), InFlight: int(next()),
			}
			if bits&4 != 0 {
				r.EngineAt = start.Add(time.Duration(next()))
			}
			if bits&8 != 0 {
				margin, total, free := int(next()), next(), next()
				g := &nvml.GPU{Reading: nvml.Reading{Margin: &margin, MemoryTotal: &total, MemoryFree: &free, AgeMs: int64(next()), Reasons: nvml.ReasonNames(next())}, At: now.Add(-time.Duration(next()))}
				g.State = [...]string{nvml.StateOK, nvml.StateLost, nvml.StateWedged, ""}[bits>>8&3]
				if bits&16 != 0 {
					g.XIDs = []nvml.XID{{Code: next(), AgeMs: int64(next()), Fatal: true}}
				}
				r.GPUs = []*nvml.GPU{g, nil}
			}
			before := w.standings[acting].level
			w.step(k, &r, now)
			p.step([]*watched{w}, k, now)
			st := w.standings[acting]
			if !(st.pressure >= 0 && st.pressure <= 1) || levelAt(st.pressure) != st.level || st.level < before-1 || w.inFlightCap < 0 {
				t.Fatalf("from %v: %+v, cap %d", before, st, w.inFlightCap)
			}
			if p := p[acting]; !(p.pressure >= 0 && p.pressure <= 1) || levelAt(p.pressure) != p.stage.level {
				t.Fatalf("the model: %+v", p)
			}
		}
	})
}
