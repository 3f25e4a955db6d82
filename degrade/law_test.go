package degrade

import (
	"flag"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/nvml"
)

// traces is how many random ones each law is tried on; there are five laws.
const traces = 20_000 / slower

// law checks a property on so many traces.
func law(t *testing.T, property func(*rapid.T)) {
	t.Helper()
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() == checks.DefValue {
		defer func() { _ = checks.Value.Set(checks.DefValue) }()
		if err := checks.Value.Set(strconv.Itoa(traces)); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, property)
}

// place is one backend of a random trace: what it reads, and what it is told.
type place struct {
	gauge     *watched
	margin    [2]*int
	free      [2]uint64
	reasons   []string
	blank     [2]uint32 // values that a card does not tell: margin, reasons, memory
	lost, xid bool
	hidden    [2]bool // no source has the card
	up        bool
	started   time.Time
	restarts  bool
	absolute  bool
	gpuAt     [2]time.Time
	frozen    [2]bool // the card's source
	engine

	told [2][3]time.Time // when each value was told last, while the card is not lost
	seen [2]time.Time    // when a source last had the card
	bad  bool            // one was lost or had a fatal error
}

const total = 80 << 30

// engine is the state of the engine of a place.
type engine struct {
	engineAt  time.Time // time of its last reading
	silent    bool      // it has no newer readings
	kv        float64
	waiting   int
	queued    int // part of waiting
	preempted int
	ttft      time.Duration
	inFlight  int
}

func newPlace(now time.Time, weight int, absolute bool) *place {
	p := &place{
		gauge: &watched{gauge: NewGauge("a", weight, nil)}, free: [2]uint64{6 << 30, 6 << 30}, reasons: []string{}, up: true, absolute: absolute,
		gpuAt: [2]time.Time{now, now}, engine: engine{engineAt: now, ttft: time.Second},
	}
	p.margin[0], p.margin[1] = new(40), new(40)
	return p
}

func (p *place) readings(now time.Time) *Readings {
	r := &Readings{
		Absolute: p.absolute, InRotation: p.up, Started: p.started, EngineAt: p.engineAt, KV: p.kv, Waiting: p.waiting, Queued: p.queued, Preempted: p.preempted,
		TTFT: p.ttft, Objective: time.Second, InFlight: p.inFlight, MaxInFlight: 8,
	}
	for i := range p.margin {
		if p.hidden[i] {
			if r.GPUs = append(r.GPUs, nil); now.Sub(p.seen[i]) > gapFor {
				p.told[i] = [3]time.Time{}
			}
			continue
		}
		g := &nvml.GPU{Reading: nvml.Reading{UUID: strconv.Itoa(i), State: nvml.StateOK}, MeasuredAt: p.gpuAt[i]}
		if p.blank[i]&1 == 0 {
			g.Margin, p.told[i][0] = p.margin[i], g.MeasuredAt
		}
		if p.blank[i]&2 == 0 {
			g.Reasons, p.told[i][1] = p.reasons, g.MeasuredAt
		}
		if p.blank[i]&4 == 0 {
			g.MemoryTotal, g.MemoryFree, g.MemoryUsed = new(uint64(total)), new(p.free[i]), new(total-p.free[i])
			p.told[i][2] = g.MeasuredAt
		}
		if p.lost && i == 0 {
			g.State, p.told[i] = nvml.StateLost, [3]time.Time{}
		}
		if p.xid && i == 0 {
			g.XIDs = []nvml.XID{{Code: 79, Fatal: true}}
		}
		p.seen[i], p.bad = now, p.bad || p.lost || p.xid
		r.GPUs = append(r.GPUs, g)
	}
	return r
}

// held reports whether a reading is held that counts.
func (p *place) held(now time.Time) bool {
	held := nvml.FreshnessAtAge(now.Sub(p.engineAt)) == nvml.Held
	for i := range p.told {
		for _, at := range p.told[i] {
			held = held || !at.IsZero() && nvml.FreshnessAtAge(now.Sub(at)) == nvml.Held
		}
	}
	return held
}

