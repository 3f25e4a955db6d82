package admission

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// The engine of these tests is continuous batching in virtual time: so many slots,
// each running request gets one token a step, and a step takes as long as its tokens
// and the prompts that joined it need.
const (
	simSlots  = 32
	simDecode = 1200.0   // tokens/s of all slots together
	simPrompt = 20_000.0 // tokens/s
	simTime   = 600.0    // seconds
	simPoint  = 5.0      // seconds between two points of the plot
)

// load is the stream of requests of one tenant.
type load struct {
	name          string
	weight        int
	rate          float64 // requests/s, at random
	input, output int     // tokens in the mean; each request has half to one and a half of it
	on, off       float64 // seconds of sending and of silence, in turn; 0: always
}

// discipline is an order of service.
type discipline interface {
	push(e *simRequest)
	pop() *simRequest // nil: none waits
	output(e *simRequest)
	done(e *simRequest)
}

type simRequest struct {
	load          int // load
	at            float64
	input, output int
	made          int
	w             *waiter
}

type fcfs struct{ queue []*simRequest }

func (f *fcfs) push(e *simRequest) { f.queue = append(f.queue, e) }
func (f *fcfs) pop() *simRequest {
	if len(f.queue) == 0 {
		return nil
	}
	e := f.queue[0]
	f.queue = f.queue[1:]
	return e
}
func (*fcfs) output(*simRequest) {}
func (*fcfs) done(*simRequest)   {}

// turns lets each tenant that waits have one request in turn.
type turns struct {
	fcfs
	queues []fcfs
	turn   int
}

func (r *turns) push(e *simRequest) { r.queues[e.load].push(e) }
func (r *turns) pop() *simRequest {
	for range r.queues {
		r.turn = (r.turn + 1) % len(r.queues)
		if e := r.queues[r.turn].pop(); e != nil {
			return e
		}
	}
	return nil
}

// vtc is the queue of this package.
type vtc struct {
	q     *fairQueue
	loads []load
	of    map[*waiter]*simRequest
}

func (v *vtc) push(e *simRequest) {
	l := v.loads[e.load]
	e.w = &waiter{tier: tierStandard, tenant: l.name, weight: max(l.weight, 1), input: int64(e.input)}
	v.of[e.w] = e
	v.q.push(e.w)
}

func (v *vtc) pop() *simRequest {
	w := v.q.pop()
	if w == nil {
		return nil
	}
	e := v.of[w]
	delete(v.of, w)
	return e
}
func (v *vtc) output(e *simRequest) { e.w.account.output(1) }
func (v *vtc) done(e *simRequest)   { v.q.finish(e.w.account) }

func disciplineNames() []string { return []string{"FCFS", "turns", "VTC"} }

func disciplines(loads []load) map[string]discipline {
	return map[string]discipline{
		"FCFS":  &fcfs{},
		"turns": &turns{queues: make([]fcfs, len(loads))},
		"VTC":   &vtc{newFairQueue(DefaultQueue().Weights), loads, map[*waiter]*simRequest{}},
	}
}

// outcome is one run.
type outcome struct {
	service []float64   // weighted tokens by load
	ttft    [][]float64 // seconds by load, in order; a request that never began counts as it stood at the end
	tokens  float64     // of prompts and answers, all
	longest float64     // prompt
	batch   float64     // most tokens of the requests that ran at once
	gap     float64     // most that any two got apart while both waited, in weighted tokens over the weight
	points  []float64   // for the plot: service of all loads each simPoint
	idle    int         // steps with a free slot while something waited
}

// bound returns the bound of gap that the paper proves: 2 max(wp L, wq M).
func (o *outcome) bound() float64 {
	w := DefaultQueue().Weights
	return 2 * max(float64(w.Input)*o.longest, float64(w.Output)*o.batch)
}

func (o *outcome) share(i int) float64 {
	all := 0.0
	for _, s := range o.service {
		all += s
	}
	return o.service[i] / all
}

func (o *outcome) p(i int, q float64) float64 {
	if len(o.ttft[i]) == 0 {
		return 0
	}
	return o.ttft[i][int(q*float64(len(o.ttft[i])-1))]
}

