package admission

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// TestMaxLevel: what a caller accepts.
func TestMaxLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		h.press("large", 93)
		d := h.demand("large")
		d.MaxLevel = degrade.ThinkingOff
		var shed *Overloaded
		if _, err := h.controller.Admit(t.Context(), d); !errors.As(err, &shed) || shed.Cause != ShedLevel || shed.Level != 3 || shed.Reason != "kv_cache" {
			t.Fatal(err)
		}
		if shed.RetryAfter < 20*time.Second || shed.RetryAfter > 33*time.Second {
			t.Errorf("try again in %v: a level stays for 30 s", shed.RetryAfter)
		}
		d.MaxLevel = degrade.SmallerModel
		if where, _, _ := h.answer(t, d); where != "small" {
			t.Error(where)
		}
	})
}

// TestMaxLevelWhateverTheCause: from a model at a level nobody is answered at one below
// it but as the page says, and who accepts no answer as small is refused: whether the
// level comes from the cards, from load, from a pin, or from the one backend that has
// a place.
func TestMaxLevelWhateverTheCause(t *testing.T) {
	kv := func(hundredths int64) func(*testFleet) { return func(h *testFleet) { h.press("large", hundredths) } }
	waiting := func(n int64) func(*testFleet) {
		return func(h *testFleet) {
			for _, e := range h.engines["large"] {
				e.waiting.Store(n)
			}
			h.press("large", 0)
		}
	}
	pin := func(l degrade.Level) func(*testFleet) {
		return func(h *testFleet) {
			h.ladder.SetPins(map[string]degrade.Pin{"large": {Level: l, Expires: time.Now().Add(time.Hour)}})
		}
	}
	oneFull := func(change func(hot *engine)) func(*testFleet) {
		return func(h *testFleet) {
			hot, cool := h.engines["large"][0], h.engines["large"][1]
			change(hot)
			h.press("large", hot.kv.Load(), 0)
			cool.seat.inFlight.Store(2)
		}
	}
	for name, c := range map[string]struct {
		press func(*testFleet)
		level degrade.Level
		where string
	}{
		"calm":               {func(*testFleet) {}, 0, "large"},
		"L1 by the KV cache": {kv(81), 1, "large"}, "L2 by the KV cache": {kv(88), 2, "large"}, "L3 by the KV cache": {kv(93), 3, "small"}, "L4 by the KV cache": {kv(98), 4, ""},
		"L1 by load": {waiting(6), 1, "large"}, "L2 by load": {waiting(12), 2, "large"},
		"L3 by load, with a place": {waiting(25), 2, "large"}, "L4 by load, with a place": {waiting(50), 2, "large"},
		"L1 by a pin": {pin(1), 1, "large"}, "L2 by a pin": {pin(2), 2, "large"}, "L3 by a pin": {pin(3), 3, "small"}, "L4 by a pin": {pin(4), 4, ""},
		"L2 of the only backend with a place, by the KV cache": {oneFull(func(hot *engine) { hot.kv.Store(88) }), 2, "large"},
		"L2 of the only backend with a place, by load":         {oneFull(func(hot *engine) { hot.waiting.Store(12) }), 2, "large"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
				c.press(h)
				for accepts := degrade.Full; accepts <= degrade.Canned; accepts++ {
					d := h.demand("large")
					d.MaxLevel = accepts
					p, err := h.controller.Admit(t.Context(), d)
					if err == nil {
						p.Settle(limit.Usage{}, "")
					}
					var shed *Overloaded
					switch {
					case accepts < c.level:
						if !errors.As(err, &shed) || shed.Cause != ShedLevel || shed.Level != c.level || shed.RetryAfter <= 0 {
							t.Errorf("accepts %v: %+v, %v; want a refusal that names %v", accepts, p, err, c.level)
						}
					case err != nil:
						t.Errorf("accepts %v: %v", accepts, err)
					case p.Level != c.level || (p.Pool() == nil) != (c.where == "") || p.Pool() != nil && p.Pool().Name != c.where:
						t.Errorf("accepts %v: %+v, want %v of %q", accepts, p, c.level, c.where)
					}
				}
				h.engines["large"][1].seat.inFlight.Store(0)
				h.checkIdle(t)
			})
		})
	}
}

// TestMaxLevelOfThoseWhoWait: who waits already when load brings the model to L4 goes
// on to wait for an answer without thinking, and is refused only where it accepts none.
func TestMaxLevelOfThoseWhoWait(t *testing.T) {
	for accepts, want := range []string{"refused", "refused", "L2", "L2", "L2"} {
		synctest.Test(t, func(t *testing.T) {
			h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
			for _, e := range h.engines["large"] {
				e.waiting.Store(50)
			}
			held := append(h.fill(t, "large"), h.fill(t, "small")...)
			d := h.demand("large")
			d.MaxLevel = degrade.Level(accepts)
			a := h.ask(t.Context(), d)
			h.press("large", 0)
			for _, p := range held {
				p.Settle(limit.Usage{}, "")
			}
			synctest.Wait()
			got := "refused"
			if p := a.permit; p != nil {
				got = p.Level.String()
				p.Settle(limit.Usage{}, "")
			} else if shed := (*Overloaded)(nil); !errors.As(a.err, &shed) {
				t.Errorf("accepts L%d: %+v", accepts, a)
			}
			if got != want {
				t.Errorf("accepts L%d: %s, want %s", accepts, got, want)
			}
			h.checkIdle(t)
		})
	}
}
