package degrade

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"tidegate/nvml"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scriptedLadder is a ladder that runs on readings a test sets.
type scriptedLadder struct {
	mu      sync.Mutex
	waiting map[string]int
	lost    map[string]bool
	changes []Change
	log     bytes.Buffer
	reg     *prometheus.Registry
	*Ladder
}

func newScriptedLadder(t *testing.T, c Config) *scriptedLadder {
	s := &scriptedLadder{waiting: map[string]int{}, lost: map[string]bool{}, reg: prometheus.NewPedanticRegistry()}
	s.Ladder = New(c, slog.New(slog.NewTextHandler(&s.log, nil)), s.reg)
	s.Changed = func(c Change) { s.changes = append(s.changes, c) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *scriptedLadder) gauge(name string) *Gauge {
	return NewGauge(name, 1, func(now time.Time) Readings {
		s.mu.Lock()
		defer s.mu.Unlock()
		g := &nvml.GPU{Reading: nvml.Reading{UUID: name, State: nvml.StateOK, Margin: new(50)}, Source: "gpu-" + name, MeasuredAt: now}
		if s.lost[name] {
			g.State = nvml.StateLost
		}
		return Readings{GPUs: []*nvml.GPU{g}, InRotation: true, KV: -1, Preempted: -1, Waiting: s.waiting[name]}
	})
}

func (s *scriptedLadder) set(name string, waiting int) {
	s.mu.Lock()
	s.waiting[name] = waiting
	s.mu.Unlock()
}

// pass lets time pass, and the ladder do what is due.
func (s *scriptedLadder) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// series are those of one name, as Prometheus would get them.
func (s *scriptedLadder) series(t *testing.T, name string) (all []string) {
	t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			all = append(all, fmt.Sprintf("%s{%s} %v", name, strings.Join(labels, ","), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return all
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedLadder(t, DefaultConfig())
		m, a, b := NewModel("m"), s.gauge("a"), s.gauge("b")
		s.Reload(DefaultConfig())
		s.Watch([]Watch{{m, []*Gauge{a, b}}})
		next := m.Changed()
		s.pass(10 * time.Second)
		if closed(next) || len(s.changes) > 0 {
			t.Fatalf("something changed without a cause: %+v", s.changes)
		}
		s.set("a", 50)
		s.set("b", 12)
		s.pass(4 * time.Second)
		if !closed(next) {
			t.Error("nobody was told of the change")
		}
		av, bv, mv := a.Verdict(), b.Verdict(), m.Verdict()
		if av.Level != Canned || av.Reason != "queue" || bv.Level != ThinkingOff || mv.Level != SmallerModel || mv.Reason != "queue" || !mv.Retry.After(time.Now().Add(20*time.Second)) {
			t.Fatalf("a %+v\nb %+v\nm %+v", av, bv, mv)
		}
		log := s.log.String()
		if n := strings.Count(log, "level rises"); n != 3 || !strings.Contains(log, "model=m backend=a from=L0 to=L4 signal=queue reading=50 threshold=40") || !strings.Contains(log, "model=m from=L0 to=L3 cause=a signal=queue") {
			t.Errorf("%d rises told:\n%s", n, log)
		}
		if len(s.changes) != 3 || s.changes[0].Backend != "a" || s.changes[0].Threshold != 40 || s.changes[2].To != SmallerModel {
			t.Errorf("changes %+v", s.changes)
		}

		s.set("a", 0)
		s.set("b", 0)
		s.pass(31 * time.Second)
		if got := a.Verdict().Level; got != SmallerModel {
			t.Errorf("a at %v after one dwell", got)
		}
		s.pass(3 * time.Minute)
		if a.Verdict().Level != Full || m.Verdict().Level != Full || *m.Verdict() != (Verdict{}) {
			t.Errorf("a %+v, m %+v", a.Verdict(), m.Verdict())
		}
		if rise, fall := strings.Count(s.log.String(), "level rises"), strings.Count(s.log.String(), "level falls"); rise != 3 || fall != 4+2+3 {
			t.Errorf("%d rises and %d falls told:\n%s", rise, fall, &s.log)
		}

		next = m.Changed()
		s.mu.Lock()
		s.lost["b"] = true
		s.mu.Unlock()
		s.pass(time.Second)
		if !closed(next) || b.Verdict().Out != "GPU gpu-b/0 is lost" || !strings.Contains(s.log.String(), `why="GPU gpu-b/0 is lost"`) || m.Verdict().Level != Full {
			t.Errorf("b %+v, told %v", b.Verdict(), closed(next))
		}
	})
}

func TestLadderReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedLadder(t, DefaultConfig())
		m, other, a, b := NewModel("m"), NewModel("other"), s.gauge("a"), s.gauge("b")
		s.Reload(DefaultConfig())
		s.Watch([]Watch{{m, []*Gauge{a}}, {other, []*Gauge{b}}})
		s.set("a", 12)
		s.set("b", 12)
		s.pass(4 * time.Second)
		c := s.gauge("c")
		next := DefaultConfig()
		next.L1.MaxTokens = 100
		s.Reload(next)
		s.Watch([]Watch{{m, []*Gauge{a, c}}})
		if a.Verdict().Level != ThinkingOff || m.Verdict().Level != ThinkingOff {
			t.Errorf("after a reload a %v, m %v", a.Verdict().Level, m.Verdict().Level)
		}
		if b.Verdict().Level != Full || other.Verdict().Level != Full {
			t.Errorf("not watched any more: b %v, other %v", b.Verdict().Level, other.Verdict().Level)
		}
		if got := s.series(t, "tidegate_level"); !slices.Equal(got, []string{"tidegate_level{model=m} 2"}) {
			t.Errorf("series of levels: %q", got)
		}
		next.Observe = true
		s.Reload(next)
		s.Watch([]Watch{{m, []*Gauge{a, c}}})
		if *a.Verdict() != (Verdict{}) || m.Verdict().Level != Full {
			t.Errorf("observing: a %+v, m %+v", a.Verdict(), m.Verdict())
		}
		s.set("a", 50)
		s.set("c", 50)
		s.pass(4 * time.Second)
		if *a.Verdict() != (Verdict{}) || *m.Verdict() != (Verdict{}) {
			t.Errorf("observing: a %+v, m %+v", a.Verdict(), m.Verdict())
		}
		if st := s.Status(); !st.Observe || st.Models[0].WouldBe != "L4" || st.Models[0].Level != "L0" {
			t.Errorf("status %+v", st)
		}
		if !strings.Contains(s.log.String(), `msg="level would rise" model=m from=L1 to=L4`) && !strings.Contains(s.log.String(), `msg="level would rise" model=m from=L2 to=L4`) {
			t.Errorf("not told what would be:\n%s", &s.log)
		}
	})
}

func TestPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedLadder(t, DefaultConfig())
		m, a := NewModel("m"), s.gauge("a")
		s.Reload(DefaultConfig())
		s.Watch([]Watch{{m, []*Gauge{a}}})
		until := time.Now().Add(time.Minute)
		next := m.Changed()
		s.SetPins(map[string]Pin{"m": {Level: SmallerModel, Expires: until, Reason: "a drill", Author: "ops"}, "other": {Level: Canned}})
		if v := m.Verdict(); !closed(next) || v.Level != SmallerModel || !v.Pinned || v.Reason != "pin" || !v.Retry.Equal(until) {
			t.Fatalf("pinned: %+v", v)
		}
		s.set("a", 50)
		s.pass(30 * time.Second)
		if m.Verdict().Level != SmallerModel || a.Verdict().Level != Canned {
			t.Errorf("while pinned m %v, a %v", m.Verdict().Level, a.Verdict().Level)
		}
		if st := s.Status().Models[0]; st.Pin == nil || st.Pin.Author != "ops" || st.WouldBe != "L4" {
			t.Errorf("status %+v", st)
		}
		s.pass(31 * time.Second)
		if v := m.Verdict(); v.Level != Canned || v.Pinned || v.Reason != "queue" {
			t.Errorf("after the pin: %+v", v)
		}
		if log := s.log.String(); strings.Count(log, "level pinned") != 1 || !strings.Contains(log, "by=ops") || strings.Count(log, "not pinned any more") != 1 {
			t.Errorf("log:\n%s", log)
		}
		s.SetPins(map[string]Pin{"m": {Level: Full}})
		if v := m.Verdict(); v.Level != Full || !v.Pinned {
			t.Errorf("pinned for good: %+v", v)
		}
		s.SetPins(map[string]Pin{"m": {Level: Canned + 5}})
		if v := m.Verdict(); v.Level != Canned || !v.Pinned {
			t.Errorf("pinned above the ladder: %+v", v)
		}
		s.SetPins(nil)
		if v := m.Verdict(); v.Level != Canned || v.Pinned {
			t.Errorf("the pin is gone: %+v", v)
		}
	})
}

func TestMetricsAndStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedLadder(t, DefaultConfig())
		m, a := NewModel("m"), s.gauge("a")
		s.Reload(DefaultConfig())
		s.Watch([]Watch{{m, []*Gauge{a}}})
		s.set("a", 12)
		s.pass(10*time.Second + time.Millisecond)
		for name, want := range map[string][]string{
			"tidegate_level":        {"{model=m} 2"},
			"tidegate_pressure":     {"{model=m} 0.68"},
			"tidegate_signal_value": {"{backend=a,signal=gpu_temperature} 50", "{backend=a,signal=queue} 12"},
			"tidegate_level_changes_total": {
				"{level=L0,model=m} 0", "{level=L1,model=m} 0", "{level=L2,model=m} 1", "{level=L3,model=m} 0", "{level=L4,model=m} 0",
			},
			"tidegate_level_seconds_total": {
				"{level=L0,model=m} 3.25", "{level=L1,model=m} 0", "{level=L2,model=m} 6.75", "{level=L3,model=m} 0", "{level=L4,model=m} 0",
			},
			"tidegate_backend_level":    {"{backend=a,model=m} 2"},
			"tidegate_backend_pressure": {"{backend=a,model=m} 0.68"},
			"tidegate_backend_gpu_out":  {"{backend=a,model=m} 0"},
		} {
			for i := range want {
				want[i] = name + want[i]
			}
			if got := s.series(t, name); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
		if n := len(s.series(t, "tidegate_signal_level")); n != int(signals) {
			t.Errorf("%d series of signals' levels", n)
		}
		raw, err := json.Marshal(s.Status())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"model":"m","level":"L2"`, `"reason":"queue","backend":"a"`, `{"signal":"queue","value":12,"level":"L2","asks":"L2","entered":10,"leaves":5,"next":20,"since":"`, `"may_fall":"`, `"gpus":"fresh","engine":"unknown"`} {
			if !strings.Contains(string(raw), want) {
				t.Errorf("status has no %s:\n%s", want, raw)
			}
		}
	})
}

// TestQuietTick: where nothing has changed a look makes nothing.
func TestQuietTick(t *testing.T) {
	l := fleet(20)
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { now = now.Add(tick); l.step(now) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// fleet watches so many backends, ten to a model.
func fleet(backends int) *Ladder {
	l := New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	begin := time.Now()
	var watch []Watch
	for i := range backends {
		if i%10 == 0 {
			watch = append(watch, Watch{Model: NewModel(strings.Repeat("m", i/10+1))})
		}
		gpus := []*nvml.GPU{{Reading: nvml.Reading{UUID: "GPU", State: nvml.StateOK, Margin: new(40), Reasons: []string{"sw_power_cap"}, Memory: nvml.Memory{MemoryTotal: new(uint64(80 << 30)), MemoryFree: new(uint64(6 << 30))}}, MeasuredAt: begin.Add(time.Hour)}}
		w := &watch[len(watch)-1]
		w.Gauges = append(w.Gauges, NewGauge("b", 1, func(now time.Time) Readings {
			return Readings{GPUs: gpus, InRotation: true, EngineAt: now, KV: .5, Waiting: 2, TTFT: time.Second, Objective: 2 * time.Second}
		}))
	}
	l.Reload(DefaultConfig())
	l.Watch(watch)
	return l
}

func BenchmarkVerdicts(b *testing.B) {
	m, g := NewModel("m"), NewGauge("g", 1, nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		level := Full
		for pb.Next() {
			v, w := m.Verdict(), g.Verdict()
			level = max(level, v.Level, w.Level)
		}
		if level != Full {
			b.Error(level)
		}
	})
}

func BenchmarkStep(b *testing.B) {
	l := fleet(1)
	w := l.models[0].backends[0]
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(tick)
		r := w.gauge.read(now)
		w.step(l.rules, &r, now)
	}
}

func BenchmarkTick200(b *testing.B) {
	l := fleet(200)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(tick)
		l.step(now)
	}
}
