package admission

import (
	"context"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// lookEvery is the time after which a request that waits decides again by itself: what an
// engine said of its queue grows old without anybody saying so.
const lookEvery = 250 * time.Millisecond

// entry is the way of one request into a pool, once the limits have let it in. One
// goroutine uses it.
type entry struct {
	*Controller
	q *queueing
	d *Demand
	p *Permit

	now      choice        // what was decided last; pool nil: the answer is canned
	denied   *limit.Denied // rate rule that asks for the smaller model
	w        *waiter       // that has the place in the end
	in       *Pool         // where w waits; nil: nowhere
	began    time.Time     // of the wait
	deadline time.Time     // of the wait
}

// progress returns what was decided before.
func (e *entry) progress() progress {
	return progress{floor: e.now, waited: time.Since(e.began), denied: e.denied}
}

// enter takes a place for the request, or waits for one.
func (e *entry) enter(ctx context.Context) error {
	e.began = time.Now()
	if e.p.set(e.now); e.now.pool == nil {
		return nil
	}
	e.w = newWaiter(e.q, e.d, e.now.level)
	e.w.told = e.p.told
	if err := e.now.pool.ever(e.w.sequences); err != nil {
		return err
	}
	if !e.now.pool.take(e.q, e.w) {
		err := e.await(ctx)
		e.p.set(e.now)
		if err != nil || e.now.pool == nil {
			return err
		}
	}
	e.p.occupy(e.w)
	if !e.w.told {
		past := e.progress()
		s := situation{now: time.Now(), past: past, verdict: e.d.Pool.level.Verdict()}
		raised := decideOnSeat(e.d, &s, e.p.seat.gauge.Verdict())
		if err := raised.refusal(); err != nil {
			e.p.leave()
			return err
		}
		e.p.set(raised.choice)
	}
	e.p.shrink()
	return nil
}

// await waits in the fair queue for a place, and moves to where the request belongs when
// that changes: wake, snapshot, decide, act. The level does not fall meanwhile, since the
// limits have reserved for it.
func (e *entry) await(ctx context.Context) error {
	e.deadline = e.began.Add(e.q.MaxWait - e.p.Wait)
	if end, ok := ctx.Deadline(); ok && end.Before(e.deadline) {
		e.deadline = end
	}
	if predicted, ok := e.now.pool.wait(e.q, e.w, time.Until(e.deadline)); !ok {
		return &Overloaded{ShedQueue, e.now.level, e.now.reason, predicted}
	}
	e.in = e.now.pool
	defer func() {
		if e.in != nil { // also if KeepAlive panics
			e.w.give(e.in)
		}
		e.w.waited = time.Since(e.began)
	}()
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		own, there := e.d.Pool.level.Changed(), e.in.level.Changed()
		past := e.progress()
		switch act, err := e.act(e.choose(e.q, e.d, &past)); {
		case err != nil || act == leaves:
			return err
		case act == again:
			continue
		}
		timer.Reset(max(min(e.keepAlive(), lookEvery, time.Until(e.deadline)), 0))
		select {
		case <-e.w.ready:
			e.in = nil
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-own:
		case <-there:
		case <-timer.C:
			if !time.Now().Before(e.deadline) {
				return &Overloaded{ShedWaited, e.now.level, e.now.reason, max(e.in.wouldWait(e.w.tier, e.w.tenant, e.w.weight), time.Second)}
			}
		}
	}
}

// next is what await does after it has acted.
type next uint8

const (
	sleeps next = iota // until something wakes it
	again              // decides anew at once
	leaves             // ends: there is a place, or none is needed
)

// act does what was decided about a request that waits.
func (e *entry) act(do decision) (next, error) {
	switch {
	case e.w.told: // it must be answered as its caller was told
		if err := e.in.fits(e.w.sequences); err != nil {
			return leaves, err
		}
	case do.kind == kindRefuse:
		return leaves, do.refusal()
	case do.kind == kindCanned:
		e.now = do.choice
		return leaves, nil
	case do.kind == kindMove:
		if moved, err := e.move(do.choice); moved != sleeps || err != nil {
			return moved, err
		}
	default:
		e.now = do.choice
	}
	e.in.resize(e.w, e.d.sequences(e.now.level))
	if err := e.in.ever(e.w.sequences); err != nil { // the bounds were lowered meanwhile
		return leaves, err
	}
	e.in.dispatch()
	return sleeps, nil
}

// move brings the request to another pool, where it takes a place or waits; it stays where
// it is if that has no room, since here is better than nowhere.
func (e *entry) move(to choice) (next, error) {
	here := max(e.now.level, min(to.level, degrade.ThinkingOff))
	stays := e.in.fits(e.d.sequences(here)) == nil
	w, ok := to.pool.move(e.q, e.w, e.d.sequences(to.level), time.Until(e.deadline), to.fromLoad() && stays)
	switch {
	case !ok && !stays:
		e.now = to
		return leaves, &Overloaded{ShedQueue, to.level, to.reason, time.Second}
	case !ok:
		e.now.level, e.now.reason = here, to.reason
		return sleeps, nil
	}
	e.w.give(e.in)
	e.w, e.now, e.in = w, to, to.pool
	if w.seat != nil {
		e.in = nil
		return leaves, nil
	}
	return again, nil
}

// keepAlive lets the caller be told where its request stands, and returns when it wants to
// be told again.
func (e *entry) keepAlive() time.Duration {
	e.p.set(e.now)
	if e.d.Caller == nil {
		return lookEvery
	}
	wanted, told := e.d.Caller.KeepAlive(e.p)
	e.w.told = e.w.told || told
	return wanted
}

// move takes a place for a request that waits elsewhere and has so many sequences here,
// or lets it wait here, unless it wants a place now; false: it has neither, or would
// wait for too long.
func (p *Pool) move(q *queueing, w *waiter, sequences int64, longest time.Duration, now bool) (*waiter, bool) {
	here := &waiter{tier: w.tier, tenant: w.tenant, weight: w.weight, input: w.input, sequences: sequences}
	if p.take(q, here) || now {
		return here, here.seat != nil
	}
	_, ok := p.wait(q, here, longest)
	return here, ok
}

// give gives back a place in the queue, or one on a backend that came meanwhile.
func (w *waiter) give(p *Pool) {
	if !p.leave(w) {
		w.seat.leave(w.sequences)
		p.done(w.account)
	}
	p.dispatch() // it may have stood before one that needs fewer places
}
