package admission

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/admission/limit"
)

const (
	// minPoll and maxPoll bound the time between two questions of the first in line to a
	// store that other gateways share.
	minPoll = 25 * time.Millisecond
	maxPoll = 250 * time.Millisecond
	// pollSpacing is the time between two questions of all lines together: with many lines,
	// each asks less often.
	pollSpacing = time.Millisecond
	// localPoll is the time between two questions to a store of its own, where only the
	// clock, another level and another configuration change anything unnoticed.
	localPoll = time.Second
)

// lines holds the requests that wait for a place under a concurrency limit, in one line for
// each counter. Lines are fair queues: higher tiers go first, and inside a tier the tenant
// that has had least while there was a line. The zero value is empty; it is safe for
// concurrent use.
type lines struct {
	waiting atomic.Int64 // waiting requests in all lines

	mu        sync.Mutex
	byCounter map[string]*line // lines with requests that wait, or run after waiting
	polling   int              // lines with waiting requests
}

// line is the queue of one counter.
type line struct {
	counter  string
	queue    *fairQueue
	requests int // requests that wait, or run after waiting
}

// occupied returns a function that reports whether others wait at a counter; nil where
// nobody waits.
func (t *lines) occupied() func(counter string) bool {
	if t.waiting.Load() == 0 {
		return nil
	}
	return func(counter string) bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		l := t.byCounter[counter]
		return l != nil && l.queue.len() > 0
	}
}

// placesAhead returns about how many places the requests need that go before a new one at a
// counter: each as many as those that wait there need on average.
func (t *lines) placesAhead(counter string, w *waiter) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byCounter[counter]
	if l == nil || l.queue.len() == 0 {
		return 0
	}
	n, total := int64(l.queue.ahead(w.tier, w.tenant, w.weight)), int64(l.queue.len())
	return (n*l.queue.sequences() + total - 1) / total
}

// placesQueued returns how many places the requests need that wait at a counter.
func (t *lines) placesQueued(counter string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byCounter[counter]; l != nil {
		return l.queue.sequences()
	}
	return 0
}

// join adds a request to the line of a counter. The first one is woken: the place that it
// was refused may have become free before it joined.
func (t *lines) join(counter string, q *queueing, w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byCounter[counter]
	if l == nil {
		if t.byCounter == nil {
			t.byCounter = map[string]*line{}
		}
		l = &line{counter: counter, queue: newFairQueue(q.Weights)}
		t.byCounter[counter] = l
	}
	l.queue.weights = q.Weights
	if l.queue.len() == 0 {
		t.polling++
	}
	l.queue.push(w)
	l.requests++
	w.line, w.arrival = l, time.Now()
	t.waiting.Add(1)
	if l.queue.peek() == w {
		w.wake()
	}
}

// wake wakes a waiting request, once until it looks.
func (w *waiter) wake() {
	select {
	case w.ready <- struct{}{}:
	default: // it is about to
	}
}

// checkFirst reports whether a request is the first of its line. If it no longer is, it
// wakes the new first, since only that one asks: as tenants use what they have, the order
// changes without anybody coming or going.
func (t *lines) checkFirst(w *waiter, wasFirst bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := w.line.queue.peek() == w
	if wasFirst && !first {
		w.line.wakeFirst()
	}
	return first
}

// serve removes a request that has its place from its line, and wakes the next, since there
// may be more than one place. The request stays in its tenant's account until finish.
func (t *lines) serve(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.line.queue.serve(w)
	t.shrink(w.line)
}

// remove removes a request without a place from its line, if it is still there.
func (t *lines) remove(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.line == nil || !w.line.queue.remove(w) {
		return
	}
	t.shrink(w.line)
	t.forget(w)
}

// shrink wakes the next of a line that one has left. The lock is held.
func (t *lines) shrink(l *line) {
	if t.waiting.Add(-1); l.queue.len() == 0 {
		t.polling--
	}
	l.wakeFirst()
}

