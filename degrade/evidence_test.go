package degrade

import (
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/nvml"
)

// pair is one backend on two cards, of which each may say nothing new.
type pair struct {
	*rig
	a, b nvml.GPU
}

func newPair(t *testing.T) *pair {
	p := &pair{rig: newRig(t)}
	p.a, p.b = p.gpu, p.gpu
	p.a.UUID, p.b.UUID = "GPU-0", "GPU-1"
	p.a.Margin, p.b.Margin = new(40), new(40)
	return p
}

// second lets one pass, in which either card may be read again.
func (p *pair) second(readA, readB bool) (before, after Level) {
	p.now = p.now.Add(time.Second)
	if readA {
		p.a.At = p.now
	}
	if readB {
		p.b.At = p.now
	}
	a, b := p.a, p.b
	p.r.GPUs = []*nvml.GPU{&a, &b}
	before = p.w.standings[acting].level
	p.w.step(p.k, &p.r, p.now)
	return before, p.w.standings[acting].level
}

// TestHeldBesideDropped: a card whose source is long dead does not hide that another
// one's reading is held.
func TestHeldBesideDropped(t *testing.T) {
	p := newPair(t)
	p.a.At = p.now.Add(-time.Hour)
	fell := false
	for s := range 120 {
		if p.b.Reasons = []string{}; s < 27 {
			p.b.Reasons = []string{"hw_thermal"}
		}
		before, after := p.second(false, s <= 32 || s > 50)
		fell = fell || after < before
		if age := p.now.Sub(p.b.At); after < before && nvml.AtAge(age) == nvml.Held {
			t.Errorf("%ds: %v to %v while a card is %v old", s, before, after, age)
		}
	}
	if !fell {
		t.Error("it never falls at all")
	}
}

