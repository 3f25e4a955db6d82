package admission

import (
	"context"
	"time"
)

// lookEvery is how often who waits looks for itself whether there is room here or
// elsewhere: what an engine said of its queue grows old without anybody saying so.
const lookEvery = 250 * time.Millisecond

// await waits in the fair queue for a place, and moves to where the request belongs
// when the ladder moves. The level does not fall meanwhile: the limits have reserved
// for it.
func (p *Permit) await(ctx context.Context, w *waiter, q *queueing, d *Demand, c choice) (choice, error) {
	began := time.Now()
	until := began.Add(q.MaxWait)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	predicted, ok := c.pool.wait(q, w, time.Until(until))
	if !ok {
		return c, &Overloaded{ShedQueue, c.level, c.reason, predicted}
	}
	placed := false
	defer func() {
		if !placed { // also if Waits panics
			w.give(c.pool)
		}
	}()
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		own, there := d.Pool.level.Changed(), c.pool.level.Changed()
		if !w.told {
			now, err := d.choose(q, c, time.Since(began))
			if err != nil {
				return c, err
			}
			if now.pool != c.pool {
				w.give(c.pool)
				if c = now; c.pool == nil {
					placed = true
					return c, nil
				}
				if predicted, ok = c.pool.wait(q, w, time.Until(until)); !ok {
					placed = true
					return c, &Overloaded{ShedQueue, c.level, c.reason, predicted}
				}
				continue
			}
			c = now
		}
		c.pool.dispatch()
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
			placed, w.waited = true, time.Since(began)
			return c, nil
		case <-ctx.Done():
			return c, ctx.Err()
		case <-own:
		case <-there:
		case <-timer.C:
			if !time.Now().Before(until) {
				return c, &Overloaded{ShedWaited, c.level, c.reason, max(c.pool.predicted(w), time.Second)}
			}
		}
	}
}

// give gives back a place in the queue, or one on a backend that came meanwhile, so
// that w may wait elsewhere.
func (w *waiter) give(p *Pool) {
	if !p.leave(w) {
		w.backend.leave()
		p.done(w.account)
		p.dispatch()
	}
	w.backend, w.account = nil, nil
}