// arrivals returns requests that are the same for every discipline.
func arrivals(loads []load, seed uint64) []*simRequest {
	var all []*simRequest
	for i, l := range loads {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		around := func(mean int) int { return max(1, mean/2+rng.IntN(mean+1)) }
		for at := rng.ExpFloat64() / l.rate; at < simTime; at += rng.ExpFloat64() / l.rate {
			e := &simRequest{load: i, at: at, input: around(l.input), output: around(l.output)}
			if l.off == 0 || math.Mod(at, l.on+l.off) < l.on {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b *simRequest) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
	return all
}

// gaps watches how far two loads get apart in a time in which both wait.
type gaps struct {
	both      bool
	low, high float64
}

func (g *gaps) see(both bool, ahead float64) (apart float64) {
	if both && !g.both {
		g.low, g.high = ahead, ahead
	}
	if g.both = both; !both {
		return 0
	}
	g.low, g.high = min(g.low, ahead), max(g.high, ahead)
	return g.high - g.low
}

type sim struct {
	outcome
	loads   []load
	by      discipline
	running []*simRequest
	waiting []int
	pairs   map[[2]int]*gaps
}

// simulate runs the loads for simTime seconds.
func simulate(loads []load, by discipline, seed uint64) *outcome {
	s := &sim{loads: loads, by: by, waiting: make([]int, len(loads)), pairs: map[[2]int]*gaps{}}
	s.service, s.ttft = make([]float64, len(loads)), make([][]float64, len(loads))
	coming := arrivals(loads, seed)
	for now, next := 0.0, 0; now < simTime; {
		for ; next < len(coming) && coming[next].at <= now; next++ {
			s.waiting[coming[next].load]++
			by.push(coming[next])
		}
		s.apart()
		prompts := s.admit()
		s.apart()
		if len(s.running) == 0 {
			if next == len(coming) {
				break
			}
			now = coming[next].at
			continue
		}
		now += float64(len(s.running))/simDecode + prompts/simPrompt
		s.step(now)
		for ; float64(len(s.points)/len(loads))*simPoint <= now; s.points = append(s.points, s.service...) {
		}
	}
	for e := by.pop(); e != nil; e = by.pop() {
		s.ttft[e.load] = append(s.ttft[e.load], simTime-e.at)
	}
	for i := range s.ttft {
		slices.Sort(s.ttft[i])
	}
	return &s.outcome
}

// admit fills the free slots and returns the tokens of the prompts that came in.
func (s *sim) admit() (prompts float64) {
	for len(s.running) < simSlots {
		e := s.by.pop()
		if e == nil {
			break
		}
		s.waiting[e.load]--
		s.running = append(s.running, e)
		prompts += float64(e.input)
		s.tokens += float64(e.input)
		s.longest = max(s.longest, float64(e.input))
		s.service[e.load] += float64(e.input * DefaultQueue().Weights.Input)
	}
	if len(s.running) < simSlots && slices.Max(s.waiting) > 0 {
		s.idle++
	}
	return prompts
}

func (s *sim) step(now float64) {
	batch := 0
	s.running = slices.DeleteFunc(s.running, func(e *simRequest) bool {
		if e.made++; e.made == 1 {
			s.ttft[e.load] = append(s.ttft[e.load], now-e.at)
		}
		batch += e.input + e.made
		s.tokens++
		s.service[e.load] += float64(DefaultQueue().Weights.Output)
		s.by.output(e)
		if e.made < e.output {
			return false
		}
		s.by.done(e)
		return true
	})
	s.batch = max(s.batch, float64(batch))
}

// apart keeps the largest gap of any two.
func (s *sim) apart() {
	for i := range s.loads {
		for j := range i {
			g := s.pairs[[2]int{i, j}]
			if g == nil {
				g = &gaps{}
				s.pairs[[2]int{i, j}] = g
			}
			ahead := s.service[i]/float64(max(s.loads[i].weight, 1)) - s.service[j]/float64(max(s.loads[j].weight, 1))
			s.gap = max(s.gap, g.see(s.waiting[i] > 0 && s.waiting[j] > 0, ahead))
		}
	}
}

// sizes is the first scenario of figure 7. All but light keep everybody waiting.
func sizes() []load { // b's requests are 8 times as large
	return []load{{name: "a", rate: 12, input: 64, output: 64}, {name: "b", rate: 2.4, input: 512, output: 512}}
}

func weighted() []load {
	var all []load
	for w := 1; w <= 4; w++ {
		all = append(all, load{name: fmt.Sprint("w", w), weight: w, rate: 3, input: 256, output: 256})
	}
	return all
}

func flood() load { return load{name: "flood", rate: 10, input: 256, output: 256} }

func light() load { return load{name: "light", rate: 0.4, input: 256, output: 256} }

func onOff() []load {
	return []load{flood(), {name: "on-off", rate: 6, input: 128, output: 128, on: 60, off: 120}, {name: "now and then", rate: 6, input: 512, output: 64, on: 20, off: 100}}
}

const fairSeeds = 3

// run is one scenario under each discipline.
func run(t *testing.T, title string, loads []load, seed uint64) map[string]*outcome {
	t.Helper()
	out := map[string]*outcome{}
	by := disciplines(loads)
	for _, name := range disciplineNames() {
		o := simulate(loads, by[name], seed)
		out[name] = o
		if o.idle > 0 {
			t.Errorf("%s, %s: in %d steps a slot was free while something waited", title, name, o.idle)
		}
		t.Logf("%s, seed %d, %-5s %s", title, seed, name, figures(o))
	}
	if lost := 1 - out["VTC"].tokens/out["FCFS"].tokens; lost > 0.01 {
		t.Errorf("%s: throughput loss %.2f %%; want 1 %% at most", title, 100*lost)
	}
	return out
}

func figures(o *outcome) string {
	s := "shares"
	for i := range o.service {
		s += fmt.Sprintf(" %.2f %%", 100*o.share(i))
	}
	s += fmt.Sprintf(", gap %.0f (bound %.0f), %.1f tokens/s", o.gap, o.bound(), o.tokens/simTime)
	for i := range o.ttft {
		s += fmt.Sprintf(", TTFT p50/p95 %.2f/%.2f s", o.p(i, 0.5), o.p(i, 0.95))
	}
	return s
}

func underBound(t *testing.T, o *outcome) {
	t.Helper()
	if o.gap > o.bound() || o.gap == 0 {
		t.Errorf("service gap %.0f; want more than 0 and at most %.0f", o.gap, o.bound())
	}
}

// TestFairnessSizes: two tenants share alike whatever the size of their requests; taking
// turns gives nearly all to the one with the large ones.
func TestFairnessSizes(t *testing.T) {
	for seed := range uint64(fairSeeds) {
		out := run(t, "8 x larger", sizes(), seed)
		if s := out["VTC"].share(0); math.Abs(s-0.5) > 0.02 {
			t.Errorf("share %.3f; want 0.5 within 0.02", s)
		}
		underBound(t, out["VTC"])
		for _, other := range []string{"turns", "FCFS"} {
			if s := out[other].share(0); other == "turns" && s > 0.15 || math.Abs(s-0.5) <= 0.02 {
				t.Errorf("%s: share %.3f: then this test shows nothing", other, s)
			}
			if out[other].gap <= out[other].bound() {
				t.Errorf("%s: gap %.0f is under the bound: then this test shows nothing", other, out[other].gap)
			}
		}
	}
}

// TestFairnessWeights: shares are as the weights, each within 2 % of itself.
func TestFairnessWeights(t *testing.T) {
	for seed := range uint64(fairSeeds) {
		out := run(t, "weights 1:2:3:4", weighted(), seed)
		for i := range weighted() {
			if s, want := out["VTC"].share(i), float64(i+1)/10; math.Abs(s/want-1) > 0.02 {
				t.Errorf("share %.4f; want %.2f within 2 %%", s, want)
			}
		}
		underBound(t, out["VTC"])
	}
}

// TestFairnessLight: a tenant that asks for little hardly notices one that floods.
func TestFairnessLight(t *testing.T) {
	for seed := range uint64(fairSeeds) {
		alone := simulate([]load{light()}, &fcfs{}, seed)
		out := run(t, "light beside a flood", []load{light(), flood()}, seed)
		t.Logf("light alone, seed %d: %s", seed, figures(alone))
		if more := out["VTC"].p(0, 0.95) - alone.p(0, 0.95); more > 1.5 {
			t.Errorf("TTFT p95 is %.2f s more than alone; want 1.5 s at most", more)
		}
		if out["FCFS"].p(0, 0.95) < 60 {
			t.Error("first come, first served lets the light one through as well: then this test shows nothing")
		}
	}
}

// TestFairnessOnOff: who comes back after a silence has its share from then on and
// nothing for the time before.
func TestFairnessOnOff(t *testing.T) {
	for seed := range uint64(fairSeeds) {
		underBound(t, run(t, "on and off", onOff(), seed)["VTC"])
	}
}
