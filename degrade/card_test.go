package degrade

import (
	"strings"
	"testing"
	"tidegate/nvml"
	"time"
)

func TestWorstGPU(t *testing.T) {
	r := newRig(t)
	hot, cool := r.gpu, r.gpu
	hot.UUID, hot.Margin, cool.Margin = "GPU-1", new(8), new(60)
	for range 5 {
		r.now = r.now.Add(time.Second)
		hot.MeasuredAt, cool.MeasuredAt = r.now, r.now
		a, b := hot, cool
		r.r.GPUs = []*nvml.GPU{&b, &a}
		r.w.step(r.k, &r.r, r.now)
	}
	if a := r.w.assessments[temperature]; r.w.standings[acting].level != ThinkingOff || a.value != 8 {
		t.Errorf("at %v by %v", r.w.standings[acting].level, a.value)
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

// TestSwitchedOnAgain: what a card had confirmed before its signal was switched off confirms
// nothing when it is on again.
func TestSwitchedOnAgain(t *testing.T) {
	r := newRig(t)
	r.r.Absolute = true
	r.gpu.MemoryTotal, r.gpu.MemoryUsed = new(uint64(80<<30)), new(uint64(80<<30))
	r.want("on", r.run(3), "000")
	off := DefaultConfig()
	off.Signals.GPUMemoryUsed.Disabled = true
	on := r.k
	r.k = newRules(off)
	r.want("off", r.run(10), "0000000000")
	r.k = on
	r.want("on again", r.run(5), "00044")
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
