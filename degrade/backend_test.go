package degrade

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"
	"tidegate/nvml"
	"time"
)

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
				g := &nvml.GPU{Reading: nvml.Reading{Margin: &margin, Memory: nvml.Memory{MemoryTotal: &total, MemoryFree: &free}, AgeMs: int64(next()), Reasons: nvml.ReasonNames(next())}, MeasuredAt: now.Add(-time.Duration(next()))}
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

// TestHeldBesideDropped: a card whose source is long dead does not hide that another
// one's reading is held.
func TestHeldBesideDropped(t *testing.T) {
	p := newPair(t)
	p.a.MeasuredAt = p.now.Add(-time.Hour)
	fell := false
	for s := range 120 {
		if p.b.Reasons = []string{}; s < 27 {
			p.b.Reasons = []string{"hw_thermal"}
		}
		before, after := p.second(false, s <= 32 || s > 50)
		fell = fell || after < before
		if age := p.now.Sub(p.b.MeasuredAt); after < before && nvml.FreshnessAtAge(age) == nvml.Held {
			t.Errorf("%ds: %v to %v while a card is %v old", s, before, after, age)
		}
	}
	if !fell {
		t.Error("it never falls at all")
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

// TestPreemptionsKeep: the level of preemptions is kept until there was none for 10 s,
// however long it has lasted.
func TestPreemptionsKeep(t *testing.T) {
	r := newRig(t)
	second := func(n, preempted int) (levels string) {
		for range n {
			r.r.EngineAt, r.r.Preempted = r.now.Add(time.Second), preempted
			levels += r.run(1)
		}
		return levels
	}
	second(60, 1)
	r.want("none for 9 s, then for 10", second(10, 0), "2222222221")
}
