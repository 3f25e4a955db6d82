package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// engine holds the readings of a backend.
type engine struct {
	kv      atomic.Int64 // hundredths
	waiting atomic.Int64
	seat    *Seat
}

// testFleet holds models with backends under a ladder that runs.
type testFleet struct {
	ladder     *degrade.Ladder
	controller *Controller
	pools      map[string]*Pool
	engines    map[string][]*engine
	ids        int
}

// newTestFleet makes models, each with so many backends of one place each and the next
// one as its fallback, under a ladder of one signal, kv_cache.
func newTestFleet(t *testing.T, rules []limit.Rule, q QueueConfig, models ...string) *testFleet {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	set, err := limit.Compile(rules, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := &testFleet{
		ladder: degrade.New(degrade.DefaultConfig(), log, prometheus.NewRegistry()), pools: map[string]*Pool{}, engines: map[string][]*engine{},
		controller: New(limit.New(set, limit.Options{Store: limit.NewMemory(time.Now)}), q),
	}
	var fallback *Pool
	var watch []degrade.Watch
	for _, name := range slices.Backward(models) {
		m := degrade.NewModel(name)
		p := NewPool(name, m)
		var seats []*Seat
		var gauges []*degrade.Gauge
		for range 2 {
			e := &engine{}
			g := degrade.NewGauge(name, 1, func(now time.Time) degrade.Readings {
				return degrade.Readings{InRotation: e.seat.InRotation(), EngineAt: now, KV: float64(e.kv.Load()) / 100, Waiting: int(e.waiting.Load()), Preempted: -1, InFlight: e.seat.InFlight()}
			})
			e.seat = NewSeat(g, Bounds{InFlight: 2})
			e.seat.SetRotation(true)
			h.engines[name] = append(h.engines[name], e)
			seats, gauges = append(seats, e.seat), append(gauges, g)
		}
		p.Set(seats, fallback)
		h.pools[name], fallback = p, p
		watch = append(watch, degrade.Watch{Model: m, Gauges: gauges})
	}
	h.ladder.Watch(watch)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.ladder.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

// press sets how full the KV caches of a model are, and waits until the ladder has noticed.
func (h *testFleet) press(model string, kv ...int64) {
	for i, e := range h.engines[model] {
		e.kv.Store(kv[min(i, len(kv)-1)])
	}
	advance(4 * time.Second)
}

type caller struct {
	misfit    bool
	keepAlive func(*Permit) bool
}

func (c caller) Fits(*Pool) bool { return !c.misfit }
func (c caller) KeepAlive(p *Permit) (time.Duration, bool) {
	return time.Second, c.keepAlive != nil && c.keepAlive(p)
}

func (h *testFleet) demand(model string) *Demand {
	h.ids++
	return &Demand{
		Pool: h.pools[model], MaxLevel: degrade.Canned, Caller: caller{}, CappedTokens: 10, ThinkingOffTokens: 4,
		Request: limit.Request{ID: string(rune('a' + h.ids)), Tier: "standard", Prompt: 10, MaxTokens: 1000, Thinking: true, Subjects: limit.Subjects{User: "ann"}},
	}
}

// answer admits a request and settles it, and returns the model that would answer, the level and its reason.
func (h *testFleet) answer(t *testing.T, d *Demand) (where string, level degrade.Level, reason string) {
	t.Helper()
	p, err := h.controller.Admit(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Settle(limit.Usage{}, "")
	if p.Pool() == nil {
		return "", p.Level, p.Reason
	}
	return p.Pool().Name, p.Level, p.Reason
}

// TestDescent: where a request is answered, and at which level, as the pressure
// rises, by tier.
func TestDescent(t *testing.T) {
	for _, c := range []struct {
		kv    int64
		tier  string
		where string
		level degrade.Level
	}{
		{10, "standard", "large", 0}, {10, "batch", "large", 0}, {10, "critical", "large", 0},
		{81, "standard", "large", 1}, {81, "batch", "large", 2}, {81, "critical", "large", 0},
		{88, "standard", "large", 2}, {88, "batch", "small", 3}, {88, "critical", "large", 1},
		{93, "standard", "small", 3}, {93, "batch", "small", 3}, {93, "critical", "large", 2},
		{98, "standard", "", 4}, {98, "batch", "", 4}, {98, "critical", "small", 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
			h.press("large", c.kv)
			d := h.demand("large")
			d.Request.Tier = c.tier
			where, level, reason := h.answer(t, d)
			if where != c.where || level != c.level || (reason == "kv_cache") != (level > 0) {
				t.Errorf("KV %d, %s: %q at %v for %q, want %q at %v", c.kv, c.tier, where, level, reason, c.where, c.level)
			}
		})
	}
}

// TestNoSmaller: what becomes of L3 where the smaller model cannot have the request.
func TestNoSmaller(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h *testFleet, d *Demand)
		where  string
		level  degrade.Level
		reason string
	}{
		"it can":                    {func(*testFleet, *Demand) {}, "small", 3, "kv_cache"},
		"it does not fit":           {func(_ *testFleet, d *Demand) { d.Caller = caller{misfit: true} }, "large", 2, "kv_cache"},
		"it is down":                {func(h *testFleet, _ *Demand) { h.rotate("small", false) }, "tiny", 3, "kv_cache"},
		"both are down":             {func(h *testFleet, _ *Demand) { h.rotate("small", false); h.rotate("tiny", false) }, "large", 2, "kv_cache"},
		"it is at L3 itself":        {func(h *testFleet, _ *Demand) { h.press("small", 93) }, "tiny", 3, "kv_cache"},
		"and so is the next":        {func(h *testFleet, _ *Demand) { h.press("small", 93); h.press("tiny", 98) }, "large", 2, "kv_cache"},
		"the large one is down too": {func(h *testFleet, _ *Demand) { h.rotate("large", false) }, "small", 3, "kv_cache"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newTestFleet(t, nil, DefaultQueue(), "large", "small", "tiny")
				h.press("large", 93)
				d := h.demand("large")
				c.change(h, d)
				if where, level, reason := h.answer(t, d); where != c.where || level != c.level || reason != c.reason {
					t.Errorf("%q at %v for %q, want %q at %v for %q", where, level, reason, c.where, c.level, c.reason)
				}
			})
		})
	}
}

