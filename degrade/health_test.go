package degrade

import (
	"cmp"
	"testing"
	"tidegate/nvml"
	"time"
)

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
	r.gpu.XIDs = []nvml.XID{{Fatal: true}}
	r.run(1)
	out("without a code", "")
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

// TestHealthStep is the pure step by itself: looks at a card, one a second, and why it must
// not be used after the last.
func TestHealthStep(t *testing.T) {
	const lost, broken = "GPU a/0 is lost", "GPU a/0 needs a reset after XID 79"
	type look struct {
		state   string
		xids    []nvml.XID
		age     time.Duration // of the reading
		absent  bool          // no source has the card
		started bool          // the engine was started anew, half a second ago
	}
	fatal, harmless := []nvml.XID{{Code: 79, AgeMs: 100, Fatal: true}}, []nvml.XID{{Code: 13, AgeMs: 100}}
	for name, test := range map[string]struct {
		looks []look
		want  string
	}{
		"well":                              {[]look{{}, {}}, ""},
		"lost":                              {[]look{{state: nvml.StateLost}}, lost},
		"lost and back":                     {[]look{{state: nvml.StateLost}, {}}, ""},
		"lost and absent":                   {[]look{{state: nvml.StateLost}, {absent: true}}, lost},
		"lost, and an engine was started":   {[]look{{state: nvml.StateLost}, {state: nvml.StateLost, started: true}}, lost},
		"the same, of a source that died":   {[]look{{state: nvml.StateLost}, {state: nvml.StateLost, age: 11 * time.Second, started: true}}, ""},
		"the same, of one that is only old": {[]look{{state: nvml.StateLost}, {state: nvml.StateLost, age: 9 * time.Second, started: true}}, lost},
		"the same, and no source has it":    {[]look{{state: nvml.StateLost}, {absent: true, started: true}}, ""},
		"wedged":                            {[]look{{state: nvml.StateWedged}}, ""},
		"an XID that is not fatal":          {[]look{{xids: harmless}}, ""},
		"a fatal one":                       {[]look{{xids: fatal}}, broken},
		"and it is not mentioned any more":  {[]look{{xids: fatal}, {}, {}}, broken},
		"an engine was started before":      {[]look{{started: true}, {xids: fatal}}, broken},
		"an engine was started after":       {[]look{{xids: fatal}, {}, {started: true}}, ""},
		"another one after that":            {[]look{{xids: fatal}, {started: true}, {xids: fatal}}, broken},
		"lost after it":                     {[]look{{xids: fatal}, {state: nvml.StateLost}}, lost},
		"reset after it":                    {[]look{{xids: fatal}, {state: nvml.StateLost}, {}}, ""},
	} {
		var h health
		var started time.Time
		now := time.Unix(1e9, 0)
		for _, l := range test.looks {
			now = now.Add(time.Second)
			if l.started {
				started = now.Add(-500 * time.Millisecond)
			}
			g := &nvml.GPU{Reading: nvml.Reading{State: cmp.Or(l.state, nvml.StateOK), XIDs: l.xids}, MeasuredAt: now.Add(-l.age)}
			if l.absent {
				g = nil
			}
			before := h
			next := h.step(g, "a/0", started, now)
			if h != before {
				t.Errorf("%s: the step has changed the state that it began with", name)
			}
			h = next
		}
		if h.reason != test.want {
			t.Errorf("%s: %q, want %q", name, h.reason, test.want)
		}
	}
}
