package limit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestPlaceIn: the wait for a place comes from the ages of what runs and from how long
// such requests take.
func TestPlaceIn(t *testing.T) {
	const second = time.Second
	for _, one := range []struct {
		name  string
		usual time.Duration // 0: no answer was seen
		ages  []time.Duration
		cost  int64
		ahead int64
		want  time.Duration // of places that are all in use
	}{
		{"nothing known, just begun", 0, []time.Duration{0}, 1, 0, second},
		{"nothing known, has run long", 0, []time.Duration{7 * second}, 1, 0, 7 * second},
		{"evenly", 4 * second, []time.Duration{0, second, 2 * second, 3 * second}, 1, 0, second},
		{"the second to end", 4 * second, []time.Duration{0, second, 2 * second, 3 * second}, 2, 0, 2 * second},
		{"behind two", 4 * second, []time.Duration{0, second, 2 * second, 3 * second}, 1, 2, 3 * second},
		{"behind a round", 4 * second, []time.Duration{0, second, 2 * second, 3 * second}, 1, 4, 5 * second},
		{"nearly over", 4 * second, []time.Duration{3900 * time.Millisecond}, 1, 0, second / 2},
		{"has outlasted the others", 4 * second, []time.Duration{20 * second}, 1, 0, 5 * second},
	} {
		t.Run(one.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := compile(t, []Rule{{Name: "places", Scope: "global", Bounds: Bounds{Concurrency: Count(max(len(one.ages), 1))}}}, nil, nil)
				r := newRig(t, set)
				q := alice()
				q.Prompt, q.MaxTokens = 1, 10
				if one.usual > 0 {
					g := r.in(q)
					time.Sleep(one.usual)
					r.settle(g, Usage{Input: 1, Output: 10})
				}
				ages := slices.Clone(one.ages)
				slices.SortFunc(ages, func(a, b time.Duration) int { return int(b - a) })
				for i, age := range ages {
					r.in(q)
					next := time.Duration(0)
					if i+1 < len(ages) {
						next = ages[i+1]
					}
					time.Sleep(age - next)
				}
				q.Sequences = one.cost
				denied := r.out(q)
				if got := r.PlaceWait(denied, one.ahead); got != one.want {
					t.Errorf("%v, want %v", got, one.want)
				}
				if one.ahead == 0 && denied.RetryAfter != one.want+one.want/10 {
					t.Errorf("told %v, want %v and a tenth", denied.RetryAfter, one.want)
				}
			})
		})
	}
}

// TestRetryOfReservations: a request that is refused for what running ones have reserved,
// and will not use, is not told to wait for the window; and hardly ever too little. The
// truth is when it would pass if nobody else asked.
func TestRetryOfReservations(t *testing.T) {
	for _, one := range []struct{ sigma, mean float64 }{{0.5, 250}, {0.5, 1000}, {1, 1000}} {
		t.Run(fmt.Sprint(one), func(t *testing.T) {
			var told, truth []float64
			short := 0
			for seed := range uint64(60) {
				got, passes, ok := reservedTrial(t, rand.New(rand.NewPCG(seed, 11)), one.sigma, one.mean)
				if !ok {
					continue
				}
				told, truth = append(told, got), append(truth, passes)
				if got+0.1 < passes { // the truth is known to 0.1 s
					short++
				}
			}
			n := len(told)
			if n < 20 {
				t.Fatalf("%d trials were refused by what was reserved", n)
			}
			slices.Sort(told)
			slices.Sort(truth)
			t.Logf("%d refused: told %.1f s (p90 %.1f), truth %.1f s (p90 %.1f), the window is 60 s; %d told too little",
				n, told[n/2], told[n*9/10], truth[n/2], truth[n*9/10], short)
			if told[n*9/10] > 20 || short*10 > n {
				t.Error("want less than a third of the window, and one of ten told too little at most")
			}
		})
	}
}

