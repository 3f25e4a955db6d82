package redislimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
)

// damage puts something at a key that is not of our form.
type damage func(ctx context.Context, c *redis.Client, key string) error

// odd are numbers that no counter can have, and some that one can.
func odd() []float64 {
	return []float64{0, 1, 2, 3, -1, -2, 16, 48, 5e3, 1e12, 1e15, 1 << 53, 1e17, 1e300, -1e300, 0.5, math.NaN(), math.Inf(1), math.Inf(-1)}
}

func damages(r *rand.Rand) []damage {
	set := func(value func() string) damage {
		return func(ctx context.Context, c *redis.Client, key string) error { return c.Set(ctx, key, value(), 0).Err() }
	}
	floats := func(most int, from []float64) func() string {
		return func() string {
			var out []byte
			for range r.IntN(most) {
				out = appendFloat(out, from[r.IntN(len(from))])
			}
			return string(out)
		}
	}
	bytes := func() string {
		out := make([]byte, r.IntN(300))
		for i := range out {
			out[i] = byte(r.Uint32())
		}
		return string(out)
	}
	another := func(fill func(ctx context.Context, c *redis.Client, key string) error) damage {
		return func(ctx context.Context, c *redis.Client, key string) error {
			if err := c.Del(ctx, key).Err(); err != nil {
				return err
			}
			return fill(ctx, c, key)
		}
	}
	changed := func(change func(was string) string) damage {
		return func(ctx context.Context, c *redis.Client, key string) error {
			was, err := c.Get(ctx, key).Result()
			if err != nil || len(was) < number {
				return c.Set(ctx, key, bytes(), 0).Err()
			}
			return c.Set(ctx, key, change(was), 0).Err()
		}
	}
	return []damage{
		set(bytes), set(floats(60, odd())), set(floats(20, []float64{0, 1, 2, 3})), set(func() string { return "" }),
		set(func() string { return strings.Repeat("x", 200_000) }),
		changed(func(was string) string { // one number
			at := r.IntN(len(was)/number) * number
			return was[:at] + string(appendFloat(nil, odd()[r.IntN(len(odd()))])) + was[at+number:]
		}),
		changed(func(was string) string { return was[:r.IntN(len(was))] }),
		another(func(ctx context.Context, c *redis.Client, key string) error { return c.RPush(ctx, key, "a", "b").Err() }),
		another(func(ctx context.Context, c *redis.Client, key string) error { return c.HSet(ctx, key, "a", "b").Err() }),
		another(func(ctx context.Context, c *redis.Client, key string) error {
			return c.ZAdd(ctx, key, redis.Z{Score: odd()[4+r.IntN(10)], Member: "restless"}, redis.Z{Score: 1, Member: bytes()}).Err()
		}),
	}
}

func appendFloat(out []byte, f float64) []byte {
	n := math.Float64bits(f)
	for range number {
		out, n = append(out, byte(n)), n>>8
	}
	return out
}

// operationsOf are all that is asked of a store, of what a round has reserved.
func operationsOf(store *Store, now *time.Time, dims []limit.Dim, round int) map[string]func() error {
	ctx := context.Background()
	return map[string]func() error{
		"look": func() error {
			_, err := store.Reserve(ctx, limit.Reservation{Dims: dims, Peek: true, Settled: round%2 == 0})
			return err
		},
		"reserve": func() error {
			_, err := store.Reserve(ctx, limit.Reservation{ID: fmt.Sprint("new", round), Dims: dims})
			return err
		},
		"renew": func() error {
			_, err := store.Renew(ctx, []limit.Renewal{{ID: fmt.Sprint("live", round), Dims: dims, Charges: []int64{5, 5, 2, 5}}, {ID: fmt.Sprint("other", round), Dims: dims}})
			return err
		},
		"settle": func() error {
			_, err := store.Settle(ctx, limit.Settlement{ID: fmt.Sprint("live", round), Dims: dims, Charges: []int64{5, 5, 2, 5}})
			return err
		},
		"settle new": func() error {
			_, err := store.Settle(ctx, limit.Settlement{ID: fmt.Sprint("told", round), Dims: dims, Charges: []int64{5, 5, 2, 5}, New: true})
			return err
		},
		"reap": func() error {
			*now = now.Add(limit.LeaseLife + time.Second)
			_, err := store.Renew(ctx, nil)
			return err
		},
	}
}