// TestNeverToOneAtL3: over random levels, tiers, places and servers that are down, no
// request is sent to a smaller model that stands at L3 or above, or to one that is
// down, and none is answered at a level above what it accepts.
func TestNeverToOneAtL3(t *testing.T) {
	draws := 100_000
	if testing.Short() {
		draws /= 10 // the race detector takes its time
	}
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small", "tiny")
		q, r := h.controller.queue.Load(), rand.New(rand.NewPCG(1, 2))
		reasons := []string{"kv_cache", "queue", "limit", ""}
		sent := map[string]int{}
		for i := range draws {
			pins := map[string]degrade.Pin{}
			for name, all := range h.engines {
				pins[name] = degrade.Pin{Level: degrade.Level(r.IntN(5))}
				up, full := r.IntN(6) > 0, r.IntN(3) == 0
				for _, e := range all {
					e.seat.SetRotation(up)
					e.seat.inFlight.Store(0)
					if full {
						e.seat.inFlight.Store(2)
					}
				}
			}
			h.ladder.SetPins(pins)
			d := h.demand("large")
			d.Request.Tier, d.MaxLevel, d.TTFT = limit.Tiers()[r.IntN(3)], degrade.Level(r.IntN(5)), time.Second
			past := progress{target: target{level: degrade.Level(r.IntN(5)), reason: reasons[r.IntN(len(reasons))]}, waited: time.Duration(r.IntN(3)) * time.Second}
			c := h.controller.choose(q, d, &past)
			if c.kind == kindRefuse {
				continue
			}
			if c.level > d.MaxLevel {
				t.Fatalf("draw %d: %v, and it accepts %v", i, c.level, d.MaxLevel)
			}
			if c.pool == nil {
				sent["nobody"]++
				continue
			}
			sent[c.pool.Name]++
			if v := c.pool.level.Verdict(); c.pool != d.Pool && (v.Level >= degrade.SmallerModel || c.level != degrade.SmallerModel) || !c.pool.Available() {
				t.Fatalf("draw %d: sent at %v to %s, which stands at %v, up %t", i, c.level, c.pool.Name, v.Level, c.pool.Available())
			}
		}
		for _, where := range []string{"large", "small", "tiny", "nobody"} {
			if sent[where] < draws/100 {
				t.Errorf("only %d sent to %s", sent[where], where)
			}
		}
		for _, all := range h.engines {
			for _, e := range all {
				e.seat.inFlight.Store(0)
			}
		}
	})
}

