package admission

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// sequences returns a demand of so many prompts with n answers each.
func (h *testFleet) sequences(model string, prompts, n int64) *Demand {
	d := h.demand(model)
	d.Prompts, d.Request.Sequences = prompts, prompts*n
	return d
}

func placesTaken(h *testFleet, model string) (n int) {
	for _, e := range h.engines[model] {
		n += e.seat.InFlight()
	}
	return n
}

// TestSequences: a request takes as many places as it has sequences, waits until one
// backend has them all, and is not passed by smaller ones meanwhile.
func TestSequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large")
		one, err := h.controller.Admit(t.Context(), h.sequences("large", 2, 1))
		if err != nil || placesTaken(h, "large") != 2 {
			t.Fatalf("%v, %d in flight", err, placesTaken(h, "large"))
		}
		two, err := h.controller.Admit(t.Context(), h.sequences("large", 1, 1))
		if err != nil {
			t.Fatal(err)
		}
		big := h.ask(t.Context(), h.sequences("large", 1, 2))
		small := h.ask(t.Context(), h.sequences("large", 1, 1))
		advance(time.Second)
		if big.done || small.done {
			t.Fatal("somebody was let in where two places are wanted and one is free")
		}
		if n := h.pools["large"].Queued(); n != [limit.TierCount]int{0, 2, 0} {
			t.Errorf("%v wait", n)
		}
		two.Settle(limit.Usage{}, "")
		synctest.Wait()
		if big.permit == nil || small.done || placesTaken(h, "large") != 4 {
			t.Fatalf("%+v, %+v, %d in flight", big, small, placesTaken(h, "large"))
		}
		for _, p := range []*Permit{one, big.permit} {
			p.Settle(limit.Usage{}, "")
		}
		synctest.Wait()
		small.permit.Settle(limit.Usage{}, "")
		h.checkIdle(t)
	})
}

// TestTooManySequences: what no backend may ever have is refused at once, and so is
// what no rule can hold; nothing of either is charged.
func TestTooManySequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := []limit.Rule{{Name: "places", Scope: "global", Bounds: limit.Bounds{Concurrency: 4}}}
		h := newTestFleet(t, rules, DefaultQueue(), "large")
		var many *TooMany
		if _, err := h.controller.Admit(t.Context(), h.sequences("large", 3, 1)); !errors.As(err, &many) || many.Sequences != 3 || many.Max != 2 {
			t.Errorf("%v", err)
		}
		var rejection *limit.Rejection
		if _, err := h.controller.Admit(t.Context(), h.sequences("large", 5, 1)); !errors.As(err, &rejection) || !rejection.TooLarge || rejection.Cost != 5 {
			t.Errorf("%v", err)
		}
		s, err := h.controller.Status(context.Background(), limit.Request{})
		if err != nil || len(s.Rates) != 1 || s.Rates[0].Remaining != 4 {
			t.Errorf("%+v, %v", s, err)
		}
		h.checkIdle(t)
	})
}

// TestSequencesAtLevels: from L1 on each prompt has one answer, and that is what
// counts everywhere.
func TestSequencesAtLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := []limit.Rule{{Name: "rpm", Scope: "global", Bounds: limit.Bounds{Requests: limit.Rate{Count: 10, Window: time.Minute}, Concurrency: 10}}}
		h := newTestFleet(t, rules, DefaultQueue(), "large")
		h.ladder.SetPins(map[string]degrade.Pin{"large": {Level: degrade.StreamingOff, Expires: time.Now().Add(time.Hour)}})
		p, err := h.controller.Admit(t.Context(), h.sequences("large", 2, 4))
		if err != nil || p.Level != degrade.StreamingOff || placesTaken(h, "large") != 2 {
			t.Fatalf("%+v, %v, %d in flight", p, err, placesTaken(h, "large"))
		}
		if err := p.Settle(limit.Usage{Input: 1, Output: 1}, ""); err != nil {
			t.Fatal(err)
		}
		s, err := h.controller.Status(t.Context(), limit.Request{})
		if err != nil || s.Rates[0].Remaining != 8 || s.Rates[1].Remaining != 10 {
			t.Errorf("%+v, %v", s.Rates, err)
		}
		h.checkIdle(t)
	})
}

