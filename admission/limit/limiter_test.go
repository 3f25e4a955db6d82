package limit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a limiter in a bubble of testing/synctest, where time is the test's.
type rig struct {
	*testing.T
	*Limiter
	store  Store
	next   int
	shadow []Breach
}

func compile(t testing.TB, rules []Rule, quotas []QuotaRule, weights map[string]Weights) *Set {
	t.Helper()
	set, err := Compile(rules, quotas, weights)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func newRig(t *testing.T, set *Set) *rig {
	r := &rig{T: t, store: NewMemory(time.Now)}
	r.Limiter = New(set, Options{
		Store: r.store, Random: func() float64 { return 1 }, Shadow: func(b Breach) { r.shadow = append(r.shadow, b) },
		Trouble: func(err error) { t.Error(err) },
	})
	return r
}

func alice() Request {
	return Request{Subjects: Subjects{Department: "d", Project: "p", User: "alice", Key: "k1", Model: "qwen", IP: netip.MustParseAddr("10.0.0.1")}}
}

func (r *rig) ask(q Request) (*Grant, *Rejection) {
	r.Helper()
	r.next++
	q.ID = fmt.Sprint("r", r.next)
	g, err := r.Admit(r.Context(), q)
	var denied *Rejection
	if err != nil && !errors.As(err, &denied) {
		r.Fatal(err)
	}
	return g, denied
}

func (r *rig) in(q Request) *Grant {
	r.Helper()
	g, denied := r.ask(q)
	if denied != nil {
		r.Fatalf("refused: %v", denied)
	}
	return g
}

func (r *rig) out(q Request) *Rejection {
	r.Helper()
	g, denied := r.ask(q)
	if g != nil {
		r.Fatal("was let in")
	}
	return denied
}

func (r *rig) settle(g *Grant, u Usage) {
	r.Helper()
	if err := g.Settle(u, ""); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) rate(metric string) RateStatus {
	r.Helper()
	s, err := r.Status(r.Context(), alice())
	if err != nil {
		r.Fatal(err)
	}
	for _, rate := range s.Rates {
		if rate.Metric == metric {
			return rate
		}
	}
	r.Fatalf("no %s in %+v", metric, s)
	return RateStatus{}
}

func perMinute(n int64) Rate { return Rate{n, time.Minute} }

func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, []Rule{{Name: "rpm", Scope: "user", Bounds: Bounds{Requests: perMinute(2), Tokens: perMinute(1000)}, Reserve: ReserveMax}}, nil, nil)
		r := newRig(t, set)
		q := alice()
		q.Prompt, q.MaxTokens = 100, 100
		g := r.in(q)
		if want := (Headers{Requests: Line{2, 1, time.Minute}, Tokens: Line{1000, 800, time.Minute}}); g.Headers != want {
			t.Errorf("headers %+v, want %+v", g.Headers, want)
		}
		time.Sleep(10 * time.Second)
		r.in(q)
		denied := r.out(q)
		want := Rejection{
			ExceededLimit: ExceededLimit{
				Rule: "rpm", Scope: "user", Metric: Requests, Limit: 2, Window: time.Minute, Used: 2, Counter: "tg:{t:department=d}:r:rpm:requests:user=alice",
			},
			Cost: 1, Prompt: 1, RetryAfter: 55 * time.Second, // 50 s and a tenth
			Headers: Headers{Requests: Line{2, 0, time.Minute}, Tokens: Line{1000, 600, time.Minute}},
		}
		if *denied != want {
			t.Errorf("got  %+v\nwant %+v", *denied, want)
		}
		if denied.Error() != "rule rpm: 2 requests in 1m per user: try again in 55s" {
			t.Error(denied)
		}
		q.MaxTokens = 1000
		if denied := r.out(q); !denied.TooLarge || denied.RetryAfter != 0 || denied.Metric != Tokens {
			t.Errorf("%+v", denied)
		}
	})
}