func (h *testFleet) rotate(model string, in bool) {
	for _, e := range h.engines[model] {
		e.seat.SetRotation(in)
	}
}

// TestDownGoesToTheSmaller: a model without a server is answered by the smaller one,
// and by nobody where the caller does not accept that.
func TestDownGoesToTheSmaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		h.rotate("large", false)
		if where, level, reason := h.answer(t, h.demand("large")); where != "small" || level != 3 || reason != "no_backend" {
			t.Errorf("%q at %v for %q", where, level, reason)
		}
		d := h.demand("large")
		d.MaxLevel = degrade.ThinkingOff
		if _, err := h.controller.Admit(t.Context(), d); !errors.Is(err, ErrNoBackend) {
			t.Error(err)
		}
		h.rotate("small", false)
		if _, err := h.controller.Admit(t.Context(), h.demand("large")); !errors.Is(err, ErrNoBackend) {
			t.Error(err)
		}
	})
}

// TestRouteAwayFirst: a hot backend is left for a cool one before anybody's answer
// gets smaller, and one at L3 is not used while another is below, be that full.
func TestRouteAwayFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := DefaultQueue()
		q.MaxWait = time.Second
		h := newTestFleet(t, nil, q, "large")
		hot, cool := h.engines["large"][0], h.engines["large"][1]
		h.press("large", 88, 10) // L2 and L0: the mean is below L1
		var held []*Permit
		take := func() (*Permit, error) {
			p, err := h.controller.Admit(t.Context(), h.demand("large"))
			if err == nil {
				held = append(held, p)
			}
			return p, err
		}
		for range 2 {
			if p, err := take(); err != nil || p.Seat() != cool.seat || p.Level != degrade.Full {
				t.Fatalf("%+v, %v", p, err)
			}
		}
		if p, err := take(); err != nil || p.Seat() != hot.seat || p.Level != degrade.ThinkingOff || p.Reason != "kv_cache" {
			t.Fatalf("the cool one is full: %+v, %v", p, err)
		}
		h.press("large", 93, 10)
		var shed *Overloaded
		if p, err := take(); !errors.As(err, &shed) || shed.Cause != ShedWaited || hot.seat.InFlight() != 1 {
			t.Errorf("one at L3 beside a cool one: %+v, %v", p, err)
		}
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		if hot.seat.InFlight() != 0 || cool.seat.InFlight() != 0 {
			t.Error("places are lost")
		}
	})
}

// TestLoadIsNoReasonToBeIdle: at levels that come from load a place that is free is
// given, and a canned answer only where there is none; who waited before goes on to.
func TestLoadIsNoReasonToBeIdle(t *testing.T) {
	for _, waiting := range []int64{25, 50} { // L3, L4
		synctest.Test(t, func(t *testing.T) {
			h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
			for _, e := range h.engines["large"] {
				e.waiting.Store(waiting)
			}
			held := h.fill(t, "large")
			before := h.ask(t.Context(), h.demand("large"))
			h.press("large", 0)
			var at []string
			for range 6 {
				a := h.ask(t.Context(), h.demand("large"))
				if !a.done {
					at = append(at, "waits")
					continue
				}
				where := "canned"
				if a.permit.Pool() != nil {
					where = a.permit.Pool().Name
					held = append(held, a.permit)
				}
				at = append(at, where+" "+a.permit.Level.String())
			}
			// One of the small model's four places went to the one that waited.
			want := []string{"small L3", "small L3", "small L3", "canned L4", "canned L4", "canned L4"}
			if waiting == 25 {
				want = []string{"small L3", "small L3", "small L3", "waits", "waits", "waits"}
			}
			if !slices.Equal(at, want) {
				t.Errorf("%d wait: %v, want %v", waiting, at, want)
			}
			if !before.done || before.permit.Level != degrade.SmallerModel {
				t.Fatalf("%d wait: one that waited before: %+v", waiting, before)
			}
			held = append(held, before.permit)
			held[0].Settle(limit.Usage{}, "")
			synctest.Wait()
			if waiting == 50 {
				if where, level, reason := h.answer(t, h.demand("large")); where != "large" || level != degrade.ThinkingOff || reason != "queue" {
					t.Errorf("a place of its own is free: %q at %v for %q", where, level, reason)
				}
			}
			for _, p := range held[1:] {
				p.Settle(limit.Usage{}, "")
			}
		})
	}
}

