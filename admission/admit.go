// Package admission decides who may reach a GPU, when, and which one, and how small
// an answer it gets.
//
// Admit combines four things in one act. The ladder (package degrade) says at which
// level the model stands, by the pressure on its GPUs and engines; the caller's tier
// shifts it. The rate limits and quotas (package limit), which the level may tighten,
// let the request in or do not; one that is over a concurrency limit alone waits in a
// fair line for a place, where the rule lets it. At L3 the request goes to the smaller
// model, where that can answer it. And a backend is picked: of those with room the ones
// at the lowest level, of these the one with the fewest requests in flight for its
// weight; requests are routed away from a hot backend before they are degraded. Where
// all are full the request waits in the model's fair queue.
//
// The Permit names the backend and the level, and holds a place and what the limits
// reserved until Settle gives both back, once, whatever happened in between. What the
// limits reserved for a request that then finds no place is taken back.
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

// ErrNoBackend says that no backend of the model is in rotation, nor one of a
// smaller model that could answer in its place.
var ErrNoBackend = errors.New("no backend in rotation")

// Shed says why a request was turned away under pressure.
type Shed string

// The reasons.
const (
	ShedLevel   Shed = "level"  // the caller accepts no answer as small as it would be
	ShedQueue   Shed = "queue"  // it would have waited for too long
	ShedWaited  Shed = "waited" // it has
	reasonDown       = "no_backend"
	reasonLimit      = "limit"
	reasonQueue      = "queue"
	reasonTTFT       = "ttft"
)

// Overloaded is the refusal of a request for which there is no place.
type Overloaded struct {
	Cause      Shed
	Level      degrade.Level // at which it would have been answered
	Reason     string        // of the level
	RetryAfter time.Duration
}

func (e *Overloaded) Error() string {
	return fmt.Sprintf("overloaded: %s (%v, %s)", e.Cause, e.Level, e.Reason)
}

// Caller is what admission asks of a request's caller. The methods are called on the
// goroutine of Admit.
type Caller interface {
	// Fits reports whether the servers of a smaller model can answer the request.
	Fits(smaller *Pool) bool
	// KeepAlive is called while the request waits for a place, first at once, and returns
	// when it wants to be called again. p has the level, its reason, the pool and the
	// headers as they are now. told says that the caller has been told them, so that
	// it must be answered so.
	KeepAlive(p *Permit) (next time.Duration, committed bool)
}

// Demand is what a request asks of admission. Admission only reads it.
type Demand struct {
	Pool              *Pool         // of the model that was asked for
	Request           limit.Request // as it is at L0
	CappedTokens      int64         // tokens that its answers may have from L1 on
	ThinkingOffTokens int64         // tokens by which its prompt grows from L2 on
	Prompts           int64         // sequences from L1 on, where each prompt has one answer; 0: as many as at L0
	MaxLevel          degrade.Level // the smallest answer that the caller accepts
	TTFT              time.Duration // within which it should have its first token; 0: there is no such promise
	Caller            Caller        // nil: no smaller model can answer, and who waits hears nothing
}

// at is what the limits are asked for a request that is to be answered so. It may be
// answered by a smaller model still, where it waits first or its servers fail: which one
// nobody knows before, and the limits are asked once.
func (d *Demand) limitRequest(c choice) limit.Request {
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

// sequences is how many an engine generates at the same time for the request at a
// level, 1 at least.
func (d *Demand) sequences(level degrade.Level) int64 {
	n := max(d.Request.Sequences, 1)
	if level >= degrade.StreamingOff && d.Prompts > 0 {
		return min(n, d.Prompts)
	}
	return n
}

// TooMany is the refusal of a request with more sequences than any backend of the
// model may have at a time, or any that is in rotation now.
type TooMany struct {
	Sequences int64
	Max       int  // of one backend; where Temporary, of one in rotation
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

// queueing is a QueueConfig as it is asked.
type queueing struct {
	QueueConfig
	weightOf map[string]int // of tenants whose weight is not 1
}

func (q *queueing) weight(tenant string) int { return max(q.weightOf[tenant], 1) }

// Admit returns a permit, a *limit.Denied, an *Overloaded, a *TooMany, ErrNoBackend, or
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
	p := &Permit{demand: d, lines: &c.lines}
	var err error
	now.choice, err = c.reserve(ctx, q, d, p, now.choice)
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
	if past.denied = p.grant.Over; past.denied != nil {
		if p.committed {
			return nil, past.denied // its caller was told a level at which nothing would be limited
		}
		past.floor = choice{level: degrade.SmallerModel, reason: reasonLimit}
		now = c.choose(q, d, past)
		if err := now.refusal(); err != nil {
			return nil, err
		}
	}
	e := placement{Controller: c, queue: q, demand: d, permit: p, choice: now.choice, denied: past.denied}
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
	return &Overloaded{ShedLevel, d.level, d.reason, jitter(d.retryAfter, 10)}
}

// TierLevel returns the level of the model now for requests of a tier, by
// which limits shrink, and its reason; empty at L0.
func (p *Pool) TierLevel(tier string) (degrade.Level, string) {
	p.mu.Lock()
	local, _ := p.look(1, 1)
	p.mu.Unlock()
	c := modelChoice(p, p.level.Verdict(), &local, tier)
	if c.level == degrade.Full {
		return c.level, ""
	}
	return c.level, c.reason
}

func (p *Pool) next() *Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fallback
}

// Status is what the limits say of a caller now.
func (c *Controller) Status(ctx context.Context, r limit.Request) (limit.Status, error) {
	return c.limits.Status(ctx, r)
}

// Rejection returns what is known to reject a request of these subjects, before anything
// else of it is known; nil: nothing.
func (c *Controller) Rejection(r limit.Request) *limit.Denied {
	return c.limits.Refused(r, c.lines.placesQueued)
}

// Count lets a request in that needs no place on a backend, or returns a
// *limit.Denied or limit.ErrStore. Only rules of auxiliary requests count it.
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

// Rules are the limits and quotas in force by name, each with whether it is a quota.
func (c *Controller) Rules() map[string]bool { return c.limits.Rules() }

// Reasons are all that a permit's Reason may be, but for none.
func Reasons() []string { return append(degrade.Reasons(), reasonDown, reasonLimit) }

// CheckOverride says why an override could not be used with the limits in force.
func (c *Controller) CheckOverride(o limit.Override) error { return c.limits.CheckOverride(o) }
