package limittest

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"tidegate/admission/limit"
)

// allOrNothing: a request that one counter refuses burns none of the others
// (LiteLLM 39309: a refusal for concurrency burnt the request rate).
func allOrNothing(t *testing.T, open Open) {
	b := setUp(t, open)
	requests, one := window("requests", 10, 1), slots("slots", 1)
	b.allow("first", requests, one)
	for i := range 20 {
		out := b.refuse(fmt.Sprint("next", i), requests, one)
		if out.Binding != 1 || out.States[0].Exceeded || !out.States[1].Exceeded {
			t.Fatalf("the wrong rule refused: %+v", out)
		}
	}
	b.wantUsed(requests, 1)
}

// settleOnce: settling twice is settling once.
func settleOnce(t *testing.T, open Open) {
	b := setUp(t, open)
	dims := []limit.Dim{window("tokens", 1000, 400), slots("slots", 2), b.quota("quota", 1000, 400)}
	b.allow("a", dims...)
	b.allow("b", dims...)
	for i := range 3 {
		if applied := b.settle("a", dims, 100, 1, 100); applied != (i == 0) {
			t.Fatalf("settlement %d was applied: %v", i, applied)
		}
	}
	b.wantUsed(dims[0], 500)
	b.wantUsed(dims[1], 1)
	b.wantUsed(dims[2], 500)
	if b.settle("unknown", dims, 100, 1, 100) {
		t.Fatal("an unknown id was settled")
	}
}

// retriedReserve: a reservation that is sent again, because its answer was late,
// is charged once; after its settlement too.
func retriedReserve(t *testing.T, open Open) {
	b := setUp(t, open)
	dims := []limit.Dim{window("tokens", 1000, 400), slots("slots", 1)}
	for i := range 4 {
		if out := b.allow("a", dims...); out.Repeated != (i > 0) || out.States[0].Used != 400 || out.States[1].Used != 1 {
			t.Fatalf("time %d: %+v", i, out)
		}
	}
	b.settle("a", dims, 250, 1)
	if out := b.allow("a", dims...); !out.Repeated || out.States[0].Used != 250 || out.States[1].Used != 0 {
		t.Fatalf("after the settlement: %+v", out)
	}
}

// leaseLife: who never comes back frees its slot when its lease ends, exactly.
func leaseLife(t *testing.T, open Open) {
	b := setUp(t, open)
	b.allow("a", slots("s", 2))
	b.wait(10 * time.Second)
	b.allow("b", slots("s", 2))
	out := b.refuse("c", slots("s", 2))
	if out.RetryAfterMs != 20_000 {
		t.Fatalf("retry after %d ms, want 20000", out.RetryAfterMs)
	}
	b.wait(20*time.Second - time.Millisecond)
	b.refuse("c", slots("s", 2))
	b.wait(time.Millisecond)
	b.allow("c", slots("s", 2))
	b.refuse("d", slots("s", 2))
}

// longRequest: what is renewed keeps its slot (LiteLLM 32441: slots kept in a
// windowed counter came free under running requests, and then went negative).
func longRequest(t *testing.T, open Open) {
	b := setUp(t, open)
	dims := []limit.Dim{slots("s", 1)}
	b.allow("long", dims...)
	for range 60 {
		b.wait(10 * time.Second)
		if lost := b.renew(limit.Renewal{ID: "long", Dims: dims}); len(lost) > 0 {
			t.Fatal("the reservation was lost though it was renewed")
		}
		b.refuse("other", dims...)
	}
	b.settle("long", dims, 1)
	b.wantUsed(dims[0], 0)
	b.allow("other", dims...)
	b.settle("long", dims, 1) // frees nobody else's slot
	b.wantUsed(dims[0], 1)
}

// reaper: a reservation of a gateway that died is settled with what it last said.
func reaper(t *testing.T, open Open) {
	b := setUp(t, open)
	q, s := b.quota("quota", 10_000, 4_000), slots("s", 3)
	q.Floor = 100
	dims := []limit.Dim{q, s}
	b.allow("silent", dims...)
	b.allow("spoke", dims...)
	b.allow("more", dims[1:]...)
	b.wait(10 * time.Second)
	b.renew(limit.Renewal{ID: "spoke", Dims: dims, Charges: []int64{900, 1}})
	b.wantUsed(q, 8_000)
	b.wait(30*time.Second - time.Millisecond)
	b.renew()
	b.wantUsed(q, 4_100) // silent, at its floor
	b.wait(time.Millisecond)
	b.renew()
	b.wantUsed(q, 1_000)
	b.wantUsed(s, 0)
	if lost := b.renew(limit.Renewal{ID: "spoke", Dims: dims}); len(lost) != 1 || lost[0] != "spoke" {
		t.Fatalf("lost %v, want spoke", lost)
	}
}

