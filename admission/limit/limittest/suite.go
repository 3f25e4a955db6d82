package limittest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/admission/limit"
)

// Open returns an empty store whose clock is now.
type Open func(t *testing.T, now func() time.Time) limit.Store

// Run runs the suite on the stores that open returns.
func Run(t *testing.T, open Open) {
	histories := 2_000
	if testing.Short() {
		histories = 200
	}
	for name, test := range map[string]func(*testing.T, Open){
		"Model": equalsModel, "Refused": func(t *testing.T, open Open) { Refused(t, open, histories) },
		"AllOrNothing": allOrNothing, "SettleOnce": settleOnce, "RetriedReserve": retriedReserve, "Concurrent": concurrent,
		"Leases": leaseLife, "LeaseOfLongRequest": longRequest, "Reaper": reaper, "SettleAfterReaper": settleAfterReaper,
		"EditedLimit": editedLimit, "EditedWindow": editedWindow, "ClockBack": clockBack, "Never": neverFits,
		"NotBelowZero": notBelowZero, "OwnBucket": ownBucket, "LateOverage": lateOverage, "LargeNumbers": largeNumbers,
		"NoExpiryByUse": noExpiryByUse, "Soft": soft, "Growth": growth, "Sequences": sequences, "HugeNumbers": hugeNumbers, "WrongDims": wrongDims, "QuotaPeriod": quotaPeriod,
	} {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

// equalsModel compares a store with the model through random histories, which
// rapid makes small when they differ.
func equalsModel(t *testing.T, open Open) {
	histories := 0
	rapid.Check(t, func(rt *rapid.T) {
		c := newClock()
		histories++
		m := &machine{store: open(t, c.now), model: newModel(), clock: c, fail: rt.Fatalf, prefix: fmt.Sprintf("m%d-", histories)}
		m.draw = func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }
		step := func(f func()) func(*rapid.T) { return func(*rapid.T) { f() } }
		rt.Repeat(map[string]func(*rapid.T){
			"reserve": step(m.ask), "reserve more": step(m.ask), "reserve again": step(m.askAgain), "look": step(m.look),
			"settle": step(m.settle), "settle new": step(m.settleNew), "renew": step(m.renew), "wait": step(m.wait), "retry": step(m.retry),
		})
		m.look()
	})
}

// Refused checks, over a number of random histories, that a refused request changes nothing:
// every counter reads the same before and after.
func Refused(t *testing.T, open Open, histories int) {
	c := newClock()
	store := open(t, c.now)
	random := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for h := range histories {
		m := &machine{store: store, model: newModel(), clock: c, draw: random.IntN, fail: t.Fatalf, prefix: fmt.Sprintf("h%d-", h)}
		for step := range 8 {
			if random.IntN(3) == 0 {
				c.ms += m.number(0, 4_000)
			}
			look := limit.Reservation{Dims: m.fullDims(), Peek: true}
			earlier := m.reserve(look)
			r := limit.Reservation{ID: fmt.Sprintf("%s%d", m.prefix, step), Dims: m.dims()}
			if m.reserve(r).Allowed {
				continue
			}
			refused++
			if s, err := store.Settle(t.Context(), limit.Settlement{ID: r.ID, Dims: r.Dims, Charges: m.charges(len(r.Dims))}); err != nil || s.Applied {
				t.Fatalf("history %d: a refused request was settled: %+v, %v", h, s, err)
			}
			if later := m.reserve(look); !reflect.DeepEqual(earlier, later) {
				t.Fatalf("history %d: refusing %+v, and settling it, changed\n%+v to\n%+v", h, r.Dims, earlier, later)
			}
		}
		if h%1000 == 999 {
			c.ms += 2 * 3_600_000 // the counters of old histories may be forgotten
			if _, err := store.Renew(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d random histories, %d refusals, no counter changed by one", histories, refused)
}

// bench is one store with the suite's clock and short ways to use it.
type bench struct {
	t     *testing.T
	store limit.Store
	clock *clock
}

func setUp(t *testing.T, open Open) *bench {
	c := newClock()
	return &bench{t, open(t, c.now), c}
}

func (b *bench) reserve(id string, dims ...limit.Dim) limit.Decision {
	b.t.Helper()
	out, err := b.store.Reserve(context.Background(), limit.Reservation{ID: id, Dims: dims})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) allow(id string, dims ...limit.Dim) limit.Decision {
	b.t.Helper()
	out := b.reserve(id, dims...)
	if !out.Allowed {
		b.t.Fatalf("%s was refused: %+v", id, out)
	}
	return out
}

func (b *bench) refuse(id string, dims ...limit.Dim) limit.Decision {
	b.t.Helper()
	out := b.reserve(id, dims...)
	if out.Allowed {
		b.t.Fatalf("%s was let in: %+v", id, out)
	}
	return out
}

func (b *bench) settle(id string, dims []limit.Dim, charges ...int64) bool {
	b.t.Helper()
	out, err := b.store.Settle(context.Background(), limit.Settlement{ID: id, Dims: dims, Charges: charges})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.Applied
}

func (b *bench) renew(renewals ...limit.Renewal) []string {
	b.t.Helper()
	lost, err := b.store.Renew(context.Background(), renewals)
	if err != nil {
		b.t.Fatal(err)
	}
	return lost
}

func (b *bench) used(d limit.Dim) int64 {
	b.t.Helper()
	out, err := b.store.Reserve(context.Background(), limit.Reservation{Dims: []limit.Dim{d}, Peek: true})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.States[0].Used
}

func (b *bench) wantUsed(d limit.Dim, want int64) {
	b.t.Helper()
	if used := b.used(d); used != want {
		b.t.Fatalf("%s: %d used, want %d", d.Key, used, want)
	}
}

func (b *bench) wait(d time.Duration) { b.clock.ms += d.Milliseconds() }

func window(name string, limited, cost int64) limit.Dim {
	return limit.Dim{
		Key: "tg:{t:suite}:" + name, Kind: limit.Window, Rule: name, Metric: limit.Tokens, Limit: limited, Cost: cost,
		WindowMs: 60_000, BucketMs: 5_000,
	}
}

func slots(name string, limited int64) limit.Dim {
	return limit.Dim{Key: "tg:{t:suite}:" + name, Kind: limit.Lease, Rule: name, Metric: limit.Concurrency, Limit: limited, Cost: 1}
}

func (b *bench) quota(name string, limited, cost int64) limit.Dim {
	const day = 86_400_000
	begin := b.clock.ms / day * day
	return limit.Dim{
		Key: "tg:{t:suite}:" + name, Kind: limit.Quota, Rule: name, Metric: limit.Units, Limit: limited, Cost: cost,
		BeginMs: begin, EndMs: begin + day,
	}
}

// concurrent: many at once never get more than there is, on several counters at
// a time and in any order of them.
func concurrent(t *testing.T, open Open) {
	b := setUp(t, open)
	var admitted atomic.Int64
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			for j := range 60 {
				dims := []limit.Dim{window("a", 100, 1), window("b", 120, 1), slots("c", 130)}
				if i%2 == 0 {
					dims[0], dims[2] = dims[2], dims[0]
				}
				out, err := b.store.Reserve(context.Background(), limit.Reservation{ID: fmt.Sprintf("%d/%d", i, j), Dims: dims})
				if err != nil {
					t.Error(err)
				}
				if out.Allowed {
					admitted.Add(1)
				}
			}
		})
	}
	workers.Wait()
	if admitted.Load() != 100 {
		t.Errorf("%d of 480 were let in, want 100", admitted.Load())
	}
	b.wantUsed(window("a", 100, 1), 100)
	b.wantUsed(window("b", 120, 1), 100)
	b.wantUsed(slots("c", 130), 100)
}
