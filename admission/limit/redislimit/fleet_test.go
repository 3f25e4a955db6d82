package redislimit

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/admission/limit/redislimit/redistest"
)

// bound is how many times a limit a number of replicas may let in together, alone.
func bound(members int) float64 {
	switch members {
	case 1, 2:
		return 1
	case 3:
		return 1.5
	}
	return 2
}

// TestShares: however many replicas there are, none has nothing of something, up to
// four have half each, and all together have no more than the bound, or one each.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(1, 8), rapid.IntRange(1, maxMembers)).Draw(t, "members")
		amount := rapid.OneOf(rapid.Int64Range(1, 20), rapid.Int64Range(1, 1<<53)).Draw(t, "amount")
		f := fleet{members: n}
		share := f.share(amount)
		if share < 1 || share > amount {
			t.Fatalf("%d of %d", share, amount)
		}
		if n <= 4 && share < amount/2 {
			t.Fatalf("%d is less than half of %d", share, amount)
		}
		if sum := float64(n) * float64(share); sum > bound(n)*float64(amount)*(1+1e-9) && share != 1 {
			t.Fatalf("%v of %d", sum, amount)
		}
	})
	for amount, want := range map[int64]int64{0: 0, -5: 0, 1: 1, 801: 400, math.MaxInt64: math.MaxInt64 / 2} {
		if got := (&fleet{}).share(amount); got != want {
			t.Errorf("who knows nobody has %d of %d, want %d", got, amount, want)
		}
	}
}

// TestFleetMembers: replicas learn of one another at once, and of who has gone when
// that has been so for a while. A store that was emptied makes nobody's share grow.
func TestFleetMembers(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	now := time.UnixMilli(1_772_362_680_000)
	store := New(patient(t, server.Addr), Options{Now: func() time.Time { return now }})
	fleets := map[string]*fleet{}
	beat := func(seconds int, names ...string) (lost int) {
		t.Helper()
		for range seconds {
			for _, name := range names {
				if fleets[name] == nil {
					fleets[name] = &fleet{name: name}
				}
				n, err := fleets[name].heartbeat(t.Context(), store, now)
				if err != nil {
					t.Fatal(err)
				}
				if n.lost {
					lost++
				}
			}
			now = now.Add(time.Second)
		}
		return lost
	}
	expect := func(when, name string, members int, perMille int64) {
		t.Helper()
		if n, share := fleets[name].size(); n != members || share != perMille {
			t.Errorf("%s: %s knows of %d members and has %d of 1000, want %d and %d", when, name, n, share, members, perMille)
		}
	}
	beat(1, "z")
	expect("alone", "z", 1, 1000)
	beat(2, "z", "a", "m")
	for name := range fleets {
		expect("three", name, 3, 500)
	}
	if err := server.Client().FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if lost := beat(1, "z"); lost != 1 {
		t.Error("the first one does not see that the store was emptied")
	}
	expect("emptied", "z", 3, 500)
	if lost := beat(30, "z", "a", "m"); lost != 2 {
		t.Errorf("%d more see that the store was emptied, want 2, once each", lost)
	}
	expect("again", "z", 3, 500)
	beat(60, "a", "m")
	expect("one has not been there for a minute", "a", 3, 500)
	beat(15, "a", "m")
	expect("one has gone", "a", 2, 500)
	now = now.Add(time.Hour) // in which nobody could ask
	beat(1, "a")
	expect("the first one after an hour", "a", 2, 500)
	beat(80, "a")
	expect("it is the last one", "a", 1, 1000)
	beat(1, "b", "c", "d", "e", "f", "g", "h", "a")
	expect("eight", "a", 8, 250)
}
