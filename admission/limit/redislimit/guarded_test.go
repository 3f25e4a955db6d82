package redislimit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/redis/go-redis/v9/logging"
	"github.com/rs/zerolog"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
)

// TestMain keeps the client from reporting each server that a test has stopped.
func TestMain(m *testing.M) {
	if _, child := os.LookupEnv("TIDEGATE_TEST_ONE_LOG"); !child {
		logging.Disable()
	}
	os.Exit(m.Run())
}

// patience is how long a busy machine may take for what is meant to succeed.
const patience = 500 * time.Millisecond

// proxied puts a toxiproxy before a server.
func proxied(t testing.TB, addr string) *toxiproxy.Proxy {
	t.Helper()
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "redis", "127.0.0.1:0", addr)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// slow delays what the server answers, until the test says that it no longer does.
func slow(t testing.TB, p *toxiproxy.Proxy, by time.Duration) (restore func()) {
	t.Helper()
	if _, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name": "slow", "type": "latency", "stream": "downstream", "attributes": {"latency": %d}}`, by.Milliseconds()))); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := p.Toxics.RemoveToxic(context.Background(), "slow"); err != nil {
			t.Fatal(err)
		}
	}
}

func until(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick, over := time.NewTicker(10*time.Millisecond), time.After(30*time.Second)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// running makes a guard that runs until the test ends.
func running(t testing.TB, store *Store, o GuardOptions) *Guarded {
	t.Helper()
	g := Guard(store, o)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return g
}

func dial(t testing.TB, c Config) *Store {
	t.Helper()
	client := Dial(c)
	t.Cleanup(func() { _ = client.Close() })
	return New(client, Options{})
}

func single(addr string) Config {
	c := DefaultConfig()
	c.Addrs = []string{addr}
	return c
}

// day is a quota of the day, and a window that is never full.
func day(name string, amount, cost int64, f limit.Failure) []limit.Dim {
	const length = 86_400_000
	begin := time.Now().UnixMilli() / length * length
	return []limit.Dim{
		{Key: "tg:{t:" + name + "}:q", Kind: limit.Quota, Limit: amount, Cost: cost, BeginMs: begin, EndMs: begin + length, Failure: f, Rule: "daily"},
		{Key: "tg:{t:" + name + "}:w", Kind: limit.Window, Limit: 1 << 40, Cost: cost, WindowMs: 3_600_000, BucketMs: 300_000, Failure: f, Rule: "rate"},
	}
}

func usedIn(t testing.TB, s limit.Store, dims []limit.Dim) []int64 {
	t.Helper()
	out, err := s.Reserve(t.Context(), limit.Reservation{Dims: dims, Peek: true})
	if err != nil {
		t.Fatal(err)
	}
	var used []int64
	for _, s := range out.States {
		used = append(used, s.Used)
	}
	return used
}

// TestLateAnswer: an answer that comes after the deadline is an error in time, and
// the same request again is charged once.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	p := proxied(t, server.Addr)
	late, direct := dial(t, single(p.Listen)), dial(t, single(server.Addr))
	dims := day("late", 100, 10, limit.FailLocal)
	if out, err := late.Reserve(t.Context(), limit.Reservation{ID: "warm", Dims: dims}); err != nil || !out.Allowed {
		t.Fatalf("%+v, %v", out, err)
	}
	restore := slow(t, p, time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := late.Reserve(ctx, limit.Reservation{ID: "a", Dims: dims}); !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Fatalf("%+v, %v", out, err)
	}
	until(t, "the late reservation is there", func() bool { return usedIn(t, direct, dims)[0] == 20 })
	restore()
	for range 3 {
		if out, err := direct.Reserve(t.Context(), limit.Reservation{ID: "a", Dims: dims}); err != nil || !out.Repeated || out.States[0].Used != 20 {
			t.Fatalf("%+v, %v", out, err)
		}
	}
}

