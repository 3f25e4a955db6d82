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
	leastPoll = 25 * time.Millisecond
	mostPoll  = 250 * time.Millisecond
	// pollSpacing is the time between two questions of all who ask: with many lines each
	// asks less often.
	pollSpacing = time.Millisecond
	// alonePoll is how often it asks a store of its own, where only the clock and
	// another level or configuration change anything unnoticed.
	alonePoll = time.Second
)

// lines are the requests that wait for a place under a concurrency limit, in one line
// for each counter. Lines are fair queues: tiers go one before the other, and inside a
// tier the tenant goes first that has had least while there was a line. The zero value
// is empty; it is safe for concurrent use.
type lines struct {
	waiting atomic.Int64 // requests, of all lines

	mu        sync.Mutex
	byCounter map[string]*line // where somebody waits, or runs after that
	asking    int              // of these lines, where somebody waits
}

// line is those who wait for a place of one counter.
type line struct {
	counter  string
	queue    *fairQueue
	requests int // that wait, or run after they have
}

// behind returns what says whether others wait at a counter; nil: nobody waits.
func (t *lines) behind() func(counter string) bool {
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
func (t *lines) ahead(counter string, w *waiter) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byCounter[counter]
	if l == nil || l.queue.len() == 0 {
		return 0
	}
	n, all := int64(l.queue.ahead(w.tier, w.tenant, w.weight)), int64(l.queue.len())
	return (n*l.queue.sequences() + all - 1) / all
}

// standsBefore returns how many places the requests need that wait at a counter.
func (t *lines) standsBefore(counter string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byCounter[counter]; l != nil {
		return l.queue.sequences()
	}
	return 0
}

// enter puts a request into the line of a counter. If it is the first it is woken: the
// place that it was refused may have become free before it stood there.
func (t *lines) enter(counter string, q *queueing, w *waiter) {
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
		t.asking++
	}
	l.queue.push(w)
	l.requests++
	w.line, w.since = l, time.Now()
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
func (t *lines) first(w *waiter, was bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := w.line.queue.peek() == w
	if was && !first {
		w.line.wakeFirst()
	}
	return first
}

// pass lets a request out of its line that has its place, and wakes the next, since
// there may be more than one. The request is in its tenant's account until done.
func (t *lines) pass(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.line.queue.take(w)
	t.left(w.line)
}

// leave lets a request out of its line that has no place, if it is still there.
func (t *lines) leave(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.line == nil || !w.line.queue.remove(w) {
		return
	}
	t.left(w.line)
	t.drop(w)
}

// left wakes the next of a line that one has left. The lock is held.
func (t *lines) left(l *line) {
	if t.waiting.Add(-1); l.queue.len() == 0 {
		t.asking--
	}
	l.wakeFirst()
}

// done forgets a request that has waited and has ended.
func (t *lines) done(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.line.queue.done(w.account)
	t.drop(w)
}

