package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// crowd is callers under a concurrency limit, before backends with room for slots.
type crowd struct {
	*testing.T
	controller *Controller
	pool       *Pool
	count      int
}

func placesRule(n limit.Count, wait time.Duration) []limit.Rule {
	return []limit.Rule{{Name: "places", Scope: "global", Bounds: limit.Bounds{Concurrency: n}, Wait: wait}}
}

func rulesOf(t *testing.T, rules []limit.Rule) *limit.Set {
	t.Helper()
	set, err := limit.Compile(rules, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func newCrowd(t *testing.T, store limit.Store, rules []limit.Rule, slots int) *crowd {
	b := NewSeat(nil, Bounds{InFlight: slots})
	b.SetRotation(true)
	return &crowd{T: t, pool: newTestPool(b), controller: New(limit.New(rulesOf(t, rules), limit.Options{Store: store, Random: func() float64 { return 1 }}), DefaultQueue())}
}

func (c *crowd) demand(user string) *Demand {
	c.count++
	return &Demand{Pool: c.pool, MaxLevel: degrade.Canned, Request: limit.Request{
		ID: fmt.Sprintf("%p-%d", c, c.count), Subjects: limit.Subjects{User: user}, Prompt: 10, MaxTokens: 100,
	}}
}

// ask admits in the background.
func (c *crowd) ask(ctx context.Context, d *Demand) *pending {
	return admitAsync(ctx, c.controller, d)
}

func (c *crowd) admit(user string) *Permit {
	c.Helper()
	p, err := c.controller.Admit(c.Context(), c.demand(user))
	if err != nil {
		c.Fatal(err)
	}
	return p
}

func (c *crowd) settle(p *Permit) {
	c.Helper()
	if err := p.Settle(limit.Usage{Input: 10, Output: 50}, "model"); err != nil {
		c.Fatal(err)
	}
	synctest.Wait()
}

// checkEmpty checks that nothing is left of those who waited.
func (c *crowd) checkEmpty() {
	c.Helper()
	synctest.Wait()
	if n := c.controller.lines.waiting.Load(); n != 0 || len(c.controller.lines.byCounter) != 0 || c.pool.reserved != 0 {
		c.Errorf("%d wait, in lines %v; %d sequences are held", n, c.controller.lines.byCounter, c.pool.reserved)
	}
	if s, err := c.controller.Status(context.Background(), limit.Request{}); err != nil || s.Rates[0].Remaining != s.Rates[0].Limit {
		c.Errorf("%+v, %v", s, err)
	}
}

// batch answers n calls at once as OpenAI's clients send them, which try again twice
// after the time that a refusal says, and returns when the last has its answer, and how
// many have none.
func (c *crowd) batch(n int, lasting func(i int) time.Duration) (took time.Duration, failed int) {
	began := time.Now()
	ends := make(chan error, n)
	for i := range n {
		demand := func() *Demand { return c.demand("ann") }
		first := demand()
		again := []*Demand{demand(), demand()}
		go func() {
			p, err := c.controller.Admit(context.Background(), first)
			var rejection *limit.Rejection
			for errors.As(err, &rejection) && len(again) > 0 {
				time.Sleep(rejection.RetryAfter)
				p, err = c.controller.Admit(context.Background(), again[0])
				again = again[1:]
			}
			if err == nil {
				time.Sleep(lasting(i))
				_ = p.Settle(limit.Usage{Input: 10, Output: 50}, "model")
			}
			ends <- err
		}()
		synctest.Wait() // so that they come in their order
	}
	for range n {
		if err := <-ends; err != nil {
			failed++
		}
	}
	return time.Since(began), failed
}

// idealEnd returns how long n calls take of which 16 run at a time and no place is ever idle.
func idealEnd(n int, lasting func(i int) time.Duration) (end time.Duration) {
	var places [16]time.Duration
	for i := range n {
		slices.Sort(places[:])
		places[0] += lasting(i)
		end = max(end, places[0])
	}
	return end
}

// TestTwentyUnderSixteen: 20 calls at once under a concurrency of 16 end within 1.2 x
// the time of a run without limits on an engine that runs 16 at a time, and no place is
// idle while one of them waits, also where the engine would run them all.
func TestTwentyUnderSixteen(t *testing.T) {
	alike := func(int) time.Duration { return 900 * time.Millisecond }
	differ := func(i int) time.Duration { return time.Duration(300+45*(i*7%20)) * time.Millisecond }
	for _, one := range []struct {
		name    string
		slots   int
		lasting func(int) time.Duration
	}{{"16 slots, alike", 16, alike}, {"16 slots, differ", 16, differ}, {"32 slots, differ", 32, differ}} {
		for _, wait := range []time.Duration{0, limit.DefaultWait} {
			t.Run(fmt.Sprint(one.name, ", wait ", wait), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					free, _ := newCrowd(t, limit.NewMemory(time.Now), placesRule(1000, 0), one.slots).batch(20, one.lasting)
					c := newCrowd(t, limit.NewMemory(time.Now), placesRule(16, wait), one.slots)
					c.batch(3, one.lasting) // so that it is known how long such calls take
					took, failed := c.batch(20, one.lasting)
					t.Logf("without limits %v, under a concurrency of 16 %v: %.2f x", free, took, float64(took)/float64(free))
					if failed > 0 || wait > 0 && took != idealEnd(20, one.lasting) || one.slots == 16 && took > free*6/5 {
						t.Errorf("%d without an answer; %v, at best %v, and %v without limits", failed, took, idealEnd(20, one.lasting), free)
					}
					c.checkEmpty()
				})
			})
		}
	}
}