// TestHotAndCrowded: a place that is free disproves load, not heat.
func TestHotAndCrowded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		for _, e := range h.engines["large"] {
			e.waiting.Store(50) // L4
		}
		h.press("large", 93) // L3
		var at []string
		for range 5 {
			p, err := h.controller.Admit(t.Context(), h.demand("large"))
			if err != nil {
				t.Fatal(err)
			}
			at = append(at, p.Level.String())
			if p.Pool() != nil && p.Pool().Name != "small" {
				t.Errorf("sent to %s", p.Pool().Name)
			}
		}
		if !slices.Equal(at, []string{"L3", "L3", "L3", "L3", "L4"}) {
			t.Error(at)
		}
	})
}

// TestPinIsExact: neither readings nor tiers move a pin.
func TestPinIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		h.press("large", 98)
		for _, pin := range []degrade.Level{0, 2, 3} {
			h.ladder.SetPins(map[string]degrade.Pin{"large": {Level: pin, Expires: time.Now().Add(time.Minute)}})
			for _, tier := range limit.Tiers() {
				d := h.demand("large")
				d.Request.Tier = tier
				if _, level, _ := h.answer(t, d); level != pin {
					t.Errorf("pinned to %v, %s has %v", pin, tier, level)
				}
			}
		}
		advance(2 * time.Minute)
		if _, level, _ := h.answer(t, h.demand("large")); level != degrade.Canned {
			t.Errorf("after the pin: %v", level)
		}
	})
}

// TestLimitsFollowTheLevel: under pressure a rule lets less through, at once.
func TestLimitsFollowTheLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		half := limit.Factor(500)
		rule := limit.Rule{Name: "rate", Scope: "user", Bounds: limit.Bounds{Requests: limit.Rate{Count: 4, Window: time.Minute}}}
		rule.UnderPressure.L2 = half
		h := newTestFleet(t, []limit.Rule{rule}, DefaultQueue(), "large", "small")
		in := func() (n int) {
			for range 6 {
				p, err := h.controller.Admit(t.Context(), h.demand("large"))
				if rejection := (*limit.Rejection)(nil); errors.As(err, &rejection) {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				n++
				p.Settle(limit.Usage{}, "")
			}
			return n
		}
		h.press("large", 88)
		if n := in(); n != 2 {
			t.Errorf("%d of 4 at L2, want half", n)
		}
	})
}

// TestPaceOfWhoAnswers: what running requests may use follows the speed of the model that
// answers them, not of the one that was asked for.
func TestPaceOfWhoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := limit.Rule{Name: "rate", Scope: "user", Bounds: limit.Bounds{Tokens: limit.Rate{Count: 10_000, Window: time.Minute}}}
		h := newTestFleet(t, []limit.Rule{rule}, DefaultQueue(), "large", "small")
		admit := func(model string) (*Permit, error) {
			d := h.demand(model)
			d.Request.Model, d.Request.MaxTokens, d.CappedTokens = model, 100_000, 100_000
			return h.controller.Admit(t.Context(), d)
		}
		for model, took := range map[string]time.Duration{"large": 40 * time.Second, "small": 10 * time.Second} {
			for range 8 {
				p, err := admit(model)
				if err != nil {
					t.Fatal(err)
				}
				advance(took)
				p.Settle(limit.Usage{Input: 10, Output: 1000}, model)
			}
		}
		advance(2 * time.Minute)
		in := func() (n int) {
			for ; ; n++ {
				p, err := admit("large")
				if rejection := (*limit.Rejection)(nil); errors.As(err, &rejection) {
					return n
				} else if err != nil {
					t.Fatal(err)
				}
				defer p.Settle(limit.Usage{}, "")
			}
		}
		if n := in(); n != 4 {
			t.Errorf("%d answers of the large model at 25 tokens a second may run, want 4", n)
		}
		h.rotate("large", false)
		if n := in(); n != 1 {
			t.Errorf("%d answers of the small model at 100 tokens a second may run, want 1", n)
		}
	})
}

