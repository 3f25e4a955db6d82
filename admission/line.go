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
	// leastPoll and mostPoll are how often the first in line asks a store that other
	// gateways share whether a place has become free there.
	minPoll = 25 * time.Millisecond
	maxPoll = 250 * time.Millisecond
	// pollSpacing is the time between two questions of all who ask: with many lines each
	// asks less often.
	pollSpacing = time.Millisecond
	// alonePoll is how often it asks a store of its own, where only the clock and
	// another level or configuration change anything unnoticed.
	localPoll = time.Second
)

// lines are the requests that wait for a place under a concurrency limit, in one line
// for each counter. Lines are fair queues: tiers go one before the other, and inside a
// tier the tenant goes first that has had least while there was a line. The zero value
// is empty; it is safe for concurrent use.
type lines struct {
	waiting atomic.Int64 // requests, of all lines

	mu        sync.Mutex
	byCounter map[string]*line // where somebody waits, or runs after that
	polling   int              // of these lines, where somebody waits
}

// line is those who wait for a place of one counter.
type line struct {
	counter  string
	queue    *fairQueue
	requests int // that wait, or run after they have
}

// behind returns what says whether others wait at a counter; nil: nobody waits.
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

// ahead returns about how many places the requests need that go before a new one at a
// counter: each as many as all that wait there need on average.
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

// standsBefore returns how many places the requests need that wait at a counter.
func (t *lines) placesQueued(counter string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byCounter[counter]; l != nil {
		return l.queue.sequences()
	}
	return 0
}

// enter puts a request into the line of a counter. If it is the first it is woken: the
// place that it was refused may have become free before it stood there.
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

// wake lets a waiting request ask again.
func (w *waiter) wake() {
	select {
	case w.ready <- struct{}{}:
	default: // it is about to
	}
}

// first reports whether a request is the first of its line. Who was it, and is not any
// more, wakes who now is, since the first alone asks: as tenants use what they have, the
// order changes without anybody coming or going.
func (t *lines) checkFirst(w *waiter, wasFirst bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := w.line.queue.peek() == w
	if wasFirst && !first {
		w.line.wakeFirst()
	}
	return first
}

// pass lets a request out of its line that has its place, and wakes the next, since
// there may be more than one. The request is in its tenant's account until done.
func (t *lines) serve(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.line.queue.serve(w)
	t.shrink(w.line)
}

// leave lets a request out of its line that has no place, if it is still there.
func (t *lines) remove(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.line == nil || !w.line.queue.remove(w) {
		return
	}
	t.shrink(w.line)
	t.forget(w)
}

// left wakes the next of a line that one has left. The lock is held.
func (t *lines) shrink(l *line) {
	if t.waiting.Add(-1); l.queue.len() == 0 {
		t.polling--
	}
	l.wakeFirst()
}

// done forgets a request that has waited and has ended.
func (t *lines) finish(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.line.queue.finish(w.account)
	t.forget(w)
}

// drop forgets a line with its last request. The lock is held.
func (t *lines) forget(w *waiter) {
	l := w.line
	if w.line = nil; l.requests > 1 {
		l.requests--
		return
	}
	delete(t.byCounter, l.counter)
}

func (l *line) wakeFirst() {
	if w := l.queue.peek(); w != nil {
		w.wake()
	}
}

// freed wakes the first in line at each of the counters: places have been given back.
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

// poll returns when the first in line asks again by itself, after a refusal that
// expects a place after so long.
func (t *lines) pollInterval(denied *limit.Denied, expected time.Duration) time.Duration {
	if !denied.Shared {
		return localPoll
	}
	t.mu.Lock()
	asking := t.polling
	t.mu.Unlock()
	return jitter(max(min(expected/4, maxPoll), minPoll, time.Duration(asking)*pollSpacing), 4)
}

// reserve asks the limits for a grant. A request that is over nothing but a concurrency
// limit waits for a place, where the rule lets it; its level is then what it is after
// that.
func (c *Controller) reserve(ctx context.Context, q *queueing, d *Demand, p *Permit, now choice) (choice, error) {
	r := d.limitRequest(now)
	r.Behind = c.lines.occupied()
	grant, err := c.limits.Admit(ctx, r)
	if err == nil {
		p.grant = grant
		return now, nil
	}
	if denied, ok := mayWait(err); ok {
		t := &limitWait{Controller: c, queue: q, demand: d, permit: p, choice: now, denied: denied, start: time.Now(), id: d.Request.ID}
		t.renewID(denied)
		return t.wait(ctx)
	}
	return now, err
}

// mayWait returns the refusal of a request that may wait for a place.
func mayWait(err error) (*limit.Denied, bool) {
	var denied *limit.Denied
	return denied, errors.As(err, &denied) && denied.Wait > 0
}

// placeWait is the wait of one request for a place under concurrency limits.
type limitWait struct {
	*Controller
	queue     *queueing
	demand    *Demand
	permit    *Permit
	choice    choice
	denied    *limit.Denied // the last refusal
	start     time.Time
	deadline  time.Time
	waiter    *waiter
	committed bool   // its caller knows at which level it is answered
	id        string // with which the store is asked
	renewals  int    // that the store has forgotten
}

