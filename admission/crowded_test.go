package admission

import (
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// TestCrowded: who finds no place is answered smaller at once, by tier and by what it
// accepts, and nobody whose answer would be no quicker for it.
func TestCrowded(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Demand)
		level  degrade.Level
		where  string
		waits  bool
	}{
		"standard":               {func(*Demand) {}, degrade.ThinkingOff, "large", true},
		"batch":                  {func(d *Demand) { d.Request.Tier = "batch" }, degrade.SmallerModel, "small", false},
		"critical":               {func(d *Demand) { d.Request.Tier = "critical" }, degrade.Full, "large", true},
		"it accepts L1":          {func(d *Demand) { d.MaxLevel = degrade.StreamingOff }, degrade.Full, "large", true},
		"it does not think":      {func(d *Demand) { d.Request.Thinking = false }, degrade.Full, "large", true},
		"nothing is promised":    {func(d *Demand) { d.TTFT = 0 }, degrade.Full, "large", true},
		"batch that fits nobody": {func(d *Demand) { d.Request.Tier, d.Caller = "batch", caller{misfit: true} }, degrade.ThinkingOff, "large", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
				held := h.fill(t, "large")
				d := h.demand("large")
				d.TTFT = 2 * time.Second
				c.change(d)
				a := h.ask(t.Context(), d)
				if a.done == c.waits {
					t.Fatalf("%+v", a)
				}
				advance(300 * time.Millisecond)
				held[0].Settle(limit.Usage{}, "")
				synctest.Wait()
				if p := a.permit; p == nil || p.Level != c.level || p.Pool().Name != c.where || (p.Reason == "queue") != (c.level > 0) {
					t.Fatalf("%+v, %v", p, a.err)
				}
				for _, p := range append(held[1:], a.permit) {
					p.Settle(limit.Usage{}, "")
				}
				h.checkIdle(t)
			})
		})
	}
}

// TestLateGoesToTheSmaller: who has waited for half of what is promised goes to the
// smaller model's servers, if those have a place.
func TestLateGoesToTheSmaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, nil, DefaultQueue(), "large", "small")
		held := h.fill(t, "large")
		d := h.demand("large")
		d.TTFT = 2 * time.Second
		a := h.ask(t.Context(), d)
		advance(1500 * time.Millisecond)
		if p := a.permit; p == nil || p.Level != degrade.SmallerModel || p.Pool().Name != "small" || p.Wait < time.Second {
			t.Fatalf("%+v, %v", p, a.err)
		}
		for _, p := range append(held, a.permit) {
			p.Settle(limit.Usage{}, "")
		}
		h.checkIdle(t)
	})
}