// change changes one thing.
func (p *place) change(dice uint32) {
	v := dice >> 8 & 0xff
	switch card := dice >> 7 & 1; dice & 0xf {
	case 0, 1:
		p.margin[card] = new(int(v)%44 - 4)
	case 2:
		p.blank[card] = v & 7 &^ (v >> 3)
	case 3:
		p.free[card] = uint64(v) << 30 / 40
	case 4:
		p.reasons = nvml.ReasonNames(uint64(v))
	case 5:
		p.kv = float64(v) / 255
	case 6:
		p.waiting = int(v) % 50
		p.queued = p.waiting * int(card)
	case 7:
		p.preempted = int(v) % 9
	case 8:
		p.ttft = time.Duration(v) * 20 * time.Millisecond
	case 9:
		if p.frozen[card] = v < 128; v < 32 {
			p.gpuAt[card] = p.gpuAt[card].Add(-4 * time.Second) // it says that they are older
		}
	case 10:
		p.silent = v < 128
	case 11:
		p.lost, p.hidden[card] = v < 64, v >= 208
	case 12:
		p.xid = v < 64
	case 13:
		p.up, p.restarts = v < 192, v&7 == 0
	case 14:
		p.inFlight = int(v)
	case 15: // all is calm
		p.margin, p.kv, p.waiting, p.queued, p.preempted, p.ttft, p.reasons = [2]*int{new(40), new(40)}, 0, 0, 0, 0, 0, []string{}
	}
}

// pass lets time pass, in which whoever still talks says the same again.
func (p *place) pass(now time.Time) {
	for i := range p.gpuAt {
		if !p.frozen[i] {
			p.gpuAt[i] = now
		}
	}
	if !p.silent {
		p.engineAt = now
	}
	if p.restarts {
		p.started, p.restarts = now, false
	}
}

// worsen makes one signal ask for more, and reports whether it could.
func (p *place) worsen(dice uint32) bool {
	v := int(dice >> 8 & 0xff)
	switch dice & 7 {
	case 0:
		i := v & 1
		p.margin[i] = new(*p.margin[i] - v/16)
	case 1:
		p.reasons = nvml.ReasonNames(nvml.ReasonMask(p.reasons) | uint64(v))
	case 2:
		for i := range p.gauge.cards {
			if p.gauge.cards[i].headroom.baseline == 0 && !p.absolute || p.restarts {
				return false // what is free now is what is right
			}
		}
		p.free[v&1] -= min(p.free[v&1], uint64(v)<<25)
	case 3:
		p.kv += float64(v) / 400
	case 4:
		p.waiting += v / 8
	case 5:
		p.preempted += v / 32
	case 6:
		p.waiting, p.queued = p.waiting+v/8, p.queued+v/8
	default:
		p.ttft += time.Duration(v) * 10 * time.Millisecond
	}
	return true
}

func (p *place) clone() *place {
	c := *p
	g := *p.gauge
	g.cards = slices.Clone(g.cards)
	for i := range g.cards {
		g.cards[i].headroom.samples = slices.Clone(g.cards[i].headroom.samples)
	}
	c.gauge = &g
	return &c
}

// look is one look at the place, and at a model that is nothing but it.
func (p *place) look(k *rules, models *states, now time.Time) {
	p.gauge.step(k, p.readings(now), now)
	models.step([]*watched{p.gauge}, k, now)
}

// trace plays a random trace, and lets each look at it be judged.
func trace(t *rapid.T, places int, look func(ps []*place, dice uint32, now time.Time)) {
	now := time.Unix(1e9, 0)
	ps := []*place{}
	for i := range places {
		ps = append(ps, newPlace(now, 1+2*i%3, i == 2))
	}
	for _, dice := range rapid.SliceOfN(rapid.Uint32(), 4, 24).Draw(t, "trace") {
		// Small numbers are drawn most, whose upper bits would choose the same each time.
		dice = (dice ^ dice>>16) * 0x45d9f3b
		dice = (dice ^ dice>>16) * 0x45d9f3b
		dice ^= dice >> 16
		p := ps[int(dice>>16)%places]
		p.change(dice)
		now = now.Add([...]time.Duration{tick, time.Second, 3 * time.Second, 5 * time.Second, 11 * time.Second, 31 * time.Second, 70 * time.Second, time.Second}[dice>>4&7])
		for _, p := range ps {
			p.pass(now)
		}
		look(ps, dice>>16, now)
	}
}

