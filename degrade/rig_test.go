package degrade

import (
	"strings"
	"testing"
	"tidegate/nvml"
	"time"
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
	r.gpu = nvml.GPU{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK}, Source: "here", MeasuredAt: r.now}
	return r
}

// run lets seconds pass, and returns the level of each of them.
func (r *rig) run(seconds int) string {
	var levels strings.Builder
	for range seconds {
		r.now = r.now.Add(time.Second)
		if !r.old {
			r.gpu.MeasuredAt = r.now
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
		p.a.MeasuredAt = p.now
	}
	if readB {
		p.b.MeasuredAt = p.now
	}
	a, b := p.a, p.b
	p.r.GPUs = []*nvml.GPU{&a, &b}
	before = p.w.standings[acting].level
	p.w.step(p.k, &p.r, p.now)
	return before, p.w.standings[acting].level
}
