package admission

import (
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// Permit is a place on a backend, or, at L4, the right to a canned answer. One
// goroutine may use it.
type Permit struct {
	Level         degrade.Level
	Reason        string        // reason of the level; empty at L0
	Headers       limit.Headers // what the limits leave the caller
	Wait          time.Duration // time spent waiting for places, in total
	LimitWait     time.Duration // part of Wait that was for a place under a concurrency limit
	Arrival       time.Time     // time of arrival at the pool that answers; zero at L4
	ReservedLevel degrade.Level // level for which the limits reserved; Level may be higher
	RetryAfter    time.Duration // time for which Level lasts, at the least

	grant  *limit.Grant
	pool   *Pool
	seat   *Seat
	failed *Seat

	lines      *lines
	lineWaiter *waiter // place in the line of a concurrency limit; nil where it did not wait in one
	committed  bool    // its caller was told the level while it waited there
	demand     *Demand
	sequences  int64         // places acquired on the backend
	sent       int64         // sequences that are sent at Level
	account    *account      // account in the fair queue
	output     int64         // tokens charged to account
	shareStart time.Duration // integral of the backend's share when the place was acquired
	gpu        time.Duration // GPU time on backends whose place was released
}

// Pool returns the pool of the model that answers; nil where the answer is canned.
func (p *Permit) Pool() *Pool { return p.pool }

// Seat returns the seat of the backend to use; nil at L4.
func (p *Permit) Seat() *Seat { return p.seat }

// setPlace sets the place that a request has acquired.
func (p *Permit) setPlace(w *waiter) {
	p.seat, p.account, p.shareStart, p.Arrival = w.seat, w.account, w.shareStart, w.arrival
	p.Wait += w.waited
	p.sequences = w.sequences
}

// releaseExcess releases the places that were acquired for a lower level and are not needed
// at this one: the level rose meanwhile, or that of the backend is higher.
func (p *Permit) releaseExcess() {
	extra := p.sequences - p.sent
	if extra <= 0 {
		return
	}
	now := p.seat.release(extra)
	p.gpu += (now - p.shareStart) * time.Duration(p.sequences)
	p.shareStart, p.sequences = now, p.sent
	p.pool.dispatch()
}

// apply sets the level and the pool.
func (p *Permit) apply(c choice) {
	p.sent = p.demand.sequences(c.level)
	p.pool, p.Level, p.Reason = c.pool, c.level, ""
	if c.level > degrade.Full {
		p.Reason = c.reason
	}
	p.RetryAfter = jitter(c.retryAfter(time.Now()), 10)
}

// SwitchBackend releases the place after an attempt failed and acquires one on another
// backend, whether that has room or not; false where there is none.
func (p *Permit) SwitchBackend() bool {
	p.release()
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	b := p.pool.pick(p.failed, 0)
	if b == nil {
		return false
	}
	p.seat, p.shareStart = b, b.acquire(p.sequences)
	return true
}

// CanSwitchBackend reports whether SwitchBackend would find a backend.
func (p *Permit) CanSwitchBackend() bool { return p.pool.hasAlternative(p.seat, p.sequences) }

// CanFallBack reports whether FallBack would find a place now.
func (c *Controller) CanFallBack(p *Permit, d *Demand) bool {
	if p.pool != d.Pool || d.MaxLevel < degrade.SmallerModel {
		return false
	}
	smaller := d.fallback()
	return smaller.usable() && !smaller.full
}

// FallBack releases the place and acquires a free one on the backends of a smaller model,
// after those of the model that was asked for failed. The permit is at L3 then. It returns
// false where the caller accepts no such answer or there is no place; the permit is then as
// it was, or without a place, and is to be settled.
func (c *Controller) FallBack(p *Permit, d *Demand) bool {
	if p.pool != d.Pool || d.MaxLevel < degrade.SmallerModel {
		return false
	}
	smaller := d.fallback()
	if !smaller.usable() {
		return false
	}
	target := smaller.pool
	q := c.queue.Load()
	w := newWaiter(q, d, degrade.SmallerModel)
	if !target.tryAcquire(q, w) {
		return false
	}
	p.releaseAll()
	p.pool, p.seat, p.account, p.shareStart, p.failed = target, w.seat, w.account, w.shareStart, nil
	p.sequences, p.output = w.sequences, 0 // the new account has been charged nothing yet
	if p.Level < degrade.SmallerModel {
		p.Level, p.Reason = degrade.SmallerModel, reasonDown
	}
	p.sent = d.sequences(p.Level)
	return true
}

// RecordUsage records what a request under way has used so far, so that a gateway that dies
// loses little of it.
func (p *Permit) RecordUsage(u limit.Usage) { p.grant.Progress(u) }

// SetOutput sets the tokens that the answer has so far, so that the fair queue charges the
// tenant while they come.
func (p *Permit) SetOutput(output int64) {
	if p.account == nil || output <= p.output {
		return
	}
	p.account.output(output - p.output)
	if p.lineWaiter != nil {
		p.lineWaiter.account.output(output - p.output)
	}
	p.output = output
}

// Settle releases the place and charges what was used; a request that failed before its
// first token has used nothing but itself. served is the model that answered. A second call
// does nothing. An error means that the limits' store did not accept it and is asked again
// later.
func (p *Permit) Settle(u limit.Usage, served string) error {
	p.SetOutput(u.Output)
	p.releaseAll()
	if u.Sequences == 0 {
		u.Sequences = p.sent
	}
	err := p.grant.Settle(u, served)
	p.wakeNext()
	return err
}

// cancel cancels what the limits granted to a request that is refused all the same.
func (p *Permit) cancel() {
	// What the store does not take back now is tried again by the limits' own loop.
	_ = p.grant.Cancel()
	p.wakeNext()
}

// wakeNext wakes those who wait for the places that the limits have got back.
func (p *Permit) wakeNext() {
	if p.lineWaiter != nil {
		p.lines.finish(p.lineWaiter)
		p.lineWaiter = nil
	}
	p.lines.wakeReleased(p.grant)
}

// release releases the place on the backend.
func (p *Permit) release() {
	if p.seat == nil {
		return
	}
	p.gpu += (p.seat.release(p.sequences) - p.shareStart) * time.Duration(p.sequences)
	p.failed, p.seat = p.seat, nil
	p.pool.dispatch()
}

// releaseAll releases all that the request has of its pool.
func (p *Permit) releaseAll() {
	p.release()
	if p.account != nil {
		p.pool.finish(p.account)
		p.account = nil
	}
}

// GPU returns the GPU time of the request on all its backends so far; it is final after
// Settle, and 0 where the backends do not report their GPUs.
func (p *Permit) GPU() time.Duration {
	if p.seat == nil {
		return p.gpu
	}
	return p.gpu + (p.seat.share.change(0, time.Now())-p.shareStart)*time.Duration(p.sequences)
}