// TestLevelIsMonotone: from wherever a trace has led, a reading that asks for more
// never gives less, neither at once, nor while it lasts, nor soon after.
func TestLevelIsMonotone(t *testing.T) {
	k := newRules(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models states
		trace(t, 1, func(ps []*place, dice uint32, now time.Time) {
			p := ps[0]
			worse, worseModels := p.clone(), models
			could := worse.worsen(dice)
			p.look(k, &models, now)
			if !could {
				return
			}
			worse.look(k, &worseModels, now)
			notLess(t, p, worse, &models, &worseModels)
			if dice>>3&15 != 0 {
				return
			}
			base, baseModels, fork := p.clone(), models, now
			for i := range 12 { // looks, in less than a dwell
				now = now.Add(2 * time.Second)
				if i == 4 { // what was worse is remembered
					base.margin, worse.margin = [2]*int{new(40), new(40)}, [2]*int{new(40), new(40)}
				}
				base.pass(now)
				base.look(k, &baseModels, now)
				if recurred(base, &baseModels, fork) {
					return // what comes back doubles its dwell, and the worse one never left
				}
				worse.pass(now)
				worse.look(k, &worseModels, now)
				notLess(t, base, worse, &baseModels, &worseModels)
			}
		})
	})
}

// recurred reports whether a level of the place or of its model was left and came back
// at a time or after it.
func recurred(p *place, models *states, fork time.Time) bool {
	all := append([]stage{models[acting].stage, models[wouldBe].stage}, p.gauge.stages[:]...)
	return slices.ContainsFunc(all, func(s stage) bool { return !s.lowered.Before(fork) && s.changed.After(s.lowered) })
}

// notLess checks that what asks for more stands no lower.
func notLess(t *rapid.T, p, worse *place, models, worseModels *states) {
	for side := range sides {
		a, b := &p.gauge.standings[side], &worse.gauge.standings[side]
		if b.level < a.level || b.pressure < a.pressure {
			t.Fatalf("%v at %.3f asks for more than %v at %.3f: %+v", b.level, b.pressure, a.level, a.pressure, worse.readings(worse.engineAt))
		}
		if a, b := models[side].stage.level, worseModels[side].stage.level; b < a {
			t.Fatalf("the model is at %v instead of %v", b, a)
		}
	}
}

// TestNoStepDownWhileStale: nothing is relaxed while a reading is held.
func TestNoStepDownWhileStale(t *testing.T) {
	k := newRules(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models states
		trace(t, 1, func(ps []*place, _ uint32, now time.Time) {
			p := ps[0]
			before, model := p.gauge.standings[acting].level, models[acting].stage.level
			p.look(k, &models, now)
			held := p.held(now)
			if after := p.gauge.standings[acting].level; held && after < before {
				t.Fatalf("from %v to %v while a reading was held", before, after)
			}
			if after := models[acting].stage.level; held && p.gauge.membership[acting].counted && after < model {
				t.Fatalf("the model from %v to %v while a reading was held", model, after)
			}
		})
	})
}

// TestOneStepDownPerDwell: levels fall by one, and no sooner than a dwell after the
// one before.
func TestOneStepDownPerDwell(t *testing.T) {
	k := newRules(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models states
		var fell [4]time.Time
		step := func(i int, from, to Level, now time.Time) {
			if to >= from {
				return
			}
			if to != from-1 || !fell[i].IsZero() && now.Sub(fell[i]) < k.config.Dwell.Fall {
				t.Fatalf("%d: from %v to %v, %v after the last", i, from, to, now.Sub(fell[i]))
			}
			fell[i] = now
		}
		trace(t, 3, func(ps []*place, _ uint32, now time.Time) {
			var ws []*watched
			for i, p := range ps {
				before := p.gauge.standings[acting].level
				p.gauge.step(k, p.readings(now), now)
				step(i, before, p.gauge.standings[acting].level, now)
				ws = append(ws, p.gauge)
			}
			before := models[acting].stage.level
			models.step(ws, k, now)
			step(3, before, models[acting].stage.level, now)
		})
	})
}

