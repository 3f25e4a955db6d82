package redislimit

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
	"tidegate/admission/limit/limittest"
	"tidegate/admission/limit/redislimit/redistest"
)

// patient is a client like those of Dial, for tests that are not about time.
func patient(t testing.TB, addrs ...string) redis.UniversalClient {
	t.Helper()
	c := DefaultConfig()
	c.Addrs, c.Timeout = addrs, time.Second
	client := Dial(c)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func wipe(t testing.TB, servers ...*redistest.Server) {
	t.Helper()
	for _, s := range servers {
		c := redis.NewClient(&redis.Options{Addr: s.Addr, DisableIdentity: true})
		if err := c.FlushAll(context.Background()).Err(); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
}

// TestOneLog: what fails is told to callers, and not to stderr by the library too.
// The library has one log for the whole process, so the test has a process of its own.
func TestOneLog(t *testing.T) {
	const alone = "TIDEGATE_TEST_ONE_LOG"
	if _, child := os.LookupEnv(alone); child {
		s := New(patient(t, "127.0.0.1:1"), Options{})
		if _, err := s.Reserve(t.Context(), limit.Reservation{ID: "a", Dims: day("log", 100, 10, limit.FailLocal)}); err == nil {
			t.Error("a server that is not there answers")
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wrote strings.Builder
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestOneLog$", "-test.count=1")
	cmd.Env, cmd.Stderr = append(cmd.Environ(), alone+"=1"), &wrote
	if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "PASS") || wrote.Len() > 0 {
		t.Errorf("%v\n%s\nstderr has %d bytes: %s", err, out, wrote.Len(), wrote.String())
	}
}

func TestSingle(t *testing.T) {
	server := redistest.Single(t)
	client := patient(t, server.Addr)
	limittest.Run(t, func(t *testing.T, now func() time.Time) limit.Store {
		wipe(t, server)
		return New(client, Options{Now: now})
	})
}

// TestGuardedSuite: as long as Redis answers, the guard is not to be noticed; and a
// user of Redis needs no more rights than docs/security.md grants.
func TestGuardedSuite(t *testing.T) {
	server := redistest.Single(t)
	client := limited(t, server)
	limittest.Run(t, func(t *testing.T, now func() time.Time) limit.Store {
		wipe(t, server)
		return Guard(New(client, Options{Now: now}), GuardOptions{Replica: "r", Now: now, Timeout: time.Minute})
	})
}

// limited is a client of the user that docs/security.md has operators make.
func limited(t *testing.T, servers ...*redistest.Server) redis.UniversalClient {
	t.Helper()
	page, err := os.ReadFile("../../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rule, _ := strings.Cut(string(page), "\nACL ")
	rule, _, ok := strings.Cut(rule, "\n")
	if !ok {
		t.Fatal("docs/security.md has no line that begins with ACL")
	}
	args := []any{"ACL"}
	for _, word := range strings.Fields(rule) {
		args = append(args, word)
	}
	c := DefaultConfig()
	c.Username, c.Password, c.Timeout = "tidegate", "PASSWORD", time.Second
	for _, server := range servers {
		if err := server.Client().Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		c.Addrs = append(c.Addrs, server.Addr)
	}
	client := Dial(c)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// oneHome puts all counters of a suite into one slot, also where an id comes again
// with other dimensions or none, as no gateway would send it.
type oneHome struct{ of limit.Store }

func (o oneHome) home(dims []limit.Dim) []limit.Dim {
	out := make([]limit.Dim, 0, len(dims)+1)
	for _, d := range dims {
		d.Key = "tg:{one}:" + strings.NewReplacer("{", "", "}", "").Replace(d.Key)
		out = append(out, d)
	}
	return append(out, limit.Dim{Key: "tg:{one}:pad", Kind: limit.Quota, Limit: 1, BeginMs: 1, EndMs: 1 << 42})
}

func (o oneHome) Reserve(ctx context.Context, r limit.Reservation) (limit.Decision, error) {
	n := len(r.Dims)
	r.Dims = o.home(r.Dims)
	out, err := o.of.Reserve(ctx, r)
	if err == nil {
		out.States = out.States[:n]
	}
	return out, err
}

func (o oneHome) Settle(ctx context.Context, s limit.Settlement) (limit.Settled, error) {
	n := len(s.Dims)
	if len(s.Charges) != n {
		return o.of.Settle(ctx, s)
	}
	s.Dims, s.Charges = o.home(s.Dims), append(append([]int64(nil), s.Charges...), 0)
	out, err := o.of.Settle(ctx, s)
	if err == nil {
		out.States = out.States[:n]
	}
	return out, err
}

func (o oneHome) Renew(ctx context.Context, renewals []limit.Renewal) ([]string, error) {
	all := append([]limit.Renewal(nil), renewals...)
	for i := range all {
		if n := len(all[i].Charges); n > 0 && n != len(all[i].Dims) {
			return o.of.Renew(ctx, renewals)
		} else if n > 0 {
			all[i].Charges = append(append([]int64(nil), all[i].Charges...), 0)
		}
		all[i].Dims = o.home(all[i].Dims)
	}
	return o.of.Renew(ctx, all)
}

func TestCluster(t *testing.T) {
	nodes := redistest.Cluster(t)
	client := limited(t, nodes.Servers...)
	limittest.Run(t, func(t *testing.T, now func() time.Time) limit.Store {
		wipe(t, nodes.Servers...)
		return oneHome{New(client, Options{Now: now})}
	})
	t.Run("Homes", func(t *testing.T) {
		wipe(t, nodes.Servers...)
		equalsMemory(t, client, 1_000)
	})
}

// TestSingleEqualsMemory is the same of one server.
func TestSingleEqualsMemory(t *testing.T) {
	equalsMemory(t, patient(t, redistest.Single(t).Addr), 1_000)
}

// pair is a store and a Memory that are driven through the same history.
type pair struct {
	t         *testing.T
	store     *Store
	memory    *limit.Memory
	random    *rand.Rand
	ms        int64
	history   int
	ids       []limit.Reservation // let in and not settled
	decisions int
	refusals  int
}

func (p *pair) between(low, high int) int64 { return int64(low + p.random.IntN(high-low+1)) }

// dims are some of twelve counters in the homes of an address, a tenant, a model and
// everybody.
func (p *pair) dims() []limit.Dim {
	var out []limit.Dim
	for i, home := range []string{"i:10.0.0.1", "t:department=ml", "m:qwen", "g"} {
		for j := range 3 {
			d := limit.Dim{Key: fmt.Sprintf("tg:{%s}:%d:%d", home, p.history, j), Limit: p.between(3, 12), Cost: p.between(0, 4), Soft: i == 1 && j == 0}
			switch j {
			case 0:
				d.Kind, d.WindowMs, d.BucketMs, d.Floor = limit.Window, 60_000, 5_000, min(d.Cost, 1)
				if i == 2 {
					d.Burst = p.between(2, 5)
				}
			case 1:
				d.Kind, d.Cost = limit.Lease, 1
			case 2:
				const hour = 3_600_000
				d.Kind, d.BeginMs, d.EndMs, d.Floor = limit.Quota, p.ms/hour*hour, (p.ms/hour+1)*hour, min(d.Cost, 1)
			}
			if p.random.IntN(2) == 0 {
				out = append(out, d)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, limit.Dim{Key: fmt.Sprintf("tg:{g}:%d:0", p.history), Kind: limit.Window, Limit: 5, Cost: 1, WindowMs: 60_000, BucketMs: 5_000})
	}
	return out
}

func (p *pair) same(what string, got, want any, err1, err2 error) {
	p.t.Helper()
	if err1 != nil || err2 != nil || !reflect.DeepEqual(got, want) {
		p.t.Fatalf("history %d, %s at %d:\ngot  %+v, %v\nwant %+v, %v", p.history, what, p.ms, got, err1, want, err2)
	}
}

func (p *pair) reserve(what string, r limit.Reservation) limit.Decision {
	p.t.Helper()
	got, err1 := p.store.Reserve(p.t.Context(), r)
	want, err2 := p.memory.Reserve(p.t.Context(), r)
	p.same(what, got, want, err1, err2)
	return want
}

func (p *pair) settle(r limit.Reservation) {
	s := limit.Settlement{ID: r.ID, Dims: r.Dims, Charges: make([]int64, len(r.Dims))}
	for i := range s.Charges {
		s.Charges[i] = p.between(0, 6)
	}
	got, err1 := p.store.Settle(p.t.Context(), s)
	want, err2 := p.memory.Settle(p.t.Context(), s)
	p.same("settle", got, want, err1, err2)
}

func (p *pair) renew() {
	var renewals []limit.Renewal
	for _, r := range p.ids {
		if p.random.IntN(2) == 0 {
			renewals = append(renewals, limit.Renewal{ID: r.ID, Dims: r.Dims})
		}
	}
	got, err1 := p.store.Renew(p.t.Context(), renewals)
	want, err2 := p.memory.Renew(p.t.Context(), renewals)
	p.same("renew", got, want, err1, err2)
}

func (p *pair) step(n int) {
	p.ms += p.between(0, 9_000)
	switch choice := p.random.IntN(8); {
	case choice < 4:
		r := limit.Reservation{ID: fmt.Sprintf("%d-%d", p.history, n), Dims: p.dims()}
		p.decisions++
		if p.reserve("reserve", r).Allowed {
			p.ids = append(p.ids, r)
		} else {
			p.refusals++
		}
	case choice == 4:
		p.reserve("look", limit.Reservation{Dims: p.dims(), Peek: true})
	case len(p.ids) == 0:
	case choice == 5:
		if !p.reserve("reserve again", p.ids[0]).Repeated {
			p.ids = p.ids[1:]
		}
	case choice == 6:
		p.settle(p.ids[p.random.IntN(len(p.ids))])
	default:
		p.renew()
	}
}

// equalsMemory compares a store with a Memory through random histories.
func equalsMemory(t *testing.T, client redis.UniversalClient, histories int) {
	if text := os.Getenv("TIDEGATE_TEST_HISTORIES"); text != "" {
		histories, _ = strconv.Atoi(text)
	} else if testing.Short() {
		histories /= 5
	}
	p := &pair{t: t, random: rand.New(rand.NewPCG(3, 4)), ms: 1_772_362_687_123}
	now := func() time.Time { return time.UnixMilli(p.ms) }
	p.store, p.memory = New(client, Options{Now: now}), limit.NewMemory(now)
	for p.history = range histories {
		p.ids = nil
		for n := range 10 {
			p.step(n)
		}
	}
	t.Logf("%d histories, %d decisions, %d refusals: all equal", histories, p.decisions, p.refusals)
}

// TestRefused is the longer form of the suite's own, for when it is asked for.
func TestRefused(t *testing.T) {
	histories, err := strconv.Atoi(os.Getenv("TIDEGATE_TEST_HISTORIES"))
	if err != nil {
		histories = 100
	}
	server := redistest.Single(t)
	client := patient(t, server.Addr)
	limittest.Refused(t, func(_ *testing.T, now func() time.Time) limit.Store { return New(client, Options{Now: now}) }, histories)
}

// TestRefusedChangesNoKey: a refusal leaves every key as it is, byte for byte.
func TestRefusedChangesNoKey(t *testing.T) {
	server := redistest.Single(t)
	store, look := New(patient(t, server.Addr), Options{}), server.Client()
	dims := mixed(8)
	dims[7].Limit = 1
	if out, err := store.Reserve(t.Context(), limit.Reservation{ID: "in", Dims: dims}); err != nil || !out.Allowed {
		t.Fatalf("%+v, %v", out, err)
	}
	digest := func() string { return look.Do(t.Context(), "debug", "digest").String() }
	before := digest()
	for i := range 50 {
		out, err := store.Reserve(t.Context(), limit.Reservation{ID: fmt.Sprint(i), Dims: dims})
		if err != nil || out.Allowed || out.Binding != 7 {
			t.Fatalf("%+v, %v", out, err)
		}
		if _, err := store.Reserve(t.Context(), limit.Reservation{Dims: dims, Peek: true}); err != nil {
			t.Fatal(err)
		}
	}
	if after := digest(); after != before {
		t.Errorf("%s became %s", before, after)
	}
	if _, err := store.Settle(t.Context(), limit.Settlement{ID: "in", Dims: dims, Charges: make([]int64, 8)}); err != nil {
		t.Fatal(err)
	}
	if digest() == before {
		t.Error("the digest does not see a change")
	}
}

// TestLooksAreNotTracked: only homes that may hold reservations are searched for those
// whose time is over.
func TestLooksAreNotTracked(t *testing.T) {
	store, dims := New(patient(t, redistest.Single(t).Addr), Options{}), mixed(8)
	for _, settled := range []bool{false, true} {
		if _, err := store.Reserve(t.Context(), limit.Reservation{Dims: dims, Peek: true, Settled: settled}); err != nil {
			t.Fatal(err)
		}
	}
	if len(store.homes) > 0 {
		t.Errorf("after looks: %v", store.homes)
	}
	if _, err := store.Reserve(t.Context(), limit.Reservation{ID: "in", Dims: dims}); err != nil {
		t.Fatal(err)
	}
	if len(store.homes) == 0 {
		t.Error("a reservation's homes are not searched")
	}
}

// TestEveryKeyExpires: whatever was done, no key is without an expiry.
func TestEveryKeyExpires(t *testing.T) {
	server := redistest.Single(t)
	client := patient(t, server.Addr)
	ms := time.Now().UnixMilli()
	store := New(client, Options{Now: func() time.Time { return time.UnixMilli(ms) }})
	dims := mixed(8)
	for i := range 200 {
		id := fmt.Sprint(i)
		if _, err := store.Reserve(t.Context(), limit.Reservation{ID: id, Dims: dims}); err != nil {
			t.Fatal(err)
		}
		if i%3 > 0 {
			if _, err := store.Settle(t.Context(), limit.Settlement{ID: id, Dims: dims, Charges: make([]int64, 8), New: i%3 == 1}); err != nil {
				t.Fatal(err)
			}
		}
		if ms += 47_000; i%5 == 0 {
			if _, err := store.Renew(t.Context(), []limit.Renewal{{ID: id, Dims: dims}}); err != nil {
				t.Fatal(err)
			}
		}
		if i%40 != 39 {
			continue
		}
		keys := client.Keys(t.Context(), "*").Val()
		if len(keys) < 8 {
			t.Fatalf("only %d keys", len(keys))
		}
		for _, key := range keys {
			if life := client.PTTL(t.Context(), key).Val(); life <= 0 {
				t.Errorf("after %d: %s lives for %s", i, key, life)
			}
		}
	}
}

// TestServerClock: without a time of the caller's, the server's decides.
func TestServerClock(t *testing.T) {
	server := redistest.Single(t)
	store := New(patient(t, server.Addr), Options{})
	d := []limit.Dim{{Key: "tg:{t}:w", Kind: limit.Window, Limit: 1, Cost: 1, WindowMs: 3_600_000, BucketMs: 300_000}}
	if out, err := store.Reserve(t.Context(), limit.Reservation{ID: "a", Dims: d}); err != nil || out.States[0].ResetMs != 3_600_000 {
		t.Fatalf("%+v, %v", out, err)
	}
	// The latest time is that of a clock that has gone back since.
	ahead := time.Now().Add(10 * time.Minute).UnixMilli()
	if err := server.Client().Set(t.Context(), "tg:clock", ahead, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	out, err := store.Reserve(t.Context(), limit.Reservation{ID: "b", Dims: d})
	if err != nil || out.Allowed || out.RetryAfterMs > 3_000_000 {
		t.Fatalf("%+v, %v", out, err)
	}
	// One that is a day ahead was wrong, and so is what it charged.
	wrong := New(patient(t, server.Addr), Options{Now: func() time.Time { return time.Now().Add(24 * time.Hour) }})
	if out, err := wrong.Reserve(t.Context(), limit.Reservation{ID: "c", Dims: d}); err != nil || !out.Allowed {
		t.Fatalf("%+v, %v", out, err)
	}
	if out, err := store.Reserve(t.Context(), limit.Reservation{ID: "d", Dims: d}); err != nil || !out.Allowed || out.States[0].ResetMs != 3_600_000 {
		t.Fatalf("%+v, %v", out, err)
	}
}

// TestScriptForgotten: a server that has lost the script is given it, in pipelines
// too, and by a user who may run scripts but not load them.
func TestScriptForgotten(t *testing.T) {
	nodes := redistest.Cluster(t)
	for name, addrs := range map[string][]string{"single": {redistest.Single(t).Addr}, "cluster": nodes.Addrs} {
		t.Run(name, func(t *testing.T) {
			flush := withoutScript(t, addrs)
			store := New(patient(t, addrs...), Options{})
			var renewals []limit.Renewal
			for i := range 20 {
				flush()
				dims := []limit.Dim{{Key: fmt.Sprintf("tg:{%d}:w", i), Kind: limit.Window, Limit: 5, Cost: 1, WindowMs: 60_000, BucketMs: 5_000}}
				if out, err := store.Reserve(t.Context(), limit.Reservation{ID: "a", Dims: dims}); err != nil || !out.Allowed || out.Repeated != (name == "single" && i > 0) {
					t.Fatalf("%+v, %v", out, err)
				}
				if name == "cluster" || i == 0 {
					renewals = append(renewals, limit.Renewal{ID: "a", Dims: dims})
				}
			}
			flush()
			if lost, err := store.Renew(t.Context(), renewals); err != nil || len(lost) > 0 {
				t.Errorf("lost %v, %v", lost, err)
			}
		})
	}
}

// withoutScript forbids the default user of each server the command SCRIPT, and
// returns a function that makes the servers forget their scripts.
func withoutScript(t *testing.T, addrs []string) (flush func()) {
	t.Helper()
	admins := make([]*redis.Client, len(addrs))
	for i, addr := range addrs {
		owner := patient(t, addr).(*redis.Client)
		if err := owner.Do(t.Context(), "ACL", "SETUSER", "admin", "on", ">secret", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
		if err := owner.Do(t.Context(), "ACL", "SETUSER", "default", "-script").Err(); err != nil {
			t.Fatal(err)
		}
		admins[i] = redis.NewClient(&redis.Options{Addr: addr, Username: "admin", Password: "secret", Protocol: 2, DisableIdentity: true})
		t.Cleanup(func() { _ = admins[i].Close() })
	}
	return func() {
		for _, admin := range admins {
			if err := admin.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// failing makes the calls of one operation fail while it is on.
type failing struct {
	operation string
	on        atomic.Bool
}

func (f *failing) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (f *failing) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (f *failing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, c := range cmds {
			if f.on.Load() && slices.Contains(c.Args(), any(f.operation)) {
				for _, c := range cmds {
					c.SetErr(io.ErrUnexpectedEOF)
				}
				return io.ErrUnexpectedEOF
			}
		}
		return next(ctx, cmds)
	}
}

// TestKept: what one home let in and another refused, and what cannot be taken back,
// is refused all the same and settled to nothing later.
func TestKept(t *testing.T) {
	nodes := redistest.Cluster(t)
	client := patient(t, nodes.Addrs...)
	hook := &failing{operation: "cancel"}
	client.AddHook(hook)
	g := running(t, New(client, Options{}), GuardOptions{Replica: "one", Timeout: 5 * time.Second})
	dims := []limit.Dim{
		{Key: "tg:{i:10.0.0.1}:a", Kind: limit.Window, Limit: 5, Cost: 1, Floor: 1, WindowMs: 3_600_000, BucketMs: 300_000},
		{Key: "tg:{t:user=ann}:b", Kind: limit.Window, Limit: 5, Cost: 6, WindowMs: 3_600_000, BucketMs: 300_000},
	}
	hook.on.Store(true)
	out, err := g.Reserve(t.Context(), limit.Reservation{ID: "x", Dims: dims})
	if err != nil || out.Allowed || out.Binding != 1 || g.State().Waiting != 1 {
		t.Fatalf("%+v, %v, %d wait", out, err, g.State().Waiting)
	}
	hook.on.Store(false)
	until(t, "nothing waits", func() bool { return g.State().Waiting == 0 })
	seen, err := g.Reserve(t.Context(), limit.Reservation{Dims: dims[:1], Peek: true})
	if err != nil || seen.States[0].Used != 0 {
		t.Errorf("%+v, %v", seen, err)
	}
}
