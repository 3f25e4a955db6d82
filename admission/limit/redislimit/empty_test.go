package redislimit

import (
	"fmt"
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
)

// TestEmpty: a Redis that is new, or was emptied, is known by all replicas until one
// has marked it.
func TestEmpty(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	ctx := t.Context()
	fleet := []*Guarded{}
	for i := range 2 {
		fleet = append(fleet, Guard(dial(t, single(server.Addr)), GuardOptions{Replica: fmt.Sprint("r", i), Timeout: time.Second}))
	}
	expect := func(when string, want bool) {
		t.Helper()
		for i, g := range fleet {
			if _, err := g.Renew(ctx, nil); err != nil { // a heartbeat
				t.Fatal(err)
			}
			if got, err := g.Empty(ctx); err != nil || got != want {
				t.Errorf("%s: replica %d: empty %v, %v", when, i, got, err)
			}
		}
	}
	if empty, err := fleet[0].Empty(ctx); err != nil || !empty {
		t.Errorf("before any heartbeat: %v, %v", empty, err)
	}
	for range 2 {
		expect("it holds nothing", true)
		if err := fleet[0].Mark(ctx); err != nil {
			t.Fatal(err)
		}
		expect("it is marked", false)
		if err := server.Client().FlushAll(ctx).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMarked: a replica that was alone while another one restored quotas from the
// ledger leaves them alone with what it then has to tell.
func TestMarked(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	p := proxied(t, server.Addr)
	g := running(t, dial(t, single(p.Listen)), GuardOptions{Replica: "one"})
	other := Guard(dial(t, single(server.Addr)), GuardOptions{Replica: "two", Timeout: time.Second})
	until(t, "it knows the fleet", func() bool { return g.State().Replicas == 1 })
	for turn, restored := range []bool{true, false} {
		if err := other.Mark(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Renew(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		dims := day(fmt.Sprint("marked", turn), 1000, 10, limit.FailLocal)
		ask(t, g, fmt.Sprint(turn, "before"), dims) // so that it knows what remains
		p.Stop()
		for i := range 10 {
			ask(t, g, fmt.Sprint(turn, i), dims)
		}
		if !g.State().Alone || g.State().Waiting != 10 {
			t.Fatalf("%+v", g.State())
		}
		want := int64(88)
		if restored {
			if err := other.Mark(t.Context()); err != nil {
				t.Fatal(err)
			}
			want = 8 // the rest the ledger has told
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "all is told", func() bool { return !g.State().Alone && g.State().Waiting == 0 })
		if used := usedIn(t, other, dims); used[0] != want || used[1] != 88 {
			t.Errorf("restored %v: %v are used of the quota and the window", restored, used)
		}
	}
}

// ask lets a request of ten in and settles it with eight.
func ask(t *testing.T, g *Guarded, id string, dims []limit.Dim) {
	t.Helper()
	if out, err := g.Reserve(t.Context(), limit.Reservation{ID: id, Dims: dims}); err != nil || !out.Allowed {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := g.Settle(t.Context(), limit.Settlement{ID: id, Dims: dims, Charges: []int64{8, 8}}); err != nil {
		t.Fatal(err)
	}
}

// TestEmptied loses Redis with all it holds while a replica is alone: what that let
// in meanwhile charges windows, but no quota, which the ledger restores.
func TestEmptied(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	g := running(t, dial(t, single(server.Addr)), GuardOptions{Replica: "one"})
	dims := day("emptied", 1000, 10, limit.FailLocal)
	until(t, "it knows the fleet", func() bool { return g.State().Replicas == 1 })
	if err := g.Mark(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask(t, g, "before", dims)
	server.Kill()
	for i := range 10 {
		ask(t, g, fmt.Sprint("during", i), dims)
	}
	if !g.State().Alone || g.State().Waiting != 10 {
		t.Fatalf("%+v", g.State())
	}
	server.Start()
	until(t, "all is told", func() bool { return !g.State().Alone && g.State().Waiting == 0 })
	if empty, err := g.Empty(t.Context()); err != nil || !empty {
		t.Errorf("empty %v, %v", empty, err)
	}
	if used := usedIn(t, dial(t, single(server.Addr)), dims); used[0] != 0 || used[1] != 80 {
		t.Errorf("%v are used of the quota and the window", used)
	}
}
