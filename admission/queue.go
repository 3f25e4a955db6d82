package admission

import (
	"container/heap"
	"sync/atomic"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// The tiers of waiting requests: one that waits goes before all of the next tier.
const (
	tierCritical = iota
	tierStandard
	tierBatch
)

const (
	// unit is one weighted token of a tenant of weight 1, so that division by a
	// weight of up to maxTenantWeight loses less than 0.1 % of a single token.
	unit = 1 << 20
	// maxCharge is the most tokens that one charge counts. No context is so long: it
	// is there so that no number from outside can overflow a counter.
	maxCharge = 1 << 24
	// rebaseAt is the service at which all counters are moved down together, after some 10^12
	// weighted tokens; a counter at ceiling is not charged until that happened.
	rebaseAt = 1 << 60
	ceiling  = 1 << 61
	// maxIdle bounds the tenants of a tier that are remembered and have neither a waiting
	// nor a running request.
	maxIdle = 10_000
)

// fairQueue is the waiting requests of one model. Tiers go strictly one before the
// other. Inside a tier it is the Virtual Token Counter of Sheng et al., "Fairness in
// Serving Large Language Models" (OSDI 2024, arXiv 2401.00588): each tenant has a
// counter of the service it had, in weighted tokens over its weight; the next
// request is the oldest of the tenant with the smallest counter. The prompt is
// charged when the request is dispatched and the answer token by token, so that a
// tenant pays for what it used and not for what somebody guessed. A tenant that
// begins to wait is lifted to the smallest counter of those that wait: nobody saves
// up service by not asking for it. Whenever something waits something is handed out,
// so fairness costs no throughput.
//
// Of two tenants of weight 1 that wait all the time, neither gets ahead of the other
// by more than 2 max(wp L, wq M), L being the longest prompt, M the most tokens that
// run at once, and wp and wq the weights of a prompt's and an answer's token.
//
// A tenant has one account in each tier it uses. The owner's lock guards everything
// but account.output.
type fairQueue struct {
	weights QueueWeights
	tiers   [limit.TierCount]band
	seq     int64 // number of the latest request
}

// band is one tier of the queue.
type band struct {
	accounts map[string]*account
	backlog  accountHeap // accounts with waiting requests
	idle     accountHeap // accounts without requests that are ahead of a newcomer
	last     *account    // account that stopped waiting last, or never had to
	waiting  int         // waiting requests
	places   int64       // sequences of the waiting requests
	weight   int64       // sum of weights in backlog
}

// account is the service of one tenant in one tier.
type account struct {
	counter   atomic.Int64 // service in units; streams add to it
	weight    atomic.Int64
	perOutput int64 // units of an output token at weight 1

	tenant     string
	tier       int
	key        int64 // counter at the last look of the heap; never above it
	turn       int64 // number of head: equals are served in the order of arrival
	index      int   // position in its heap
	head, tail *waiter
	waiting    int // waiting requests
	requests   int // waiting and running requests
}

// waiter is one request in a queue.
type waiter struct {
	tier   int
	tenant string
	weight int   // weight of its tenant, 1 at the least; the newest counts
	input  int64 // prompt tokens

	sequences int64 // sequences on a backend, 1 at the least

	account    *account // account, set by push
	queued     bool
	seq        int64
	prev, next *waiter // neighbours in the account's list

	line       *line         // line of the concurrency limit; nil for a pool's queue
	ready      chan struct{} // wake channel with room for one: there is a place, or the line's turn to ask again
	seat       *Seat         // backend of the place; nil while waiting
	shareStart time.Duration // integral of the share when the place was acquired
	arrival    time.Time     // time of arrival at the pool
	waited     time.Duration // time spent waiting, in total
	committed  bool          // the caller has been told its level
}

// newWaiter returns a request that needs a place at a level.
func newWaiter(q *queueing, d *Demand, level degrade.Level) *waiter {
	w := &waiter{
		tier: limit.TierIndex(d.Request.Tier), tenant: q.tenant(&d.Request.Subjects), input: d.Request.Prompt, sequences: d.sequences(level),
	}
	w.weight = q.weight(w.tenant)
	return w
}

// occupy acquires a place on b.
func (w *waiter) occupy(b *Seat) { w.seat, w.shareStart = b, b.acquire(w.sequences) }

// newFairQueue returns an empty queue.
func newFairQueue(w QueueWeights) *fairQueue {
	q := &fairQueue{weights: w}
	for i := range q.tiers {
		q.tiers[i].accounts = map[string]*account{}
	}
	return q
}

// len returns the number of waiting requests.
func (q *fairQueue) len() (n int) {
	for i := range q.tiers {
		n += q.tiers[i].waiting
	}
	return n
}

// sequences returns the number of sequences of the waiting requests.
func (q *fairQueue) sequences() (n int64) {
	for i := range q.tiers {
		n += q.tiers[i].places
	}
	return n
}

// tierLen returns the number of waiting requests of one tier.
func (q *fairQueue) tierLen(tier int) int { return q.tiers[tier].waiting }

// push adds a request to the queue.
func (q *fairQueue) push(e *waiter) {
	b := &q.tiers[e.tier]
	a := q.openAccount(e.tier, e.tenant, e.weight)
	q.seq++
	e.account, e.queued, e.seq = a, true, q.seq
	e.prev, e.next, a.tail = a.tail, nil, e
	b.waiting++
	b.places += e.sequences
	if a.waiting++; a.waiting > 1 {
		e.prev.next = e
		return
	}
	a.head = e
	a.lift(b.level())
	a.key, a.turn = a.counter.Load(), e.seq
	b.weight += a.weight.Load()
	heap.Push(&b.backlog, a)
}

// peek returns the request that goes next, and nil where none waits.
func (q *fairQueue) peek() *waiter {
	for i := range q.tiers {
		if a := q.tiers[i].first(); a != nil {
			return a.head
		}
	}
	return nil
}

// pop removes the request that goes next and charges its tenant for the prompt; it returns
// nil where none waits. The request runs until finish ends it.
func (q *fairQueue) pop() *waiter {
	e := q.peek()
	if e != nil {
		q.serve(e)
	}
	return e
}

// serve removes a waiting request, whatever its turn, and charges its tenant for the prompt,
// as pop does.
func (q *fairQueue) serve(e *waiter) {
	q.tiers[e.tier].rebase()
	e.account.charge(e.input, unit*int64(q.weights.Input))
	q.unlink(e)
}

// remove removes a request that no longer wants its turn; false where it does not wait.
func (q *fairQueue) remove(e *waiter) bool {
	if !e.queued {
		return false
	}
	q.unlink(e)
	q.finish(e.account)
	return true
}

// resize changes how many sequences a waiting request has; it keeps its turn.
func (q *fairQueue) resize(e *waiter, sequences int64) {
	if e.queued {
		q.tiers[e.tier].places += sequences - e.sequences
		e.sequences = sequences
	}
}

// bypass charges the tenant of a request that need not wait, as if it had waited for no
// time. The request runs until finish ends it.
func (q *fairQueue) bypass(tier int, tenant string, weight int, input int64) *account {
	b := &q.tiers[tier]
	a := q.openAccount(tier, tenant, weight)
	if a.waiting == 0 {
		a.lift(b.level())
	}
	a.charge(input, unit*int64(q.weights.Input))
	b.last = a
	return a
}

// ahead returns how many requests would go before a new one of this tenant if all were
// alike: its own, those that others' shares let through meanwhile, and all of higher tiers.
func (q *fairQueue) ahead(tier int, tenant string, weight int) int {
	b := &q.tiers[tier]
	queued, rivals := int64(0), b.weight
	if a := b.accounts[tenant]; a != nil && a.waiting > 0 {
		queued, rivals = int64(a.waiting), rivals-a.weight.Load()
	}
	w := clampWeight(weight)
	n := int(queued + min(int64(b.waiting)-queued, ((queued+1)*rivals+w-1)/w))
	for i := range tier {
		n += q.tiers[i].waiting
	}
	return n
}

// finish ends a request that ran, once. A tenant without any left is forgotten when a
// newcomer would get no smaller counter; of those ahead of that, the maxIdle furthest ahead
// are remembered.
func (q *fairQueue) finish(a *account) {
	if a.requests--; a.requests > 0 {
		return
	}
	b := &q.tiers[a.tier]
	a.key, a.turn = a.counter.Load(), 0
	heap.Push(&b.idle, a)
	b.forget()
}

// output charges tokens of an answer as they come. It needs no lock.
func (a *account) output(tokens int64) { a.charge(tokens, a.perOutput) }

// charge adds tokens to the counter at a price in units each.
func (a *account) charge(tokens, price int64) {
	if c := min(max(tokens, 0), maxCharge) * price / a.weight.Load(); a.counter.Load() < ceiling {
		a.counter.Add(c)
	}
}

// lift raises the counter to level. What is streamed at this moment is not lost.
func (a *account) lift(level int64) {
	if d := level - a.counter.Load(); d > 0 {
		a.counter.Add(d)
	}
}

// clampWeight returns a weight within 1 to maxTenantWeight.
func clampWeight(w int) int64 { return int64(min(max(w, 1), maxTenantWeight)) }

// openAccount returns the account for one more request, a new one if needed.
func (q *fairQueue) openAccount(tier int, tenant string, weight int) *account {
	b := &q.tiers[tier]
	b.rebase()
	a, w := b.accounts[tenant], clampWeight(weight)
	switch {
	case a == nil:
		a = &account{tenant: tenant, tier: tier, perOutput: unit * int64(q.weights.Output)}
		b.accounts[tenant] = a
	case a.requests == 0:
		heap.Remove(&b.idle, a.index)
	}
	if previous := a.weight.Swap(w); a.waiting > 0 {
		b.weight += w - previous
	}
	a.requests++
	return a
}

// unlink removes a waiting request from its account, and the account from the backlog with
// its last one.
func (q *fairQueue) unlink(e *waiter) {
	b, a := &q.tiers[e.tier], e.account
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		a.head = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		a.tail = e.prev
	}
	e.prev, e.next, e.queued = nil, nil, false
	b.waiting--
	b.places -= e.sequences
	if a.waiting--; a.waiting == 0 {
		b.weight -= a.weight.Load()
		heap.Remove(&b.backlog, a.index)
		b.last = a
		return
	}
	a.key, a.turn = a.counter.Load(), a.head.seq
	heap.Fix(&b.backlog, a.index)
}