// TestDenyCache: a refusal answers for the same request for a second at most, and
// no longer once something is settled; a smaller request asks for itself.
func TestDenyCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "tpm", Scope: "user", Bounds: Bounds{Tokens: perMinute(1000)}}}, nil, nil))
		q, small := alice(), alice()
		q.Prompt, small.Prompt = 600, 300
		g := r.in(q)
		if denied := r.out(q); denied.Cached {
			t.Error("the first refusal comes from the cache")
		}
		time.Sleep(500 * time.Millisecond)
		if denied := r.out(q); !denied.Cached || denied.RetryAfter != 59_500*time.Millisecond*11/10 {
			t.Errorf("%+v", denied)
		}
		r.in(small)
		time.Sleep(500 * time.Millisecond)
		if denied := r.out(q); denied.Cached {
			t.Error("the refusal answered for more than a second")
		}
		if denied := r.out(q); !denied.Cached {
			t.Error("not from the cache")
		}
		r.settle(g, Usage{Input: 10})
		r.in(q)
	})
}

func TestSettleOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "u", Scope: "user", Bounds: Bounds{Requests: perMinute(10), Tokens: perMinute(1000), Concurrency: 3}, Reserve: ReserveMax}}, nil, nil))
		q := alice()
		q.Prompt, q.MaxTokens = 100, 200
		g := r.in(q)
		if r.rate("tokens").Remaining != 700 || r.rate("concurrency").Remaining != 2 {
			t.Error("not reserved")
		}
		r.settle(g, Usage{Input: 100, Output: 20})
		r.settle(g, Usage{Input: 100, Output: 200})
		if err := g.Cancel(); err != nil {
			t.Fatal(err)
		}
		if r.rate("tokens").Remaining != 880 || r.rate("requests").Remaining != 9 || r.rate("concurrency").Remaining != 3 || r.Running() != 0 {
			t.Errorf("%+v", r.rate("tokens"))
		}
		failed := r.in(q) // before its first token: all but the request comes back
		r.settle(failed, Usage{})
		cancelled := r.in(q) // refused elsewhere: the request too
		if err := cancelled.Cancel(); err != nil {
			t.Fatal(err)
		}
		if r.rate("tokens").Remaining != 880 || r.rate("requests").Remaining != 8 || r.rate("concurrency").Remaining != 3 {
			t.Errorf("%+v %+v", r.rate("tokens"), r.rate("requests"))
		}
	})
}

// own are the dimensions of a plan without the ceilings.
func own(p plan) (out []Dim) {
	for i, d := range p.dims {
		if !p.ceiling(i) {
			out = append(out, d)
		}
	}
	return out
}

// TestSmallLimit: a small limit lets its first request in though nothing is known
// of outputs yet (LiteLLM 29191: refused for ever), and an estimate alone makes
// no request too large.
func TestSmallLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, []Rule{{Name: "small", Scope: "user", Bounds: Bounds{Tokens: perMinute(200), OutputTokens: perMinute(100)}}}, []QuotaRule{{Name: "q", Scope: "user", Units: 40, Every: "day"}}, nil)
		q := alice()
		q.Prompt, q.MaxTokens = 20, 4096
		r := newRig(t, set)
		g := r.in(q)
		for _, d := range own(g.plan) {
			if want := map[Metric]int64{Tokens: 30, OutputTokens: 10, Units: 30_000}[d.Metric]; d.Cost != want {
				t.Errorf("%s reserves %d, want %d", d.Metric, d.Cost, want)
			}
		}
		r.settle(g, Usage{Input: 20, Output: 5})
		r.out(q) // it may use the whole limit by itself
		time.Sleep(time.Minute)
		q.Prompt = 4
		for range recentOutputs + 10 {
			r.settle(r.in(q), Usage{Input: 4, Output: 5000})
			time.Sleep(24 * time.Hour)
		}
		for _, d := range own(r.in(q).plan) {
			if want := map[Metric]int64{Tokens: 200, OutputTokens: 100, Units: 40_000}[d.Metric]; d.Cost != want {
				t.Errorf("with experience %s reserves %d, want %d", d.Metric, d.Cost, want)
			}
		}
	})
}

// TestNothingToEstimate: a request of which nothing is known beforehand is still
// limited, and charged what it used (LiteLLM: /responses skipped the check; 41610,
// 17664: streams and inputs that were never charged).
func TestNothingToEstimate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "u", Scope: "user", Bounds: Bounds{Requests: perMinute(3), Tokens: perMinute(100), OutputTokens: perMinute(100)}}}, nil, nil))
		r.settle(r.in(alice()), Usage{Input: 40, Output: 30})
		if r.rate("tokens").Remaining != 30 || r.rate("output_tokens").Remaining != 70 {
			t.Errorf("%+v %+v", r.rate("tokens"), r.rate("output_tokens"))
		}
		q := alice()
		q.MaxTokens = 10
		r.settle(r.in(q), Usage{Input: 40, Output: 30})
		if denied := r.out(q); denied.Metric != Tokens {
			t.Errorf("%+v", denied)
		}
	})
}