// settleAfterReaper: the truth replaces what the reaper charged, once.
func settleAfterReaper(t *testing.T, open Open) {
	b := setUp(t, open)
	q := b.quota("quota", 10_000, 4_000)
	q.Floor = 100
	b.allow("late", q)
	b.wait(time.Minute)
	b.renew()
	b.wantUsed(q, 100)
	for range 2 {
		b.settle("late", []limit.Dim{q}, 2_500)
		b.wantUsed(q, 2_500)
	}
}

// editedLimit: another limit applies at once to the usage that is there (Higress
// 1933 kept the old one, others begin at zero).
func editedLimit(t *testing.T, open Open) {
	b := setUp(t, open)
	b.allow("a", window("w", 100, 80))
	b.refuse("b", window("w", 100, 30))
	if out := b.allow("b", window("w", 200, 30)); out.States[0].Remaining != 90 {
		t.Fatalf("%+v", out.States[0])
	}
	if out := b.refuse("c", window("w", 50, 1)); out.States[0].Remaining != 0 || out.States[0].Used != 110 {
		t.Fatalf("%+v", out.States[0])
	}
	burst := func(limited, burst, cost int64) limit.Dim {
		d := window("g", limited, cost)
		d.Burst = burst
		return d
	}
	b.allow("d", burst(60, 10, 10)) // drains one a second
	if out := b.refuse("e", burst(60, 10, 5)); out.RetryAfterMs != 5_000 {
		t.Fatalf("retry after %d ms, want 5000", out.RetryAfterMs)
	}
	if out := b.refuse("e", burst(600, 12, 5)); out.RetryAfterMs != 3_000 { // three too many; what is owed drains as it was charged
		t.Fatalf("retry after %d ms, want 3000", out.RetryAfterMs)
	}
}

// editedWindow: so does another window, and another number of buckets.
func editedWindow(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 100, 80)
	b.allow("a", d)
	b.wait(3 * time.Second)
	d.BucketMs = 1_000
	b.refuse("b", d)
	d.WindowMs = 10_000
	if out := b.refuse("b", d); out.RetryAfterMs != 7_000 {
		t.Fatalf("retry after %d ms, want 7000", out.RetryAfterMs)
	}
	d.WindowMs, d.BucketMs = 3_600_000, 300_000
	if out := b.refuse("b", d); out.RetryAfterMs != 3_597_000 {
		t.Fatalf("retry after %d ms, want 3597000", out.RetryAfterMs)
	}
	b.settle("a", []limit.Dim{d}, 10)
	b.wantUsed(d, 10)
}

// clockBack: a clock that goes back releases nothing and counts nothing twice.
func clockBack(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 10, 10)
	b.allow("a", d)
	b.wait(-30 * time.Second)
	if out := b.refuse("b", d); out.RetryAfterMs != 60_000 {
		t.Fatalf("retry after %d ms, want 60000", out.RetryAfterMs)
	}
	b.wait(90 * time.Second)
	b.allow("b", d)
	b.wait(-5 * time.Second)
	b.refuse("c", d)
}

// neverFits: what is larger than a limit is told so, and no time to come back
// (redis-gcra 6, LiteLLM 29191).
func neverFits(t *testing.T, open Open) {
	b := setUp(t, open)
	burst := window("g", 100, 21)
	burst.Burst = 20
	for _, d := range []limit.Dim{window("w", 100, 101), burst, b.quota("q", 100, 101)} {
		if out := b.refuse("a", window("other", 100, 1), d); !out.TooLarge || out.RetryAfterMs != 0 || out.Binding != 1 {
			t.Errorf("%s: %+v", d.Key, out)
		}
	}
	b.allow("whole", window("w", 100, 100))
	if out := b.refuse("b", window("w", 100, 100), b.quota("q", 100, 101)); !out.TooLarge || out.Binding != 1 {
		t.Errorf("never does not bind before a wait: %+v", out)
	}
	b.wantUsed(window("other", 100, 1), 0)
}

