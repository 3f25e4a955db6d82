package limit

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Simulations of callers on a clock of their own, as in contracts/limits.md 1.2
// and 2.2: what gets through in any 60 s, beside the limit.

const (
	simLimit  = 100_000 // tokens in a minute
	simWindow = 60_000  // ms
)

// admitted is one request that got through: when it was let in and what it used.
type admitted struct{ ms, tokens int64 }

// peak is the most that was used in any window, as a part of the limit.
func peak(all []admitted) float64 {
	var most, sum int64
	first := 0
	for _, a := range all {
		sum += a.tokens
		for all[first].ms <= a.ms-simWindow {
			sum -= all[first].tokens
			first++
		}
		most = max(most, sum)
	}
	return float64(most) / simLimit
}

func total(all []admitted, from int64) (sum int64) {
	for _, a := range all {
		if a.ms >= from {
			sum += a.tokens
		}
	}
	return sum
}

// lognormal draws a number of tokens with a mean, at most most.
func lognormal(r *rand.Rand, mean, sigma float64, most int64) int64 {
	return min(max(int64(mean*math.Exp(sigma*r.NormFloat64()-sigma*sigma/2)), 1), most)
}

// sim is a limiter with one rule of tokens and a clock that the test moves.
type sim struct {
	t       testing.TB
	ms      int64
	limiter *Limiter
	next    int
}

func newSim(t testing.TB, r Rule) *sim {
	t.Helper()
	set, err := Compile([]Rule{r}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &sim{t: t, ms: time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC).UnixMilli()}
	now := func() time.Time { return time.UnixMilli(s.ms) }
	s.limiter = New(set, Options{Store: NewMemory(now), Now: now, Random: func() float64 { return 0 }})
	return s
}

func (s *sim) admit(prompt, maxTokens int64) (*Grant, *Denied) {
	s.next++
	g, err := s.limiter.Admit(context.Background(), Request{
		ID: fmt.Sprint(s.next), Subjects: Subjects{User: "u", Key: "k", Model: "m"}, Prompt: prompt, MaxTokens: maxTokens,
	})
	var denied *Denied
	if err != nil && !errors.As(err, &denied) {
		s.t.Fatal(err)
	}
	return g, denied
}

func tokenRule(buckets int, reserve Policy) Rule {
	return Rule{Name: "tpm", Per: "user", Bounds: Bounds{Tokens: Rate{simLimit, time.Minute}}, Buckets: buckets, Reserve: reserve}
}

// arrivals are the traces: what is asked, and when.
func arrivals(name string, r *rand.Rand) []admitted {
	var out []admitted
	one := func(ms int64) { out = append(out, admitted{ms, lognormal(r, 1_500, 1, 16_000)}) }
	const perMinute = 3 * simLimit / 1_500
	switch name {
	case "poisson 3x":
		for ms := 0.0; ms < 20*simWindow; ms += r.ExpFloat64() * simWindow / perMinute {
			one(int64(ms))
		}
	case "5 s bursts at :57":
		for minute := range int64(20) {
			for i := range int64(perMinute) {
				one(minute*simWindow + 57_000 + i*5_000/perMinute)
			}
		}
	case "idle then flood":
		for flood := range int64(6) {
			for i := range int64(2 * perMinute) {
				one(flood*200_000 + 70_000 + i*130_000/(2*perMinute))
			}
		}
	case "burst every 60 s":
		for minute := range int64(20) {
			for range perMinute {
				one(minute*simWindow + 12_345)
			}
		}
	}
	return out
}

// TestNeverOverTheLimit: with reserve: max, no 60 s hold a token more than the
// limit, whatever the caller does.
func TestNeverOverTheLimit(t *testing.T) {
	for _, name := range []string{"poisson 3x", "5 s bursts at :57", "idle then flood", "burst every 60 s"} {
		for _, buckets := range []int{1, 12, 60} {
			s := newSim(t, tokenRule(buckets, ReserveMax))
			start := s.ms
			var in []admitted
			var last int64
			for _, a := range arrivals(name, rand.New(rand.NewPCG(7, uint64(buckets)))) {
				s.ms, last = start+a.ms, a.ms
				if g, _ := s.admit(a.tokens/2, a.tokens-a.tokens/2); g != nil {
					in = append(in, a)
					if err := g.Settle(Usage{Input: a.tokens / 2, Output: a.tokens - a.tokens/2}, ""); err != nil {
						t.Fatal(err)
					}
				}
			}
			p, use := peak(in), float64(total(in, 0))/simLimit/(float64(last)/simWindow)
			t.Logf("%-18s %2d buckets: peak of any 60 s %.4f of the limit, mean use %.3f", name, buckets, p, use)
			if p > 1 {
				t.Errorf("%s: over the limit: %.4f", name, p)
			}
		}
	}
}