// TestPlaceWaitEnds: a request waits for as long as its rule lets it, and is then told how
// long a place really takes; it leaves with its caller, and a rule of no wait refuses
// at once.
func TestPlaceWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, limit.NewMemory(time.Now), placesRule(1, 2*time.Second), 8)
		before := c.admit("ann")
		time.Sleep(10 * time.Second)
		c.settle(before)
		held := c.admit("ann")
		ctx, cancel := context.WithCancel(t.Context())
		left := c.ask(ctx, c.demand("bob"))
		if left.done || c.pool.reserved != 1 {
			t.Fatalf("%+v, %d held", left, c.pool.reserved)
		}
		cancel()
		synctest.Wait()
		if !left.done || !errors.Is(left.err, context.Canceled) || c.pool.reserved != 0 {
			t.Fatalf("%+v, %d held", left, c.pool.reserved)
		}
		late := c.ask(t.Context(), c.demand("bob"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		var rejection *limit.Rejection
		if !late.done || !errors.As(late.err, &rejection) || rejection.Waited != 2*time.Second || rejection.RetryAfter != 8800*time.Millisecond {
			t.Fatalf("%+v: %+v", late, rejection)
		}
		c.controller.limits.Replace(rulesOf(t, placesRule(1, 0)))
		if once := c.ask(t.Context(), c.demand("bob")); !errors.As(once.err, &rejection) || once.took != 0 || rejection.RetryAfter != 8800*time.Millisecond {
			t.Errorf("%+v", once)
		}
		c.settle(held)
		c.checkEmpty()
	})
}

// TestWaitReloaded: another wait holds for those who wait.
func TestWaitReloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, limit.NewMemory(time.Now), placesRule(1, 2*time.Second), 8)
		held := c.admit("ann")
		a := c.ask(t.Context(), c.demand("bob"))
		time.Sleep(100 * time.Millisecond)
		c.controller.limits.Replace(rulesOf(t, placesRule(1, 20*time.Second)))
		time.Sleep(10 * time.Second)
		if synctest.Wait(); a.done {
			t.Fatalf("%+v", a)
		}
		c.controller.limits.Replace(rulesOf(t, placesRule(1, 0)))
		time.Sleep(localPoll)
		var rejection *limit.Rejection
		if synctest.Wait(); !errors.As(a.err, &rejection) || a.took > 11*time.Second+100*time.Millisecond {
			t.Fatalf("%+v", a)
		}
		c.settle(held)
		c.checkEmpty()
	})
}

// TestWaitIsFair: of those who wait under one limit the next is of the tenant that has
// had least, critical ones first; who comes while others wait stands behind them.
func TestWaitIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, limit.NewMemory(time.Now), placesRule(1, time.Minute), 8)
		held := c.admit("ann")
		order := []string{}
		ask := func(name, user, tier string) {
			d := c.demand(user)
			d.Request.Tier = tier
			go func() {
				p, err := c.controller.Admit(context.Background(), d)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, name)
				time.Sleep(time.Second)
				c.controller.settleForTest(t, p)
			}()
			synctest.Wait()
		}
		for i, one := range [][2]string{{"ann", ""}, {"ann", ""}, {"ann", ""}, {"bob", ""}, {"cid", limit.Batch}, {"dan", limit.Critical}} {
			ask(fmt.Sprint(one[0], i), one[0], one[1])
		}
		c.settle(held)
		ask("eve6", "eve", "") // dan has the place now
		time.Sleep(time.Minute)
		synctest.Wait()
		if got, want := fmt.Sprint(order), "[dan5 ann0 bob3 eve6 ann1 ann2 cid4]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		c.checkEmpty()
	})
}

func (c *Controller) settleForTest(t *testing.T, p *Permit) {
	if err := p.Settle(limit.Usage{Input: 10, Output: 50}, "model"); err != nil {
		t.Error(err)
	}
}