// TestQueueOfSequences: the queue's length counts sequences; a request that is larger
// than the whole queue may wait alone.
func TestQueueOfSequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := DefaultQueue()
		q.MaxLength = 3
		h := newTestFleet(t, nil, q, "large")
		for _, e := range h.engines["large"] {
			e.seat.SetBounds(Bounds{InFlight: 8})
		}
		held, err := h.controller.Admit(t.Context(), h.sequences("large", 8, 1))
		if err != nil {
			t.Fatal(err)
		}
		other, err := h.controller.Admit(t.Context(), h.sequences("large", 8, 1))
		if err != nil {
			t.Fatal(err)
		}
		first := h.ask(t.Context(), h.sequences("large", 5, 1))
		advance(time.Second)
		var shed *Overloaded
		if _, err := h.controller.Admit(t.Context(), h.sequences("large", 1, 1)); !errors.As(err, &shed) || shed.Cause != ShedQueue {
			t.Errorf("%v", err)
		}
		held.Settle(limit.Usage{}, "")
		synctest.Wait()
		for _, p := range []*Permit{other, first.permit} {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestRoomOfEngine: what an engine runs and lets wait is counted in sequences, and one
// request that is larger than all of it is let in once the engine is idle.
func TestRoomOfEngine(t *testing.T) {
	b := NewSeat(nil, Bounds{InFlight: 1000, Waiting: 4})
	b.SetRotation(true)
	told := func(running, waiting int) { b.SetLoad(Load{Time: time.Now(), Running: running, Waiting: waiting}) }
	told(16, 1) // it has shown that it runs 16
	told(6, 0)  // and has 10 to spare
	for sequences, want := range map[int64]room{1: roomFree, 10: roomFree, 14: roomFree, 15: roomNone, 64: roomNone} {
		if got := b.room(sequences); got != want {
			t.Errorf("%d sequences: %v, want %v", sequences, got, want)
		}
	}
	told(0, 0)
	if got := b.room(64); got != roomFree {
		t.Errorf("64 sequences on an idle engine: %v", got)
	}
	b.acquire(64)
	if got := b.room(1); got != roomNone {
		t.Errorf("one more: %v", got)
	}
}

// TestFallBackCharges: an answer of the smaller model, after the larger one's servers
// failed, is charged as a request that the ladder sent there: one answer to each prompt,
// and all its tokens to the tenant's turn there.
func TestFallBackCharges(t *testing.T) {
	for name, ladder := range map[string]bool{"after a failure": false, "by the ladder": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rules := []limit.Rule{{Name: "rpm", Scope: "global", Bounds: limit.Bounds{Requests: limit.Rate{Count: 20, Window: time.Minute}}}}
				h := newTestFleet(t, rules, DefaultQueue(), "large", "small")
				h.engines["large"][0].seat.SetBounds(Bounds{InFlight: 8})
				d := h.sequences("large", 1, 8)
				if ladder {
					h.ladder.SetPins(map[string]degrade.Pin{"large": {Level: degrade.SmallerModel, Expires: time.Now().Add(time.Hour)}})
				}
				p, err := h.controller.Admit(t.Context(), d)
				if err != nil {
					t.Fatal(err)
				}
				if !ladder {
					p.SetOutput(100) // of an answer that was lost
					if placesTaken(h, "large") != 8 || !h.controller.FallBack(p, d) {
						t.Fatalf("%+v, %d in flight", p, placesTaken(h, "large"))
					}
				}
				if p.Level != degrade.SmallerModel || p.Pool().Name != "small" || placesTaken(h, "small") != 1 || placesTaken(h, "large") != 0 {
					t.Fatalf("%+v, %d and %d in flight", p, placesTaken(h, "large"), placesTaken(h, "small"))
				}
				a := p.tenant.account
				before := a.counter.Load()
				p.SetOutput(40)
				if err := p.Settle(limit.Usage{Input: 10, Output: 50}, "small"); err != nil {
					t.Fatal(err)
				}
				if got := a.counter.Load() - before; got != 50*a.perOutput {
					t.Errorf("the tenant's turn was charged %d of 50 tokens", got/a.perOutput)
				}
				s, err := h.controller.Status(t.Context(), limit.Request{})
				if err != nil || len(s.Rates) != 1 || s.Rates[0].Remaining != 19 {
					t.Errorf("%+v, %v: want one request charged", s.Rates, err)
				}
				h.checkIdle(t)
			})
		})
	}
}