// TestExhaustedRefuses: at the limit nothing passes, even what reserves nothing
// (Higress lets in at current == threshold).
func TestExhaustedRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "out", Scope: "user", Bounds: Bounds{OutputTokens: perMinute(100)}, Reserve: ReservePrompt}}, nil, nil))
		q := alice()
		q.Prompt, q.MaxTokens = 10, 1000
		r.settle(r.in(q), Usage{Input: 10, Output: 100})
		r.out(q)
	})
}

// TestTwoReplicas: limiters over one store share one limit (LiteLLM 40291, Bifrost
// 3547: each had its own).
func TestTwoReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, []Rule{{Name: "u", Scope: "user", Bounds: Bounds{Requests: perMinute(100)}}}, nil, nil)
		store := NewMemory(time.Now)
		var mu sync.Mutex
		var all sync.WaitGroup
		in := 0
		for replica := range 4 {
			l := New(set, Options{Store: store})
			all.Go(func() {
				for i := range 100 {
					q := alice()
					q.ID = fmt.Sprint(replica, "/", i)
					if _, err := l.Admit(context.Background(), q); err == nil {
						mu.Lock()
						in++
						mu.Unlock()
					}
				}
			})
		}
		all.Wait()
		if in != 100 {
			t.Errorf("%d let in, want 100", in)
		}
	})
}

func TestShadowAndDegrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{
			{Name: "watch", Scope: "user", Bounds: Bounds{Requests: perMinute(1)}, Shadow: true},
			{Name: "soft", Scope: "user", Bounds: Bounds{Requests: perMinute(2)}, Exceed: ExceedDegrade},
			{Name: "hard", Scope: "user", Bounds: Bounds{Requests: perMinute(3)}},
		}, nil, nil))
		if g := r.in(alice()); g.Exceeded != nil || g.Headers.Requests.Limit != 2 {
			t.Errorf("%+v", g)
		}
		r.in(alice())
		if g := r.in(alice()); g.Exceeded == nil || g.Exceeded.Rule != "soft" || g.Exceeded.RetryAfter <= 0 {
			t.Errorf("%+v", g.Exceeded)
		}
		if denied := r.out(alice()); denied.Rule != "hard" {
			t.Errorf("%+v", denied)
		}
		want := Breach{"watch", "user", Requests, 1}
		if len(r.shadow) != 3 || r.shadow[0] != want {
			t.Errorf("%+v", r.shadow)
		}
		s, err := r.Status(t.Context(), alice())
		if err != nil || len(s.Rates) != 2 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// TestPressure: the same limit is smaller while the GPUs are hot, by level and
// tier, and what fits the rule but not now is told to wait, not that it never
// passes.
func TestPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := Rule{
			Name: "u", Scope: "user", Bounds: Bounds{Tokens: perMinute(1000), Concurrency: 8}, Reserve: ReserveMax,
			UnderPressure: Pressure{Levels: Levels{L2: 500, L3: 250}, Batch: Levels{L1: 100}, Critical: Levels{L3: 1000}},
		}
		set := compile(t, []Rule{rule}, nil, nil)
		for _, c := range []struct {
			tier   string
			level  int
			tokens int64
			slots  int64
		}{
			{"", 0, 1000, 8}, {Standard, 1, 1000, 8}, {Standard, 2, 500, 4}, {"", 3, 250, 2}, {"", 4, 250, 2}, {"", 9, 250, 2},
			{Batch, 0, 1000, 8}, {Batch, 1, 100, 1}, {Batch, 2, 500, 4}, {Critical, 2, 500, 4}, {Critical, 4, 1000, 8},
		} {
			q := alice()
			q.Tier, q.Level = c.tier, c.level
			dims := set.Dims(q, Estimate{}, time.Now())
			if dims[0].Limit != c.tokens || dims[1].Limit != c.slots {
				t.Errorf("%s L%d: %d tokens, %d slots", c.tier, c.level, dims[0].Limit, dims[1].Limit)
			}
		}
		r := newRig(t, set)
		q := alice()
		q.Prompt, q.Level = 600, 3
		if denied := r.out(q); denied.TooLarge || denied.RetryAfter != minLevelTime*11/10 || denied.Limit != 250 {
			t.Errorf("%+v", denied)
		}
		q.Level = 0
		r.in(q)
		q.Prompt, q.Level = 1, 3
		if denied := r.out(q); denied.TooLarge || denied.RetryAfter != 66*time.Second {
			t.Errorf("%+v", denied)
		}
	})
}