// TestPaused: a server that answers nobody delays no request for longer than the
// budget, what is let in meanwhile is within the share of what remained, and all of
// it is charged once when the server goes on: also what it had been sent before.
func TestPaused(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	direct := dial(t, single(server.Addr))
	changes := make(chan bool, 10)
	g := running(t, dial(t, single(server.Addr)), GuardOptions{Replica: "one", Timeout: patience, Changed: func(alone bool, _ error) { changes <- alone }})
	dims := day("paused", 100, 10, limit.FailLocal)
	until(t, "it knows the fleet", func() bool { return g.State().Replicas == 1 })
	reserve := func(id string) limit.Decision {
		t.Helper()
		out, err := g.Reserve(t.Context(), limit.Reservation{ID: id, Dims: dims})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	settle := func(id string, charge int64) {
		t.Helper()
		if out, err := g.Settle(t.Context(), limit.Settlement{ID: id, Dims: dims, Charges: []int64{charge, charge}}); err != nil || !out.Applied {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	reserve("before")
	reserve("across")
	settle("before", 30)
	server.Pause()
	in := 0
	for i := range 12 {
		if reserve(fmt.Sprint("during", i)).Allowed {
			in++
		}
	}
	if in != 6 { // of 100 are 30 used and 10 reserved
		t.Errorf("%d were let in, want 6", in)
	}
	if !<-changes || !g.State().Alone || g.State().Error == "" {
		t.Error("it does not say that it is alone, and why")
	}
	if out := reserve("during3"); !out.Repeated {
		t.Errorf("the same request again: %+v", out)
	}
	settle("across", 5)
	for i := range in - 1 {
		settle(fmt.Sprint("during", i), 8)
		settle(fmt.Sprint("during", i), 8) // twice is once
	}
	if lost, err := g.Renew(t.Context(), []limit.Renewal{{ID: fmt.Sprint("during", in-1), Dims: dims}}); err != nil || len(lost) > 0 {
		t.Errorf("lost %v, %v", lost, err)
	}
	server.Resume()
	if <-changes || g.State().Error != "" {
		t.Error("it says again that it is alone, or why it was")
	}
	if lost, err := g.Renew(t.Context(), []limit.Renewal{{ID: fmt.Sprint("during", in-1), Dims: dims}}); err != nil || len(lost) > 0 {
		t.Errorf("afterwards lost %v, %v", lost, err)
	}
	settle(fmt.Sprint("during", in-1), 8)
	want := int64(30 + 5 + 6*8)
	until(t, "all is told", func() bool { return g.State().Waiting == 0 })
	for i, used := range usedIn(t, direct, dims) {
		if used != want {
			t.Errorf("%s: %d used, want %d", dims[i].Key, used, want)
		}
	}
	if out := reserve("after"); !out.Allowed || out.States[0].Used != want+10 {
		t.Errorf("afterwards: %+v", out)
	}
}

// TestFailover: when the master dies, decisions go on, the new master is found, and
// what was told of is charged once.
func TestFailover(t *testing.T) {
	t.Parallel()
	w := redistest.Sentinel(t)
	c := DefaultConfig()
	c.Addrs, c.SentinelMaster = w.Addrs, w.Name
	g := running(t, dial(t, c), GuardOptions{Replica: "one", Timeout: patience})
	until(t, "it knows the fleet", func() bool { return g.State().Replicas == 1 })
	dims := day("failover", 1_000_000, 10, limit.FailLocal)
	charged := int64(0)
	request := func(id string) {
		t.Helper()
		out, err := g.Reserve(t.Context(), limit.Reservation{ID: id, Dims: dims})
		if err != nil || !out.Allowed {
			t.Fatalf("%s: %+v, %v", id, out, err)
		}
		if _, err := g.Settle(t.Context(), limit.Settlement{ID: id, Dims: dims, Charges: []int64{7, 7}}); err != nil {
			t.Fatal(err)
		}
		charged += 7
	}
	for i := range 20 {
		request(fmt.Sprint("before", i))
	}
	until(t, "the replica has it all", func() bool {
		return w.Master.Client().Do(t.Context(), "debug", "digest").String() == w.Replica.Client().Do(t.Context(), "debug", "digest").String()
	})
	w.Master.Kill()
	for i := range 20 {
		request(fmt.Sprint("during", i))
	}
	if !g.State().Alone {
		t.Error("it does not know that the master is gone")
	}
	until(t, "the new master is asked", func() bool { return !g.State().Alone })
	for i := range 20 {
		request(fmt.Sprint("after", i))
	}
	until(t, "all is told", func() bool { return g.State().Waiting == 0 })
	if used := usedIn(t, dial(t, single(w.Replica.Addr)), dims)[0]; used != charged {
		t.Errorf("%d used, want %d", used, charged)
	}
}

// TestFailureModes: what each mode does while there is no Redis.
func TestFailureModes(t *testing.T) {
	t.Parallel()
	// Nobody listens there.
	g := Guard(dial(t, single("127.0.0.1:1")), GuardOptions{Replica: "one"})
	window := func(f limit.Failure, amount, cost int64, soft bool) limit.Dim {
		return limit.Dim{Key: fmt.Sprintf("tg:{t}:%s:%d:%v", f, amount, soft), Rule: "r", Kind: limit.Window, Limit: amount, Cost: cost, WindowMs: 60_000, BucketMs: 5_000, Failure: f, Soft: soft}
	}
	for name, test := range map[string]struct {
		dim    limit.Dim
		in     int // of 10
		closed bool
		never  bool
	}{
		"local":          {dim: window(limit.FailLocal, 8, 1, false), in: 4}, // half: it knows of no fleet
		"local, soft":    {dim: window(limit.FailLocal, 9, 1, true), in: 10},
		"local, larger":  {dim: window(limit.FailLocal, 6, 5, false), in: 1}, // than the share: it is alone
		"local, one":     {dim: window(limit.FailLocal, 1, 1, false), in: 1},
		"local, never":   {dim: window(limit.FailLocal, 6, 7, false), in: 0, never: true},
		"closed":         {dim: window(limit.FailClosed, 8, 1, false), closed: true},
		"closed, soft":   {dim: window(limit.FailClosed, 9, 1, true), in: 10},
		"open":           {dim: window(limit.FailOpen, 8, 1, false), in: 10},
		"quota, unknown": {dim: limit.Dim{Key: "tg:{t}:quota", Kind: limit.Quota, Limit: 80, Cost: 1, BeginMs: 1, EndMs: 1 << 42, Failure: limit.FailLocal}, in: 2},
		"quota, larger":  {dim: limit.Dim{Key: "tg:{t}:large", Kind: limit.Quota, Limit: 80, Cost: 3, BeginMs: 1, EndMs: 1 << 42, Failure: limit.FailLocal}, in: 1},
	} {
		in := 0
		for i := range 10 {
			out, err := g.Reserve(t.Context(), limit.Reservation{ID: name + fmt.Sprint(i), Dims: []limit.Dim{test.dim}})
			if test.closed != errors.Is(err, ErrClosed) || !test.closed && err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if out.Allowed {
				in++
			} else if !test.closed && (out.TooLarge != test.never || out.TooLarge == (out.RetryAfterMs > 0) || out.Binding != 0 || out.States[0].Limit != test.dim.Limit) {
				t.Errorf("%s: %+v", name, out)
			}
		}
		if in != test.in {
			t.Errorf("%s: %d were let in, want %d", name, in, test.in)
		}
	}
}

// TestCallerGone: callers that go away do not make Redis look broken, and what they
// may have reserved is taken back.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	server := redistest.Single(t)
	p := proxied(t, server.Addr)
	direct := dial(t, single(server.Addr))
	g := Guard(dial(t, single(p.Listen)), GuardOptions{Replica: "one", Timeout: time.Minute})
	dims := day("gone", 1000, 10, limit.FailLocal)
	if _, err := g.Reserve(t.Context(), limit.Reservation{ID: "warm", Dims: dims}); err != nil {
		t.Fatal(err)
	}
	restore := slow(t, p, time.Minute)
	for i := range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		if out, err := g.Reserve(ctx, limit.Reservation{ID: fmt.Sprint(i), Dims: dims}); !errors.Is(err, errCaller) {
			t.Errorf("%+v, %v", out, err)
		}
		cancel()
	}
	// The first of them was sent; the others found no connection that answers.
	until(t, "the server has decided", func() bool { return usedIn(t, direct, dims)[0] == 20 })
	if g.State().Alone {
		t.Error("the breaker is open")
	}
	restore()
	g.check(t.Context())
	if used := usedIn(t, direct, dims)[0]; used != 10 {
		t.Errorf("%d are still used, want 10", used)
	}
}

// TestSharesAfterClockStep: a share is enforced beside Redis for a while after it was
// away or emptied, and not for as long as a clock was set back by since.
func TestSharesAfterClockStep(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	g := &Guarded{}
	g.link.backMs.Store(now.UnixMilli())
	g.loss.atMs.Store(now.UnixMilli())
	for after, want := range map[time.Duration]bool{0: true, 9 * time.Second: true, time.Minute: false, -time.Hour: false} {
		if hands, counts := g.awaitsHandIn(now.Add(after)), g.loss.isRecent(now.Add(after)); hands != want || counts != want {
			t.Errorf("after %v: %v and %v, expected %v", after, hands, counts, want)
		}
	}
}