// TestDamaged: whatever stands at the keys of the limits, each operation answers, the
// damage is counted, and what is charged afterwards is counted from nothing.
func TestDamaged(t *testing.T) {
	server := redistest.Single(t)
	look := server.Client()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	store := New(patient(t, server.Addr), Options{Now: func() time.Time { return now }, Damaged: func(keys []string) {
		if len(keys) < 3 {
			t.Errorf("told of %q", keys)
		}
	}})
	r := rand.New(rand.NewPCG(5, 6))
	ways := damages(r)
	rounds := 600
	if testing.Short() {
		rounds = 100
	}
	for round := range rounds {
		live, other := fmt.Sprint("live", round), fmt.Sprint("other", round)
		hour := now.Truncate(time.Hour).UnixMilli()
		dims := []limit.Dim{
			{Key: "tg:{t}:w", Kind: limit.Window, Limit: 1e6, Cost: 3, WindowMs: 60_000, BucketMs: 5_000},
			{Key: "tg:{t}:b", Kind: limit.Window, Limit: 1e6, Burst: 1e5, Cost: 3, WindowMs: 60_000, BucketMs: 5_000},
			{Key: "tg:{t}:l", Kind: limit.Lease, Limit: 1e6, Cost: 2},
			{Key: "tg:{t}:q", Kind: limit.Quota, Limit: 1e6, Cost: 3, BeginMs: hour, EndMs: hour + 3_600_000},
		}
		for _, id := range []string{live, other} {
			if _, err := store.Reserve(t.Context(), limit.Reservation{ID: id, Dims: dims}); err != nil {
				t.Fatal(err)
			}
		}
		keys := []string{"tg:clock", "tg:due", "tg:id:" + live, "tg:id:" + other, dims[0].Key, dims[1].Key, dims[2].Key, dims[3].Key}
		way, hurt := r.IntN(len(ways)), keys[r.IntN(len(keys))]
		if err := ways[way](t.Context(), look, hurt); err != nil {
			t.Fatal(err)
		}
		operations := operationsOf(store, &now, dims, round)
		order := []string{"look", "reserve", "renew", "settle", "settle new", "reap"}
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, name := range order {
			// A record may have become one of other dimensions, which is said, too.
			if err := operations[name](); err != nil && !(name == "settle" && errors.Is(err, limit.ErrDims)) {
				t.Fatalf("round %d: %s of %v, way %d at %s: %v", round, name, order, way, hurt, err)
			}
		}
		if round%10 == 9 { // what is left counts again
			wipe(t, server)
			out, err := store.Reserve(t.Context(), limit.Reservation{ID: live, Dims: dims})
			if err != nil || !out.Allowed || out.States[0].Used != 3 || out.States[2].Used != 2 {
				t.Fatalf("%+v, %v", out, err)
			}
		}
	}
	n := store.damaged.Load()
	t.Logf("%d damages, %d calls that read one", rounds, n)
	if n < int64(rounds/10) {
		t.Error("they are not counted")
	}
}

// TestDamagedFleet: neither does damage at the keys of the fleet stop a heartbeat.
func TestDamagedFleet(t *testing.T) {
	server := redistest.Single(t)
	look := server.Client()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	store := New(patient(t, server.Addr), Options{Now: func() time.Time { return now }})
	f := fleet{name: "one"}
	r := rand.New(rand.NewPCG(7, 8))
	ways := damages(r)
	keys := []string{"tg:{fleet}:members", "tg:{fleet}:counters", markKey}
	for round := range 300 {
		way, key := r.IntN(len(ways)), keys[r.IntN(len(keys))]
		if err := ways[way](t.Context(), look, key); err != nil {
			t.Fatal(err)
		}
		if _, err := f.heartbeat(t.Context(), store, now); err != nil {
			t.Fatalf("round %d, way %d at %s: %v", round, way, key, err)
		}
		for _, amount := range []int64{0, 1, 1e12, math.MaxInt64} {
			if part := f.share(amount); part < 0 || part > amount || part == 0 && amount > 0 {
				t.Fatalf("%d of %d", part, amount)
			}
		}
		now = now.Add(time.Duration(r.IntN(40)) * time.Second)
	}
}

func FuzzRecorded(f *testing.F) {
	f.Add("")
	f.Add(packNumbers([]int64{0, 1, 1, 1, 16, 0, 0, 7, 8}) + "key")
	f.Add(packNumbers([]int64{0, 1, 2, 1, -1, 1, 0, 7, 8}) + "a\x00b")
	dims := packDims([]limit.Dim{{Kind: limit.Lease, Limit: 5, Cost: 1}})
	f.Add(packNumbers([]int64{0, 1, 1, 1, int64(len(dims)), 0, 0}) + dims + "tg:k")
	f.Add(packNumbers([]int64{0, 1, math.MaxInt64, 1, math.MaxInt64, math.MaxInt64}) + "k")
	f.Add(packNumbers([]int64{0, 1, -2, 1, 40, 0}) + strings.Repeat("k", 100))
	f.Add(string(appendFloat(appendFloat(nil, math.NaN()), math.Inf(1))) + strings.Repeat("\xff", 100))
	f.Fuzz(func(t *testing.T, record string) {
		dims, keys := unpackRecord(record)
		if len(dims) > len(record) || len(keys) > len(record)+1 {
			t.Error("more than there is")
		}
		if len(keys) > 0 && !wellFormed(dims, len(keys)) {
			t.Errorf("%q is no list of dimensions", dims)
		}
	})
}

// FuzzAnswer: no answer of a server, or of what stands before it, is more than an error.
func FuzzAnswer(f *testing.F) {
	f.Add("")
	f.Add(packNumbers([]int64{1, 5, 1, 2, 3, 4}))
	f.Add(packNumbers([]int64{math.MinInt64}))
	f.Fuzz(func(t *testing.T, answer string) {
		g := group{dims: make([]limit.Dim, 1), indexes: []int{0}}
		states := make([]limit.State, 1)
		if _, err := unpackStates(answer, &g, states); err == nil && len(answer) != number && len(answer) != 6*number {
			t.Errorf("%q is taken", answer)
		}
		parseBeat([]any{answer, answer, answer})
	})
}
