package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"tidegate/gateway/database/databasetest"
)

// shown are pins as texts: the models, levels and ends.
func shown(pins []Pin) (out []string) {
	for _, p := range pins {
		out = append(out, fmt.Sprintf("%s L%d %s", p.Model, p.Level, p.Expires.Format(time.RFC3339)))
	}
	return out
}

func (r *replica) pin(t testing.TB, n NewPin) Pin {
	t.Helper()
	p, err := r.store.SetPin(t.Context(), "key:boss", n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pins are set and lifted on one replica, taken over by another, and end by
// themselves on all; a replica that starts knows them.
func pins(t *testing.T, dsn string) {
	c := newClock() // 12:00
	applied := 0
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	b.store.hooks.Applied = func() { applied++ }
	check := func(what string, want ...string) {
		t.Helper()
		b.sync(t)
		asked := b.asked.n.Load()
		memory := shown(b.store.Pins())
		if b.asked.n.Load() != asked {
			t.Errorf("%s: what is in memory is asked of the database", what)
		}
		stored, err := b.store.StoredPins(t.Context())
		if err != nil || stored == nil {
			t.Errorf("%s: %v, %v", what, stored, err)
		}
		restarted := shown(newReplica(t, dsn, c, nil).store.Pins())
		for where, got := range map[string][]string{"here": shown(a.store.Pins()), "elsewhere": memory, "in the store": shown(stored), "after a restart": restarted} {
			if !slices.Equal(got, want) {
				t.Errorf("%s, %s: %q, expected %q", what, where, got, want)
			}
		}
	}
	check("at first")
	first := a.pin(t, NewPin{Model: "Qwen/Qwen3-1.7B", Level: "L2", Duration: "30m", Reason: "a fan is out"})
	if want := (Pin{"Qwen/Qwen3-1.7B", 2, c.now().Add(30 * time.Minute).UTC(), "a fan is out", "key:boss", c.now().UTC()}); first != want {
		t.Errorf("%+v, expected %+v", first, want)
	}
	if len(b.store.Pins()) != 0 {
		t.Error("heard before the feed was read")
	}
	check("one", "Qwen/Qwen3-1.7B L2 2026-03-01T12:30:00Z")
	if got := b.store.Pins(); got[0] != first {
		t.Errorf("%+v, expected %+v", got, first)
	}
	c.advance(time.Minute)
	b.pin(t, NewPin{Model: "a-small-one", Level: "L0", Expires: "2026-03-01T20:10:00.0009+08:00"})
	a.sync(t)
	second := a.pin(t, NewPin{Model: "Qwen/Qwen3-1.7B", Level: "L4", Expires: "2026-03-01T12:20:00Z"})
	both := []string{"Qwen/Qwen3-1.7B L4 2026-03-01T12:20:00Z", "a-small-one L0 2026-03-01T12:10:00Z"}
	check("one in place of another", both...)
	if applied != 3 {
		t.Errorf("applied %d times", applied)
	}
	c.advance(9*time.Minute - time.Millisecond)
	check("just before an end", both...)
	c.advance(time.Millisecond)
	check("at an end", both[0])
	if _, err := a.store.LiftPin(t.Context(), "key:boss", "a-small-one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that has ended: %v", err)
	}
	if p, err := a.store.LiftPin(t.Context(), "cli:joe", "none", second.Model); err != nil || p != second {
		t.Errorf("%+v, %v", p, err)
	}
	check("lifted")
	if _, err := a.store.LiftPin(t.Context(), "cli:joe", "alias", second.Model); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"alias"`) {
		t.Errorf("lifted twice: %v", err)
	}
	auditedPins(t, a, first, second)
	// What ended long ago goes with the next change.
	c.advance(pinRetention + time.Minute)
	a.pin(t, NewPin{Model: "last", Level: "L1", Duration: "1s"})
	var rows []string
	if err := a.db.NewRaw("SELECT model FROM account_pins").Scan(t.Context(), &rows); err != nil || !slices.Equal(rows, []string{"last"}) {
		t.Errorf("%q, %v", rows, err)
	}
	c.advance(time.Second)
	check("ended")
}

// auditedPins reads what pins wrote into the audit log.
func auditedPins(t *testing.T, r *replica, first, second Pin) {
	t.Helper()
	text := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	if got, want := text(first), `{"model":"Qwen/Qwen3-1.7B","level":"L2","until":"2026-03-01T12:30:00Z","why":"a fan is out","by":"key:boss","since":"2026-03-01T12:00:00Z"}`; got != want {
		t.Errorf("%s, expected %s", got, want)
	}
	log, _, err := r.store.Audit(t.Context(), 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ who, what, before, after string }{
		{"cli:joe", "pin.lift", text(second), "null"},
		{"key:boss", "pin.set", text(first), text(second)},
		{"key:boss", "pin.set", "null", ""},
		{"key:boss", "pin.set", "null", text(first)},
	} {
		e := log[i]
		if e.Actor != want.who || e.Action != want.what || string(e.Old) != want.before || want.after != "" && string(e.New) != want.after || e.Time.IsZero() {
			t.Errorf("%d: %+v\nbefore %s\nafter %s\nexpected %+v", i, e, e.Old, e.New, want)
		}
	}
	if log[0].Subject != first.Model || log[2].Subject != "a-small-one" {
		t.Errorf("%q, %q", log[0].Subject, log[2].Subject)
	}
}

// TestPinFaults: what cannot be a pin is refused, and changes nothing.
func TestPinFaults(t *testing.T) {
	c := newClock()
	r := newReplica(t, databasetest.SQLite(t), c, nil)
	good := NewPin{Model: "m", Level: "L1", Duration: "1h"}
	for name, edit := range map[string]struct {
		field string
		do    func(*NewPin)
	}{
		"no model":            {"model", func(n *NewPin) { n.Model = "" }},
		"a model with NUL":    {"model", func(n *NewPin) { n.Model = "a\x00" }},
		"a model with space":  {"model", func(n *NewPin) { n.Model = "a b" }},
		"a model in no UTF-8": {"model", func(n *NewPin) { n.Model = "a\xff" }},
		"a long model":        {"model", func(n *NewPin) { n.Model = strings.Repeat("x", maxModel+1) }},
		"no level":            {"level", func(n *NewPin) { n.Level = "" }},
		"level L5":            {"level", func(n *NewPin) { n.Level = "L5" }},
		"level 2":             {"level", func(n *NewPin) { n.Level = "2" }},
		"level l2":            {"level", func(n *NewPin) { n.Level = "l2" }},
		"level L02":           {"level", func(n *NewPin) { n.Level = "L02" }},
		"level L/":            {"level", func(n *NewPin) { n.Level = "L/" }},
		"no end":              {"until", func(n *NewPin) { n.Duration = "" }},
		"two ends":            {"until", func(n *NewPin) { n.Expires = "2026-03-01T13:00:00Z" }},
		"no time":             {"until", func(n *NewPin) { n.Duration, n.Expires = "", "tomorrow" }},
		"past":                {"until", func(n *NewPin) { n.Duration, n.Expires = "", "2026-03-01T11:59:59Z" }},
		"now":                 {"until", func(n *NewPin) { n.Duration, n.Expires = "", "2026-03-01T12:00:00Z" }},
		"too far":             {"until", func(n *NewPin) { n.Duration, n.Expires = "", "2026-03-08T12:00:00.001Z" }},
		"far beyond":          {"until", func(n *NewPin) { n.Duration, n.Expires = "", "9999-12-31T23:59:59Z" }},
		"no duration":         {"for", func(n *NewPin) { n.Duration = "long" }},
		"a short one":         {"for", func(n *NewPin) { n.Duration = "999ms" }},
		"a negative one":      {"for", func(n *NewPin) { n.Duration = "-1h" }},
		"a long one":          {"for", func(n *NewPin) { n.Duration = "168h0m0.001s" }},
		"a long reason":       {"why", func(n *NewPin) { n.Reason = strings.Repeat("x", maxReason+1) }},
		"a reason of lines":   {"why", func(n *NewPin) { n.Reason = "a\nb" }},
		"a reason with NUL":   {"why", func(n *NewPin) { n.Reason = "a\x00" }},
		"in no UTF-8":         {"why", func(n *NewPin) { n.Reason = "a\xff" }},
	} {
		n := good
		edit.do(&n)
		_, err := r.store.SetPin(t.Context(), "test", n)
		var f *Fault
		if !errors.As(err, &f) || !errors.Is(err, ErrInvalid) || f.Field != edit.field || !strings.HasPrefix(f.Text, edit.field+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if log, _, err := r.store.Audit(t.Context(), 0, 1); err != nil || len(log) != 0 {
		t.Errorf("%v, %v", log, err)
	}
	for _, n := range []NewPin{good, {Model: strings.Repeat("x", maxModel), Level: "L4", Duration: "168h", Reason: strings.Repeat("x", maxReason)}, {Model: "m", Level: "L0", Expires: "2026-03-08T20:00:00+08:00"}} {
		r.pin(t, n)
	}
}

// TestPinRuns: a pin of another replica holds within a second without help, at once
// with a Poke, and ends without either, also while the database is away.
func TestPinRuns(t *testing.T) {
	dsn := databasetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		c.ms.Store(time.Now().UnixMilli())
		a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.store.Run(ctx) }()
		synctest.Wait()
		a.pin(t, NewPin{Model: "m", Level: "L3", Duration: "1m"})
		synctest.Wait()
		if got := b.store.Pins(); len(got) != 0 {
			t.Errorf("heard at once: %+v", got)
		}
		time.Sleep(pollInterval)
		synctest.Wait()
		if got := b.store.Pins(); len(got) != 1 || got[0].Level != 3 {
			t.Errorf("a second later: %+v", got)
		}
		a.store.hooks.Wrote = b.store.Poke
		a.pin(t, NewPin{Model: "m", Level: "L1", Duration: "1m"})
		synctest.Wait()
		if got := b.store.Pins(); len(got) != 1 || got[0].Level != 1 {
			t.Errorf("with a Poke: %+v", got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, r := range []*replica{a, b} {
			if err := r.db.Close(); err != nil {
				t.Error(err)
			}
		}
		c.advance(time.Minute - time.Millisecond)
		if len(b.store.Pins()) != 1 {
			t.Error("ended too early")
		}
		c.advance(time.Millisecond)
		if len(b.store.Pins()) != 0 {
			t.Error("held beyond its end")
		}
	})
}

// TestPinsAgainstModel sets and lifts pins at random on two replicas while time
// passes: the one where it happens knows at once, the other after a Sync.
func TestPinsAgainstModel(t *testing.T) {
	dsn := databasetest.SQLite(t)
	c := newClock()
	pair := []*replica{newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)}
	rapid.Check(t, func(rt *rapid.T) {
		c.advance(MaxPin) // what the run before has left is over
		held := map[string]Pin{}
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			i := rapid.IntRange(0, 1).Draw(rt, "replica")
			r, other := pair[i], pair[1-i]
			model := rapid.SampledFrom([]string{"a", "b/c"}).Draw(rt, "model")
			switch rapid.SampledFrom([]string{"set", "lift", "wait"}).Draw(rt, "op") {
			case "set":
				n := NewPin{Model: model, Level: rapid.SampledFrom([]string{"L0", "L4"}).Draw(rt, "level"), Duration: rapid.SampledFrom([]string{"1s", "10m"}).Draw(rt, "for")}
				held[model] = r.pin(t, n)
			case "lift":
				p, had := held[model]
				if lifted, err := r.store.LiftPin(t.Context(), "test", model); had != (err == nil) || had && lifted != p {
					rt.Fatalf("%+v, %v; expected %+v, %v", lifted, err, p, had)
				}
				delete(held, model)
			case "wait":
				c.advance(time.Duration(rapid.IntRange(1, 400).Draw(rt, "s")) * time.Second)
			}
			for model, p := range held {
				if !c.now().Before(p.Expires) {
					delete(held, model)
				}
			}
			other.sync(t)
			for _, r := range pair {
				got := r.store.Pins()
				for _, p := range got {
					if held[p.Model] != p {
						rt.Fatalf("%+v, expected %+v", got, held)
					}
				}
				if len(got) != len(held) {
					rt.Fatalf("%+v, expected %+v", got, held)
				}
			}
		}
	})
}
