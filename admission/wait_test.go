package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// fill takes every place of a model.
func (h *testFleet) fill(t *testing.T, model string) (held []*Permit) {
	t.Helper()
	for range 4 {
		p, err := h.controller.Admit(t.Context(), h.demand(model))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, p)
	}
	return held
}

// pending is a request that is being admitted.
type pending struct {
	permit *Permit
	err    error
	took   time.Duration
	done   bool
}

// ask admits in the background.
func (h *testFleet) ask(ctx context.Context, d *Demand) *pending {
	return admitAsync(ctx, h.controller, d)
}

// admitAsync admits in the background, and returns when the request waits or is done.
func admitAsync(ctx context.Context, c *Controller, d *Demand) *pending {
	a, began := new(pending), time.Now()
	go func() {
		a.permit, a.err = c.Admit(ctx, d)
		a.took, a.done = time.Since(began), true
	}()
	synctest.Wait()
	return a
}

func (h *testFleet) checkIdle(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for name, all := range h.engines {
		for i, e := range all {
			if n := e.seat.InFlight(); n != 0 {
				t.Errorf("%d left on backend %d of %s", n, i, name)
			}
		}
		if n := h.pools[name].Queued(); n != [limit.TierCount]int{} {
			t.Errorf("%v left in the queue of %s", n, name)
		}
	}
}

// TestTurns: who waits gets the next place, by tier and by what each user has had.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large")
		held := h.fill(t, "large")
		var order []string
		all := map[string]*pending{}
		for i, who := range []string{"batch/cid", "standard/ann", "standard/ann", "standard/bob", "critical/cid"} {
			d := h.demand("large")
			d.Request.Tier, d.Request.User, _ = strings.Cut(who, "/")
			all[fmt.Sprint(i, who)] = h.ask(t.Context(), d)
		}
		if n := h.pools["large"].Queued(); n != [limit.TierCount]int{1, 3, 1} {
			t.Fatalf("%v wait", n)
		}
		for range 5 {
			advance(time.Second)
			held[0].Settle(limit.Usage{}, "")
			held = held[1:]
			synctest.Wait()
			for who, a := range all {
				if a.done && a.err == nil && !slices.Contains(order, who) {
					order = append(order, who)
					held = append(held, a.permit)
					if a.permit.Wait != a.took || a.took == 0 {
						t.Errorf("%s waited %v of %v", who, a.permit.Wait, a.took)
					}
				}
			}
		}
		// bob begins where ann stands, who came first; then it is his turn.
		if want := []string{"4critical/cid", "1standard/ann", "3standard/bob", "2standard/ann", "0batch/cid"}; !slices.Equal(order, want) {
			t.Errorf("%v, want %v", order, want)
		}
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestWaitEnds: a wait ends with the caller, with its time, and at once where it
// would be too long.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := DefaultQueue()
		q.MaxLength = 2
		h := newTestFleet(t, nil, q, "large")
		held := h.fill(t, "large")
		ctx, leave := context.WithCancel(t.Context())
		gone, patient := h.ask(ctx, h.demand("large")), h.ask(t.Context(), h.demand("large"))
		var shed *Overloaded
		if third := h.ask(t.Context(), h.demand("large")); !errors.As(third.err, &shed) || shed.Cause != ShedQueue || shed.RetryAfter < time.Second || third.took != 0 {
			t.Errorf("the queue is full: %v after %v", third.err, third.took)
		}
		leave()
		synctest.Wait()
		if !errors.Is(gone.err, context.Canceled) {
			t.Errorf("the caller left: %v", gone.err)
		}
		advance(q.MaxWait + time.Second)
		if !errors.As(patient.err, &shed) || shed.Cause != ShedWaited || patient.took != q.MaxWait {
			t.Errorf("%v after %v, want %v", patient.err, patient.took, q.MaxWait)
		}
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestWaitMoves: those who wait follow the ladder: to the smaller model, to a canned
// answer; and one that was told its level keeps it.
func TestWaitMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		held := h.fill(t, "large")
		told := h.demand("large")
		told.Caller = caller{keepAlive: func(*Permit) bool { return true }}
		stays := h.ask(t.Context(), told)
		moves := h.ask(t.Context(), h.demand("large"))
		h.press("large", 93)
		synctest.Wait()
		if !moves.done || moves.err != nil || moves.permit.Pool() != h.pools["small"] || moves.permit.Level != degrade.SmallerModel {
			t.Fatalf("%+v", moves)
		}
		if stays.done {
			t.Fatalf("told L0: %+v", stays)
		}
		h.press("large", 98)
		held[0].Settle(limit.Usage{}, "")
		synctest.Wait()
		if !stays.done || stays.permit.Pool() != h.pools["large"] || stays.permit.Level != degrade.Full {
			t.Errorf("told L0: %+v", stays)
		}
		for _, p := range append(held, stays.permit, moves.permit) {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestStall: servers that stood still once, so that all who waited gave up, do not make
// the queue refuse for ever.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large")
		held := h.fill(t, "large")
		for i := range 3 { // the rate becomes known
			a := h.ask(t.Context(), h.demand("large"))
			advance(500 * time.Millisecond)
			held[i].Settle(limit.Usage{}, "")
			synctest.Wait()
			held[i] = a.permit
		}
		stalled := h.ask(t.Context(), h.demand("large"))
		advance(31 * time.Second)
		if stalled.err == nil {
			t.Fatal("it did not wait")
		}
		next := h.ask(t.Context(), h.demand("large"))
		if next.done {
			t.Fatalf("the first one after a stall is refused: %v", next.err)
		}
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		synctest.Wait()
		next.permit.Settle(limit.Usage{}, "")
		h.checkIdle(t)
	})
}

