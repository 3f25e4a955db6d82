package admission

import (
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// TestChoose is the part of docs/pressure.md that depends on what a snapshot reads of pools
// and backends: rotation, draining, doubt, bounds, and what the smaller model can answer.
func TestChoose(t *testing.T) {
	both := func(p *Pool, change func(*Seat)) {
		for _, s := range p.seats {
			change(s)
		}
	}
	out := func(s *Seat) { s.SetRotation(false) }
	drain := func(s *Seat) { s.SetWeight(0) }
	doubt := func(s *Seat) { s.SetDoubt(true) }
	for name, c := range map[string]struct {
		change func(large, small *Pool, d *Demand)
		kind   kind
		where  string
		level  degrade.Level
		cause  error
	}{
		"nothing is wrong":              {func(_, _ *Pool, _ *Demand) {}, kindGo, "large", 0, nil},
		"one backend is out":            {func(large, _ *Pool, _ *Demand) { out(large.seats[0]) }, kindGo, "large", 0, nil},
		"all backends are out":          {func(large, _ *Pool, _ *Demand) { both(large, out) }, kindGo, "small", 3, nil},
		"all are out, of both models":   {func(large, small *Pool, _ *Demand) { both(large, out); both(small, out) }, kindRefuse, "large", 0, ErrNoBackend},
		"one backend drains":            {func(large, _ *Pool, _ *Demand) { drain(large.seats[0]) }, kindGo, "large", 0, nil},
		"all backends drain":            {func(large, _ *Pool, _ *Demand) { both(large, drain) }, kindGo, "small", 3, nil},
		"all drain, of both models":     {func(large, small *Pool, _ *Demand) { both(large, drain); both(small, drain) }, kindRefuse, "large", 0, ErrNoBackend},
		"all backends are in doubt":     {func(large, _ *Pool, _ *Demand) { both(large, doubt) }, kindGo, "large", 0, nil},
		"one is out, the other doubted": {func(large, _ *Pool, _ *Demand) { out(large.seats[0]); doubt(large.seats[1]) }, kindGo, "large", 0, nil},
		"the smaller cannot answer":     {func(large, _ *Pool, d *Demand) { both(large, out); d.Caller = caller{misfit: true} }, kindRefuse, "large", 0, ErrNoBackend},
		"nobody knows what it can":      {func(large, _ *Pool, d *Demand) { both(large, out); d.Caller = nil }, kindRefuse, "large", 0, ErrNoBackend},
		"L2 is the most it accepts":     {func(large, _ *Pool, d *Demand) { both(large, out); d.MaxLevel = 2 }, kindRefuse, "large", 0, ErrNoBackend},
		"all places are taken":          {func(large, _ *Pool, _ *Demand) { both(large, func(s *Seat) { s.inFlight.Store(2) }) }, kindGo, "large", 2, nil},
		"a batch, and all are taken": {func(large, _ *Pool, d *Demand) {
			both(large, func(s *Seat) { s.inFlight.Store(2) })
			d.Request.Tier = "batch"
		}, kindGo, "small", 3, nil},
		"a batch, and all of both are taken": {func(large, small *Pool, d *Demand) {
			for _, p := range []*Pool{large, small} {
				both(p, func(s *Seat) { s.inFlight.Store(2) })
			}
			d.Request.Tier = "batch"
		}, kindGo, "large", 2, nil},
		"only one that is out has the bounds": {func(large, small *Pool, d *Demand) {
			large.seats[0].SetBounds(Bounds{InFlight: 8})
			out(large.seats[0])
			both(small, out)
			d.Request.Sequences = 4
		}, kindRefuse, "large", 0, &TooMany{Sequences: 4, Max: 2, Temporary: true}},
		"and the smaller has the bounds": {func(large, small *Pool, d *Demand) {
			large.seats[0].SetBounds(Bounds{InFlight: 8})
			out(large.seats[0])
			both(small, func(s *Seat) { s.SetBounds(Bounds{InFlight: 4}) })
			d.Request.Sequences = 4
		}, kindGo, "small", 3, nil},
		"nor has any smaller the bounds": {func(large, small *Pool, d *Demand) {
			both(large, out)
			d.Request.Sequences = 4
		}, kindRefuse, "large", 0, &TooMany{Sequences: 4, Max: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			large, small := NewPool("large", nil), NewPool("small", nil)
			for _, p := range []*Pool{small, large} {
				seats := []*Seat{NewSeat(nil, Bounds{InFlight: 2}), NewSeat(nil, Bounds{InFlight: 2})}
				for _, s := range seats {
					s.SetRotation(true)
				}
				p.Set(seats, map[*Pool]*Pool{large: small}[p])
			}
			d := &Demand{
				Pool: large, MaxLevel: degrade.Canned, TTFT: time.Second, Caller: caller{},
				Request: limit.Request{Tier: "standard", Thinking: true},
			}
			c.change(large, small, d)
			doors := unlimited()
			got := doors.choose(doors.queue.Load(), d, &progress{})
			if got.kind != c.kind || poolName(got.pool) != c.where || got.level != c.level || !reflect.DeepEqual(got.cause, c.cause) {
				t.Errorf("%d in %s at %v, %v; want %d in %s at %v, %v", got.kind, poolName(got.pool), got.level, got.cause, c.kind, c.where, c.level, c.cause)
			}
		})
	}
}

// TestSnapshotLeavesOut: the caller is asked about a smaller model only where a rule needs
// one, and never about a model that is down.
func TestSnapshotLeavesOut(t *testing.T) {
	large, small := poolOf(1), poolOf(1)
	large.Set(large.seats, small)
	asked := 0
	d := &Demand{Pool: large, MaxLevel: degrade.Canned, Caller: countingCaller{caller{}, &asked}}
	doors := unlimited()
	q := doors.queue.Load()
	if s := doors.snapshot(q, d, &progress{}); s.fallback != (candidate{}) || asked != 0 {
		t.Errorf("a calm model: %+v, and the caller was asked %d times", s.fallback, asked)
	}
	large.seats[0].SetRotation(false)
	if s := doors.snapshot(q, d, &progress{}); !s.fallback.usable() || s.fallback.pool != small || asked != 1 {
		t.Errorf("no backend: %+v, and the caller was asked %d times", s.fallback, asked)
	}
	small.seats[0].SetRotation(false)
	if s := doors.snapshot(q, d, &progress{}); s.fallback.usable() || asked != 1 {
		t.Errorf("no backend of both: %+v, and the caller was asked %d times", s.fallback, asked)
	}
}

// countingCaller counts how often it is asked what a smaller model can answer.
type countingCaller struct {
	caller
	asked *int
}

func (c countingCaller) Fits(p *Pool) bool {
	*c.asked++
	return c.caller.Fits(p)
}

// TestDemandIsOnlyRead: admission writes nothing into a Demand, whatever becomes of it.
func TestDemandIsOnlyRead(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, h *testFleet, d *Demand) error{
		"a free place": func(t *testing.T, h *testFleet, d *Demand) error {
			return settled(h.controller.Admit(t.Context(), d))
		},
		"canned": func(t *testing.T, h *testFleet, d *Demand) error {
			h.press("large", 98)
			return settled(h.controller.Admit(t.Context(), d))
		},
		"the smaller model": func(t *testing.T, h *testFleet, d *Demand) error {
			h.press("large", 93)
			return settled(h.controller.Admit(t.Context(), d))
		},
		"refused": func(t *testing.T, h *testFleet, d *Demand) error {
			h.press("large", 93)
			permit, err := h.controller.Admit(t.Context(), d)
			var shed *Overloaded
			if permit != nil || !errors.As(err, &shed) {
				t.Errorf("%v, %v", permit, err)
			}
			return nil
		},
		"a wait that moves": func(t *testing.T, h *testFleet, d *Demand) error {
			held := h.fill(t, "large")
			a := h.ask(t.Context(), d)
			h.press("large", 93)
			for _, p := range held {
				p.Settle(limit.Usage{}, "")
			}
			if synctest.Wait(); !a.done || a.permit == nil || a.permit.Pool() != h.pools["small"] {
				t.Errorf("it did not move: %+v", a)
			}
			return settled(a.permit, a.err)
		},
		"a wait that ends": func(t *testing.T, h *testFleet, d *Demand) error {
			held := h.fill(t, "large")
			a := h.ask(t.Context(), d)
			held[0].Settle(limit.Usage{}, "")
			synctest.Wait()
			for _, p := range held[1:] {
				p.Settle(limit.Usage{}, "")
			}
			return settled(a.permit, a.err)
		},
		"a failed backend, and a fallback": func(t *testing.T, h *testFleet, d *Demand) error {
			p, err := h.controller.Admit(t.Context(), d)
			if err != nil {
				return err
			}
			if !h.controller.CanFallBack(p, d) || !p.SwitchBackend() || !h.controller.FallBack(p, d) {
				t.Error("it did not fall back")
			}
			return settled(p, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
				d := h.demand("large")
				d.TTFT, d.Prompts, d.Request.Sequences = time.Second, 1, 2
				if name == "refused" {
					d.MaxLevel = degrade.StreamingOff
				}
				before := *d
				if err := run(t, h, d); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(before, *d) {
					t.Errorf("%+v, and it was %+v", *d, before)
				}
				h.checkIdle(t)
			})
		})
	}
}

// settled settles what Admit returned.
func settled(p *Permit, err error) error {
	if err != nil {
		return err
	}
	return p.Settle(limit.Usage{}, "")
}
