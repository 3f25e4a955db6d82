package admission

import (
	"context"
	"time"

	"tidegate/degrade"
)

// lookEvery is how often who waits looks for itself whether there is room here or
// elsewhere: what an engine said of its queue grows old without anybody saying so.
const lookEvery = 250 * time.Millisecond

// await waits in the fair queue for a place, and moves to where the request belongs
// when that changes. The level does not fall meanwhile: the limits have reserved for
// it. The waiter that is returned is the one that has the place.
func (p *Permit) await(ctx context.Context, w *waiter, q *queueing, d *Demand, c choice) (*waiter, choice, error) {
	began := time.Now()
	until := began.Add(q.MaxWait - p.Waited)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	if predicted, ok := c.pool.wait(q, w, time.Until(until)); !ok {
		return w, c, &Overloaded{ShedQueue, c.level, c.reason, predicted}
	}
	in := c.pool // where w waits; nil: nowhere any more
	defer func() {
		if in != nil { // also if Waits panics
			w.give(in)
		}
	}()
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		own, there := d.Pool.level.Changed(), in.level.Changed()
		switch now, err := d.choose(q, c, time.Since(began)); {
		case w.told:
			if err := in.fits(w.sequences); err != nil {
				return w, c, err
			}
		case err != nil:
			return w, c, err
		case now.pool == in:
			c = now
		case now.pool == nil:
			return w, now, nil
		default:
			here := max(c.level, min(now.level, degrade.ThinkingOff))
			stays := in.fits(d.sequences(here)) == nil
			next, ok := now.pool.move(q, w, d.sequences(now.level), time.Until(until), now.ofLoad() && stays)
			if !ok && !stays {
				return w, now, &Overloaded{ShedQueue, now.level, now.reason, time.Second}
			}
			if !ok { // here is better than nowhere
				c.level, c.reason = here, now.reason
				break
			}
			w.give(in)
			w, c, in = next, now, now.pool
			if w.backend != nil {
				in, w.waited = nil, time.Since(began)
				return w, c, nil
			}
			continue
		}
		in.resize(w, d.sequences(c.level))
		if err := in.ever(w.sequences); err != nil { // the bounds were lowered meanwhile
			return w, c, err
		}
		in.dispatch()
		p.stand(c)
		next := lookEvery
		if d.Caller != nil {
			var told bool
			next, told = d.Caller.Waits(p)
			w.told = w.told || told
		}
		timer.Reset(max(min(next, lookEvery, time.Until(until)), 0))
		select {
		case <-w.ready:
			in, w.waited = nil, time.Since(began)
			return w, c, nil
		case <-ctx.Done():
			return w, c, ctx.Err()
		case <-own:
		case <-there:
		case <-timer.C:
			if !time.Now().Before(until) {
				return w, c, &Overloaded{ShedWaited, c.level, c.reason, max(in.wouldWait(w.tier, w.tenant, w.weight), time.Second)}
			}
		}
	}
}

// move takes a place for a request that waits elsewhere and has so many sequences here,
// or lets it wait here, unless it wants a place now; false: it has neither, or would
// wait for too long.
func (p *Pool) move(q *queueing, w *waiter, sequences int64, most time.Duration, now bool) (*waiter, bool) {
	next := &waiter{tier: w.tier, tenant: w.tenant, weight: w.weight, input: w.input, sequences: sequences}
	if p.take(q, next) || now {
		return next, next.backend != nil
	}
	_, ok := p.wait(q, next, most)
	return next, ok
}

// give gives back a place in the queue, or one on a backend that came meanwhile.
func (w *waiter) give(p *Pool) {
	if !p.leave(w) {
		w.backend.leave(w.sequences)
		p.done(w.account)
	}
	p.dispatch() // it may have stood before one that needs fewer places
}