// TestMoves: who waits and belongs elsewhere goes there only where it is taken: at once
// to an idle server, whatever its queue was like once.
func TestMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		held := h.fill(t, "small")
		for i := range 3 { // a slow queue, once
			a := h.ask(t.Context(), h.demand("small"))
			advance(20 * time.Second)
			held[i].Settle(limit.Usage{}, "")
			synctest.Wait()
			held[i] = a.permit
		}
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		held = h.fill(t, "large")
		a := h.ask(t.Context(), h.demand("large"))
		advance(22 * time.Second)
		h.press("large", 93)
		if a.permit == nil || a.permit.Pool().Name != "small" || a.permit.Level != degrade.SmallerModel {
			t.Fatalf("%+v", a)
		}
		for _, p := range append(held, a.permit) {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

type panics struct{ caller }

func (panics) KeepAlive(*Permit) (time.Duration, bool) { panic("on purpose") }

// TestPanicWhileWaiting: nothing is held for a request whose own code panics.
func TestPanicWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := limit.Rule{Name: "slots", Scope: "user", Bounds: limit.Bounds{Concurrency: 5}}
		h := newTestFleet(t, []limit.Rule{rule}, DefaultQueue(), "large")
		held := h.fill(t, "large")
		d := h.demand("large")
		d.Caller = panics{}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("it did not panic")
				}
			}()
			h.controller.Admit(t.Context(), d)
		}()
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		if n := h.controller.limits.Running(); n != 0 {
			t.Errorf("%d leases are held for nobody", n)
		}
		h.checkIdle(t)
	})
}

// TestBurst: a server that has not shown how many requests it runs is given them bit by
// bit, and nobody's answer gets smaller for it; one that has is given those and a few.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large")
		h.engines["large"][1].seat.SetRotation(false)
		b := h.engines["large"][0].seat
		b.SetBounds(Bounds{InFlight: 1000, Waiting: 4})
		tell := func(running, waiting int) {
			t.Helper()
			b.SetLoad(Load{Time: time.Now(), Running: running, Waiting: waiting})
			synctest.Wait()
		}
		tell(0, 0)
		var all []*pending
		for range 200 {
			d := h.demand("large")
			d.TTFT = time.Second
			all = append(all, h.ask(t.Context(), d))
		}
		for _, step := range []struct{ running, waiting, inFlight int }{
			{32, 0, 64}, {64, 0, 128}, // twice as many each time
			{100, 28, 128}, // it runs 100: those that wait in it are more than enough
			{100, 1, 131}, {100, 4, 131},
		} {
			tell(step.running, step.waiting)
			if n := b.InFlight(); n != step.inFlight {
				t.Errorf("running %d, waiting %d: %d in flight, want %d", step.running, step.waiting, n, step.inFlight)
			}
		}
		for i, a := range all[:128] {
			if !a.done || a.permit.Level != degrade.Full {
				t.Fatalf("request %d: %+v", i, a)
			}
		}
		for len(all) > 0 {
			if a := all[0]; a.done {
				if a.permit != nil {
					a.permit.Settle(limit.Usage{}, "")
				}
				all = all[1:]
			} else {
				advance(time.Second) // what the engine said grows old
			}
			synctest.Wait()
		}
		h.checkIdle(t)
	})
}
