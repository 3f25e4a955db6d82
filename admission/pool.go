package admission

import (
	"slices"
	"sync"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// Pool holds the backends of one model and the requests that wait for a place on one of
// them. It is safe for concurrent use.
type Pool struct {
	Name  string
	level *degrade.Model

	mu         sync.Mutex
	seats      []*Seat
	fallback   *Pool // pool of the smaller model; nil where there is none
	rotation   int
	candidates []*Seat // scratch space of pick
	queue      *fairQueue
	reserved   int64 // sequences that wait for a place under a limit and count in the budget of the queue
	drain      drain
}

// NewPool returns a pool without backends, of a model whose level the ladder sets; with nil
// it is always at L0.
func NewPool(name string, level *degrade.Model) *Pool {
	if level == nil {
		level = degrade.NewModel(name)
	}
	return &Pool{Name: name, level: level, queue: newFairQueue(DefaultQueue().Weights)}
}

// Set replaces the backends and the smaller model's pool. Requests keep their places, and
// those that wait go on waiting.
func (p *Pool) Set(backends []*Seat, fallback *Pool) {
	p.mu.Lock()
	p.seats, p.fallback = slices.Clone(backends), fallback
	p.mu.Unlock()
	for _, b := range backends {
		b.pool.Store(p)
	}
	p.dispatch()
}

// Available reports whether any backend accepts requests.
func (p *Pool) Available() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.seats, (*Seat).accepts)
}

// Queued returns how many requests wait for a place, by tier.
func (p *Pool) Queued() (n [limit.TierCount]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for tier := range n {
		n[tier] = p.queue.tierLen(tier)
	}
	return n
}

// queuedPerBackend returns how many requests wait for each backend that accepts any.
func (p *Pool) queuedPerBackend() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, b := range p.seats {
		if b.accepts() {
			n++
		}
	}
	return p.queue.len() / max(n, 1)
}

// checkBounds returns a *TooMany where no backend, in rotation or not, may have so many
// sequences at a time.
func (p *Pool) checkBounds(sequences int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.allows(sequences) {
		return nil
	}
	return &TooMany{Sequences: sequences, Max: p.maxInFlight(false)}
}

// checkFit returns nil where a backend in rotation may have so many sequences at a time.
// Otherwise it returns the error of checkBounds, ErrNoBackend, or a Temporary *TooMany.
func (p *Pool) checkFit(sequences int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, _ := p.look(sequences, sequences)
	return o.unfit
}

// allows reports whether some backend, in rotation or not, may have so many sequences at a
// time, or the pool has no backend at all. The lock is held.
func (p *Pool) allows(sequences int64) bool {
	return len(p.seats) == 0 || slices.ContainsFunc(p.seats, func(b *Seat) bool { return b.allows(sequences) })
}

// maxInFlight returns the largest bound of sequences on one backend, of those in rotation or
// of all. The lock is held.
func (p *Pool) maxInFlight(usable bool) (n int) {
	for _, b := range p.seats {
		if !usable || b.accepts() {
			n = max(n, b.bounds.Load().InFlight)
		}
	}
	return n
}

// predictedWait returns about how long one more request of a tenant would wait; 0 where that
// is unknown.
func (p *Pool) predictedWait(tier int, tenant string, weight int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, _ := p.drain.wait(time.Now(), p.queue.ahead(tier, tenant, weight))
	return d
}

// pick returns the backend to use other than avoid; nil where there is none. It chooses
// among those with room for so many sequences (0: all), at the lowest level, as pickShare
// does. Those at L3 or above are left alone while another one that can serve the request is
// lower, even if that is full. Those in doubt are left alone while another one is not. The
// lock is held.
func (p *Pool) pick(avoid *Seat, room int64) *Seat {
	eligible := func(b *Seat) bool { return b != avoid && b.accepts() && b.allows(room) }
	sound := slices.ContainsFunc(p.seats, func(b *Seat) bool { return eligible(b) && !b.doubted.Load() })
	candidate := func(b *Seat) bool { return eligible(b) && !(sound && b.doubted.Load()) }
	cool := slices.ContainsFunc(p.seats, func(b *Seat) bool {
		return candidate(b) && b.gauge.Verdict().Level < degrade.SmallerModel
	})
	alike, lowest := p.candidates[:0], degrade.Canned
	n := len(p.seats)
	for k := range n {
		b := p.seats[(p.rotation+k)%n]
		level := b.gauge.Verdict().Level
		if !candidate(b) || cool && level >= degrade.SmallerModel || level > lowest || room != 0 && b.room(room) != roomFree {
			continue
		}
		if level < lowest {
			alike, lowest = alike[:0], level
		}
		alike = append(alike, b)
	}
	p.rotation++
	p.candidates = alike
	return pickShare(alike)
}