// finish ends a request that has waited in a line and was served.
func (t *lines) finish(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.line.queue.finish(w.account)
	t.forget(w)
}

// forget detaches a request from its line, and drops the line with its last one. The lock is
// held.
func (t *lines) forget(w *waiter) {
	l := w.line
	if w.line = nil; l.requests > 1 {
		l.requests--
		return
	}
	delete(t.byCounter, l.counter)
}

// wakeFirst wakes the first in line.
func (l *line) wakeFirst() {
	if w := l.queue.peek(); w != nil {
		w.wake()
	}
}

// wakeReleased wakes the first in line at each counter of a grant whose places were
// released.
func (t *lines) wakeReleased(grant *limit.Grant) {
	if t.waiting.Load() == 0 {
		return
	}
	counters := grant.Counters()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, counter := range counters {
		if l := t.byCounter[counter]; l != nil {
			l.wakeFirst()
		}
	}
}

// pollInterval returns the time after which the first in line asks again by itself, where
// its last rejection expects a place after expected.
func (t *lines) pollInterval(rejection *limit.Rejection, expected time.Duration) time.Duration {
	if !rejection.Shared {
		return localPoll
	}
	t.mu.Lock()
	asking := t.polling
	t.mu.Unlock()
	return jitter(max(min(expected/4, maxPoll), minPoll, time.Duration(asking)*pollSpacing), 4)
}

// reserve asks the limits for a grant and sets it in the permit. A request that is over
// nothing but a concurrency limit waits for a place, where the rule lets it; the target that
// it returns is that after the wait.
func (c *Controller) reserve(ctx context.Context, q *queueing, d *Demand, p *Permit, now target) (target, error) {
	r := d.limitRequest(now)
	r.Behind = c.lines.occupied()
	grant, err := c.limits.Admit(ctx, r)
	if err == nil {
		p.grant = grant
		return now, nil
	}
	if rejection, ok := mayWait(err); ok {
		t := &limitWait{Controller: c, queue: q, demand: d, permit: p, target: now, rejection: rejection, start: time.Now(), id: d.Request.ID}
		t.renewID(rejection)
		return t.wait(ctx)
	}
	return now, err
}

// mayWait returns the rejection of a request that may wait for a place.
func mayWait(err error) (*limit.Rejection, bool) {
	var rejection *limit.Rejection
	return rejection, errors.As(err, &rejection) && rejection.Wait > 0
}

// limitWait is the wait of one request for a place under concurrency limits.
type limitWait struct {
	*Controller
	queue     *queueing
	demand    *Demand
	permit    *Permit
	target    target
	rejection *limit.Rejection // last rejection
	start     time.Time
	deadline  time.Time
	waiter    *waiter
	committed bool   // the caller has been told its level
	id        string // id under which the store is asked
	renewals  int    // ids that the store has forgotten
}

// renewID gives the request another id where the store has forgotten the one that was
// rejected. Asked for again, that one would run uncharged.
func (t *limitWait) renewID(rejection *limit.Rejection) {
	if !rejection.Forgotten {
		return
	}
	t.renewals++
	t.id = fmt.Sprintf("%s~%d", t.demand.Request.ID, t.renewals)
}

// wait waits until the permit has a grant, or returns the error for which it gets none.
func (t *limitWait) wait(ctx context.Context) (target, error) {
	n := t.demand.sequences(t.target.level)
	if !t.demand.Pool.reserveQueue(t.queue, n) {
		return t.target, t.refusal(t.rejection)
	}
	defer t.demand.Pool.releaseQueue(n)
	if !t.join(ctx) {
		return t.target, t.refusal(t.rejection)
	}
	t.limits.CountWait(t.rejection)
	defer func() { t.lines.remove(t.waiter) }()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	first := false
	for {
		first = t.lines.checkFirst(t.waiter, first)
		timer.Reset(t.untilNext(first))
		select {
		case <-ctx.Done():
			return t.target, ctx.Err()
		case <-t.waiter.ready:
		case <-timer.C:
			if !first && time.Now().Before(t.deadline) {
				continue
			}
		}
		expired := !time.Now().Before(t.deadline)
		if expired && !t.lines.checkFirst(t.waiter, first) {
			return t.target, t.refusal(t.rejection)
		}
		if done, err := t.retry(ctx, expired); done || err != nil {
			return t.target, err
		}
	}
}