// sharing is a store that says that other gateways share it.
type sharing struct{ limit.Store }

func (s sharing) Reserve(ctx context.Context, r limit.Reservation) (limit.Decision, error) {
	out, err := s.Store.Reserve(ctx, r)
	out.Shared = true
	return out, err
}

// TestWaitForAnotherGateway: a place that another gateway gives back is found soon, and
// the store is not asked all the time.
func TestWaitForAnotherGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &counting{Store: sharing{limit.NewMemory(time.Now)}}
		here, there := newCrowd(t, store, placesRule(1, 10*time.Second), 8), newCrowd(t, store, placesRule(1, 10*time.Second), 8)
		held := there.admit("ann")
		store.calls.Store(0)
		first, second := here.ask(t.Context(), here.demand("ann")), here.ask(t.Context(), here.demand("bob"))
		time.Sleep(5 * time.Second)
		if synctest.Wait(); first.done || second.done || store.calls.Load() > 8*5+4 {
			t.Fatalf("%+v, %+v, %d calls", first, second, store.calls.Load())
		}
		there.settle(held)
		time.Sleep(maxPoll * 5 / 4)
		if synctest.Wait(); first.permit == nil || first.permit.Wait < 5*time.Second || first.permit.LimitWait != first.permit.Wait || second.done {
			t.Fatalf("%+v, %+v", first, second)
		}
		here.settle(first.permit)
		if second.permit == nil {
			t.Fatalf("%+v", second)
		}
		here.settle(second.permit)
		here.checkEmpty()
	})
}

type counting struct {
	limit.Store
	calls atomic.Int64
}

func (s *counting) Reserve(ctx context.Context, r limit.Reservation) (limit.Decision, error) {
	s.calls.Add(1)
	return s.Store.Reserve(ctx, r)
}

// TestWaitIsBounded: those who wait for a place under a limit count in the queue's
// budget, and beyond one round of places nobody waits who would wait for too long.
func TestWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, limit.NewMemory(time.Now), placesRule(2, 2*time.Second), 8)
		for range 2 { // such requests take 3 s
			p := c.admit("ann")
			time.Sleep(3 * time.Second)
			c.settle(p)
		}
		held := []*Permit{c.admit("ann"), c.admit("ann")}
		var waiting []*pending
		for range 2 {
			waiting = append(waiting, c.ask(t.Context(), c.demand("ann")))
		}
		var rejection *limit.Rejection
		// Of the five places that are needed before, two become free after 3 s and two after 6 s.
		if a := c.ask(t.Context(), c.demand("ann")); !errors.As(a.err, &rejection) || a.took != 0 || rejection.RetryAfter != 6600*time.Millisecond {
			t.Errorf("%+v", a)
		}
		q := DefaultQueue()
		q.MaxLength = 2
		c.controller.Reload(q)
		if a := c.ask(t.Context(), c.demand("ann")); !a.done || a.took != 0 {
			t.Errorf("%+v", a)
		}
		for i, p := range held {
			if c.settle(p); waiting[i].permit == nil {
				t.Fatalf("%+v", waiting[i])
			}
			c.settle(waiting[i].permit)
		}
		c.checkEmpty()
	})
}

// TestLineLeavesTheQueue: callers over a limit have half of the queue's budget, and one of
// several sequences counts as so many in the line.
func TestLineLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, limit.NewMemory(time.Now), placesRule(4, 2*time.Second), 4)
		held := c.demand("ann")
		held.Request.Sequences = 4
		p, err := c.controller.Admit(t.Context(), held)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // such requests take long
		line := func(n int64) *pending {
			d := c.demand("ann")
			d.Request.Sequences = n
			return c.ask(t.Context(), d)
		}
		waiting := []*pending{line(2), line(2)}
		if a := line(1); !a.done || a.took != 0 {
			t.Errorf("behind as many as there are places: %+v", a)
		}
		c.settle(p)
		for _, a := range waiting {
			if a.permit == nil {
				t.Fatalf("%+v", a)
			}
		}
		q := DefaultQueue()
		q.MaxLength = 4
		c.controller.Reload(q)
		third := line(1)
		fourth, fifth := line(1), line(1)
		if third.done || fourth.done || !fifth.done || c.pool.reserved != 2 {
			t.Errorf("third waits %v, fourth %v, fifth %v; %d held of a budget of 4", !third.done, !fourth.done, !fifth.done, c.pool.reserved)
		}
		for _, a := range []*pending{waiting[0], waiting[1], third, fourth} {
			if a.permit == nil {
				t.Fatalf("%+v", a)
			}
			c.settle(a.permit)
		}
		c.checkEmpty()
	})
}