// pickShare picks one of several backends that are alike but for their weights; nil where
// there is none. A request in flight cannot be divided: with two requests at a time and
// weights of 3 and 1 none has its share at any moment. So every backend is eligible that has
// no more for its weight than some other would have with one request more. Of these it
// returns the one furthest behind its share of all requests so far (smooth weighted round
// robin). The lag is bounded, so that a backend which was slow does not get all at once what
// it missed.
func pickShare(alike []*Seat) *Seat {
	if len(alike) == 0 {
		return nil
	}
	var next *Seat // the seat with the least for its weight after one request more
	total := int64(0)
	for _, b := range alike {
		total += b.weight.Load()
		if next == nil || (b.inFlight.Load()+1)*next.weight.Load() < (next.inFlight.Load()+1)*b.weight.Load() {
			next = b
		}
	}
	n, weight := next.inFlight.Load(), next.weight.Load()
	best := next
	for _, b := range alike {
		if b.inFlight.Load()*weight < (n+1)*b.weight.Load() && b.credit+b.weight.Load() > best.credit+best.weight.Load() {
			best = b
		}
	}
	for _, b := range alike {
		b.credit = min(b.credit+b.weight.Load(), total)
	}
	best.credit = max(best.credit-total, -total)
	return best
}

// hasAlternative reports whether some backend other than avoid accepts so many sequences.
func (p *Pool) hasAlternative(avoid *Seat, sequences int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.seats, func(b *Seat) bool { return b != avoid && b.accepts() && b.allows(sequences) })
}

// tryAcquire acquires a place on some backend, if there is one and nobody waits for it.
func (p *Pool) tryAcquire(q *queueing, w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.len() > 0 {
		return false
	}
	b := p.pick(nil, w.sequences)
	if b == nil {
		return false
	}
	p.queue.weights = q.Weights
	w.account, w.arrival = p.queue.bypass(w.tier, w.tenant, w.weight, w.input), time.Now()
	w.occupy(b)
	return true
}

// dispatch hands free places to those who wait, in the order of the fair queue.
func (p *Pool) dispatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.len() == 0 {
		return
	}
	now := time.Now()
	for p.queue.len() > 0 {
		// The next in turn waits until all its sequences have room; smaller ones behind it
		// do not pass it, or it would wait for ever.
		b := p.pick(nil, p.queue.peek().sequences)
		if b == nil {
			return
		}
		w := p.queue.pop()
		p.drain.record(now, 1, p.queue.len() > 0)
		w.occupy(b)
		w.wake()
	}
}

// enqueue adds a request to the queue. It returns false and the predicted wait where the
// queue is full or the wait would be longer than longest.
func (p *Pool) enqueue(q *queueing, w *waiter, longest time.Duration) (predicted time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	ahead := p.queue.ahead(w.tier, w.tenant, w.weight)
	predicted, _ = p.drain.wait(now, ahead)
	// Who would be the first is let in whatever is predicted, or nobody would ever find
	// out that a server which hung goes on.
	if !p.queueHasRoom(q, w.sequences) || ahead > 0 && predicted > longest {
		return max(predicted, time.Second), false
	}
	p.queue.weights, w.ready, w.arrival = q.Weights, make(chan struct{}, 1), now
	p.queue.push(w)
	p.drain.record(now, 0, true)
	return predicted, true
}

// queueHasRoom reports whether the queue's budget has room for a request of so many
// sequences. One that is larger than all of it may wait alone. The lock is held.
func (p *Pool) queueHasRoom(q *queueing, sequences int64) bool {
	length := int64(q.MaxLength)
	return p.queue.sequences()+p.reserved+min(sequences, max(length, 1)) <= length
}

// reserveQueue counts sequences that wait for a place under a limit in the queue's budget,
// until releaseQueue; false where there is no room. They may have half of it, or a caller
// over its limit could take the queue from those within theirs.
func (p *Pool) reserveQueue(q *queueing, sequences int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	half := int64(q.MaxLength+1) / 2
	if !p.queueHasRoom(q, sequences) || p.reserved+min(sequences, max(half, 1)) > half {
		return false
	}
	p.reserved += sequences
	return true
}

// releaseQueue ends what reserveQueue began.
func (p *Pool) releaseQueue(sequences int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved -= sequences
}

// dequeue removes a request from the queue; false where it has a place already.
func (p *Pool) dequeue(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok := p.queue.remove(w)
	if ok {
		p.drain.record(time.Now(), 0, p.queue.len() > 0)
	}
	return ok
}

// resize changes how many sequences a waiting request has; one that has a place keeps what
// it has.
func (p *Pool) resize(w *waiter, sequences int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue.resize(w, sequences)
}

// finish ends a request in the fair queue.
func (p *Pool) finish(a *account) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue.finish(a)
}