// join adds the request to the line of the counter that rejected it; false where the wait
// would be too long. As many sequences as have places may wait for the next ones, whatever
// is expected: nobody knows when the others end.
func (t *limitWait) join(ctx context.Context) bool {
	t.waiter = newWaiter(t.queue, t.demand, t.target.level)
	t.waiter.ready = make(chan struct{}, 1)
	t.deadline = t.start.Add(min(t.rejection.Wait, t.queue.MaxWait))
	if end, ok := ctx.Deadline(); ok && end.Before(t.deadline) {
		t.deadline = end
	}
	ahead := t.lines.placesAhead(t.rejection.Counter, t.waiter)
	if ahead >= t.rejection.Limit && t.limits.PlaceWait(t.rejection, ahead) > time.Until(t.deadline) {
		return false
	}
	t.lines.join(t.rejection.Counter, t.queue, t.waiter)
	return true
}

// untilNext returns the time until the request looks again, and keeps the caller's stream
// alive.
func (t *limitWait) untilNext(first bool) time.Duration {
	next := time.Until(t.deadline)
	if first {
		next = min(next, t.lines.pollInterval(t.rejection, t.limits.PlaceWait(t.rejection, 0)))
	}
	if t.permit.apply(t.target); t.demand.Caller != nil && t.target.pool != nil {
		t.permit.Headers = t.rejection.Headers
		alive, committed := t.demand.Caller.KeepAlive(t.permit)
		t.committed = t.committed || committed
		next = min(next, alive)
	}
	return max(next, 0)
}

// retry asks the limits again, for the first in line; done reports that the request has its
// place.
func (t *limitWait) retry(ctx context.Context, last bool) (done bool, err error) {
	if !t.committed {
		now := t.choose(t.queue, t.demand, &progress{})
		if err := now.refusal(); err != nil {
			return false, err
		}
		t.target = now.target
	}
	r := t.demand.limitRequest(t.target)
	r.ID, r.Waiting = t.id, true
	grant, err := t.limits.Admit(ctx, r)
	if err == nil {
		t.lines.serve(t.waiter)
		t.permit.grant, t.permit.line.waiter, t.permit.line.committed = grant, t.waiter, t.committed
		t.permit.LimitWait = time.Since(t.start)
		t.permit.Wait = t.permit.LimitWait
		return true, nil
	}
	rejection, ok := mayWait(err)
	switch {
	case ok:
	case errors.As(err, &rejection):
		return false, t.refusal(rejection)
	default:
		return false, err
	}
	t.renewID(rejection)
	moved := rejection.Counter != t.rejection.Counter
	t.rejection = rejection
	if last {
		return false, t.refusal(rejection)
	}
	if moved {
		t.lines.remove(t.waiter)
		if !t.join(ctx) {
			return false, t.refusal(rejection)
		}
		return false, nil
	}
	t.deadline = t.start.Add(min(rejection.Wait, t.queue.MaxWait)) // a reload may have changed it
	if end, ok := ctx.Deadline(); ok && end.Before(t.deadline) {
		t.deadline = end
	}
	return false, nil
}

// refusal returns the error of a request that has waited, or may not wait.
func (t *limitWait) refusal(rejection *limit.Rejection) error {
	if t.waiter == nil {
		t.waiter = newWaiter(t.queue, t.demand, t.target.level)
	}
	t.lines.remove(t.waiter) // it does not stand before itself
	var ahead int64
	if rejection.Wait > 0 {
		ahead = t.lines.placesAhead(rejection.Counter, t.waiter)
	}
	return t.limits.Reject(rejection, ahead, time.Since(t.start))
}
