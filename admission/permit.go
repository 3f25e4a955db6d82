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
	Reason        string        // why Level is not L0
	Headers       limit.Headers // what the limits leave the caller
	Wait          time.Duration // for its places, in all
	LimitWait     time.Duration // of Waited: for a place under a concurrency limit
	Arrival       time.Time     // when it came to the pool that answers; zero at L4
	ReservedLevel degrade.Level // at which the limits reserved for it: Level may be higher
	RetryAfter    time.Duration // how long Level stays, at least

	grant  *limit.Grant
	pool   *Pool
	seat   *Seat
	failed *Seat

	lines      *lines
	lineWaiter *waiter // in the line of a concurrency limit; nil: it did not wait in one
	committed  bool    // while it waited there its caller was told the level
	demand     *Demand
	sequences  int64         // places that it holds
	sent       int64         // sequences at Level, of which no more are sent
	account    *account      // of the fair queue
	output     int64         // that account has been charged
	shareStart time.Duration // the integral of the backend's share when the place was taken
	gpu        time.Duration // of GPUs' time, on backends whose place was given back
}

// Pool is that of the model that answers; nil: the answer is canned.
func (p *Permit) Pool() *Pool { return p.pool }

// Seat returns the seat of the backend to use; nil at L4.
func (p *Permit) Seat() *Seat { return p.seat }

// occupy takes over the place that a request got.
func (p *Permit) setPlace(w *waiter) {
	p.seat, p.account, p.shareStart, p.Arrival = w.seat, w.account, w.shareStart, w.arrival
	p.Wait += w.waited
	p.sequences = w.sequences
}

// shrink gives back the places that it took at a lower level and does not need at this
// one: the level rose meanwhile, or the backend that it got stands higher.
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

// set sets the level and the pool.
func (p *Permit) apply(c choice) {
	p.sent = p.demand.sequences(c.level)
	p.pool, p.Level, p.Reason = c.pool, c.level, ""
	if c.level > degrade.Full {
		p.Reason = c.reason
	}
	p.RetryAfter = jitter(c.retryAfter(time.Now()), 10)
}

// SwitchBackend releases the place and acquires one on another backend, after an attempt
// failed, whether that has room or not; false where there is none.
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

// FallBack gives the place back and takes one that is free on the backends of a smaller
// model, after those of the model that was asked for failed; the permit then stands at
// L3. False: the caller accepts no such answer, or there is no place. The permit then
// is as it was, or without a place, and is to be settled.
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

// RecordUsage records what a request that goes on has used so far, so that a gateway
// that dies loses little of it.
func (p *Permit) RecordUsage(u limit.Usage) { p.grant.Progress(u) }

// SetOutput sets how many tokens the answer has so far, so that the fair queue
// charges the tenant for them while they come.
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

// Settle gives the place back and charges what was used; a request that failed
// before its first token has used nothing but itself. served is the model that
// answered. A second call does nothing. The error says that the limits' store did
// not take it and will be asked again.
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

// cancel takes back what the limits granted to a request that is refused all the same.
func (p *Permit) cancel() {
	// What the store does not take back now is tried again by the limits' own loop.
	_ = p.grant.Cancel()
	p.wakeNext()
}

// pass hands on the places that the limits have got back.
func (p *Permit) wakeNext() {
	if p.lineWaiter != nil {
		p.lines.finish(p.lineWaiter)
		p.lineWaiter = nil
	}
	p.lines.wakeReleased(p.grant)
}

// release gives the place back.
func (p *Permit) release() {
	if p.seat == nil {
		return
	}
	p.gpu += (p.seat.release(p.sequences) - p.shareStart) * time.Duration(p.sequences)
	p.failed, p.seat = p.seat, nil
	p.pool.dispatch()
}

// leave gives all back that the request holds of its pool.
func (p *Permit) releaseAll() {
	p.release()
	if p.account != nil {
		p.pool.finish(p.account)
		p.account = nil
	}
}

// GPU is the time of GPUs that the request has had on all backends it was given so
// far; after Settle it is final. 0 where its backends do not say which GPUs they use.
func (p *Permit) GPU() time.Duration {
	if p.seat == nil {
		return p.gpu
	}
	return p.gpu + (p.seat.share.change(0, time.Now())-p.shareStart)*time.Duration(p.sequences)
}