// TestWaitOfSeveral: a request of several sequences waits until all have places, and
// smaller ones behind it do not pass it.
func TestWaitOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, limit.NewMemory(time.Now), placesRule(4, 20*time.Second), 8)
		held := []*Permit{c.admit("ann"), c.admit("ann"), c.admit("ann"), c.admit("ann")}
		large := c.demand("ann")
		large.Request.Sequences = 3
		a, b := c.ask(t.Context(), large), c.ask(t.Context(), c.demand("ann"))
		for _, p := range held[:2] {
			c.settle(p)
		}
		if a.done || b.done {
			t.Fatalf("%+v, %+v", a, b)
		}
		if c.settle(held[2]); a.permit == nil || b.done {
			t.Fatalf("%+v, %+v", a, b)
		}
		if c.settle(held[3]); b.permit == nil {
			t.Fatalf("%+v", b)
		}
		c.settle(a.permit)
		c.settle(b.permit)
		c.checkEmpty()
	})
}

// TestWaitTold: who was told its level while it waited is answered at that.
func TestWaitTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newTestFleet(t, placesRule(1, 20*time.Second), DefaultQueue(), "large")
		held, err := h.controller.Admit(t.Context(), h.demand("large"))
		if err != nil {
			t.Fatal(err)
		}
		told, silent := h.demand("large"), h.demand("large")
		told.Caller = caller{keepAlive: func(*Permit) bool { return true }}
		a, b := h.ask(t.Context(), told), h.ask(t.Context(), silent)
		h.ladder.SetPins(map[string]degrade.Pin{"large": {Level: degrade.StreamingOff, Expires: time.Now().Add(time.Hour)}})
		for _, one := range []struct {
			before *Permit
			a      *pending
			level  degrade.Level
		}{{held, a, degrade.Full}, {nil, b, degrade.StreamingOff}} {
			if one.before == nil {
				one.before = a.permit
			}
			if err := one.before.Settle(limit.Usage{}, ""); err != nil {
				t.Fatal(err)
			}
			if synctest.Wait(); one.a.permit == nil || one.a.permit.Level != one.level {
				t.Fatalf("%+v", one.a)
			}
		}
		if err := b.permit.Settle(limit.Usage{}, ""); err != nil {
			t.Fatal(err)
		}
		h.checkIdle(t)
	})
}

// TestWaitLeavesNothing: whatever callers do under two limits and across reloads, no
// place is held by more than the rules let, all end within the wait, and nothing is left.
func TestWaitLeavesNothing(t *testing.T) {
	const wait = 3 * time.Second
	rules := func(wait time.Duration) []limit.Rule {
		return []limit.Rule{
			{Name: "own", Scope: "user", Bounds: limit.Bounds{Concurrency: 3}, Wait: wait},
			{Name: "all", Scope: "global", Bounds: limit.Bounds{Concurrency: 5, Requests: limit.Rate{Count: 100, Window: 10 * time.Second}}, Wait: wait},
		}
	}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			c := newCrowd(t, limit.NewMemory(time.Now), rules(wait), 4)
			var all sync.WaitGroup
			var running, most, answered atomic.Int64
			for i := range 200 {
				d := c.demand(string(rune('a' + random.IntN(4))))
				d.Request.Tier = []string{limit.Critical, limit.Standard, limit.Batch}[random.IntN(3)]
				d.Request.Sequences = int64(1 + random.IntN(3)/2)
				lasts, patience := time.Duration(random.IntN(900))*time.Millisecond, time.Duration(random.IntN(6000))*time.Millisecond
				all.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					began := time.Now()
					p, err := c.controller.Admit(ctx, d)
					if took := time.Since(began); took > wait+DefaultQueue().MaxWait {
						t.Errorf("it took %v: %v", took, err)
					}
					var rejection *limit.Rejection
					var shed *Overloaded
					if err != nil {
						if !errors.As(err, &rejection) && !errors.As(err, &shed) && !errors.Is(err, context.DeadlineExceeded) {
							t.Error(err)
						}
						return
					}
					answered.Add(1)
					n := running.Add(d.Request.Sequences)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					time.Sleep(lasts)
					running.Add(-d.Request.Sequences)
					if err := p.Settle(limit.Usage{Input: 10, Output: 5}, "model"); err != nil {
						t.Error(err)
					}
				})
				if time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond); i%50 == 49 {
					c.controller.limits.Replace(rulesOf(t, rules(wait*time.Duration(i/50%2))))
				}
			}
			all.Wait()
			if answered.Load() < 40 || most.Load() > 5 {
				t.Errorf("%d answered, %d at a time", answered.Load(), most.Load())
			}
			time.Sleep(time.Minute) // so that no rate holds anything
			c.checkEmpty()
		})
	}
}