// reservedTrial fills a limit with running requests, and asks once more than fits.
func reservedTrial(t *testing.T, random *rand.Rand, sigma, mean float64) (told, truth float64, ok bool) {
	const msPerToken = 20
	most := int64(mean * 2)
	s := newSim(t, tokenRule(12, ReserveP90))
	draw := func() int64 { return lognormal(random, mean, sigma, most) }
	for range recentOutputs { // what such answers have
		g, denied := s.admit(10, most)
		if denied != nil {
			s.ms += 120_000
			g, denied = s.admit(10, most)
			if denied != nil {
				return 0, 0, false
			}
		}
		tokens := draw()
		s.ms += tokens * msPerToken
		if err := g.Settle(Usage{Input: 10, Output: tokens}, ""); err != nil {
			t.Fatal(err)
		}
	}
	s.ms += 180_000
	type answer struct {
		g      *Grant
		ends   int64
		tokens int64
	}
	var running []answer
	end := func() {
		for i := 0; i < len(running); i++ {
			if a := running[i]; a.ends <= s.ms {
				if err := a.g.Settle(Usage{Input: 10, Output: a.tokens}, ""); err != nil {
					t.Fatal(err)
				}
				running = slices.Delete(running, i, i+1)
				i--
			}
		}
	}
	var denied *Rejection
	for denied == nil {
		var g *Grant
		if g, denied = s.admit(10, most); g != nil {
			tokens := draw()
			running = append(running, answer{g, s.ms + tokens*msPerToken, tokens})
			s.ms += int64(random.ExpFloat64() * mean * mean * msPerToken / simLimit)
			end()
		}
	}
	if denied.Running || denied.Metric != Tokens {
		return 0, 0, false
	}
	began := s.ms
	passes := func() bool {
		s.next++
		g, _ := s.limiter.Admit(t.Context(), Request{
			ID: fmt.Sprint(s.next), Subjects: Subjects{User: "u", Key: "k", Model: "m"}, Prompt: 10, MaxTokens: most, Waiting: true,
		})
		return g != nil
	}
	for !passes() {
		s.ms += 100
		end()
		if s.ms > began+120_000 {
			return 0, 0, false
		}
	}
	return denied.RetryAfter.Seconds(), float64(s.ms-began) / 1000, true
}

// TestPlacesReset: the status says when all places are probably free again, not when
// leases would end that nobody renews.
func TestPlacesReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "places", Scope: "user", Bounds: Bounds{Concurrency: 4}}}, nil, nil))
		q := alice()
		q.Prompt, q.MaxTokens = 1, 10
		g := r.in(q)
		time.Sleep(2 * time.Second)
		r.settle(g, Usage{Input: 1, Output: 10})
		r.in(q)
		time.Sleep(time.Second)
		r.in(q)
		if got := r.rate("concurrency"); got.Remaining != 2 || got.ResetMs != 2000 {
			t.Errorf("%+v, want all of them in 2 s", got)
		}
		alone := alice()
		alone.User = "bob"
		if s, err := r.Status(t.Context(), alone); err != nil || s.Rates[0].ResetMs != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// TestHolders: who holds places of a counter is known as long as it runs, and no longer.
func TestHolders(t *testing.T) {
	set, err := Compile([]Rule{
		{Name: "user", Scope: "user", Bounds: Bounds{Concurrency: 5000}},
		{Name: "all", Scope: "global", Bounds: Bounds{Concurrency: 5000}},
	}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	l := New(set, Options{Store: NewMemory(func() time.Time { return now }), Now: func() time.Time { return now }})
	var grants []*Grant
	for i := range 3000 {
		g, err := l.Admit(t.Context(), Request{ID: fmt.Sprint(i / 2), Subjects: Subjects{User: fmt.Sprint("u", i/2%3)}, Prompt: 1, MaxTokens: 1})
		if err != nil {
			t.Fatal(err)
		}
		grants = append(grants, g)
	}
	holding := 0
	var all string
	for counter, here := range l.holders.byCounter {
		if holding += len(here); len(here) == 1500 {
			all = counter
		}
	}
	if holding != 2*1500 || all == "" {
		t.Errorf("%d hold places of counters; 1500 run, each under two", holding)
	}
	usual := 10 * time.Second
	for ahead, want := range map[int64]time.Duration{0: usual, 1000: usual, 1600: 2 * usual} {
		if took := l.placeWait(all, place{used: 1500, cost: 1, limit: 1500, typical: usual}, ahead, now); took != want {
			t.Errorf("a place in %v behind %d; expected %v", took, ahead, want)
		}
	}
	for _, g := range grants {
		if err := g.Cancel(); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.holders.byCounter) != 0 || l.Running() != 0 {
		t.Errorf("%d hold places and %d run when all have ended", len(l.holders.byCounter), l.Running())
	}
}

// BenchmarkPlaceIn estimates the wait for a place of a user who has 10 of 5,000 running
// requests.
func BenchmarkPlaceIn(b *testing.B) {
	l := New(&Set{}, Options{Store: NewMemory(time.Now)})
	for i := range 5000 {
		dims, counters := make([]Dim, 8), make([]*counter, 8)
		for k := range dims {
			counters[k] = &counter{}
			dims[k] = Dim{Key: fmt.Sprintf("tg:{user-%d}:r:places:%d", i%500, k)}
		}
		dims[7].Kind = Lease
		g := &Grant{began: time.Now(), plan: plan{dims: dims, counters: counters}}
		l.running[fmt.Sprint(i)] = g
		l.holders.add(g)
	}
	denied := &Rejection{ExceededLimit: ExceededLimit{Counter: "tg:{user-7}:r:places:7"}, place: place{used: 10, cost: 1, limit: 10}}
	for b.Loop() {
		l.PlaceWait(denied, 0)
	}
}
