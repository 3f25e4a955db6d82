// Package admission decides whether a request may reach a GPU, when, on which backend, and
// at which level.
//
// Admit combines four things:
//
//   - The ladder (package degrade) sets the level of the model by the pressure on its GPUs
//     and engines. The caller's tier shifts it.
//   - The rate limits and quotas (package limit) admit or reject the request. The level may
//     tighten them. A request over a concurrency limit alone waits in a fair line for a
//     place, where the rule allows it.
//   - From L3 on the smaller model answers, where it can.
//   - A backend is picked. Requests are routed away from a hot backend before they are
//     degraded: of those with room the lowest level wins, then the fewest requests in flight
//     for the backend's weight. Where all are full, the request waits in the model's fair
//     queue.
//
// What to do with a request is one pure function, decide, of a situation that snapshot reads.
//
// The Permit names the backend and the level. It has a place and what the limits reserved,
// and Settle releases both, once, whatever happened in between. Where a request finds no
// place, its reservation is cancelled.
package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// ErrNoBackend reports that neither the model nor a smaller one that could answer has a
// backend in rotation.
var ErrNoBackend = errors.New("no backend in rotation")

// Shed is the cause for which a request is refused under pressure.
type Shed string

// The reasons.
const (
	ShedLevel   Shed = "level"  // the answer would be smaller than the caller accepts
	ShedQueue   Shed = "queue"  // the wait would be too long
	ShedWaited  Shed = "waited" // the wait was too long
	reasonDown       = "no_backend"
	reasonLimit      = "limit"
	reasonQueue      = "queue"
	reasonTTFT       = "ttft"
)

// Overloaded is the refusal of a request for load, or for its level.
type Overloaded struct {
	Cause      Shed
	Level      degrade.Level // level of the answer that it would have had
	Reason     string        // reason of the level
	RetryAfter time.Duration
}

func (e *Overloaded) Error() string {
	return fmt.Sprintf("overloaded: %s (%v, %s)", e.Cause, e.Level, e.Reason)
}

// Caller answers what admission asks about the caller of a request. The methods are called
// on the goroutine of Admit.
type Caller interface {
	// Fits reports whether the backends of a smaller model can answer the request.
	Fits(smaller *Pool) bool
	// KeepAlive is called while the request waits for a place, first at once, and returns
	// when it wants to be called again. p has the level, its reason, the pool and the
	// headers as they are now. committed reports that the caller has been told them, so that
	// it must be answered so.
	KeepAlive(p *Permit) (next time.Duration, committed bool)
}

// Demand describes a request to admission. Callers pass it by pointer to save the copy.
// Admission only reads it and keeps the pointer until Settle, so nobody may change it
// meanwhile.
type Demand struct {
	Pool              *Pool         // pool of the model that was asked for
	Request           limit.Request // request as the limits see it at L0
	CappedTokens      int64         // limit of its answers from L1 on, in tokens
	ThinkingOffTokens int64         // tokens that turning thinking off adds to the prompt, from L2 on
	Prompts           int64         // sequences from L1 on, where each prompt has one answer; 0: as many as at L0
	MaxLevel          degrade.Level // smallest answer that the caller accepts
	TTFT              time.Duration // time in which it should have its first token; 0: no such promise
	Caller            Caller        // nil: no smaller model can answer, and nobody is called while it waits
}

// limitRequest returns the request to the limits of a request that is served at a target.
func (d *Demand) limitRequest(c target) limit.Request {
	r, level := d.Request, c.level
	r.Level, r.Reason = int(level), c.reason
	if c.pool != nil {
		r.Served = c.pool.Name
	}
	if level >= degrade.StreamingOff && d.CappedTokens > 0 {
		r.MaxTokens = min(r.MaxTokens, d.CappedTokens)
	}
	r.Sequences = d.sequences(level)
	if level >= degrade.ThinkingOff && d.ThinkingOffTokens > 0 {
		r.Prompt, r.Thinking = r.Prompt+d.ThinkingOffTokens, false
	}
	return r
}

// sequences returns how many sequences an engine generates at the same time for the request
// at a level, 1 at the least.
func (d *Demand) sequences(level degrade.Level) int64 {
	n := max(d.Request.Sequences, 1)
	if level >= degrade.StreamingOff && d.Prompts > 0 {
		return min(n, d.Prompts)
	}
	return n
}

// TooMany is the refusal of a request with more sequences than any backend of the model may
// have at a time, or any that is in rotation now.
type TooMany struct {
	Sequences int64
	Max       int  // largest bound of one backend; where Temporary, of one in rotation
	Temporary bool // a backend that is out of rotation could have them
}

func (e *TooMany) Error() string {
	if e.Temporary {
		return fmt.Sprintf("%d sequences, and the backends in rotation have %d at a time at most", e.Sequences, e.Max)
	}
	return fmt.Sprintf("%d sequences, and the backends have %d at a time at most", e.Sequences, e.Max)
}