// TestLostGPUIsNoPressure: a model's level rises only where a backend that may be
// used is under more pressure than before, or has come back.
func TestLostGPUIsNoPressure(t *testing.T) {
	k := newRules(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models states
		trace(t, 3, func(ps []*place, _ uint32, now time.Time) {
			var ws []*watched
			var was []watched
			for _, p := range ps {
				was = append(was, *p.gauge)
				p.gauge.step(k, p.readings(now), now)
				// A source that is gone is believed until the engine has started anew.
				if p.lost && p.gauge.outReason == "" && !p.frozen[0] && !p.hidden[0] || p.gauge.outReason != "" && !p.bad {
					t.Fatalf("lost %v, out %q", p.lost, p.gauge.outReason)
				}
				ws = append(ws, p.gauge)
			}
			before := models[acting].stage.level
			models.step(ws, k, now)
			if after := models[acting].stage.level; after > before {
				if !slices.ContainsFunc(ws, func(w *watched) bool {
					old := &was[slices.Index(ws, w)]
					return w.membership[acting].counted && (!old.membership[acting].counted || w.standings[acting].pressure > old.standings[acting].pressure)
				}) {
					t.Fatalf("from %v to %v, and nobody is under more pressure", before, after)
				}
			}
		})
	})
}

// TestObserveNeverActs: a signal that is observed does what one does that is off,
// and a ladder that observes does nothing.
func TestObserveNeverActs(t *testing.T) {
	watching := DefaultConfig()
	watching.Observe = true
	all := newRules(watching)
	law(t, func(t *rapid.T) {
		observe, off := DefaultConfig(), DefaultConfig()
		which := rapid.Uint8().Draw(t, "signals")
		for s := range signals {
			if which>>s&1 == 0 {
				continue
			}
			switch s {
			case throttle:
				observe.Signals.GPUThrottle.Observe, off.Signals.GPUThrottle.Disabled = true, true
			case preemptions:
				observe.Signals.Preemptions.Observe, off.Signals.Preemptions.Disabled = true, true
			default:
				observe.table(s).Observe, off.table(s).Disabled = true, true
			}
		}
		seen, without := newRules(observe), newRules(off)
		var twin, idle *watched
		var models, twins, idles states
		trace(t, 1, func(ps []*place, _ uint32, now time.Time) {
			p := ps[0]
			if twin == nil {
				twin, idle = p.clone().gauge, p.clone().gauge
			}
			r := p.readings(now)
			for _, x := range []struct {
				w *watched
				k *rules
				p *states
			}{{p.gauge, seen, &models}, {twin, without, &twins}, {idle, all, &idles}} {
				x.w.step(x.k, r, now)
				x.p.step([]*watched{x.w}, x.k, now)
			}
			a, b := p.gauge, twin
			if a.standings[acting] != b.standings[acting] || a.inFlightCap != b.inFlightCap || a.outReason != b.outReason {
				t.Fatalf("observed %+v cap %d out %q, off %+v cap %d out %q", a.standings[acting], a.inFlightCap, a.outReason, b.standings[acting], b.inFlightCap, b.outReason)
			}
			with, out := &models[acting], &twins[acting]
			if a.membership[acting].counted != b.membership[acting].counted || with.stage != out.stage || with.pressure != out.pressure {
				t.Fatalf("the model of what is observed at %v, %v; of what is off at %v, %v", with.stage.level, with.pressure, out.stage.level, out.pressure)
			}
			if idle.standings[acting].level != Full || idle.inFlightCap != 0 || idle.outReason != "" || idles[acting].stage.level != Full {
				t.Fatalf("a ladder that observes stands at %v, cap %d, out %q", idle.standings[acting].level, idle.inFlightCap, idle.outReason)
			}
		})
	})
}
