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
	Arrival       time.Time     // time of arrival at the pool, or at the backend that the request was moved to; zero at L4
	ReservedLevel degrade.Level // level for which the limits reserved; Level may be higher
	RetryAfter    time.Duration // time for which Level lasts, at the least

	grant  *limit.Grant
	pool   *Pool
	seat   *Seat
	failed *Seat

	demand    *Demand
	sequences int64 // places acquired on the backend
	sent      int64 // sequences that are sent at Level

	line   lineTurn
	tenant tenantCharge
	gpu    gpuTime
}

// lineTurn is the turn of a request in the lines of concurrency limits.
type lineTurn struct {
	lines     *lines
	waiter    *waiter // place in a line; nil where it did not wait in one
	committed bool    // its caller was told the level while it waited there
}

// finish ends the turn, and wakes those who wait for the places of a grant.
func (t *lineTurn) finish(grant *limit.Grant) {
	if t.waiter != nil {
		t.lines.finish(t.waiter)
		t.waiter = nil
	}
	t.lines.wakeReleased(grant)
}

// tenantCharge is the charge of a request to its tenant's account in the fair queue.
type tenantCharge struct {
	account *account // nil without a place
	output  int64    // tokens charged
}

// setOutput charges the tokens that the answer has beyond those that were charged, and
// returns them.
func (c *tenantCharge) setOutput(output int64) (extra int64) {
	if c.account == nil || output <= c.output {
		return 0
	}
	extra = output - c.output
	c.account.output(extra)
	c.output = output
	return extra
}

// gpuTime sums the GPU time of a request over its backends.
type gpuTime struct {
	start time.Duration // integral of the backend's share when the place was acquired
	past  time.Duration // GPU time up to start
}

// add adds the time until the share's integral is end, for a number of sequences.
func (t *gpuTime) add(end time.Duration, sequences int64) {
	t.past += (end - t.start) * time.Duration(sequences)
	t.start = end
}

// Pool returns the pool of the model that answers; nil where the answer is canned.
func (p *Permit) Pool() *Pool { return p.pool }

// Seat returns the seat of the backend to use; nil at L4.
func (p *Permit) Seat() *Seat { return p.seat }

// setPlace sets the place that a request has acquired.
func (p *Permit) setPlace(w *waiter) {
	p.seat, p.tenant.account, p.gpu.start, p.Arrival = w.seat, w.account, w.shareStart, w.arrival
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
	p.gpu.add(p.seat.release(extra), p.sequences)
	p.sequences = p.sent
	p.pool.dispatch()
}

// apply sets the level and the pool.
func (p *Permit) apply(c target) {
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
	p.seat, p.gpu.start, p.Arrival = b, b.acquire(p.sequences), time.Now()
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
	q := c.queue.Load()
	w := newWaiter(q, d, degrade.SmallerModel)
	if !smaller.pool.tryAcquire(q, w) {
		return false
	}
	p.releaseAll()
	p.pool, p.failed, p.tenant.output = smaller.pool, nil, 0 // the new account has been charged nothing yet
	p.setPlace(w)
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
	if extra := p.tenant.setOutput(output); extra > 0 && p.line.waiter != nil {
		p.line.waiter.account.output(extra)
	}
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
	p.line.finish(p.grant)
	return err
}

// cancel cancels what the limits granted to a request that is refused all the same.
func (p *Permit) cancel() {
	// What the store does not take back now is tried again by the limits' own loop.
	_ = p.grant.Cancel()
	p.line.finish(p.grant)
}

// release releases the place on the backend.
func (p *Permit) release() {
	if p.seat == nil {
		return
	}
	p.gpu.add(p.seat.release(p.sequences), p.sequences)
	p.failed, p.seat = p.seat, nil
	p.pool.dispatch()
}

// releaseAll releases all that the request has of its pool.
func (p *Permit) releaseAll() {
	p.release()
	if p.tenant.account != nil {
		p.pool.finish(p.tenant.account)
		p.tenant.account = nil
	}
}

// GPU returns the GPU time of the request on all its backends so far; it is final after
// Settle, and 0 where the backends do not report their GPUs.
func (p *Permit) GPU() time.Duration {
	if p.seat == nil {
		return p.gpu.past
	}
	t := p.gpu
	t.add(p.seat.share.change(0, time.Now()), p.sequences)
	return t.past
}
