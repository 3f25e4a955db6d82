package redislimit

import (
	"fmt"
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
)

// TestEmpty: a Redis that is new, or was emptied, is known by all replicas until each
// has said that it is whole.
func TestEmpty(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	ctx := t.Context()
	fleet := []*Guarded{}
	for i := range 2 {
		fleet = append(fleet, Guard(dial(t, single(server.Addr)), GuardOptions{Replica: fmt.Sprint("r", i), Timeout: time.Second}))
	}
	expect := func(when string, want ...bool) {
		t.Helper()
		for i, g := range fleet {
			if _, err := g.Renew(ctx, nil); err != nil { // a heartbeat
				t.Fatal(err)
			}
			if got, err := g.Empty(ctx); err != nil || got != want[i] {
				t.Errorf("%s: replica %d: empty %v, %v", when, i, got, err)
			}
		}
	}
	mark := func(i int) {
		t.Helper()
		if err := fleet[i].MarkWhole(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if empty, err := fleet[0].Empty(ctx); err != nil || !empty {
		t.Errorf("before any heartbeat: %v, %v", empty, err)
	}
	mark(0)
	expect("once one has marked a new one", false, false)
	if err := server.Client().FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	expect("emptied", true, true)
	mark(0)
	expect("the other one may know of more", false, true)
	mark(1)
	expect("both have marked it", false, false)
}

// TestEmptied loses Redis with all it holds while a replica is alone: what that let
// in meanwhile charges windows, but no quota, which the ledger restores.
func TestEmptied(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	g := running(t, dial(t, single(server.Addr)), GuardOptions{Replica: "one"})
	dims := day("emptied", 1000, 10, limit.FailLocal)
	until(t, "it knows the fleet", func() bool { return g.State().Replicas == 1 })
	if err := g.MarkWhole(t.Context()); err != nil {
		t.Fatal(err)
	}
	request := func(id string) {
		t.Helper()
		if out, err := g.Reserve(t.Context(), limit.Reservation{ID: id, Dims: dims}); err != nil || !out.Allowed {
			t.Fatalf("%+v, %v", out, err)
		}
		if _, err := g.Settle(t.Context(), limit.Settlement{ID: id, Dims: dims, Charges: []int64{8, 8}}); err != nil {
			t.Fatal(err)
		}
	}
	request("before")
	server.Kill()
	for i := range 10 {
		request(fmt.Sprint("during", i))
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
