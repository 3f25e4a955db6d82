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

func (s *sim) admit(prompt, maxTokens int64) (*Grant, *Rejection) {
	s.next++
	g, err := s.limiter.Admit(context.Background(), Request{
		ID: fmt.Sprint(s.next), Subjects: Subjects{User: "u", Key: "k", Model: "m"}, Prompt: prompt, MaxTokens: maxTokens,
	})
	var denied *Rejection
	if err != nil && !errors.As(err, &denied) {
		s.t.Fatal(err)
	}
	return g, denied
}

func tokenRule(buckets int, reserve Policy) Rule {
	return Rule{Name: "tpm", Scope: "user", Bounds: Bounds{Tokens: Rate{simLimit, time.Minute}}, Buckets: buckets, Reserve: reserve}
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
			if w.check(&d, now).Exceeded {
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

// load is what simulated clients ask for, and how an engine answers them.
type load struct {
	name       string
	msPerToken int64   // of one answer
	maxTokens  int64   // of a request
	leastUse   float64 // of the limit, under overload
	// draw is the prompt and the answer of a request that is sent at a time from the
	// start of the simulation, in tokens.
	draw func(r *rand.Rand, ms int64) (prompt, output int64)
}

// honest draws lognormal numbers of tokens with these means.
func honest(name string, prompt, output float64, msPerToken, maxTokens int64, leastUse float64) load {
	return load{name, msPerToken, maxTokens, leastUse, func(r *rand.Rand, _ int64) (int64, int64) {
		return lognormal(r, prompt, 0.8, 8_000), lognormal(r, output, 0.8, 4_096)
	}}
}

// taught is who has answers of a few tokens in a third of each window, so that little is
// expected of the answers, and asks for all that it can have in the rest.
func taught(few, msPerToken, maxTokens int64) load {
	return load{"taught", msPerToken, maxTokens, 0, func(_ *rand.Rand, ms int64) (int64, int64) {
		if ms%simWindow < simWindow/3 {
			return 10, few
		}
		return 10, min(maxTokens, 4_096)
	}}
}

// loads are that of contracts/limits.md 2.2, as far as its figures tell it (16
// clients that nobody refuses use 0.85 of the limit), one with longer answers, and
// those whose clients set no max_tokens, so that each may have all that a model can.
func loads() []load {
	return []load{
		honest("contract", 1_100, 500, 35, 4_096, 0.88), honest("long answers", 600, 1_000, 20, 4_096, 0.8),
		honest("no max_tokens", 1_100, 500, 35, 32_768, 0.85),
		{"short answers", 35, 100_000, 0.9, func(*rand.Rand, int64) (int64, int64) { return 200, 30 }},
	}
}

// prefill is how long an engine takes until the first token, in milliseconds.
const prefill = 500

// answer is one request that was let in, as far as the engine has come with it.
type answer struct {
	grant          *Grant
	began          int64
	prompt, output int64
}

// made is how many tokens of the answer there are at a time.
func (a *answer) made(ms, msPerToken int64) int64 {
	switch {
	case ms < a.began+prefill:
		return 0
	case msPerToken == 0:
		return a.output
	}
	return min((ms-a.began-prefill)/msPerToken, a.output)
}

// simulation is what clients had in some minutes.
type simulation struct {
	byStart    []admitted // each request when it was let in, with all it used
	byProgress []admitted // tokens when they were made, second by second
	refused    float64    // part of the checks
}

// closedLoop lets clients ask one request after the other for some minutes, each
// again a second after a refusal.
func closedLoop(s *sim, clients int, minutes int64, l load, seed uint64) (out simulation) {
	r := rand.New(rand.NewPCG(seed, uint64(clients)))
	start := s.ms
	var queue events
	running := map[*Grant]*answer{}
	for range clients {
		heap.Push(&queue, event{ms: start + r.Int64N(1_000)})
	}
	checks, denials, beat, noted := 0, 0, start, start
	charged := map[*Grant]int64{}
	second := func(until int64) { // all running answers go on
		for ; noted+1_000 <= until; noted += 1_000 {
			sum := int64(0)
			for g, a := range running {
				n := a.made(noted+1_000, l.msPerToken)
				sum, charged[g] = sum+n-charged[g], n
			}
			out.byProgress = append(out.byProgress, admitted{noted - start, sum})
		}
	}
	for queue.Len() > 0 {
		e := heap.Pop(&queue).(event)
		if e.ms > start+minutes*simWindow {
			break
		}
		for ; beat < e.ms; beat += heartbeat.Milliseconds() {
			s.ms = beat
			second(beat)
			for g, a := range running {
				if n := a.made(beat, l.msPerToken); n > 0 {
					g.Progress(Usage{Input: a.prompt, Output: n})
				}
			}
			s.limiter.beat(context.Background())
		}
		s.ms = e.ms
		second(e.ms)
		if e.finish != nil {
			out.byProgress = append(out.byProgress, admitted{e.ms - start, e.usage.Output - charged[e.finish]})
			delete(running, e.finish)
			delete(charged, e.finish)
			if err := e.finish.Settle(e.usage, ""); err != nil {
				s.t.Fatal(err)
			}
			heap.Push(&queue, event{ms: s.ms + 10})
			continue
		}
		prompt, output := l.draw(r, s.ms-start)
		g, denied := s.admit(prompt, l.maxTokens)
		checks++
		if denied != nil {
			denials++
			heap.Push(&queue, event{ms: s.ms + 1_000})
			continue
		}
		running[g] = &answer{g, s.ms, prompt, output}
		out.byStart = append(out.byStart, admitted{s.ms - start, prompt + output})
		out.byProgress = append(out.byProgress, admitted{s.ms - start, prompt})
		heap.Push(&queue, event{ms: s.ms + prefill + output*l.msPerToken, finish: g, usage: Usage{Input: prompt, Output: output}})
	}
	out.refused = float64(denials) / float64(checks)
	return out
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
						ran := closedLoop(s, clients, minutes, l, seed)
						p, use = max(p, peak(ran.byProgress)), min(use, float64(total(ran.byStart, simWindow))/simLimit/(minutes-1))
						refused = max(refused, ran.refused)
					}
					t.Logf("%-13s reserve %-6s %3d clients %2d buckets: peak of any 60 s %.3f of the limit, mean use %.3f, %.3f of the checks refused", l.name, policy, clients, buckets, p, use, refused)
					if policy == ReserveMax && p > 1.01 || policy == ReserveP90 && p > 1.25 {
						t.Errorf("%s, %d clients: %.3f of the limit in 60 s", policy, clients, p)
					}
					if policy == ReserveP90 && clients >= 64 && use < l.leastUse {
						t.Errorf("%s: %s, %d clients: only %.3f of the limit is used", l.name, policy, clients, use)
					}
				}
			}
		}
	}
}

