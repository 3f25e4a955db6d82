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

// several is a demand of so many prompts with n answers each.
func (h *house) several(model string, prompts, n int64) *Demand {
	d := h.demand(model)
	d.Prompts, d.Request.Sequences = prompts, prompts*n
	return d
}

func placesOf(h *house, model string) (n int) {
	for _, e := range h.of[model] {
		n += e.b.InFlight()
	}
	return n
}

// TestSequences: a request takes as many places as it has sequences, waits until one
// backend has them all, and is not passed by smaller ones meanwhile.
func TestSequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil, DefaultQueue(), "large")
		one, err := h.doors.Admit(t.Context(), h.several("large", 2, 1))
		if err != nil || placesOf(h, "large") != 2 {
			t.Fatalf("%v, %d in flight", err, placesOf(h, "large"))
		}
		two, err := h.doors.Admit(t.Context(), h.several("large", 1, 1))
		if err != nil {
			t.Fatal(err)
		}
		big := h.ask(t.Context(), h.several("large", 1, 2))
		small := h.ask(t.Context(), h.several("large", 1, 1))
		pass(time.Second)
		if big.done || small.done {
			t.Fatal("somebody was let in where two places are wanted and one is free")
		}
		if n := h.pools["large"].Queued(); n != [tierCount]int{0, 2, 0} {
			t.Errorf("%v wait", n)
		}
		two.Settle(limit.Usage{}, "")
		synctest.Wait()
		if big.permit == nil || small.done || placesOf(h, "large") != 4 {
			t.Fatalf("%+v, %+v, %d in flight", big, small, placesOf(h, "large"))
		}
		for _, p := range []*Permit{one, big.permit} {
			p.Settle(limit.Usage{}, "")
		}
		synctest.Wait()
		small.permit.Settle(limit.Usage{}, "")
		h.idle(t)
	})
}

// TestTooManySequences: what no backend may ever have is refused at once, and so is
// what no rule can hold; nothing of either is charged.
func TestTooManySequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := []limit.Rule{{Name: "places", Per: "global", Bounds: limit.Bounds{Concurrency: 4}}}
		h := newHouse(t, rules, DefaultQueue(), "large")
		var many *TooMany
		if _, err := h.doors.Admit(t.Context(), h.several("large", 3, 1)); !errors.As(err, &many) || many.Sequences != 3 || many.Most != 2 {
			t.Errorf("%v", err)
		}
		var denied *limit.Denied
		if _, err := h.doors.Admit(t.Context(), h.several("large", 5, 1)); !errors.As(err, &denied) || !denied.Never || denied.Cost != 5 {
			t.Errorf("%v", err)
		}
		s, err := h.doors.Status(context.Background(), limit.Request{})
		if err != nil || len(s.Rates) != 1 || s.Rates[0].Remaining != 4 {
			t.Errorf("%+v, %v", s, err)
		}
		h.idle(t)
	})
}

// TestSequencesAtLevels: from L1 on each prompt has one answer, and that is what
// counts everywhere.
func TestSequencesAtLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := []limit.Rule{{Name: "rpm", Per: "global", Bounds: limit.Bounds{Requests: limit.Rate{Count: 10, Window: time.Minute}, Concurrency: 10}}}
		h := newHouse(t, rules, DefaultQueue(), "large")
		h.ladder.SetPins(map[string]degrade.Pin{"large": {Level: degrade.StreamingOff, Until: time.Now().Add(time.Hour)}})
		p, err := h.doors.Admit(t.Context(), h.several("large", 2, 4))
		if err != nil || p.Level != degrade.StreamingOff || placesOf(h, "large") != 2 {
			t.Fatalf("%+v, %v, %d in flight", p, err, placesOf(h, "large"))
		}
		if err := p.Settle(limit.Usage{Input: 1, Output: 1}, ""); err != nil {
			t.Fatal(err)
		}
		s, err := h.doors.Status(t.Context(), limit.Request{})
		if err != nil || s.Rates[0].Remaining != 8 || s.Rates[1].Remaining != 10 {
			t.Errorf("%+v, %v", s.Rates, err)
		}
		h.idle(t)
	})
}

// TestQueueOfSequences: the queue's length counts sequences; a request that is larger
// than the whole queue may wait alone.
func TestQueueOfSequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := DefaultQueue()
		q.MaxLength = 3
		h := newHouse(t, nil, q, "large")
		for _, e := range h.of["large"] {
			e.b.SetBounds(Bounds{InFlight: 8})
		}
		held, err := h.doors.Admit(t.Context(), h.several("large", 8, 1))
		if err != nil {
			t.Fatal(err)
		}
		other, err := h.doors.Admit(t.Context(), h.several("large", 8, 1))
		if err != nil {
			t.Fatal(err)
		}
		first := h.ask(t.Context(), h.several("large", 5, 1))
		pass(time.Second)
		var shed *Overloaded
		if _, err := h.doors.Admit(t.Context(), h.several("large", 1, 1)); !errors.As(err, &shed) || shed.Why != ShedQueue {
			t.Errorf("%v", err)
		}
		held.Settle(limit.Usage{}, "")
		synctest.Wait()
		for _, p := range []*Permit{other, first.permit} {
			p.Settle(limit.Usage{}, "")
		}
		h.idle(t)
	})
}

// TestRoomOfEngine: what an engine runs and lets wait is counted in sequences, and one
// request that is larger than all of it is let in once the engine is idle.
func TestRoomOfEngine(t *testing.T) {
	b := NewBackend(nil, Bounds{InFlight: 1000, Waiting: 4})
	b.Rotate(true)
	told := func(running, waiting int) { b.Told(Load{At: time.Now(), Running: running, Waiting: waiting}) }
	told(16, 1) // it has shown that it runs 16
	told(6, 0)  // and has 10 to spare
	for sequences, want := range map[int64]room{1: free, 10: free, 14: free, 15: full, 64: full} {
		if got := b.room(sequences); got != want {
			t.Errorf("%d sequences: %v, want %v", sequences, got, want)
		}
	}
	told(0, 0)
	if got := b.room(64); got != free {
		t.Errorf("64 sequences on an idle engine: %v", got)
	}
	b.enter(64)
	if got := b.room(1); got != full {
		t.Errorf("one more: %v", got)
	}
}