// notBelowZero: refunds give back what is there and no more (AIBrix says of its
// own counter that it can go negative).
func notBelowZero(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 100, 50)
	d.Burst = 60
	dims := []limit.Dim{d, b.quota("q", 100, 50)}
	b.allow("a", dims...)
	b.settle("a", dims, -1000, -1000)
	b.wantUsed(dims[0], 0)
	b.wantUsed(dims[1], 0)
	b.wait(time.Millisecond)
	b.allow("b", dims...)
	b.refuse("c", dims...) // the refund made no extra room in the burst
}

// ownBucket: a refund changes the bucket of its reservation; what was used beyond it
// counts from when it was used.
func ownBucket(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 200, 40)
	b.allow("a", d)
	b.allow("b", d)
	b.wait(50 * time.Second)
	b.settle("a", []limit.Dim{d}, 90)
	b.settle("b", []limit.Dim{d}, 10)
	b.wantUsed(d, 100)
	b.wait(10*time.Second - time.Millisecond)
	b.wantUsed(d, 100)
	b.wait(time.Millisecond)
	b.wantUsed(d, 50)
	b.wait(50 * time.Second)
	b.wantUsed(d, 0)
}

// growth: a reservation that has grown gives back what it reserved and not what
// others have in the same bucket.
func growth(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 1000, 10)
	d.Burst = 1000
	larger := window("w", 1000, 300)
	larger.Burst = 1000
	b.allow("a", d)
	b.allow("b", larger)
	b.wait(20 * time.Second)
	b.renew(limit.Renewal{ID: "a", Dims: []limit.Dim{d}, Charges: []int64{400}}, limit.Renewal{ID: "b", Dims: []limit.Dim{larger}})
	b.wantUsed(d, 700)
	b.settle("a", []limit.Dim{d}, 0)
	b.wantUsed(d, 690)
	b.wait(40 * time.Second)
	b.wantUsed(d, 390)
}

// sequences: a request takes as many slots as it has sequences, all or none, and
// gives them all back.
func sequences(t *testing.T, open Open) {
	b := setUp(t, open)
	several := func(n int64) limit.Dim {
		d := slots("s", 8)
		d.Cost = n
		return d
	}
	b.allow("a", several(5))
	b.wait(10 * time.Second)
	b.allow("b", several(2))
	b.wantUsed(several(1), 7)
	if out := b.refuse("c", several(2)); out.RetryAfterMs != 20_000 {
		t.Fatalf("retry after %d ms, want 20000", out.RetryAfterMs)
	}
	if out := b.refuse("c", several(7)); out.RetryAfterMs != 30_000 {
		t.Fatalf("retry after %d ms, want 30000", out.RetryAfterMs)
	}
	if out := b.refuse("c", several(9)); !out.TooLarge {
		t.Fatalf("%+v", out)
	}
	b.allow("d", several(1))
	b.settle("d", []limit.Dim{several(1)}, 1)
	b.renew(limit.Renewal{ID: "a", Dims: []limit.Dim{several(5)}})
	b.wait(25 * time.Second)
	b.wantUsed(several(1), 7)
	b.wait(5 * time.Second)
	b.renew()
	b.wantUsed(several(1), 0)
	b.allow("e", several(8))
	b.settle("e", []limit.Dim{several(8)}, 8)
	b.wantUsed(several(1), 0)
}

// hugeNumbers: no charge is too large to be counted: it fills the counter, and others
// are counted on.
func hugeNumbers(t *testing.T, open Open) {
	b := setUp(t, open)
	w, q := window("w", 1000, 10), b.quota("q", 1000, 10)
	w.Burst = 1000
	dims := []limit.Dim{w, q, slots("s", 5)}
	for i := range 3 {
		id := fmt.Sprint("huge", i)
		if i == 0 {
			b.allow(id, dims...)
		}
		if _, err := b.store.Settle(t.Context(), limit.Settlement{ID: id, Dims: dims, Charges: []int64{math.MaxInt64, math.MaxInt64, math.MaxInt64}, New: i > 0}); err != nil {
			t.Fatal(err)
		}
		out := b.refuse("next", dims...)
		for i, s := range out.States[:2] {
			if s.Used < 1000 || s.Remaining != 0 || s.RetryAfterMs <= 0 {
				t.Fatalf("dimension %d: %+v", i, s)
			}
		}
	}
	b.wantUsed(slots("s", 5), 0)
	b.wait(24 * time.Hour)
	b.allow("tomorrow", slots("s", 5), b.quota("q", 1000, 10))
}

