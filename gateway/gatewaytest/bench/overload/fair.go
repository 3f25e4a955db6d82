package overload

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Size is the tokens of a tenant's requests, none of which thinks.
type Size struct{ Input, Output int }

// Service returns the cost of such a request by the weights of the queue: 1 for a token of
// the prompt, 2 for one of the answer.
func (s Size) Service() int { return inputWeight*s.Input + outputWeight*s.Output }

const (
	inputWeight  = 1
	outputWeight = 2
)

// The tenants of a FairRun.
const (
	SmallTenant = "small" // floods with small requests
	BigTenant   = "big"   // floods with requests 8 times as large
	LightTenant = "light" // asks now and then
)

// sizes of the requests. The services of the flooding ones are 180 and 1,440.
func sizes() map[string]Size {
	return map[string]Size{SmallTenant: {100, 40}, BigTenant: {800, 320}, LightTenant: {200, 40}}
}

// FairFleet returns two servers on which a request takes as long as it is large: almost
// nothing is spent on a request as such. So the throughput of two mixes of requests
// can be compared.
func FairFleet() Fleet {
	speed := Speed{TTFT: time.Millisecond, Prefill: 20 * time.Microsecond, ITL: 5 * time.Millisecond, Slots: 8}
	return Fleet{Large: speed, Larges: 2, Context: 40960}
}

// Bound returns the largest difference between the services of two tenants that are
// backlogged all the time under a Virtual Token Counter: 2 max(wp Linput, wq M), where M is
// the tokens that the batch holds (Sheng et al., "Fairness in Serving Large Language
// Models", OSDI 2024).
func (f Fleet) Bound() int {
	s := sizes()[BigTenant]
	return 2 * max(inputWeight*s.Input, outputWeight*f.Slots()*(s.Input+s.Output))
}

// The scenarios of BenchmarkFair: who asks.
const (
	BothFlood   = "both flood"
	LightAlone  = "light alone"
	LightBeside = "light beside a flood"
)

// FairRun holds the outcomes of all tenants in one scenario and mode.
type FairRun struct {
	Scenario, Mode string
	Length         time.Duration // without the warm-up
	Outcomes       []*Outcome    // of requests sent after the warm-up
	Busy           float64       // share of the slots that ran something

	mu     sync.Mutex
	bins   map[string][]float64 // service of a tenant, for each bin of fairBin
	begins time.Time            // after the warm-up
}

const (
	fairWarmup = 5 * time.Second
	fairBin    = 500 * time.Millisecond
	flooders   = 48 // requests that a flooding tenant always has open
	lightPause = 400 * time.Millisecond
	afterNo    = 100 * time.Millisecond // before a refused tenant asks again
)

// PerformFair lets the tenants of a scenario ask for a time.
func (s *Stage) PerformFair(ctx context.Context, scenario, mode string, length time.Duration) *FairRun {
	r := &FairRun{Scenario: scenario, Mode: mode, Length: length, bins: map[string][]float64{}, begins: time.Now().Add(fairWarmup)}
	ctx, cancel := context.WithDeadline(ctx, r.begins.Add(length))
	defer cancel()
	concurrency := map[string]int{} // requests open at a time
	switch scenario {
	case BothFlood:
		concurrency[SmallTenant], concurrency[BigTenant] = flooders, flooders
	case LightAlone:
		concurrency[LightTenant] = 1
	case LightBeside:
		concurrency[LightTenant], concurrency[BigTenant] = 1, flooders
	}
	var workers sync.WaitGroup
	for _, t := range s.Tenants {
		for n := range concurrency[t.Name] {
			if t.Name == LightTenant {
				workers.Go(func() { s.askNowAndThen(ctx, r, t) })
				continue
			}
			workers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if o := s.ask(ctx, r, t, n<<16+i); o.Kind() == Refused {
						waitUntil(ctx, time.Now().Add(afterNo))
					}
				}
			})
		}
	}
	samples, busy := 0, 0
	for moment := r.begins; waitUntil(ctx, moment); moment = moment.Add(watching) {
		running, _ := s.Servers.Load()
		samples++
		busy += running
	}
	workers.Wait()
	r.Busy = float64(busy) / float64(max(samples*s.Servers.Slots, 1))
	first := s.Servers.FirstTokens()
	for _, o := range r.Outcomes {
		o.Engine = first[o.ID]
	}
	return r
}

// askNowAndThen sends a request each lightPause, whatever became of the last, and
// waits for the answers beyond the run's end: those that wait longest count most.
func (s *Stage) askNowAndThen(ctx context.Context, r *FairRun, t *Tenant) {
	var open sync.WaitGroup
	moment := time.Now()
	for i := 0; waitUntil(ctx, moment); i++ {
		open.Go(func() { s.ask(context.WithoutCancel(ctx), r, t, i) })
		moment = moment.Add(lightPause)
	}
	open.Wait()
}

// ask sends one request and books what is served of it as it comes: the prompt with
// the first token, then token by token.
func (s *Stage) ask(ctx context.Context, r *FairRun, t *Tenant, number int) *Outcome {
	size := sizes()[t.Name]
	q := &Request{Row: Row{Input: size.Input, Output: size.Output}, Number: number, Tenant: t, Stream: true, Plain: true}
	events := 0
	o := s.Client.Do(ctx, q, func(now time.Time) {
		if events++; events == 1 {
			r.book(t.Name, now, inputWeight*size.Input)
		}
		r.book(t.Name, now, outputWeight)
	})
	if o.Tokens > events { // several in an event, and the last has no text
		r.book(t.Name, o.Last, outputWeight*(o.Tokens-events))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Those that the end of the run cut say nothing.
	if o.Sent.After(r.begins) && ctx.Err() == nil {
		r.Outcomes = append(r.Outcomes, o)
	}
	return o
}

func (r *FairRun) book(tenant string, moment time.Time, service int) {
	n := int(moment.Sub(r.begins) / fairBin)
	if moment.Before(r.begins) || n >= int(r.Length/fairBin) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bins[tenant] == nil {
		r.bins[tenant] = make([]float64, int(r.Length/fairBin))
	}
	r.bins[tenant][n] += float64(service)
}

// Served returns the service of each tenant in all.
func (r *FairRun) Served() map[string]float64 {
	sums := map[string]float64{}
	for name, bins := range r.bins {
		for _, v := range bins {
			sums[name] += v
		}
	}
	return sums
}

// Throughput returns the service of all tenants a second.
func (r *FairRun) Throughput() float64 {
	total := 0.0
	for _, v := range r.Served() {
		total += v
	}
	return total / r.Length.Seconds()
}

// Gap returns the largest amount by which the services of the two flooding tenants differ over any
// stretch of the run.
func (r *FairRun) Gap() float64 {
	low, high, difference := 0.0, 0.0, 0.0
	for i := range min(len(r.bins[SmallTenant]), len(r.bins[BigTenant])) {
		difference += r.bins[SmallTenant][i] - r.bins[BigTenant][i]
		low, high = min(low, difference), max(high, difference)
	}
	return high - low
}

// Jain returns Jain's index of fairness of the tenants' services: 1 when they are equal, 1
// over their number when one has all.
func (r *FairRun) Jain() float64 {
	sum, squares := 0.0, 0.0
	served := r.Served()
	for _, name := range slices.Sorted(maps.Keys(served)) {
		sum += served[name]
		squares += served[name] * served[name]
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(served)) * squares)
}