// first returns the account whose turn it is; nil where none waits. Streams add to counters
// without the lock, so the heap is put right here: a key that is too small only brings an
// account up too early, and then it is looked at.
func (b *band) first() *account {
	for len(b.backlog) > 0 {
		a := b.backlog[0]
		c := a.counter.Load()
		if c == a.key {
			return a
		}
		a.key = c
		if heap.Fix(&b.backlog, 0); b.backlog[0] == a {
			return a
		}
	}
	return nil
}

// level returns the counter that a newcomer gets: the smallest of those that wait, or that
// of the last that did. It never falls.
func (b *band) level() int64 {
	if a := b.first(); a != nil {
		return a.key
	}
	if b.last != nil {
		return b.last.counter.Load()
	}
	return 0
}

// forget drops a few idle accounts that no longer matter: never many at once, since the lock
// is held, but more than come.
func (b *band) forget() {
	for range 2 {
		if len(b.idle) == 0 || b.idle[0].key > b.level() && len(b.idle) <= maxIdle {
			return
		}
		delete(b.accounts, heap.Pop(&b.idle).(*account).tenant)
	}
}

// rebase moves all counters of a tier down by its level, once in a long life.
func (b *band) rebase() {
	level := b.level()
	if level < rebaseAt {
		return
	}
	for _, a := range b.accounts {
		a.counter.Add(-level)
		a.key -= level
	}
	if l := b.last; l != nil && b.accounts[l.tenant] != l {
		l.counter.Add(-level)
	}
}

// accountHeap is a heap of accounts by counter.
type accountHeap []*account

func (h accountHeap) Len() int { return len(h) }

func (h accountHeap) Less(i, j int) bool {
	return h[i].key < h[j].key || h[i].key == h[j].key && h[i].turn < h[j].turn
}

func (h accountHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *accountHeap) Push(x any) {
	a := x.(*account)
	a.index = len(*h)
	*h = append(*h, a)
}

func (h *accountHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return a
}