// lateOverage: when that bucket counts no more, an overage counts from now on and
// a refund is dropped.
func lateOverage(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 100, 40)
	b.allow("a", d)
	b.allow("b", d)
	for range 9 {
		b.wait(10 * time.Second)
		b.renew(limit.Renewal{ID: "a", Dims: []limit.Dim{d}}, limit.Renewal{ID: "b", Dims: []limit.Dim{d}})
	}
	b.wantUsed(d, 0)
	b.settle("a", []limit.Dim{d}, 70)
	b.settle("b", []limit.Dim{d}, 1)
	b.wantUsed(d, 30)
	b.wait(time.Minute)
	b.wantUsed(d, 0)
}

// largeNumbers: the largest limits that a configuration may have are counted
// exactly.
func largeNumbers(t *testing.T, open Open) {
	b := setUp(t, open)
	const largest = 1_000_000_000_000
	w, q := window("w", largest, largest-1), b.quota("q", largest*1000, largest*1000-1)
	b.allow("a", w, q)
	w.Cost, q.Cost = 1, 1
	b.allow("b", w, q)
	b.refuse("c", w)
	b.refuse("c", q)
	if w, q := b.used(w), b.used(q); w != largest || q != largest*1000 {
		t.Fatalf("used %d and %d", w, q)
	}
	g := window("g", 70_000_000_000, 70_000_000_000)
	g.Burst = 70_000_000_000 // times a minute, nearly 2^52
	b.allow("d", g)
	g.Cost = 1
	b.wait(time.Minute - time.Millisecond)
	b.refuse("e", g)
	b.wait(time.Millisecond)
	b.allow("e", g)
}

// noExpiryByUse: a caller that never stops still gets its window back (LiteLLM
// 14204, ShenYu 6649: each use put the expiry off, so the window never ended).
func noExpiryByUse(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 10, 1)
	admitted := 0
	for i := range 600 { // ten minutes
		if b.reserve(fmt.Sprint(i), d).Allowed {
			admitted++
		}
		b.wait(time.Second)
	}
	if admitted < 90 || admitted > 101 {
		t.Fatalf("%d were let in within ten minutes, want about 100", admitted)
	}
}

// soft: a rule that only watches refuses nobody and counts as if it enforced.
func soft(t *testing.T, open Open) {
	b := setUp(t, open)
	watch, enforce := window("watch", 2, 1), window("enforce", 4, 1)
	watch.Soft = true
	for i := range 4 {
		out := b.allow(fmt.Sprint(i), watch, enforce)
		if out.States[0].Exceeded != (i >= 2) {
			t.Fatalf("request %d: %+v", i, out)
		}
		b.settle(fmt.Sprint(i), []limit.Dim{watch, enforce}, 1, 1)
	}
	b.wantUsed(watch, 2)
	b.refuse("last", watch, enforce)
	b.wantUsed(watch, 2)
}

// wrongDims: charges that do not belong to the dimensions are an error.
func wrongDims(t *testing.T, open Open) {
	b := setUp(t, open)
	d := window("w", 10, 1)
	b.allow("a", d)
	if _, err := b.store.Settle(t.Context(), limit.Settlement{ID: "a", Dims: []limit.Dim{d}}); !errors.Is(err, limit.ErrDims) {
		t.Errorf("settle: %v", err)
	}
	if _, err := b.store.Renew(t.Context(), []limit.Renewal{{ID: "a", Dims: []limit.Dim{d}, Charges: []int64{1, 2}}}); !errors.Is(err, limit.ErrDims) {
		t.Errorf("renew: %v", err)
	}
	b.wantUsed(d, 1)
}

// quotaPeriod: a quota begins anew with its period and not before; who asks with
// the last period's dates is counted in the new one.
func quotaPeriod(t *testing.T, open Open) {
	b := setUp(t, open)
	q := b.quota("q", 100, 80)
	b.allow("a", q)
	out := b.refuse("b", q)
	if out.RetryAfterMs != q.EndMs-b.clock.ms {
		t.Fatalf("retry after %d ms, want %d", out.RetryAfterMs, q.EndMs-b.clock.ms)
	}
	b.wait(time.Duration(out.RetryAfterMs-1) * time.Millisecond)
	b.refuse("b", b.quota("q", 100, 80))
	b.wait(time.Millisecond)
	b.allow("b", b.quota("q", 100, 80))
	b.refuse("c", q)
	b.settle("a", []limit.Dim{q}, 10) // of yesterday: nothing to give back
	b.wantUsed(b.quota("q", 100, 1), 80)
}
