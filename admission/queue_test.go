package admission

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"tidegate/admission/limit"

	"pgregory.net/rapid"
)

// naive is the queue by its definition: every answer is a scan over all that waits,
// every counter is kept for good.
type naive struct {
	weights  QueueWeights
	counters [limit.TierCount]map[string]int64
	share    [limit.TierCount]map[string]int
	last     [limit.TierCount]string
	waiting  []*waiter // in the order they came
}

func newNaive(w QueueWeights) *naive {
	n := &naive{weights: w}
	for i := range n.counters {
		n.counters[i], n.share[i] = map[string]int64{}, map[string]int{}
	}
	return n
}

func (n *naive) next() *waiter {
	var best *waiter
	for _, e := range n.waiting {
		if best == nil || e.tier < best.tier || e.tier == best.tier && n.counters[e.tier][e.tenant] < n.counters[e.tier][best.tenant] {
			best = e
		}
	}
	return best
}

func (n *naive) standing(tier int, tenant string) (own, others int, weights int64) {
	seen := map[string]bool{tenant: true}
	for _, e := range n.waiting {
		switch {
		case e.tier != tier:
		case e.tenant == tenant:
			own++
		default:
			others++
			if !seen[e.tenant] {
				seen[e.tenant] = true
				weights += int64(n.share[tier][e.tenant])
			}
		}
	}
	return own, others, weights
}

func (n *naive) level(tier int) int64 {
	level, any := int64(0), false
	for _, e := range n.waiting {
		if c := n.counters[tier][e.tenant]; e.tier == tier && (!any || c < level) {
			level, any = c, true
		}
	}
	if any {
		return level
	}
	return n.counters[tier][n.last[tier]]
}

func (n *naive) arrive(tier int, tenant string, weight int) {
	n.share[tier][tenant] = weight
	if own, _, _ := n.standing(tier, tenant); own == 0 {
		n.counters[tier][tenant] = max(n.counters[tier][tenant], n.level(tier))
	}
}

func (n *naive) charge(tier int, tenant string, tokens int64, each int) {
	n.counters[tier][tenant] += tokens * int64(each) * unit / int64(n.share[tier][tenant])
}

func (n *naive) drop(e *waiter) {
	n.waiting = slices.DeleteFunc(n.waiting, func(o *waiter) bool { return o == e })
	if own, _, _ := n.standing(e.tier, e.tenant); own == 0 {
		n.last[e.tier] = e.tenant
	}
}

// twins holds the queue, the naive one, and the requests that run.
type twins struct {
	q      *fairQueue
	model  *naive
	runs   []twinRun
	levels [limit.TierCount]int64 // the last seen
}

type twinRun struct {
	a      *account
	tier   int
	tenant string
}

func index(t *rapid.T, n int) int { return rapid.IntRange(0, n-1).Draw(t, "which") }

func tokens(t *rapid.T) int64 { return rapid.Int64Range(0, 50).Draw(t, "tokens") }

func anyone(t *rapid.T) (tier int, tenant string, weight int) {
	return rapid.SampledFrom([]int{tierStandard, tierStandard, tierStandard, tierCritical, tierBatch}).Draw(t, "tier"),
		rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "tenant"), rapid.IntRange(1, 5).Draw(t, "weight")
}

func (m *twins) Push(t *rapid.T) {
	for range rapid.IntRange(1, 4).Draw(t, "requests") {
		tier, tenant, weight := anyone(t)
		own, others, sum := m.model.standing(tier, tenant)
		want := own + min(others, int(math.Ceil(float64(int64(own+1)*sum)/float64(weight))))
		for _, o := range m.model.waiting {
			if o.tier < tier {
				want++
			}
		}
		if got := m.q.ahead(tier, tenant, weight); got != want {
			t.Fatalf("%d ahead; want %d", got, want)
		}
		m.model.arrive(tier, tenant, weight)
		e := &waiter{tier: tier, tenant: tenant, weight: weight, input: tokens(t)}
		m.model.waiting = append(m.model.waiting, e)
		m.q.push(e)
	}
}

func (m *twins) Pop(t *rapid.T) {
	want := m.model.next()
	if got := m.q.peek(); got != want {
		t.Fatalf("peek: %+v; want %+v", got, want)
	}
	if got := m.q.pop(); got != want {
		t.Fatalf("pop: %+v; want %+v", got, want)
	}
	if want != nil {
		m.model.charge(want.tier, want.tenant, want.input, m.model.weights.Input)
		m.model.drop(want)
		m.runs = append(m.runs, twinRun{want.account, want.tier, want.tenant})
	}
}