// TestSequencesFollowTheLevel: a request has the places of the level at which it is
// answered, wherever it waits when that changes, and nobody waits for more of them.
func TestSequencesFollowTheLevel(t *testing.T) {
	settle := func(t *testing.T, h *testFleet, held ...*Permit) {
		t.Helper()
		for _, p := range held {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	}
	t.Run("it moves to a smaller model", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
			for _, e := range h.engines["small"] {
				e.seat.SetBounds(Bounds{InFlight: 1})
			}
			held := append(h.fill(t, "large"), admitted(t, h, h.demand("small")), admitted(t, h, h.demand("small")))
			big := h.ask(t.Context(), h.sequences("large", 1, 2))
			h.rotate("large", false)
			advance(time.Second)
			next := h.ask(t.Context(), h.demand("small"))
			if big.done || next.done || h.pools["small"].Queued() != [limit.TierCount]int{0, 2, 0} {
				t.Fatalf("%+v, %+v, %v wait", big, next, h.pools["small"].Queued())
			}
			held[4].Settle(limit.Usage{}, "")
			held[5].Settle(limit.Usage{}, "")
			synctest.Wait()
			if big.permit == nil || big.permit.Pool().Name != "small" || next.permit == nil || placesTaken(h, "small") != 2 {
				t.Fatalf("%+v, %+v, %d in flight", big, next, placesTaken(h, "small"))
			}
			settle(t, h, append(held[:4], big.permit, next.permit)...)
		})
	})
	t.Run("its level rises while it waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := DefaultQueue()
			q.MaxLength = 3
			h := newTestFleet(t, nil, q, "large")
			held := h.fill(t, "large")
			big := h.ask(t.Context(), h.sequences("large", 1, 2))
			h.press("large", 81) // L1
			next, last := h.ask(t.Context(), h.demand("large")), h.ask(t.Context(), h.demand("large"))
			if big.done || next.done || last.done {
				t.Fatalf("the queue takes 3, and one of each waits: %+v, %+v, %+v", big, next, last)
			}
			held[0].Settle(limit.Usage{}, "")
			synctest.Wait()
			if big.permit == nil || big.permit.Level != degrade.StreamingOff || placesTaken(h, "large") != 4 {
				t.Fatalf("one place is free, and one is wanted: %+v, %d in flight", big, placesTaken(h, "large"))
			}
			for _, p := range held[1:3] {
				p.Settle(limit.Usage{}, "")
			}
			synctest.Wait()
			settle(t, h, held[3], big.permit, next.permit, last.permit)
		})
	})
	t.Run("its backend stands higher", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newTestFleet(t, nil, DefaultQueue(), "large")
			hot, cool := h.engines["large"][0].seat, h.engines["large"][1].seat
			hot.SetGPUs(2)
			h.press("large", 88, 10) // L2 and L0
			held := []*Permit{admitted(t, h, h.sequences("large", 1, 2))}
			big, next := admitted(t, h, h.sequences("large", 1, 2)), admitted(t, h, h.demand("large"))
			if cool.InFlight() != 2 || big.Seat() != hot || big.Level != degrade.ThinkingOff || hot.InFlight() != 2 {
				t.Fatalf("%+v, %d and %d in flight", big, hot.InFlight(), cool.InFlight())
			}
			advance(time.Second)
			big.Settle(limit.Usage{}, "")
			if hot.InFlight() != 1 || big.GPU() != time.Second {
				t.Errorf("%d in flight, half of two GPUs for a second is %v", hot.InFlight(), big.GPU())
			}
			settle(t, h, append(held, next)...)
		})
	})
}

