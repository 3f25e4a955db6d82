package degrade

import (
	"log/slog"
	"math"
	"testing"
	"tidegate/nvml"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

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

// TestObservedMovesNoModel: with all signals of the cards observed a dead agent takes
// nobody out of the mean, just as with all of them off.
func TestObservedMovesNoModel(t *testing.T) {
	run := func(s Switch) (levels string, cap int) {
		r, p := newRig(t), newStates()
		c := DefaultConfig()
		c.Signals.GPUTemperature.Switch, c.Signals.GPUThrottle, c.Signals.GPUMemory.Switch, c.Signals.GPUMemoryUsed.Switch = s, s, s, s
		r.k, r.gpu.Margin, r.r.Waiting = newRules(c), new(40), 50
		for s := range 120 {
			r.old = s > 10
			r.run(1)
			p.step([]*watched{r.w}, r.k, r.now)
			levels += p[acting].stage.level.String()[1:]
		}
		return levels, r.w.inFlightCap
	}
	observed, cap := run(Switch{Observe: true})
	if off, _ := run(Switch{Disabled: true}); observed != off || cap != 0 {
		t.Errorf("observed: %s, cap %d\n      off: %s", observed, cap, off)
	}
	if acts, cap := run(Switch{}); acts == observed || cap == 0 {
		t.Errorf("what acts: %s, cap %d", acts, cap)
	}
}

// TestObservedLostGPU: what would be, if the ladder did not only observe, is without
// the backend that it would leave out.
func TestObservedLostGPU(t *testing.T) {
	c := DefaultConfig()
	c.Observe = true
	r, p := newRig(t), newStates()
	r.k, r.gpu.Margin, r.gpu.State = newRules(c), new(40), nvml.StateLost
	r.run(1)
	p.step([]*watched{r.w}, r.k, r.now)
	if !r.w.membership[acting].counted || r.w.membership[wouldBe].counted || r.w.outReason != "" {
		t.Errorf("in the mean %v, out %q", r.w.membership, r.w.outReason)
	}
}

// TestFallTellsWhoLetGo: a model's step down is told by the backend that let go.
func TestFallTellsWhoLetGo(t *testing.T) {
	var changes []Change
	l := New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	l.Changed = func(c Change) {
		if c.Backend == "" {
			changes = append(changes, c)
		}
	}
	now := time.Now()
	waiting := map[string]int{"a": 50, "b": 50}
	gauge := func(name string) *Gauge {
		return NewGauge(name, 1, func(time.Time) Readings {
			return Readings{InRotation: true, KV: -1, Preempted: -1, Waiting: waiting[name]}
		})
	}
	l.Watch([]Watch{{NewModel("m"), []*Gauge{gauge("a"), gauge("b")}}})
	pass := func(seconds int) {
		for range seconds {
			now = now.Add(time.Second)
			l.step(now)
		}
	}
	pass(10)
	waiting["a"] = 15
	pass(40)
	if len(changes) != 2 {
		t.Fatalf("%+v", changes)
	}
	if c := changes[0]; c.To != Canned || c.Threshold != 40 || c.Value != 50 {
		t.Errorf("up: %+v", c)
	}
	if c := changes[1]; c.To != SmallerModel || c.Cause != "a" || c.Signal != "queue" || c.Value != 15 || c.Threshold != 20 {
		t.Errorf("down: %+v", c)
	}
	waiting["a"], waiting["b"] = 0, 0
	pass(300)
	for _, c := range changes[2:] {
		if c.Signal != "queue" || c.Cause == "" || c.Value != 0 || math.IsInf(c.Threshold, 0) {
			t.Errorf("down: %+v", c)
		}
	}
	if last := changes[len(changes)-1]; last.To != Full {
		t.Errorf("at last %+v", last)
	}
}

// TestCalmBackendLeaves: a model's pressure does not rise because a calm backend leaves, and
// it falls when a hot one does.
func TestCalmBackendLeaves(t *testing.T) {
	for name, test := range map[string]struct {
		leaver int
		want   float64
	}{"the calm one": {0, .4}, "the hot one": {1, .1}} {
		k, p, now := newRules(DefaultConfig()), newStates(), time.Unix(1e9, 0)
		var ws []*watched
		for _, pressure := range []float64{.1, .7} {
			w := &watched{gauge: NewGauge("a", 1, nil)}
			w.life.inRotation = true
			w.standings = [sides]standing{{pressure: pressure, signal: noSignal}, {pressure: pressure, signal: noSignal}}
			ws = append(ws, w)
		}
		p.step(ws, k, now)
		if got := p[acting].pressure; math.Abs(got-.4) > 1e-3 {
			t.Fatalf("both: a pressure of %v", got)
		}
		ws[test.leaver].life.inRotation = false
		p.step(ws, k, now.Add(time.Second))
		if got := p[acting].pressure; math.Abs(got-test.want) > 1e-3 {
			t.Errorf("%s leaves: a pressure of %v, want %v", name, got, test.want)
		}
	}
}