// TestSchedule: other numbers in other hours, and retry times that see the next
// ones coming. A bubble begins at midnight UTC of 2000-01-01, a Saturday.
func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, []Rule{{
			Name: "u", Scope: "user", Bounds: Bounds{Requests: perMinute(2)},
			Schedule: []Schedule{{Hours: "22:00-08:00 Asia/Shanghai", Bounds: Bounds{Requests: perMinute(5)}}},
		}}, nil, nil)
		r := newRig(t, set)
		time.Sleep(14*time.Hour - 20*time.Second) // 21:59:40 in Shanghai
		r.in(alice())
		r.in(alice())
		if denied := r.out(alice()); denied.Limit != 2 || denied.RetryAfter != 22*time.Second {
			t.Errorf("%+v", denied)
		}
		time.Sleep(20*time.Second - 10*time.Millisecond)
		r.out(alice())
		time.Sleep(10 * time.Millisecond)
		for range 3 {
			r.in(alice())
		}
		if denied := r.out(alice()); denied.Limit != 5 || denied.RetryAfter != 44*time.Second {
			t.Errorf("%+v", denied)
		}
		time.Sleep(10*time.Hour - 20*time.Second) // 07:59:40
		for range 4 {
			r.in(alice())
		}
		time.Sleep(20 * time.Second)
		if denied := r.out(alice()); denied.Limit != 2 || denied.RetryAfter != 44*time.Second {
			t.Errorf("%+v", denied)
		}
	})
}

// TestReplace: other rules apply at once to what was used under the old ones.
func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := Rule{Name: "u", Scope: "user", Bounds: Bounds{Requests: perMinute(2)}}
		r := newRig(t, compile(t, []Rule{rule}, nil, nil))
		first := r.in(alice())
		r.in(alice())
		r.out(alice())
		rule.Requests = perMinute(3)
		r.Replace(compile(t, []Rule{rule}, nil, nil))
		r.in(alice())
		r.out(alice())
		if err := first.Cancel(); err != nil {
			t.Fatal(err)
		}
		r.in(alice())
	})
}

func TestQuotaAndStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, []Rule{{Name: "rpm", Scope: "user", Bounds: Bounds{Requests: perMinute(50)}}}, []QuotaRule{
			{Name: "daily", Scope: "user", Units: 1000, Every: "day", Zone: "Asia/Shanghai", AlertAt: []int{50, 90}},
			{Name: "monthly", Scope: "project", Tokens: 100_000, Every: "month"},
		}, map[string]Weights{"qwen": {Input: 1000, Cached: 100, Output: 4000, Reasoning: 2000}, "small": DefaultWeights()})
		r := newRig(t, set)
		q := alice()
		q.Prompt, q.MaxTokens = 100, 100
		g := r.in(q)
		if err := g.Settle(Usage{Input: 100, Cached: 45, Output: 150, Reasoning: 50}, "qwen"); err != nil {
			t.Fatal(err)
		}
		s, err := r.Status(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		midnight := time.Date(2000, 1, 2, 0, 0, 0, 0, zone(t, "Asia/Shanghai"))
		daily := QuotaStatus{"daily", "user", "units", 560, 1000, 440, midnight, []int{50}} // 55 + 4.5 + 400 + 100, rounded up
		if got, _ := s.Tightest(); fmt.Sprint(got) != fmt.Sprint(daily) {
			t.Errorf("got  %+v\nwant %+v", got, daily)
		}
		if s.Quotas[1].Used != 250 || s.Quotas[1].Unit != "tokens" || s.Rates[0].Remaining != 49 {
			t.Errorf("%+v", s)
		}
		q.Prompt = 441
		if denied := r.out(q); !denied.Quota || denied.Rule != "daily" || denied.Limit != 1000 || denied.RetryAfter != 16*time.Hour {
			t.Errorf("%+v", denied)
		}
		q.Prompt = 1001
		if denied := r.out(q); !denied.Quota || !denied.TooLarge {
			t.Errorf("%+v", denied)
		}
		q.Prompt = 10
		if err := r.in(q).Settle(Usage{Input: 10, Output: 10}, "small"); err != nil { // degraded: the weights of the model that answered
			t.Fatal(err)
		}
		if s, _ = r.Status(t.Context(), q); s.Quotas[0].Used != 580 {
			t.Errorf("%+v", s.Quotas[0])
		}
	})
}