// drop forgets a line with its last request. The lock is held.
func (t *lines) drop(w *waiter) {
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
func (t *lines) freed(grant *limit.Grant) {
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
func (t *lines) poll(denied *limit.Denied, expected time.Duration) time.Duration {
	if !denied.Shared {
		return alonePoll
	}
	t.mu.Lock()
	asking := t.asking
	t.mu.Unlock()
	return jitter(max(min(expected/4, mostPoll), leastPoll, time.Duration(asking)*pollSpacing), 4)
}

// reserve asks the limits for a grant. A request that is over nothing but a concurrency
// limit waits for a place, where the rule lets it; its level is then what it is after
// that.
func (c *Controller) reserve(ctx context.Context, q *queueing, d *Demand, p *Permit, now choice) (choice, error) {
	r := d.at(now)
	r.Behind = c.lines.behind()
	grant, err := c.limits.Admit(ctx, r)
	if err == nil {
		p.grant = grant
		return now, nil
	}
	if denied, ok := mayWait(err); ok {
		t := &placeWait{Controller: c, q: q, d: d, p: p, now: now, denied: denied, began: time.Now(), id: d.Request.ID}
		t.renew(denied)
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
type placeWait struct {
	*Controller
	q      *queueing
	d      *Demand
	p      *Permit
	now    choice
	denied *limit.Denied // the last refusal
	began  time.Time
	until  time.Time
	w      *waiter
	told   bool   // its caller knows at which level it is answered
	id     string // with which the store is asked
	ids    int    // that the store has forgotten
}

// renew gives the request another id where the store has forgotten the one with which it
// was refused. One that is asked for again after that would run without being charged.
func (t *placeWait) renew(denied *limit.Denied) {
	if !denied.Forgotten {
		return
	}
	t.ids++
	t.id = fmt.Sprintf("%s~%d", t.d.Request.ID, t.ids)
}

// wait waits until the permit has a grant, or returns why it gets none.
func (t *placeWait) wait(ctx context.Context) (choice, error) {
	n := t.d.sequences(t.now.level)
	if !t.d.Pool.hold(t.q, n) {
		return t.now, t.refuse(t.denied)
	}
	defer t.d.Pool.unhold(n)
	if !t.enter(ctx) {
		return t.now, t.refuse(t.denied)
	}
	t.limits.Waits(t.denied)
	defer func() { t.lines.leave(t.w) }()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	first := false
	for {
		first = t.lines.first(t.w, first)
		timer.Reset(t.next(first))
		select {
		case <-ctx.Done():
			return t.now, ctx.Err()
		case <-t.w.ready:
		case <-timer.C:
			if !first && time.Now().Before(t.until) {
				continue
			}
		}
		over := !time.Now().Before(t.until)
		if over && !t.lines.first(t.w, first) {
			return t.now, t.refuse(t.denied)
		}
		if done, err := t.ask(ctx, over); done || err != nil {
			return t.now, err
		}
	}
}

// enter puts the request into the line of the counter that refused it; false: it would
// wait for too long. As many sequences as have places may wait for the next ones, whatever
// is expected: nobody knows when the others leave.
func (t *placeWait) enter(ctx context.Context) bool {
	t.w = newWaiter(t.q, t.d, t.now.level)
	t.w.ready = make(chan struct{}, 1)
	t.until = t.began.Add(min(t.denied.Wait, t.q.MaxWait))
	if end, ok := ctx.Deadline(); ok && end.Before(t.until) {
		t.until = end
	}
	ahead := t.lines.ahead(t.denied.Counter, t.w)
	if ahead >= t.denied.Limit && t.limits.PlaceIn(t.denied, ahead) > time.Until(t.until) {
		return false
	}
	t.lines.enter(t.denied.Counter, t.q, t.w)
	return true
}

// next returns how long to wait before looking again, and keeps the caller's stream
// alive meanwhile.
func (t *placeWait) next(first bool) time.Duration {
	next := time.Until(t.until)
	if first {
		next = min(next, t.lines.poll(t.denied, t.limits.PlaceIn(t.denied, 0)))
	}
	if t.p.set(t.now); t.d.Caller != nil && t.now.pool != nil {
		t.p.Headers = t.denied.Headers
		alive, told := t.d.Caller.KeepAlive(t.p)
		t.told = t.told || told
		next = min(next, alive)
	}
	return max(next, 0)
}

// ask asks the limits again, for the first in line; done: the request has its place.
func (t *placeWait) ask(ctx context.Context, last bool) (done bool, err error) {
	if !t.told {
		now := t.choose(t.q, t.d, &progress{})
		if err := now.refusal(); err != nil {
			return false, err
		}
		t.now = now.choice
	}
	r := t.d.at(t.now)
	r.ID, r.Waiting = t.id, true
	grant, err := t.limits.Admit(ctx, r)
	if err == nil {
		t.lines.pass(t.w)
		t.p.grant, t.p.turn, t.p.told = grant, t.w, t.told
		t.p.LimitWait = time.Since(t.began)
		t.p.Wait = t.p.LimitWait
		return true, nil
	}
	denied, ok := mayWait(err)
	switch {
	case ok:
	case errors.As(err, &denied):
		return false, t.refuse(denied)
	default:
		return false, err
	}
	t.renew(denied)
	other := denied.Counter != t.denied.Counter
	t.denied = denied
	if last {
		return false, t.refuse(denied)
	}
	if other {
		t.lines.leave(t.w)
		if !t.enter(ctx) {
			return false, t.refuse(denied)
		}
		return false, nil
	}
	t.until = t.began.Add(min(denied.Wait, t.q.MaxWait)) // a reload may have changed it
	if end, ok := ctx.Deadline(); ok && end.Before(t.until) {
		t.until = end
	}
	return false, nil
}

// refuse makes the refusal of a request that has waited, or may not wait.
func (t *placeWait) refuse(denied *limit.Denied) error {
	if t.w == nil {
		t.w = newWaiter(t.q, t.d, t.now.level)
	}
	t.lines.leave(t.w) // it does not stand before itself
	var ahead int64
	if denied.Wait > 0 {
		ahead = t.lines.ahead(denied.Counter, t.w)
	}
	return t.limits.Refuse(denied, ahead, time.Since(t.began))
}