// TestOtherCardConfirmsNothing: what one card has read once is confirmed by its own
// samples only, whichever of the two it is.
func TestOtherCardConfirmsNothing(t *testing.T) {
	for second := range 2 {
		p := newPair(t)
		p.r.Absolute = true
		p.a.MemoryTotal, p.b.MemoryTotal = new(uint64(80<<30)), new(uint64(80<<30))
		p.a.MemoryUsed, p.b.MemoryUsed = new(uint64(1<<30)), new(uint64(1<<30))
		full := []*nvml.GPU{&p.a, &p.b}[second]
		for s := range 12 {
			if s == 5 {
				full.MemoryUsed = new(uint64(80 << 30))
			}
			p.second(second == 1 || s <= 5, second == 0 || s <= 5)
		}
		if l := p.w.standings[acting].level; l != Full {
			t.Errorf("card %d, read once: %v", second, l)
		}
		for range 6 {
			p.second(second == 0, second == 1)
		}
		if l := p.w.standings[acting].level; l != Canned {
			t.Errorf("card %d, read again: %v", second, l)
		}
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

// TestMissingValue: a value that fresh readings do not have any more is held like one
// that is old, and then it is dropped like one.
func TestMissingValue(t *testing.T) {
	for name, hide := range map[string]func(g *nvml.GPU){
		"margin":  func(g *nvml.GPU) { g.Margin = nil },
		"reasons": func(g *nvml.GPU) { g.Reasons = nil },
		"memory":  func(g *nvml.GPU) { g.MemoryFree = nil },
	} {
		r := newRig(t)
		r.gpu.Margin, r.gpu.Reasons, r.gpu.MemoryTotal, r.gpu.MemoryFree = new(40), []string{}, new(uint64(80<<30)), new(uint64(6<<30))
		r.run(70)
		switch name {
		case "margin":
			r.gpu.Margin = new(1)
		case "reasons":
			r.gpu.Reasons = []string{"hw_thermal"}
		default:
			r.gpu.MemoryFree = new(uint64(1 << 29))
		}
		r.run(60)
		if r.w.standings[acting].level != Canned {
			t.Fatalf("%s: at %v", name, r.w.standings[acting].level)
		}
		all := r.gpu
		hide(&r.gpu)
		got := r.run(1)
		r.gpu.Margin, r.gpu.Reasons, r.gpu.MemoryFree = all.Margin, all.Reasons, all.MemoryFree
		r.want(name+" is missing once", got+r.run(5), "444444")
		hide(&r.gpu)
		r.want(name+" is missing: held", r.run(10), "4444444444")
		if r.w.inFlightCap != 0 || r.w.blind[acting] {
			t.Errorf("%s is held: cap %d, blind %v", name, r.w.inFlightCap, r.w.blind)
		}
		r.run(120)
		if r.w.inFlightCap == 0 || !r.w.blind[acting] || r.w.standings[acting].level != Full {
			t.Errorf("%s is dropped: cap %d, blind %v, at %v", name, r.w.inFlightCap, r.w.blind, r.w.standings[acting].level)
		}
	}
}

// TestMissingEngineValue is the same for the engine's.
func TestMissingEngineValue(t *testing.T) {
	r := newRig(t)
	second := func(n int) (levels string) {
		for range n {
			r.r.EngineAt = r.now.Add(time.Second)
			levels += r.run(1)
		}
		return levels
	}
	r.r.KV = .99
	second(40)
	r.r.KV = -1
	r.want("held", second(10), "4444444444")
	if second(1); !r.w.blind[acting] || r.w.standings[acting].level == Canned {
		t.Errorf("dropped: blind %v, at %v", r.w.blind, r.w.standings[acting].level)
	}
}

// TestSourceReload: while a source is configured anew no source has its cards.
func TestSourceReload(t *testing.T) {
	r := newRig(t)
	r.gpu.MemoryTotal, r.gpu.MemoryFree = new(uint64(80<<30)), new(uint64(6<<30))
	r.run(70)
	r.gpu.MemoryFree = new(uint64(1 << 30))
	r.run(40)
	gap := func(seconds int) {
		r.r.GPUs = []*nvml.GPU{nil}
		for range seconds {
			r.now = r.now.Add(time.Second)
			r.w.step(r.k, &r.r, r.now)
		}
	}
	gap(2)
	if l := r.w.standings[acting].level; l != SmallerModel {
		t.Errorf("at %v after a gap", l)
	}
	r.want("memory is as full as before", r.run(60), strings.Repeat("3", 60))
	gap(20) // the source is gone
	if r.w.freshness[memory].known || r.w.inFlightCap != 0 || r.w.blind[acting] {
		t.Errorf("news %+v, cap %d, blind %v of a card that no source has", r.w.freshness[memory], r.w.inFlightCap, r.w.blind)
	}
	r.run(10)
	if got := r.w.cards[0].headroom.baseline; got != 6<<30 {
		t.Errorf("a baseline of %v when it is back", got)
	}
	r.gpu.State = nvml.StateLost
	r.run(1)
	gap(2)
	if r.w.outReason == "" {
		t.Error("a lost GPU is back, as its source is configured anew")
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
			r.GPUs = []*nvml.GPU{{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK, MemoryTotal: new(uint64(141 << 30)), MemoryFree: new(free)}, At: now}}
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
		g := &nvml.GPU{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK, MemoryTotal: new(uint64(80 << 30)), MemoryFree: new(uint64(6 << 30))}, Source: "n", At: now}
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

// TestCardIsRenamed: the driver may give a card another index.
func TestCardIsRenamed(t *testing.T) {
	r := newRig(t)
	r.run(1)
	r.gpu.State = nvml.StateLost
	r.run(1)
	r.gpu.Index = 3
	if r.run(1); r.w.outReason != "GPU here/3 is lost" || r.w.cards[0].ref != "here/3" {
		t.Error(r.w.outReason, r.w.cards[0].ref)
	}
}

// TestRelapseDoublesOnce: a level that comes back by steps has come back once.
func TestRelapseDoublesOnce(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 6
	r.run(5)
	r.r.Waiting = 0
	r.run(30)
	for _, n := range []int{6, 12, 25, 50} {
		r.r.Waiting = n
		r.run(5)
	}
	if d := r.w.stages[queue].dwell; d != time.Minute || r.w.standings[acting].level != Canned {
		t.Errorf("one step down, one relapse: a dwell of %v", d)
	}
}

// TestQueueIsOldWithItsEngine: what the engine says of its queue is confirmed by the
// engine's next word, and what waits here by looking.
func TestQueueIsOldWithItsEngine(t *testing.T) {
	r := newRig(t)
	r.r.EngineAt, r.r.KV, r.r.Waiting = r.now, .1, 0
	r.run(1)
	r.r.EngineAt, r.r.Waiting = r.now, 50
	r.want("read once", r.run(8), "00000000")
	r.r.Queued = 12
	r.want("12 of them wait here", r.run(4), "0002")

	r = newRig(t)
	c := DefaultConfig()
	c.Signals.KVCache.Disabled, c.Signals.Preemptions.Disabled = true, true
	r.k = newRules(c)
	r.r.Waiting = 50
	for range 40 {
		r.r.EngineAt = r.now.Add(time.Second)
		r.run(1)
	}
	r.run(3)
	r.r.Waiting = 0
	r.want("an engine that is silent", r.run(7), "4444444")
	if r.run(1); !r.w.blind[acting] {
		t.Error("the engine's queue is not known any more, and the backend is not blind")
	}
}

// TestRetryWhileItLasts: while a level's cause lasts it may fall a dwell from now.
func TestRetryWhileItLasts(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 50
	r.run(600)
	retry := r.w.standings[acting].retry
	if left := retry.Sub(r.now); left != 30*time.Second {
		t.Errorf("it may fall in %v", left)
	}
	r.now = r.now.Add(-600 * time.Millisecond)
	if r.run(1); !r.w.standings[acting].retry.Equal(retry) {
		t.Error("it tells more often than once a second")
	}
	r.r.Waiting = 0
	r.now = r.now.Add(-time.Second)
	if r.run(1); r.w.standings[acting].level != SmallerModel {
		t.Errorf("at %v when the cause is gone", r.w.standings[acting].level)
	}
}

// TestWildMargin: one sample from nowhere raises nothing.
func TestWildMargin(t *testing.T) {
	for _, m := range []int{0, -10, -30, -100} {
		r := newRig(t)
		r.gpu.Margin = new(20)
		r.run(30)
		r.gpu.Margin = new(m)
		got := r.run(1)
		r.gpu.Margin = new(20)
		if got += r.run(20); strings.Trim(got, "0") != "" {
			t.Errorf("margin 20, once %d: %s", m, got)
		}
	}
}

// TestFirstCap: an agent that dies before the first request leaves room for some.
func TestFirstCap(t *testing.T) {
	r := newRig(t)
	r.gpu.Margin, r.r.MaxInFlight = new(40), 64
	r.run(3)
	r.old = true
	r.run(4)
	r.r.InFlight = 30
	r.run(11)
	if r.w.inFlightCap != 16 {
		t.Errorf("cap %d", r.w.inFlightCap)
	}
}

// TestThrottleTells in how many of five samples the clocks were held down.
func TestThrottleTells(t *testing.T) {
	r := newRig(t)
	r.gpu.Reasons = []string{}
	r.run(5)
	r.gpu.Reasons = []string{"hw_power_brake"}
	r.run(2)
	r.gpu.Reasons = []string{"sw_thermal"}
	r.run(1)
	if a := r.w.assessments[throttle]; a.value != 3 || a.enter != SmallerModel {
		t.Errorf("%v by %v", a.enter, a.value)
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