// TestRun: long requests keep their slot and are charged while they run; those of
// a gateway that died are charged what it last said, within a lease.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, []Rule{{Name: "u", Scope: "user", Bounds: Bounds{Concurrency: 1}}},
			[]QuotaRule{{Name: "q", Scope: "user", Tokens: 10_000, Every: "month"}}, nil)
		r := newRig(t, set)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Limiter.Run(ctx) }()
		q := alice()
		q.Prompt, q.MaxTokens = 100, 4000
		g := r.in(q)
		time.Sleep(5 * time.Minute)
		r.out(q)
		g.Progress(Usage{Input: 100, Output: 3000})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s, _ := r.Status(ctx, q); s.Quotas[0].Used != 3100 {
			t.Errorf("%+v", s.Quotas[0])
		}
		stop() // the gateway is killed
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		other := New(set, Options{Store: r.store}) // a replica that lives
		ctx, stop = context.WithCancel(t.Context())
		go func() { done <- other.Run(ctx) }()
		time.Sleep(LeaseLife + heartbeat)
		synctest.Wait()
		s, err := other.Status(ctx, q)
		if err != nil || s.Quotas[0].Used != 3100 || s.Rates[0].Remaining != 1 {
			t.Errorf("%+v, %v", s, err)
		}
		stop()
		<-done
	})
}

// away is a store that cannot be reached for a while.
type away struct {
	Store
	mu   sync.Mutex
	gone bool
}

var errAway = errors.New("away")

func (a *away) set(gone bool) {
	a.mu.Lock()
	a.gone = gone
	a.mu.Unlock()
}

func (a *away) err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return errAway
	}
	return nil
}

func (a *away) Reserve(ctx context.Context, r Reservation) (Decision, error) {
	if err := a.err(); err != nil {
		return Decision{}, err
	}
	return a.Store.Reserve(ctx, r)
}

func (a *away) Settle(ctx context.Context, s Settlement) (Settled, error) {
	if err := a.err(); err != nil {
		return Settled{}, err
	}
	return a.Store.Settle(ctx, s)
}

func (a *away) Renew(ctx context.Context, renewals []Renewal) ([]string, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.Renew(ctx, renewals)
}

// TestStoreAway: what a store does not take is settled when it is back, and once;
// a reservation that was reaped meanwhile is charged the truth.
func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &away{Store: NewMemory(time.Now)}
		set := compile(t, nil, []QuotaRule{{Name: "q", Scope: "user", Tokens: 10_000, Every: "month"}}, nil)
		troubles := 0
		l := New(set, Options{Store: store, Trouble: func(error) { troubles++ }})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		q := alice()
		q.ID, q.Prompt, q.MaxTokens = "a", 100, 1000
		g, err := l.Admit(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		store.set(true)
		if err := g.Settle(Usage{Input: 100, Output: 700}, ""); !errors.Is(err, errAway) {
			t.Errorf("settle: %v", err)
		}
		q.ID = "b"
		if _, err := l.Admit(ctx, q); !errors.Is(err, errAway) {
			t.Errorf("admit: %v", err)
		}
		time.Sleep(time.Minute)
		if _, err := store.Store.Renew(ctx, nil); err != nil { // another replica reaps
			t.Fatal(err)
		}
		store.set(false)
		time.Sleep(heartbeat)
		synctest.Wait()
		if s, err := l.Status(ctx, q); err != nil || s.Quotas[0].Used != 800 || troubles == 0 {
			t.Errorf("%+v, %v, %d troubles", s, err, troubles)
		}
		stop()
		<-done
	})
}

func TestNoRules(t *testing.T) {
	l := New(compile(t, nil, nil, nil), Options{Store: NewMemory(time.Now)})
	g, err := l.Admit(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Settle(Usage{Input: 1}, ""); err != nil {
		t.Fatal(err)
	}
	l.Replace(compile(t, []Rule{{Name: "g", Scope: "global", Bounds: Bounds{Concurrency: 1}}}, nil, nil))
	if _, err := l.Admit(t.Context(), Request{}); !errors.Is(err, ErrNoID) {
		t.Errorf("without an id: %v", err)
	}
}
