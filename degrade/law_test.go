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
	lost, xid bool
	up        bool
	absolute  bool
	gpuAt     time.Time
	engineAt  time.Time
	frozen    bool // the GPUs' source
	silent    bool // the engine
	kv        float64
	waiting   int
	preempted int
	ttft      time.Duration
	inFlight  int
}

const total = 80 << 30

func newPlace(now time.Time, absolute bool) *place {
	p := &place{
		gauge: &watched{gauge: NewGauge("a", 1, nil)}, free: [2]uint64{6 << 30, 6 << 30}, reasons: []string{}, up: true, absolute: absolute,
		gpuAt: now, engineAt: now, ttft: time.Second,
	}
	p.margin[0], p.margin[1] = new(40), new(40)
	return p
}

func (p *place) readings() *Readings {
	r := &Readings{
		Absolute: p.absolute, Up: p.up, EngineAt: p.engineAt, KV: p.kv, Waiting: p.waiting, Preempted: p.preempted, TTFT: p.ttft, Objective: time.Second,
		InFlight: p.inFlight,
	}
	for i := range p.margin {
		g := &nvml.GPU{Reading: nvml.Reading{UUID: strconv.Itoa(i), State: nvml.StateOK, Margin: p.margin[i], Reasons: p.reasons}, At: p.gpuAt}
		g.MemoryTotal, g.MemoryFree, g.MemoryUsed = new(uint64(total)), new(p.free[i]), new(total-p.free[i])
		if p.lost && i == 0 {
			g.State = nvml.StateLost
		}
		if p.xid && i == 0 {
			g.XIDs = []nvml.XID{{Code: 79, Fatal: true}}
		}
		r.GPUs = append(r.GPUs, g)
	}
	return r
}

// change changes one thing.
func (p *place) change(dice uint32) {
	v := dice >> 8 & 0xff
	switch card := dice >> 7 & 1; dice & 0xf {
	case 0, 1, 2:
		p.margin[card] = new(int(v)%44 - 4)
	case 3:
		p.free[card] = uint64(v) << 30 / 40
	case 4:
		p.reasons = nvml.ReasonNames(uint64(v))
	case 5:
		p.kv = float64(v) / 255
	case 6:
		p.waiting = int(v) % 50
	case 7:
		p.preempted = int(v) % 9
	case 8:
		p.ttft = time.Duration(v) * 20 * time.Millisecond
	case 9:
		p.frozen = v < 128
	case 10:
		p.silent = v < 128
	case 11:
		p.lost = v < 128
	case 12:
		p.xid = v < 64
	case 13:
		p.up = v < 192
	case 14:
		p.inFlight = int(v)
	case 15: // all is calm
		p.margin, p.kv, p.waiting, p.preempted, p.ttft, p.reasons = [2]*int{new(40), new(40)}, 0, 0, 0, 0, []string{}
	}
}

// pass lets time pass, in which whoever still talks says the same again.
func (p *place) pass(now time.Time) {
	if !p.frozen {
		p.gpuAt = now
	}
	if !p.silent {
		p.engineAt = now
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
			if p.gauge.cards[i].baseline == 0 && !p.absolute {
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
		g.cards[i].samples = slices.Clone(g.cards[i].samples)
	}
	c.gauge = &g
	return &c
}

// trace plays a random trace, and lets each look at it be judged.
func trace(t *rapid.T, places int, look func(ps []*place, dice uint32, now time.Time)) {
	now := time.Unix(1e9, 0)
	ps := []*place{}
	for i := range places {
		ps = append(ps, newPlace(now, i == 2))
	}
	for _, dice := range rapid.SliceOfN(rapid.Uint32(), 4, 24).Draw(t, "trace") {
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
// never gives less.
func TestLevelIsMonotone(t *testing.T) {
	k := newBook(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models pool
		trace(t, 1, func(ps []*place, dice uint32, now time.Time) {
			p := ps[0]
			worse, worseModels := p.clone(), models
			could := worse.worsen(dice)
			p.gauge.step(k, p.readings(), now)
			models.step([]*watched{p.gauge}, k, now)
			if !could {
				return
			}
			worse.gauge.step(k, worse.readings(), now)
			worseModels.step([]*watched{worse.gauge}, k, now)
			for side := range sides {
				a, b := p.gauge.stand[side], worse.gauge.stand[side]
				if b.level < a.level || b.pressure < a.pressure {
					t.Fatalf("%v at %.3f asks for more than %v at %.3f: %+v", b.level, b.pressure, a.level, a.pressure, worse.readings())
				}
				if a, b := models.tracks[side].rung.level, worseModels.tracks[side].rung.level; b < a {
					t.Fatalf("the model is at %v instead of %v", b, a)
				}
			}
		})
	})
}

// TestNoStepDownWhileStale: nothing is relaxed while a reading is held.
func TestNoStepDownWhileStale(t *testing.T) {
	k := newBook(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models pool
		trace(t, 1, func(ps []*place, _ uint32, now time.Time) {
			p := ps[0]
			before, model := p.gauge.stand[acting].level, models.tracks[acting].rung.level
			r := p.readings()
			p.gauge.step(k, r, now)
			models.step([]*watched{p.gauge}, k, now)
			held := nvml.AtAge(now.Sub(r.EngineAt)) == nvml.Held
			for _, g := range r.GPUs {
				held = held || g.State != nvml.StateLost && g.Freshness(now) == nvml.Held
			}
			if after := p.gauge.stand[acting].level; held && after < before {
				t.Fatalf("from %v to %v while a reading was held", before, after)
			}
			if after := models.tracks[acting].rung.level; held && p.gauge.member && after < model {
				t.Fatalf("the model from %v to %v while a reading was held", model, after)
			}
		})
	})
}

// TestOneStepDownPerDwell: levels fall by one, and no sooner than a dwell after the
// one before.
func TestOneStepDownPerDwell(t *testing.T) {
	k := newBook(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models pool
		var fell [4]time.Time
		step := func(i int, from, to Level, now time.Time) {
			if to >= from {
				return
			}
			if to != from-1 || !fell[i].IsZero() && now.Sub(fell[i]) < k.config.Dwell.Down {
				t.Fatalf("%d: from %v to %v, %v after the last", i, from, to, now.Sub(fell[i]))
			}
			fell[i] = now
		}
		trace(t, 3, func(ps []*place, _ uint32, now time.Time) {
			var ws []*watched
			for i, p := range ps {
				before := p.gauge.stand[acting].level
				p.gauge.step(k, p.readings(), now)
				step(i, before, p.gauge.stand[acting].level, now)
				ws = append(ws, p.gauge)
			}
			before := models.tracks[acting].rung.level
			models.step(ws, k, now)
			step(3, before, models.tracks[acting].rung.level, now)
		})
	})
}