func (m *twins) Direct(t *rapid.T) {
	tier, tenant, weight := anyone(t)
	input := tokens(t)
	m.model.arrive(tier, tenant, weight)
	m.model.charge(tier, tenant, input, m.model.weights.Input)
	m.model.last[tier] = tenant
	m.runs = append(m.runs, twinRun{m.q.bypass(tier, tenant, weight, input), tier, tenant})
}

func (m *twins) Remove(t *rapid.T) {
	if len(m.model.waiting) == 0 {
		return
	}
	e := m.model.waiting[index(t, len(m.model.waiting))]
	m.model.drop(e)
	if !m.q.remove(e) || m.q.remove(e) {
		t.Fatal("remove: want true, then false")
	}
}

func (m *twins) Output(t *rapid.T) {
	if len(m.runs) > 0 {
		r, n := m.runs[index(t, len(m.runs))], tokens(t)
		m.model.charge(r.tier, r.tenant, n, m.model.weights.Output)
		r.a.output(n)
	}
}

func (m *twins) Done(t *rapid.T) {
	if len(m.runs) > 0 {
		i := index(t, len(m.runs))
		m.q.finish(m.runs[i].a)
		m.runs = slices.Delete(m.runs, i, i+1)
	}
}

func (m *twins) Check(t *rapid.T) {
	if m.q.len() != len(m.model.waiting) {
		t.Fatalf("%d wait; want %d", m.q.len(), len(m.model.waiting))
	}
	if (m.q.peek() == nil) != (len(m.model.waiting) == 0) {
		t.Fatal("not work conserving")
	}
	for tier := range limit.TierCount {
		b := &m.q.tiers[tier]
		level := b.level()
		if level != m.model.level(tier) || level < m.levels[tier] {
			t.Fatalf("level %d after %d; want %d", level, m.levels[tier], m.model.level(tier))
		}
		m.levels[tier] = level
		for name, want := range m.model.counters[tier] {
			a := b.accounts[name]
			switch {
			case a == nil && want > level:
				t.Fatalf("tier %d, %s: forgotten, though its counter is %d and the level %d", tier, name, want, level)
			case a != nil && max(a.counter.Load(), level) != max(want, level):
				t.Fatalf("tier %d, %s: counter %d; want %d", tier, name, a.counter.Load(), want)
			}
		}
	}
}

// TestQueueIsTheNaiveOne: whatever happens, the queue hands out what a scan would, its
// counters are those of the scan, what it has forgotten changed nothing, and a
// newcomer's counter never falls.
func TestQueueIsTheNaiveOne(t *testing.T) {
	for range 20 { // of 100 histories each
		rapid.Check(t, func(t *rapid.T) {
			w := QueueWeights{rapid.IntRange(1, 3).Draw(t, "wp"), rapid.IntRange(1, 3).Draw(t, "wq")}
			t.Repeat(rapid.StateMachineActions(&twins{q: newFairQueue(w), model: newNaive(w)}))
		})
	}
}

func push(q *fairQueue, tier int, tenant string, input int64) *waiter {
	e := &waiter{tier: tier, tenant: tenant, weight: 1, input: input}
	q.push(e)
	return e
}

func TestQueueOrder(t *testing.T) {
	q := newFairQueue(DefaultQueue().Weights)
	push(q, tierBatch, "x", 1)
	push(q, tierStandard, "a", 10)
	push(q, tierStandard, "a", 10)
	push(q, tierStandard, "b", 25)
	push(q, tierStandard, "b", 10)
	push(q, tierCritical, "x", 1)
	gone := push(q, tierCritical, "y", 1)
	if n := q.tierLen(tierStandard); n != 4 {
		t.Errorf("%d standard ones wait; want 4", n)
	}
	q.remove(gone)
	var got []string
	for e := q.pop(); e != nil; e = q.pop() {
		if e.queued {
			t.Error("a request that was popped still says that it waits")
		}
		got = append(got, fmt.Sprintf("%d%s%d", e.tier, e.tenant, e.input))
	}
	// b is as far as a at first and came later; after its long prompt a has two turns.
	if want := []string{"0x1", "1a10", "1b25", "1a10", "1b10", "2x1"}; !slices.Equal(got, want) {
		t.Errorf("order %v; want %v", got, want)
	}
}