// Controller admits requests. It is safe for concurrent use.
type Controller struct {
	limits *limit.Limiter
	lines  lines
	queue  atomic.Pointer[queueing]
}

// New returns a controller that holds requests to limits.
func New(limits *limit.Limiter, q QueueConfig) *Controller {
	c := &Controller{limits: limits}
	c.Reload(q)
	return c
}

// Reload replaces how requests wait; the configuration must be valid.
func (c *Controller) Reload(q QueueConfig) { c.queue.Store(&queueing{q, q.tenantWeights()}) }

// queueing is a QueueConfig with its weights by tenant.
type queueing struct {
	QueueConfig
	weightOf map[string]int // weights of the tenants for which it is not 1
}

// weight returns the weight of a tenant, 1 at the least.
func (q *queueing) weight(tenant string) int { return max(q.weightOf[tenant], 1) }

// Admit returns a permit, a *limit.Rejection, an *Overloaded, a *TooMany, ErrNoBackend, or
// limit.ErrStore. It waits while the backends are full, and for a place under a
// concurrency limit.
func (c *Controller) Admit(ctx context.Context, d *Demand) (*Permit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q, past := c.queue.Load(), &progress{}
	now := c.choose(q, d, past)
	if err := now.refusal(); err != nil {
		return nil, err
	}
	p := &Permit{demand: d, line: lineTurn{lines: &c.lines}}
	var err error
	now.target, err = c.reserve(ctx, q, d, p, now.target)
	if err != nil {
		return nil, err
	}
	permitted := false
	defer func() {
		if !permitted { // also if the caller's code panics
			p.cancel()
		}
	}()
	p.Headers, p.ReservedLevel = p.grant.Headers, now.level
	if past.rejection = p.grant.Exceeded; past.rejection != nil {
		if p.line.committed {
			return nil, past.rejection // its caller was told a level at which nothing would be limited
		}
		past.target = target{level: degrade.SmallerModel, reason: reasonLimit}
		now = c.choose(q, d, past)
		if err := now.refusal(); err != nil {
			return nil, err
		}
	}
	e := placement{Controller: c, queue: q, demand: d, permit: p, target: now.target, rejection: past.rejection}
	if err := e.acquire(ctx); err != nil {
		return nil, err
	}
	permitted = true
	return p, nil
}

// jitter returns a duration and up to one part of it more, drawn by lot, so that those who
// wait do not return together.
func jitter(d, parts time.Duration) time.Duration { return d + rand.N(d/parts+1) }

// refusal returns the error of a decision that refuses; nil for another one.
func (d *decision) refusal() error {
	switch {
	case d.kind != kindRefuse:
		return nil
	case d.cause != nil:
		return d.cause
	}
	return &Overloaded{ShedLevel, d.level, d.reason, jitter(d.refusedFor, 10)}
}

// TierLevel returns the level of the model now for requests of a tier, by which limits
// shrink, and its reason; empty at L0.
func (p *Pool) TierLevel(tier string) (degrade.Level, string) {
	p.mu.Lock()
	primary, _ := p.look(1, 1)
	p.mu.Unlock()
	c := modelTarget(p, p.level.Verdict(), &primary, tier)
	if c.level == degrade.Full {
		return c.level, ""
	}
	return c.level, c.reason
}

// next returns the pool of the next smaller model; nil where there is none.
func (p *Pool) next() *Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fallback
}

// Status returns the state of the limits for a caller.
func (c *Controller) Status(ctx context.Context, r limit.Request) (limit.Status, error) {
	return c.limits.Status(ctx, r)
}

// Rejection returns what is known to reject a request of these subjects, before anything
// else of it is known; nil for nothing.
func (c *Controller) Rejection(r limit.Request) *limit.Rejection {
	return c.limits.CachedRejection(r, c.lines.placesQueued)
}

// Count admits a request that needs no place on a backend, or returns a *limit.Rejection or
// limit.ErrStore. Only rules of auxiliary requests count it.
func (c *Controller) Count(ctx context.Context, r limit.Request) error {
	r.Aux = true
	grant, err := c.limits.Admit(ctx, r)
	if err != nil {
		return err
	}
	// It is over as far as limits go. What the store does not take now is tried again
	// by the limits' own loop.
	_ = grant.Settle(limit.Usage{}, "")
	return nil
}

// Rules returns the names of the limits and quotas in force, each with whether it is a
// quota.
func (c *Controller) Rules() map[string]bool { return c.limits.Rules() }

// Reasons returns all values of a permit's Reason but the empty one.
func Reasons() []string { return append(degrade.Reasons(), reasonDown, reasonLimit) }

// CheckOverride returns an error where an override cannot be used with the limits in force.
func (c *Controller) CheckOverride(o limit.Override) error { return c.limits.CheckOverride(o) }