// TestTaughtShortAnswers: who teaches the estimate with short answers and then asks
// for long ones, again in each window, gets little more than the limit in any 60 s,
// and no more than the limit on the average.
func TestTaughtShortAnswers(t *testing.T) {
	minutes, paces, crowds := int64(10), []int64{0, 5, 10, 20, 35}, []int{64, 256, 1_024}
	if testing.Short() {
		minutes, paces, crowds = 5, []int64{0, 20, 35}, []int{256}
	}
	for _, msPerToken := range paces {
		for _, maxTokens := range []int64{4_096, 32_768} {
			for _, clients := range crowds {
				s := newSim(t, tokenRule(0, ReserveP90))
				l := taught(1, msPerToken, maxTokens)
				ran := closedLoop(s, clients, minutes, l, 1)
				p, byStart := peak(ran.byProgress), peak(ran.byStart)
				use := float64(total(ran.byProgress, 0)) / simLimit / float64(minutes)
				t.Logf("%2d ms a token, max_tokens %5d, %4d clients: peak of any 60 s %.3f of the limit (%.3f by when requests came), mean %.3f", msPerToken, maxTokens, clients, p, byStart, use)
				if p > 1.25 {
					t.Errorf("%.3f of the limit in 60 s", p)
				}
				if use > 1.1 { // the first window's overage is paid back later
					t.Errorf("%.3f of the limit on the average", use)
				}
			}
		}
	}
}

// TestTaughtPace: answers of the fewest tokens that say anything of the pace make an
// unknown engine seem slow until long ones have come, once, and never again.
func TestTaughtPace(t *testing.T) {
	for _, msPerToken := range []int64{0, 5, 10, 20, 35} {
		s := newSim(t, tokenRule(0, ReserveP90))
		ran := closedLoop(s, 256, 5, taught(paceShort, msPerToken, 32_768), 1)
		later := ran.byProgress
		for len(later) > 0 && later[0].ms < 2*simWindow {
			later = later[1:]
		}
		once, after := peak(ran.byProgress), peak(later)
		t.Logf("%2d ms a token: peak of any 60 s %.3f of the limit, %.3f after the first two minutes", msPerToken, once, after)
		if once > 1.5 || after > 1.25 {
			t.Errorf("%.3f of the limit in 60 s, and %.3f later", once, after)
		}
	}
}