// TestQueueTies: of tenants that are equally far the one that came first goes first.
func TestQueueTies(t *testing.T) {
	q := newFairQueue(DefaultQueue().Weights)
	for i := range 100 {
		push(q, tierStandard, fmt.Sprint(i*37%100), 1)
	}
	for i := range 100 {
		if e := q.pop(); e.tenant != fmt.Sprint(i*37%100) {
			t.Fatalf("%d: tenant %s", i, e.tenant)
		}
	}
}

// TestQueueNewestWeight: a tenant that is given another weight pays by it from then on,
// and its past does not change.
func TestQueueNewestWeight(t *testing.T) {
	q := newFairQueue(QueueWeights{1, 1})
	a := q.bypass(tierStandard, "a", 1, 100)
	a.output(100)
	if c := a.counter.Load(); c != 200*unit {
		t.Fatalf("counter %d; want %d", c, 200*unit)
	}
	q.push(&waiter{tier: tierStandard, tenant: "a", weight: 4, input: 40})
	q.pop()
	a.output(40)
	if c := a.counter.Load(); c != 220*unit {
		t.Errorf("counter %d; want %d", c, 220*unit)
	}
}

// TestQueueForgets: of tenants that come and go nothing is left but those that are
// still ahead of the others, and of these a bounded number.
func TestQueueForgets(t *testing.T) {
	q := newFairQueue(QueueWeights{1, 2})
	b := &q.tiers[tierStandard]
	for i := range 100_000 {
		name := fmt.Sprint("light", i)
		push(q, tierStandard, name, 10)
		e := q.pop()
		e.account.output(5)
		q.finish(e.account)
	}
	if n := len(b.accounts); n > 2 {
		t.Errorf("%d accounts of tenants that have all gone; want 2 at most", n)
	}
	push(q, tierStandard, "steady", 1)
	var runs []*account
	for i := range 100_000 { // all get ahead of steady, which waits
		runs = append(runs, q.bypass(tierStandard, fmt.Sprint("heavy", i), 1, 100+int64(i)))
	}
	for _, a := range runs {
		q.finish(a)
	}
	if n := len(b.accounts); n != maxIdle+1 {
		t.Errorf("%d accounts; want the %d furthest ahead and steady", n, maxIdle)
	}
	if b.accounts["heavy99999"] == nil || b.accounts["heavy0"] != nil {
		t.Error("the wrong ones were forgotten")
	}
	// A remembered one still waits until the others have caught up.
	push(q, tierStandard, "heavy99999", 1)
	push(q, tierStandard, "new", 1)
	if q.pop().tenant != "steady" || q.pop().tenant != "new" || q.pop().tenant != "heavy99999" {
		t.Error("want steady, new, heavy99999")
	}
}

// TestQueueNeverOverflows: no numbers from outside and no age turn the order around.
func TestQueueNeverOverflows(t *testing.T) {
	q := newFairQueue(QueueWeights{maxTokenWeight, maxTokenWeight})
	a := q.bypass(tierStandard, "a", -1, math.MaxInt64)
	for range 3000 {
		a.output(math.MaxInt64)
		a.output(math.MinInt64)
	}
	if c := a.counter.Load(); c < rebaseAt || c > ceiling+unit*maxCharge*maxTokenWeight {
		t.Fatalf("counter %d", c)
	}
	push(q, tierStandard, "b", math.MaxInt64)
	push(q, tierStandard, "b", 7)
	push(q, tierStandard, "c", 3)
	q.pop()
	b := q.tiers[tierStandard].accounts["b"]
	for _, x := range []*account{a, b} {
		if c := x.counter.Load(); c < 0 || c > unit*maxCharge*maxTokenWeight {
			t.Errorf("%s: counter %d was not moved down", x.tenant, c)
		}
	}
	if q.pop().tenant != "c" || q.pop().tenant != "b" || q.pop() != nil {
		t.Error("want c, b")
	}
	q.finish(a)
	push(q, tierStandard, "d", 1)
	if d := q.peek().account.counter.Load(); d != b.counter.Load() {
		t.Errorf("a newcomer gets %d; want %d, as the last served has", d, b.counter.Load())
	}
}