func admitted(t *testing.T, h *testFleet, d *Demand) *Permit {
	t.Helper()
	p, err := h.controller.Admit(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// uneven returns a fleet whose first backend of large has eight places and the second two.
func uneven(t *testing.T, q QueueConfig, models ...string) *testFleet {
	h := newTestFleet(t, nil, q, models...)
	h.engines["large"][0].seat.SetBounds(Bounds{InFlight: 8})
	return h
}

// tooManyNow reports whether err says that the backends in rotation take fewer.
func tooManyNow(err error, sequences int64, most int) bool {
	var many *TooMany
	return errors.As(err, &many) && *many == TooMany{Sequences: sequences, Max: most, Temporary: true}
}

// TestLargeBlocksNobody: a request that no backend in rotation can hold does not wait,
// where others would wait behind it for a server that is idle.
func TestLargeBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := uneven(t, DefaultQueue(), "large")
		large, small := h.engines["large"][0].seat, h.engines["large"][1].seat
		large.SetRotation(false)
		if big := h.ask(t.Context(), h.sequences("large", 4, 1)); !tooManyNow(big.err, 4, 2) {
			t.Fatalf("%+v", big)
		}
		held := []*Permit{admitted(t, h, h.demand("large")), admitted(t, h, h.demand("large"))}
		large.SetRotation(true)
		held = append(held, admitted(t, h, h.sequences("large", 7, 1)))
		big := h.ask(t.Context(), h.sequences("large", 4, 1))
		next := h.ask(t.Context(), h.demand("large"))
		if big.done || next.done {
			t.Fatalf("%+v, %+v", big, next)
		}
		large.SetRotation(false)
		held[0].Settle(limit.Usage{}, "")
		advance(decideInterval)
		if !tooManyNow(big.err, 4, 2) || next.permit == nil || next.permit.Seat() != small {
			t.Fatalf("%+v, %+v", big, next)
		}
		for _, p := range append(held[1:], next.permit) {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestLargeElsewhere: a request that no backend of its model in rotation can hold is
// answered by the smaller model, as where there is none; one that was told its level is
// not, and neither waits.
func TestLargeElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := uneven(t, DefaultQueue(), "large", "small")
		large := h.engines["large"][0].seat
		held := admitted(t, h, h.sequences("large", 8, 1))
		told := h.sequences("large", 1, 4)
		told.Caller = caller{keepAlive: func(*Permit) bool { return true }}
		stays, moves := h.ask(t.Context(), told), h.ask(t.Context(), h.sequences("large", 1, 4))
		if stays.done || moves.done {
			t.Fatalf("%+v, %+v", stays, moves)
		}
		large.SetRotation(false)
		advance(decideInterval)
		if !tooManyNow(stays.err, 4, 2) {
			t.Errorf("%+v", stays)
		}
		comes := h.ask(t.Context(), h.sequences("large", 1, 4))
		for _, a := range []*pending{moves, comes} {
			if p := a.permit; p == nil || p.Pool().Name != "small" || p.Level != degrade.SmallerModel || p.Reason != reasonDown {
				t.Fatalf("%+v, %v", p, a.err)
			}
		}
		proud := h.sequences("large", 1, 4)
		proud.MaxLevel = degrade.ThinkingOff
		if _, err := h.controller.Admit(t.Context(), proud); !tooManyNow(err, 4, 2) {
			t.Error(err)
		}
		for _, p := range []*Permit{held, moves.permit, comes.permit} {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestLargeBesideACoolOne: a hot backend is left alone only for those that a cool one
// can hold; the others meet its level.
func TestLargeBesideACoolOne(t *testing.T) {
	for name, c := range map[string]struct {
		prompts, n int64
		models     []string
		where      string
		hot, cool  int // sequences there
		level      degrade.Level
	}{
		"by the smaller model":            {2, 2, []string{"large", "small"}, "small", 0, 0, degrade.SmallerModel},
		"with one answer to each prompt":  {2, 2, []string{"large"}, "large", 0, 2, degrade.ThinkingOff},
		"of more prompts than that holds": {4, 1, []string{"large"}, "large", 4, 0, degrade.ThinkingOff},
		"that the cool one holds":         {2, 1, []string{"large"}, "large", 0, 2, degrade.Full},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := uneven(t, DefaultQueue(), c.models...)
				h.press("large", 93, 10) // L3 and L0
				p := admitted(t, h, h.sequences("large", c.prompts, c.n))
				hot, cool := h.engines["large"][0].seat.InFlight(), h.engines["large"][1].seat.InFlight()
				if p.Pool().Name != c.where || p.Level != c.level || hot != c.hot || cool != c.cool {
					t.Errorf("%s at %v, %d and %d in flight", p.Pool().Name, p.Level, hot, cool)
				}
				p.Settle(limit.Usage{}, "")
				h.checkIdle(t)
			})
		})
	}
}