// TestLostGPUIsNoPressure: a model's level rises only where a backend that may be
// used is under more pressure than before, or has come back.
func TestLostGPUIsNoPressure(t *testing.T) {
	k := newBook(DefaultConfig())
	law(t, func(t *rapid.T) {
		var models pool
		trace(t, 3, func(ps []*place, _ uint32, now time.Time) {
			var ws []*watched
			var was []backend
			for _, p := range ps {
				was = append(was, p.gauge.backend)
				r := p.readings()
				p.gauge.step(k, r, now)
				// A source that is gone is believed until the engine has started anew.
				if p.lost && p.gauge.out == "" && !p.frozen || p.gauge.out != "" && !p.lost && !p.xid {
					t.Fatalf("lost %v, out %q", p.lost, p.gauge.out)
				}
				ws = append(ws, p.gauge)
			}
			before := models.tracks[acting].rung.level
			models.step(ws, k, now)
			if after := models.tracks[acting].rung.level; after > before {
				if !slices.ContainsFunc(ws, func(w *watched) bool {
					old := &was[slices.Index(ws, w)]
					return w.member && (!old.member || w.stand[acting].pressure > old.stand[acting].pressure)
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
	all := newBook(watching)
	law(t, func(t *rapid.T) {
		observe, off := DefaultConfig(), DefaultConfig()
		which := rapid.Uint8().Draw(t, "signals")
		for s := range signals {
			if which>>s&1 == 0 {
				continue
			}
			switch s {
			case throttle:
				observe.Signals.GPUThrottle.Observe, off.Signals.GPUThrottle.Off = true, true
			case preemptions:
				observe.Signals.Preemptions.Observe, off.Signals.Preemptions.Off = true, true
			default:
				observe.table(s).Observe, off.table(s).Off = true, true
			}
		}
		seen, without := newBook(observe), newBook(off)
		var twin, idle *watched
		var models, twins, idles pool
		trace(t, 1, func(ps []*place, _ uint32, now time.Time) {
			p := ps[0]
			if twin == nil {
				twin, idle = p.clone().gauge, p.clone().gauge
			}
			r := p.readings()
			for _, x := range []struct {
				w *watched
				k *book
				p *pool
			}{{p.gauge, seen, &models}, {twin, without, &twins}, {idle, all, &idles}} {
				x.w.step(x.k, r, now)
				x.p.step([]*watched{x.w}, x.k, now)
			}
			a, b := p.gauge, twin
			if a.stand[acting] != b.stand[acting] || a.cap != b.cap || a.out != b.out {
				t.Fatalf("observed %+v cap %d out %q, off %+v cap %d out %q", a.stand[acting], a.cap, a.out, b.stand[acting], b.cap, b.out)
			}
			if idle.stand[acting].level != Full || idle.cap != 0 || idle.out != "" || idles.tracks[acting].rung.level != Full {
				t.Fatalf("a ladder that observes stands at %v, cap %d, out %q", idle.stand[acting].level, idle.cap, idle.out)
			}
		})
	})
}