// TestQueueRebaseKeepsOrder: moving all counters down changes no decision.
func TestQueueRebaseKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := DefaultQueue().Weights
		young, old := newFairQueue(w), newFairQueue(w)
		start := old.bypass(tierStandard, "start", 1, 0)
		start.counter.Add(rebaseAt - 20*unit)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "push") {
				name, input := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"), rapid.Int64Range(1, 9).Draw(t, "input")
				push(young, tierStandard, name, input)
				push(old, tierStandard, name, input)
				continue
			}
			a, b := young.pop(), old.pop()
			if (a == nil) != (b == nil) || a != nil && (a.tenant != b.tenant || a.seq != b.seq) {
				t.Fatalf("young %+v, old %+v", a, b)
			}
			if a != nil && rapid.Bool().Draw(t, "done") {
				young.finish(a.account)
				old.finish(b.account)
			}
		}
	})
}

// TestQueueStreams charges from many goroutines while the queue moves; -race watches.
func TestQueueStreams(t *testing.T) {
	q := newFairQueue(QueueWeights{1, 1})
	var mu sync.Mutex
	var streams sync.WaitGroup
	total := map[string]int64{}
	for i := range 400 {
		push(q, tierStandard, fmt.Sprint("t", i%7), 1)
	}
	hold := q.bypass(tierBatch, "x", 1, 0) // keeps another account in use meanwhile
	var accounts []*account
	for range 400 {
		mu.Lock()
		e := q.pop()
		total[e.tenant] += 1 + 100
		accounts = append(accounts, e.account)
		mu.Unlock()
		streams.Go(func() {
			for range 100 {
				e.account.output(1)
			}
			mu.Lock()
			defer mu.Unlock()
			// Of a tenant that is left with none the counter may be forgotten: not here.
			if e.account.requests > 1 {
				q.finish(e.account)
			}
		})
	}
	streams.Wait()
	q.finish(hold)
	for _, a := range accounts {
		if got, want := a.counter.Load(), total[a.tenant]*unit; got != want {
			t.Fatalf("%s: counter %d; want %d", a.tenant, got, want)
		}
	}
}

// backlog is a queue in which many tenants wait, each with two requests.
func backlog(tenants int) (*fairQueue, []*waiter) {
	q := newFairQueue(DefaultQueue().Weights)
	var all []*waiter
	for i := range 2 * tenants {
		e := &waiter{tier: tierStandard, tenant: fmt.Sprint("tenant", i%tenants), weight: 1 + i%4, input: int64(100 + i*7919%1000)}
		q.push(e)
		all = append(all, e)
	}
	return q, all
}

const benchTenants = 10_000

// BenchmarkQueuePushPop: one request leaves and one of the same tenant comes, while a
// hundred others stream.
func BenchmarkQueuePushPop(b *testing.B) {
	q, _ := backlog(benchTenants)
	var streaming [100]*account
	for i := range streaming {
		e := q.pop()
		streaming[i] = e.account
		q.push(e)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		streaming[i%len(streaming)].output(16)
		e := q.pop()
		q.finish(e.account)
		q.push(e)
	}
}

// BenchmarkQueueNewTenant: each request is of a tenant that was never seen.
func BenchmarkQueueNewTenant(b *testing.B) {
	q, _ := backlog(benchTenants)
	names := make([]string, 1<<16)
	for i := range names {
		names[i] = fmt.Sprint("new", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := q.pop()
		q.finish(e.account)
		q.push(&waiter{tier: tierStandard, tenant: names[i%len(names)], weight: 1, input: 100})
	}
}

func BenchmarkQueueRemovePush(b *testing.B) {
	q, all := backlog(benchTenants)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := all[i*7919%len(all)]
		q.remove(e)
		q.push(e)
	}
}

func BenchmarkQueueDirect(b *testing.B) {
	q, all := backlog(benchTenants)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.finish(q.bypass(tierStandard, all[i*7919%len(all)].tenant, 1, 100))
	}
}

func BenchmarkQueueAhead(b *testing.B) {
	q, all := backlog(benchTenants)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.ahead(tierBatch, all[i*7919%len(all)].tenant, 2)
	}
}

func BenchmarkQueueOutput(b *testing.B) {
	a := newFairQueue(DefaultQueue().Weights).bypass(tierStandard, "a", 3, 100)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			a.output(16)
		}
	})
}