// TestNeverOverAnyWindow says the same of random charges, windows and buckets.
func TestNeverOverAnyWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		windowMs := int64(1+r.IntN(100)) * 1000
		d := Dim{Key: "k", Kind: Window, Limit: 1 + r.Int64N(1000), WindowMs: windowMs, BucketMs: ceilDiv(windowMs, 1+r.Int64N(60))}
		w := &window{}
		var log []admitted
		now, sum := int64(1_700_000_000_000), int64(0)
		first := 0
		for range 500 {
			now += r.Int64N(windowMs/20 + 1)
			d.Cost = 1 + r.Int64N(d.Limit/4+1)
			if w.check(&d, now).Over {
				continue
			}
			w.charge(&d, "", now, 0)
			log = append(log, admitted{now, d.Cost})
			sum += d.Cost
			for log[first].ms <= now-windowMs {
				sum -= log[first].tokens
				first++
			}
			if sum > d.Limit {
				t.Fatalf("%d within %d ms, limit %d", sum, windowMs, d.Limit)
			}
			if n := int64(len(w.buckets)); n > windowMs/d.BucketMs+2 {
				t.Fatalf("%d buckets for %d", n, windowMs/d.BucketMs)
			}
		}
	}
}

// event is what a simulated client does next.
type event struct {
	ms     int64
	finish *Grant
	usage  Usage
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].ms < e[j].ms }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// load is what simulated clients ask for: means of lognormal numbers of tokens,
// and how long an output token takes.
type load struct {
	name           string
	prompt, output float64
	msPerToken     int64
}

// loads are that of contracts/limits.md 2.2, as far as its figures tell it (16
// clients that nobody refuses use 0.85 of the limit), and one with longer answers.
func loads() []load {
	return []load{{"contract", 1_100, 500, 35}, {"long answers", 600, 1_000, 20}}
}

// closedLoop lets clients ask one request after the other for some minutes, each
// again a second after a refusal. It returns what got through and the part of the
// checks that were refused.
func closedLoop(s *sim, clients int, minutes int64, l load, seed uint64) (in []admitted, refused float64) {
	r := rand.New(rand.NewPCG(seed, uint64(clients)))
	start := s.ms
	var queue events
	for range clients {
		heap.Push(&queue, event{ms: start + r.Int64N(1_000)})
	}
	checks, denials, beat := 0, 0, start
	for queue.Len() > 0 {
		e := heap.Pop(&queue).(event)
		if e.ms > start+minutes*simWindow {
			break
		}
		for s.ms = e.ms; beat < s.ms; beat += heartbeat.Milliseconds() {
			s.limiter.beat(context.Background())
		}
		if e.finish != nil {
			if err := e.finish.Settle(e.usage, ""); err != nil {
				s.t.Fatal(err)
			}
			heap.Push(&queue, event{ms: s.ms + 10})
			continue
		}
		prompt := lognormal(r, l.prompt, 0.8, 8_000)
		g, denied := s.admit(prompt, 4_096)
		checks++
		if denied != nil {
			denials++
			heap.Push(&queue, event{ms: s.ms + 1_000})
			continue
		}
		output := lognormal(r, l.output, 0.8, 4_096)
		in = append(in, admitted{s.ms - start, prompt + output})
		heap.Push(&queue, event{ms: s.ms + 500 + output*l.msPerToken, finish: g, usage: Usage{Input: prompt, Output: output}})
	}
	return in, float64(denials) / float64(checks)
}

// TestReservePolicies: what the policies are worth under overload.
func TestReservePolicies(t *testing.T) {
	const minutes = 10
	for _, l := range loads() {
		for _, policy := range []Policy{ReserveP90, ReserveMax, ReservePrompt} {
			for _, clients := range []int{16, 64, 256} {
				for _, buckets := range []int{12, 60} {
					if policy != ReserveP90 && buckets != defaultBuckets {
						continue
					}
					p, use, refused := 0.0, math.Inf(1), 0.0
					seeds := uint64(1)
					if policy == ReserveP90 && !testing.Short() {
						seeds = 3 // the worst of them counts
					}
					for seed := range seeds {
						s := newSim(t, tokenRule(buckets, policy))
						in, part := closedLoop(s, clients, minutes, l, seed)
						p, use, refused = max(p, peak(in)), min(use, float64(total(in, simWindow))/simLimit/(minutes-1)), max(refused, part)
					}
					t.Logf("%-12s reserve %-6s %3d clients %2d buckets: peak of any 60 s %.3f of the limit, mean use %.3f, %.3f of the checks refused", l.name, policy, clients, buckets, p, use, refused)
					if policy == ReserveMax && p > 1 || policy == ReserveP90 && p > 1.25 {
						t.Errorf("%s, %d clients: %.3f of the limit in 60 s", policy, clients, p)
					}
					if l.name == "contract" && policy == ReserveP90 && clients >= 64 && use < 0.9 {
						t.Errorf("%s, %d clients: only %.3f of the limit is used", policy, clients, use)
					}
				}
			}
		}
	}
}
