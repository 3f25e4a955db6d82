package admission

import (
	"context"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// decideInterval is the time after which a waiting request is decided again by itself: the
// last reading of an engine's queue expires without notice.
const decideInterval = 250 * time.Millisecond

// placement finds one request a place in a pool, once the limits have let it in. One
// goroutine uses it.
type placement struct {
	*Controller
	queue  *queueing
	demand *Demand
	permit *Permit

	target    target           // latest target; its pool is nil where the answer is canned
	rejection *limit.Rejection // rejection that a rate rule replaces by the smaller model
	waiter    *waiter          // request in the queue, or with its place
	pool      *Pool            // pool where the request waits; nil where it does not
	start     time.Time        // start of the wait
	deadline  time.Time        // end of the wait
}

// progress returns the result of earlier decisions.
func (e *placement) progress() progress {
	return progress{target: e.target, waited: time.Since(e.start), rejection: e.rejection}
}

// acquire acquires a place for the request, or waits for one.
func (e *placement) acquire(ctx context.Context) error {
	e.start = time.Now()
	if e.permit.apply(e.target); e.target.pool == nil {
		return nil
	}
	e.waiter = newWaiter(e.queue, e.demand, e.target.level)
	e.waiter.committed = e.permit.line.committed
	if err := e.target.pool.checkBounds(e.waiter.sequences); err != nil {
		return err
	}
	if !e.target.pool.tryAcquire(e.queue, e.waiter) {
		err := e.await(ctx)
		e.permit.apply(e.target)
		if err != nil || e.target.pool == nil {
			return err
		}
	}
	e.permit.setPlace(e.waiter)
	if !e.waiter.committed {
		past := e.progress()
		s := situation{now: time.Now(), past: past, verdict: e.demand.Pool.level.Verdict()}
		raised := decideOnSeat(e.demand, &s, e.permit.seat.gauge.Verdict())
		if err := raised.refusal(); err != nil {
			e.permit.releaseAll()
			return err
		}
		e.permit.apply(raised.target)
	}
	e.permit.releaseExcess()
	return nil
}

// await waits in the fair queue for a place, and moves to where the request belongs when
// that changes: wake, snapshot, decide, act. The level does not fall meanwhile, since the
// limits have reserved for it.
func (e *placement) await(ctx context.Context) error {
	e.deadline = e.start.Add(e.queue.MaxWait - e.permit.Wait)
	if end, ok := ctx.Deadline(); ok && end.Before(e.deadline) {
		e.deadline = end
	}
	if predicted, ok := e.target.pool.enqueue(e.queue, e.waiter, time.Until(e.deadline)); !ok {
		return &Overloaded{ShedQueue, e.target.level, e.target.reason, predicted}
	}
	e.pool = e.target.pool
	defer func() {
		if e.pool != nil { // also if KeepAlive panics
			e.waiter.abandon(e.pool)
		}
		e.waiter.waited = time.Since(e.start)
	}()
	timer := time.NewTimer(decideInterval)
	defer timer.Stop()
	for {
		ownLevel, poolLevel := e.demand.Pool.level.Changed(), e.pool.level.Changed()
		past := e.progress()
		switch step, err := e.act(e.choose(e.queue, e.demand, &past)); {
		case err != nil || step == stepDone:
			return err
		case step == stepAgain:
			continue
		}
		timer.Reset(max(min(e.keepAlive(), decideInterval, time.Until(e.deadline)), 0))
		select {
		case <-e.waiter.ready:
			e.pool = nil
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-ownLevel:
		case <-poolLevel:
		case <-timer.C:
			if !time.Now().Before(e.deadline) {
				return &Overloaded{ShedWaited, e.target.level, e.target.reason, max(e.pool.predictedWait(e.waiter.tier, e.waiter.tenant, e.waiter.weight), time.Second)}
			}
		}
	}
}

// step is the next move of await after it has acted.
type step uint8

const (
	stepSleep step = iota // wait until something wakes it
	stepAgain             // decide anew at once
	stepDone              // end: there is a place, or none is needed
)

// act carries out a decision about a request that waits.
func (e *placement) act(decided decision) (step, error) {
	switch {
	case e.waiter.committed: // it must be answered as its caller was told
		if err := e.pool.checkFit(e.waiter.sequences); err != nil {
			return stepDone, err
		}
	case decided.kind == kindRefuse:
		return stepDone, decided.refusal()
	case decided.kind == kindCanned:
		e.target = decided.target
		return stepDone, nil
	case decided.kind == kindMove:
		if moved, err := e.move(decided.target); moved != stepSleep || err != nil {
			return moved, err
		}
	default:
		e.target = decided.target
	}
	e.pool.resize(e.waiter, e.demand.sequences(e.target.level))
	if err := e.pool.checkBounds(e.waiter.sequences); err != nil { // the bounds were lowered meanwhile
		return stepDone, err
	}
	e.pool.dispatch()
	return stepSleep, nil
}

// move brings the request to another pool, where it acquires a place or waits. It stays
// where it is if that has no room: here is better than nowhere.
func (e *placement) move(target target) (step, error) {
	level := max(e.target.level, min(target.level, degrade.ThinkingOff))
	fits := e.pool.checkFit(e.demand.sequences(level)) == nil
	w, ok := target.pool.transfer(e.queue, e.waiter, e.demand.sequences(target.level), time.Until(e.deadline), target.fromLoad() && fits)
	switch {
	case !ok && !fits:
		e.target = target
		return stepDone, &Overloaded{ShedQueue, target.level, target.reason, time.Second}
	case !ok:
		e.target.level, e.target.reason = level, target.reason
		return stepSleep, nil
	}
	e.waiter.abandon(e.pool)
	e.waiter, e.target, e.pool = w, target, target.pool
	if w.seat != nil {
		e.pool = nil
		return stepDone, nil
	}
	return stepAgain, nil
}

// keepAlive calls the caller, and returns when it wants to be called again.
func (e *placement) keepAlive() time.Duration {
	e.permit.apply(e.target)
	if e.demand.Caller == nil {
		return decideInterval
	}
	wanted, committed := e.demand.Caller.KeepAlive(e.permit)
	e.waiter.committed = e.waiter.committed || committed
	return wanted
}

// transfer acquires a place for a request that waits elsewhere and has so many sequences
// here, or lets it wait here unless it wants a place now. It returns false where it has
// neither, or the wait would be too long.
func (p *Pool) transfer(q *queueing, w *waiter, sequences int64, longest time.Duration, now bool) (*waiter, bool) {
	moved := &waiter{tier: w.tier, tenant: w.tenant, weight: w.weight, input: w.input, sequences: sequences}
	if p.tryAcquire(q, moved) || now {
		return moved, moved.seat != nil
	}
	_, ok := p.enqueue(q, moved, longest)
	return moved, ok
}

// abandon removes a request from the queue, or releases the place that came meanwhile.
func (w *waiter) abandon(p *Pool) {
	if !p.dequeue(w) {
		w.seat.release(w.sequences)
		p.finish(w.account)
	}
	p.dispatch() // it may have stood before one that needs fewer places
}
