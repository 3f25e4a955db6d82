package degrade

import (
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"tidegate/nvml"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

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

// TestSharedCard: who shares a card with an engine that comes up has another baseline
// from then on.
func TestSharedCard(t *testing.T) {
	l := New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	now, free := time.Now(), uint64(70<<30)
	second := Readings{KV: -1, Preempted: -1}
	gauge := func(name string, of *Readings) *Gauge {
		return NewGauge(name, 1, func(now time.Time) Readings {
			r := *of
			r.GPUs = []*nvml.GPU{{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK, Memory: nvml.Memory{MemoryTotal: new(uint64(141 << 30)), MemoryFree: new(free)}}, MeasuredAt: now}}
			return r
		})
	}
	a := gauge("a", &Readings{InRotation: true, KV: -1, Preempted: -1})
	l.Watch([]Watch{{NewModel("m"), []*Gauge{a}}, {NewModel("n"), []*Gauge{gauge("b", &second)}}})
	pass := func(seconds int) Level {
		for range seconds {
			now = now.Add(time.Second)
			l.step(now)
		}
		return a.Verdict().Level
	}
	pass(70)
	free = 8 << 30 // the second engine is loading
	if got := pass(10); got < SmallerModel {
		t.Errorf("while something takes the memory: %v", got)
	}
	second.InRotation = true
	if got := pass(300); got != Full {
		t.Errorf("five minutes after the second engine has come up for the first time: %v", got)
	}
	free = 1 << 30
	if got := pass(10); got < SmallerModel {
		t.Errorf("the memory is gone: %v", got)
	}
	second.InRotation = false
	pass(30)
	second.InRotation = true
	if got := pass(300); got < SmallerModel {
		t.Errorf("the second was out of rotation, and memory that is gone counts as calm: %v", got)
	}
	free, second.Started = 6<<30, now
	if got := pass(300); got != Full {
		t.Errorf("five minutes after the second engine's restart: %v", got)
	}
}

// TestCardNamedTwice: one card by its index and by its UUID is one series.
func TestCardNamedTwice(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	l := New(DefaultConfig(), slog.New(slog.DiscardHandler), reg)
	now := time.Now()
	l.Watch([]Watch{{NewModel("m"), []*Gauge{NewGauge("b", 1, func(now time.Time) Readings {
		g := &nvml.GPU{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK, Memory: nvml.Memory{MemoryTotal: new(uint64(80 << 30)), MemoryFree: new(uint64(6 << 30))}}, Source: "n", MeasuredAt: now}
		return Readings{GPUs: []*nvml.GPU{g, g}, InRotation: true, KV: -1, Preempted: -1}
	})}}})
	for range 70 {
		now = now.Add(time.Second)
		l.step(now)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range families {
		if f.GetName() == "tidegate_backend_memory_baseline_bytes" {
			n = len(f.GetMetric())
		}
	}
	if n != 1 {
		t.Errorf("%d baselines", n)
	}
}

// TestHeadroomStep is the pure step by itself: from samples of free bytes to a baseline.
func TestHeadroomStep(t *testing.T) {
	begin := time.Unix(1e9, 0)
	measure := func(h headroom, free ...float64) headroom {
		for i, v := range free {
			h = h.step(v, 4*time.Second, begin.Add(time.Duration(i)*time.Second))
		}
		return h
	}
	for name, test := range map[string]struct {
		free []float64 // one sample a second, over a window of four
		want float64
	}{
		"not yet":                  {[]float64{6, 6, 6, 6}, 0},
		"the same":                 {[]float64{6, 6, 6, 6, 6}, 6},
		"the median, not the mean": {[]float64{1, 9, 6, 70, 5}, 6},
		"of an even number":        {[]float64{9, 1}, 0},
	} {
		if got := measure(headroom{}, test.free...); got.baseline != test.want || (got.baseline > 0) != (got.samples == nil) {
			t.Errorf("%s: %+v, want a baseline of %v", name, got, test.want)
		}
	}
	// Two ways on from one state have nothing to do with each other.
	state := measure(headroom{}, 7, 5, 6)
	a, b := state.step(1, 4*time.Second, begin.Add(3*time.Second)), state.step(9, 4*time.Second, begin.Add(3*time.Second))
	a = a.step(1, 4*time.Second, begin.Add(4*time.Second))
	if b.samples[3] != 9 || !slices.Equal(state.samples, []float64{7, 5, 6}) {
		t.Errorf("a step has changed the state that it began with: %v, %v", state.samples, b.samples)
	}
	if b = b.step(9, 4*time.Second, begin.Add(4*time.Second)); a.baseline != 5 || b.baseline != 7 {
		t.Errorf("baselines of %v and %v", a.baseline, b.baseline)
	}
	// No more samples than are needed, however often there is one.
	var many headroom
	for i := range 10 * maxSamples {
		many = many.step(6, time.Hour, begin.Add(time.Duration(i)*time.Millisecond))
	}
	if len(many.samples) != maxSamples {
		t.Errorf("%d samples", len(many.samples))
	}
}

// TestBurned: the share of the baseline that is gone, above a floor.
func TestBurned(t *testing.T) {
	const gib = 1 << 30
	for name, test := range map[string]struct {
		baseline, free, total float64
		share                 float64
		known                 bool
	}{
		"nothing is":                    {6.25 * gib, 6.25 * gib, 80 * gib, 0, true},
		"half of what is above 256 MiB": {6.25 * gib, 3.25 * gib, 80 * gib, .5, true},
		"all":                           {6.25 * gib, .25 * gib, 80 * gib, 1, true},
		"more than all":                 {6.25 * gib, 0, 80 * gib, 1, true},
		"more is free than was":         {6.25 * gib, 9 * gib, 80 * gib, 0, true},
		"a large card's floor":          {2 * gib, 1.25 * gib, 200 * gib, .5, true},
		"no baseline":                   {0, 6 * gib, 80 * gib, 0, false},
		"a baseline at the floor":       {.25 * gib, .25 * gib, 80 * gib, 0, false},
	} {
		h := headroom{baseline: test.baseline}
		share, known := h.burned(gpuMemory{total: test.total, free: test.free})
		if math.Abs(share-test.share) > 1e-9 || known != test.known {
			t.Errorf("%s: %v, known %v; want %v, %v", name, share, known, test.share, test.known)
		}
	}
}

// TestMemoryOf: what is free follows from the rest where the card does not state it.
func TestMemoryOf(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	for name, test := range map[string]struct {
		total, used, free, reserved *uint64
		want                        gpuMemory
	}{
		"stated":           {n(80), n(70), n(9), n(1), gpuMemory{80, 70, 9, 1}},
		"not stated":       {n(80), n(70), nil, n(1), gpuMemory{80, 70, 9, 1}},
		"without reserved": {n(80), n(70), nil, nil, gpuMemory{80, 70, 10, 0}},
		"more than all":    {n(80), n(90), nil, nil, gpuMemory{80, 90, 0, 0}},
		"nothing":          {nil, nil, nil, nil, gpuMemory{-1, -1, -1, 0}},
	} {
		g := &nvml.GPU{Reading: nvml.Reading{Memory: nvml.Memory{MemoryTotal: test.total, MemoryUsed: test.used, MemoryFree: test.free, MemoryReserved: test.reserved}}}
		if got := memoryOf(g); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
