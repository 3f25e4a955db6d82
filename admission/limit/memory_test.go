package limit

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// TestMemoryForgets: a million callers that come once leave nothing behind, and
// while they come no more is kept than those of about the last windows.
func TestMemoryForgets(t *testing.T) {
	callers := 1_000_000
	if testing.Short() {
		callers = 100_000
	}
	ms := int64(1_800_000_000_000)
	m := NewMemory(func() time.Time { return time.UnixMilli(ms) })
	var before, during, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	most := 0
	const perSecond = 500
	for i := range callers {
		if i%perSecond == 0 {
			ms += 1_000
			if n, _ := m.Size(); i%(perSecond*20) == 0 {
				most = max(most, n)
			}
		}
		id := strconv.Itoa(i)
		dims := []Dim{{Key: "w" + id, Kind: Window, Limit: 10, Cost: 1, WindowMs: 60_000, BucketMs: 5_000, Burst: 5}}
		if i%8 == 0 {
			dims[0] = Dim{Key: "l" + id, Kind: Lease, Limit: 10, Cost: 1}
		}
		if _, err := m.Reserve(context.Background(), Reservation{ID: id, Dims: dims}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Settle(context.Background(), Settlement{ID: id, Dims: dims, Charges: []int64{1}}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&during)
	ms += 2 * 60_000
	if _, err := m.Renew(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	counters, records := m.Size()
	t.Logf("%d callers at %d a second: at most %d counters at once without a heartbeat, %d counters and %d ids afterwards; heap %d KiB before, %d KiB after", callers, perSecond, most, counters, records, before.HeapAlloc>>10, after.HeapAlloc>>10)
	if counters != 0 || records != 0 {
		t.Error("something is kept")
	}
	if most > 2*perSecond*60 {
		t.Errorf("%d counters at once for %d callers a minute", most, perSecond*60)
	}
	if after.HeapAlloc > before.HeapAlloc+8<<20 {
		t.Errorf("%d KiB are kept", (after.HeapAlloc-before.HeapAlloc)>>10)
	}
	runtime.KeepAlive(m)
}

// TestMemoryBound: beyond the bound idle windows make room, and no lease does.
func TestMemoryBound(t *testing.T) {
	ms := int64(1_800_000_000_000)
	m := NewMemory(func() time.Time { return time.UnixMilli(ms) })
	lease := []Dim{{Key: "lease", Kind: Lease, Limit: 1, Cost: 1}}
	if _, err := m.Reserve(context.Background(), Reservation{ID: "held", Dims: lease}); err != nil {
		t.Fatal(err)
	}
	m.bound = 100
	bound := m.bound * shardCount
	for i := range 4 * bound {
		dims := []Dim{{Key: strconv.Itoa(i), Kind: Window, Limit: 10, Cost: 1, WindowMs: 3_600_000, BucketMs: 300_000}}
		var h held
		m.lock(&h, "", dims)
		c := h.open(0, &dims[0], ms)
		c.charge(&dims[0], "", ms, 0)
		c.touch(&dims[0], ms)
		h.unlock()
	}
	if n, _ := m.Size(); n > bound+shardCount {
		t.Errorf("%d counters, want at most %d", n, bound)
	}
	if out, _ := m.Reserve(context.Background(), Reservation{Dims: lease, Peek: true}); out.Allowed {
		t.Error("a lease made room")
	}
}

// rulesOf makes so many dimensions: windows of requests and tokens, slots, quotas.
func rulesOf(n int) ([]Rule, []QuotaRule) {
	var rules []Rule
	var quotas []QuotaRule
	subjects := []string{"key", "user", "project", "department", "model", "ip", "user,model"}
	for i := range n / 4 {
		per := subjects[i%len(subjects)]
		rules = append(rules, Rule{Name: fmt.Sprint("r", i), Scope: per, Bounds: Bounds{Requests: perMinute(1_000_000_000), Tokens: perMinute(1_000_000_000_000), Concurrency: 1_000_000_000}})
		quotas = append(quotas, QuotaRule{Name: fmt.Sprint("q", i), Scope: per, Units: 1_000_000_000_000, Every: "day", Zone: "Asia/Shanghai"})
	}
	return rules, quotas
}

func benchLimiter(b *testing.B, rules []Rule, quotas []QuotaRule) *Limiter {
	return New(compile(b, rules, quotas, nil), Options{Store: NewMemory(time.Now)})
}

// BenchmarkDecision is Admit and Settle through the whole Limiter.
func BenchmarkDecision(b *testing.B) {
	for _, n := range []int{4, 20} {
		b.Run(fmt.Sprint(n, "dims"), func(b *testing.B) {
			l := benchLimiter(b, first(rulesOf(n)), second(rulesOf(n)))
			q := alice()
			q.Prompt, q.MaxTokens = 100, 1000
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				q.ID = strconv.Itoa(i)
				g, err := l.Admit(context.Background(), q)
				if err != nil {
					b.Fatal(err)
				}
				if err := g.Settle(Usage{Input: 100, Output: 200}, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReserve is the store alone: one decision and its settlement.
func BenchmarkReserve(b *testing.B) {
	for _, n := range []int{4, 20} {
		b.Run(fmt.Sprint(n, "dims"), func(b *testing.B) {
			q := alice()
			q.Prompt, q.MaxTokens = 100, 1000
			dims := compile(b, first(rulesOf(n)), second(rulesOf(n)), nil).Dims(q, Estimate{Output: 300}, time.Now())
			m := NewMemory(time.Now)
			charges := make([]int64, len(dims))
			for i := range charges {
				charges[i] = 1
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				id := strconv.Itoa(i)
				if out, err := m.Reserve(context.Background(), Reservation{ID: id, Dims: dims}); err != nil || !out.Allowed {
					b.Fatal(out, err)
				}
				if _, err := m.Settle(context.Background(), Settlement{ID: id, Dims: dims, Charges: charges}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReserveParallel is many tenants at once.
func BenchmarkReserveParallel(b *testing.B) {
	set := compile(b, first(rulesOf(4)), second(rulesOf(4)), nil)
	m := NewMemory(time.Now)
	b.RunParallel(func(pb *testing.PB) {
		q := alice()
		for i := 0; pb.Next(); i++ {
			q.User = strconv.Itoa(i % 512)
			q.Key, q.Department = q.User, q.User
			id := q.User + strconv.Itoa(i)
			dims := set.Dims(q, Estimate{}, time.Now())
			if _, err := m.Reserve(context.Background(), Reservation{ID: id, Dims: dims}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDenyCache is a refusal that the cache answers.
func BenchmarkDenyCache(b *testing.B) {
	for _, n := range []int{4, 20} {
		b.Run(fmt.Sprint(n, "dims"), func(b *testing.B) {
			rules, quotas := rulesOf(n)
			rules[0].Requests = Rate{1, time.Hour}
			ms := time.Now()
			l := New(compile(b, rules, quotas, nil), Options{Store: NewMemory(time.Now), Now: func() time.Time { return ms }})
			q := alice()
			for i := range 2 {
				q.ID = strconv.Itoa(i)
				_, _ = l.Admit(context.Background(), q)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Admit(context.Background(), q); err == nil {
					b.Fatal("let in")
				}
			}
		})
	}
}

// BenchmarkForget is the heartbeat of a store with a hundred thousand counters.
func BenchmarkForget(b *testing.B) {
	ms := int64(1_800_000_000_000)
	m := NewMemory(func() time.Time { return time.UnixMilli(ms) })
	for i := range 100_000 {
		d := []Dim{{Key: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String(), Kind: Window, Limit: 5, Cost: 1, WindowMs: 60_000, BucketMs: 5_000}}
		if _, err := m.Reserve(context.Background(), Reservation{ID: strconv.Itoa(i), Dims: d}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := m.Renew(context.Background(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func first[A, B any](a A, _ B) A { return a }

func second[A, B any](_ A, b B) B { return b }

// TestMemoryNote: what another store let in counts here, though it would not have
// fitted, and is settled as if it had been let in here.
func TestMemoryNote(t *testing.T) {
	ms := int64(1_800_000_000_000)
	m := NewMemory(func() time.Time { return time.UnixMilli(ms) })
	dims := []Dim{{Key: "w", Kind: Window, Limit: 10, Cost: 8, WindowMs: 60_000, BucketMs: 5_000}, {Key: "soft", Kind: Window, Limit: 1, Cost: 1, WindowMs: 60_000, BucketMs: 5_000, Soft: true}}
	used := func(want ...int64) {
		t.Helper()
		out, _ := m.Reserve(context.Background(), Reservation{Dims: dims, Peek: true})
		for i := range want {
			if out.States[i].Used != want[i] {
				t.Errorf("%s: %d used, want %d", dims[i].Key, out.States[i].Used, want[i])
			}
		}
	}
	elsewhere := Decision{Allowed: true, Binding: -1, States: []State{{}, {Exceeded: true}}}
	for _, id := range []string{"a", "b", "b"} {
		m.Note(Reservation{ID: id, Dims: dims}, elsewhere)
	}
	used(16, 0)
	if s, err := m.Settle(context.Background(), Settlement{ID: "a", Dims: dims, Charges: []int64{1, 1}}); err != nil || !s.Applied {
		t.Fatalf("%+v, %v", s, err)
	}
	used(9, 0)
}