// renew gives the request another id where the store has forgotten the one with which it
// was refused. One that is asked for again after that would run without being charged.
func (t *limitWait) renewID(denied *limit.Denied) {
	if !denied.Forgotten {
		return
	}
	t.renewals++
	t.id = fmt.Sprintf("%s~%d", t.demand.Request.ID, t.renewals)
}

// wait waits until the permit has a grant, or returns why it gets none.
func (t *limitWait) wait(ctx context.Context) (choice, error) {
	n := t.demand.sequences(t.choice.level)
	if !t.demand.Pool.reserveQueue(t.queue, n) {
		return t.choice, t.refusal(t.denied)
	}
	defer t.demand.Pool.releaseQueue(n)
	if !t.join(ctx) {
		return t.choice, t.refusal(t.denied)
	}
	t.limits.Waits(t.denied)
	defer func() { t.lines.remove(t.waiter) }()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	first := false
	for {
		first = t.lines.checkFirst(t.waiter, first)
		timer.Reset(t.untilNext(first))
		select {
		case <-ctx.Done():
			return t.choice, ctx.Err()
		case <-t.waiter.ready:
		case <-timer.C:
			if !first && time.Now().Before(t.deadline) {
				continue
			}
		}
		expired := !time.Now().Before(t.deadline)
		if expired && !t.lines.checkFirst(t.waiter, first) {
			return t.choice, t.refusal(t.denied)
		}
		if done, err := t.retry(ctx, expired); done || err != nil {
			return t.choice, err
		}
	}
}

// enter puts the request into the line of the counter that refused it; false: it would
// wait for too long. As many sequences as have places may wait for the next ones, whatever
// is expected: nobody knows when the others leave.
func (t *limitWait) join(ctx context.Context) bool {
	t.waiter = newWaiter(t.queue, t.demand, t.choice.level)
	t.waiter.ready = make(chan struct{}, 1)
	t.deadline = t.start.Add(min(t.denied.Wait, t.queue.MaxWait))
	if end, ok := ctx.Deadline(); ok && end.Before(t.deadline) {
		t.deadline = end
	}
	ahead := t.lines.placesAhead(t.denied.Counter, t.waiter)
	if ahead >= t.denied.Limit && t.limits.PlaceIn(t.denied, ahead) > time.Until(t.deadline) {
		return false
	}
	t.lines.join(t.denied.Counter, t.queue, t.waiter)
	return true
}

// next returns how long to wait before looking again, and keeps the caller's stream
// alive meanwhile.
func (t *limitWait) untilNext(first bool) time.Duration {
	next := time.Until(t.deadline)
	if first {
		next = min(next, t.lines.pollInterval(t.denied, t.limits.PlaceIn(t.denied, 0)))
	}
	if t.permit.apply(t.choice); t.demand.Caller != nil && t.choice.pool != nil {
		t.permit.Headers = t.denied.Headers
		alive, committed := t.demand.Caller.KeepAlive(t.permit)
		t.committed = t.committed || committed
		next = min(next, alive)
	}
	return max(next, 0)
}

// ask asks the limits again, for the first in line; done: the request has its place.
func (t *limitWait) retry(ctx context.Context, last bool) (done bool, err error) {
	if !t.committed {
		now := t.choose(t.queue, t.demand, &progress{})
		if err := now.refusal(); err != nil {
			return false, err
		}
		t.choice = now.choice
	}
	r := t.demand.limitRequest(t.choice)
	r.ID, r.Waiting = t.id, true
	grant, err := t.limits.Admit(ctx, r)
	if err == nil {
		t.lines.serve(t.waiter)
		t.permit.grant, t.permit.lineWaiter, t.permit.committed = grant, t.waiter, t.committed
		t.permit.LimitWait = time.Since(t.start)
		t.permit.Wait = t.permit.LimitWait
		return true, nil
	}
	denied, ok := mayWait(err)
	switch {
	case ok:
	case errors.As(err, &denied):
		return false, t.refusal(denied)
	default:
		return false, err
	}
	t.renewID(denied)
	moved := denied.Counter != t.denied.Counter
	t.denied = denied
	if last {
		return false, t.refusal(denied)
	}
	if moved {
		t.lines.remove(t.waiter)
		if !t.join(ctx) {
			return false, t.refusal(denied)
		}
		return false, nil
	}
	t.deadline = t.start.Add(min(denied.Wait, t.queue.MaxWait)) // a reload may have changed it
	if end, ok := ctx.Deadline(); ok && end.Before(t.deadline) {
		t.deadline = end
	}
	return false, nil
}

// refuse makes the refusal of a request that has waited, or may not wait.
func (t *limitWait) refusal(denied *limit.Denied) error {
	if t.waiter == nil {
		t.waiter = newWaiter(t.queue, t.demand, t.choice.level)
	}
	t.lines.remove(t.waiter) // it does not stand before itself
	var ahead int64
	if denied.Wait > 0 {
		ahead = t.lines.placesAhead(denied.Counter, t.waiter)
	}
	return t.limits.Refuse(denied, ahead, time.Since(t.start))
}