// TestExceedDegrade: who is over such a rule gets the smaller model, and a refusal
// where that cannot be.
func TestExceedDegrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := limit.Rule{Name: "soft", Scope: "user", Exceed: limit.ExceedDegrade, Bounds: limit.Bounds{Requests: limit.Rate{Count: 1, Window: time.Minute}}}
		h := newTestFleet(t, []limit.Rule{rule}, DefaultQueue(), "large", "small")
		if where, level, _ := h.answer(t, h.demand("large")); where != "large" || level != 0 {
			t.Fatalf("%q at %v", where, level)
		}
		if where, level, reason := h.answer(t, h.demand("large")); where != "small" || level != 3 || reason != "limit" {
			t.Errorf("over the rule: %q at %v for %q", where, level, reason)
		}
		d := h.demand("large")
		d.Caller = caller{misfit: true}
		var rejection *limit.Rejection
		if _, err := h.controller.Admit(t.Context(), d); !errors.As(err, &rejection) || rejection.Rule != "soft" || rejection.RetryAfter <= 0 {
			t.Error(err)
		}
	})
}

// TestExceedDegradeElsewhere: who is over such a rule is told of the rule, not of
// pressure, wherever the smaller model cannot be had.
func TestExceedDegradeElsewhere(t *testing.T) {
	rule := limit.Rule{Name: "soft", Scope: "user", Exceed: limit.ExceedDegrade, Bounds: limit.Bounds{Requests: limit.Rate{Count: 1, Window: time.Minute}}}
	var rejection *limit.Rejection
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, []limit.Rule{rule}, DefaultQueue(), "large", "small")
		h.answer(t, h.demand("large"))
		d := h.demand("large")
		d.MaxLevel = degrade.ThinkingOff
		if _, err := h.controller.Admit(t.Context(), d); !errors.As(err, &rejection) || rejection.RetryAfter < 50*time.Second {
			t.Errorf("a caller that accepts no L3: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, []limit.Rule{rule}, DefaultQueue(), "large", "small")
		h.answer(t, h.demand("large"))
		var held []*Permit
		for range 4 {
			d := h.demand("small")
			d.Request.User = d.Request.ID
			p, err := h.controller.Admit(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, p)
		}
		waits := h.ask(t.Context(), h.demand("large"))
		h.rotate("small", false)
		advance(time.Second)
		if !errors.As(waits.err, &rejection) {
			t.Errorf("its fallback went while it waited there: %+v", waits)
		}
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// BenchmarkLevel measures the cost of the ladder on the path of a request: the level of the
// model and of its backends, shifted by the tier.
func BenchmarkLevel(b *testing.B) {
	for _, backends := range []int{2, 8} {
		b.Run(fmt.Sprint(backends), func(b *testing.B) {
			var seats []*Seat
			for range backends {
				e := NewSeat(nil, Bounds{})
				e.SetRotation(true)
				seats = append(seats, e)
			}
			p := NewPool("large", degrade.NewModel("large"))
			p.Set(seats, nil)
			doors := unlimited()
			q := doors.queue.Load()
			d := &Demand{Pool: p, TTFT: time.Second, MaxLevel: degrade.Canned, Request: limit.Request{Tier: "batch"}}
			b.ReportAllocs()
			for b.Loop() {
				c := doors.choose(q, d, &progress{})
				if c.kind != kindGo || c.pool != p {
					b.Fatal(c)
				}
				on := situation{past: progress{target: c.target}, verdict: p.level.Verdict()}
				if raised := decideOnSeat(d, &on, seats[0].gauge.Verdict()); raised.kind != kindStay {
					b.Fatal(raised)
				}
			}
		})
	}
}

// advance lets time pass, and all that it brings about happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