// TestLargeAtItsLevel: what counts is how many sequences a request has at the level at
// which it is answered, its tier included.
func TestLargeAtItsLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := uneven(t, DefaultQueue(), "large")
		h.press("large", 81) // L1
		h.engines["large"][0].seat.SetRotation(false)
		p := admitted(t, h, h.sequences("large", 1, 4))
		if p.Level != degrade.StreamingOff || placesTaken(h, "large") != 1 {
			t.Errorf("%+v, %d in flight", p, placesTaken(h, "large"))
		}
		critical := h.sequences("large", 1, 4)
		critical.Request.Tier = "critical" // L0
		if _, err := h.controller.Admit(t.Context(), critical); !tooManyNow(err, 4, 2) {
			t.Error(err)
		}
		p.Settle(limit.Usage{}, "")
		h.checkIdle(t)
	})
}

// TestTooManyAfterReload: who waits and can never have a place any more, since the
// bounds were lowered, is told so and blocks nobody.
func TestTooManyAfterReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := uneven(t, DefaultQueue(), "large")
		held := []*Permit{admitted(t, h, h.sequences("large", 8, 1)), admitted(t, h, h.sequences("large", 2, 1))}
		big, next := h.ask(t.Context(), h.sequences("large", 4, 1)), h.ask(t.Context(), h.demand("large"))
		h.engines["large"][0].seat.SetBounds(Bounds{InFlight: 3})
		held[1].Settle(limit.Usage{}, "")
		advance(decideInterval)
		var many *TooMany
		if !errors.As(big.err, &many) || *many != (TooMany{Sequences: 4, Max: 3}) || next.permit == nil {
			t.Fatalf("%+v, %+v", big, next)
		}
		for _, p := range []*Permit{held[0], next.permit} {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}

// TestLargeUnderLoad: who waits while its model is at L4 for load goes on to wait, but not
// where no backend in rotation can hold it any more.
func TestLargeUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := uneven(t, DefaultQueue(), "large")
		for _, e := range h.engines["large"] {
			e.waiting.Store(50) // L4
		}
		held := []*Permit{admitted(t, h, h.sequences("large", 8, 1)), admitted(t, h, h.sequences("large", 2, 1))}
		big := h.ask(t.Context(), h.sequences("large", 4, 1))
		next := h.ask(t.Context(), h.demand("large"))
		h.press("large", 0)
		if big.done || next.done {
			t.Fatalf("%+v, %+v", big, next)
		}
		h.engines["large"][0].seat.SetRotation(false)
		held[1].Settle(limit.Usage{}, "")
		advance(decideInterval)
		if big.permit == nil || big.permit.Level != degrade.Canned {
			t.Errorf("%+v", big)
		}
		if next.permit == nil || next.permit.Level != degrade.ThinkingOff {
			t.Fatalf("%+v", next)
		}
		for _, p := range []*Permit{held[0], big.permit, next.permit} {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}
