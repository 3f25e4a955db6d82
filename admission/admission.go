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
	"cmp"
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
	Why        Shed
	Level      degrade.Level // at which it would have been answered
	Reason     string        // of the level
	RetryAfter time.Duration
}

func (e *Overloaded) Error() string {
	return fmt.Sprintf("overloaded: %s (%v, %s)", e.Why, e.Level, e.Reason)
}

// Caller is what admission asks of a request's caller. The methods are called on the
// goroutine of Admit.
type Caller interface {
	// Fits reports whether the servers of a smaller model can answer the request.
	Fits(smaller *Pool) bool
	// Waits is called while the request waits for a place, first at once, and says
	// when it wants to be called again. p has the level, its reason, the pool and the
	// headers as they are now. told says that the caller has been told them, so that
	// it must be answered so.
	Waits(p *Permit) (next time.Duration, told bool)
}

// Demand is what a request asks for.
type Demand struct {
	Pool     *Pool         // of the model that was asked for
	Request  limit.Request // as it is at L0
	Capped   int64         // tokens that its answers may have from L1 on
	Quiet    int64         // tokens by which its prompt grows from L2 on
	Prompts  int64         // sequences from L1 on, where each prompt has one answer; 0: as many as at L0
	MaxLevel degrade.Level // the smallest answer that the caller accepts
	TTFT     time.Duration // within which it should have its first token; 0: there is no such promise
	over     *limit.Denied // by a rule that asks for the smaller model instead
	Caller   Caller        // nil: no smaller model can answer, and who waits hears nothing
}

// at is what the limits are asked for a request that is to be answered so. It may be
// answered by a smaller model still, where it waits first or its servers fail: which one
// nobody knows before, and the limits are asked once.
func (d *Demand) at(c choice) limit.Request {
	r, level := d.Request, c.level
	r.Level, r.Reason = int(level), c.reason
	if c.pool != nil {
		r.Served = c.pool.Name
	}
	if level >= degrade.StreamingOff && d.Capped > 0 {
		r.MaxTokens = min(r.MaxTokens, d.Capped)
	}
	r.Sequences = d.sequences(level)
	if level >= degrade.ThinkingOff && d.Quiet > 0 {
		r.Prompt, r.Thinking = r.Prompt+d.Quiet, false
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
	Most      int  // of one backend; where Temporary, of one in rotation
	Temporary bool // a backend that is out of rotation could have them
}

func (e *TooMany) Error() string {
	if e.Temporary {
		return fmt.Sprintf("%d sequences, and the backends in rotation have %d at a time at most", e.Sequences, e.Most)
	}
	return fmt.Sprintf("%d sequences, and the backends have %d at a time at most", e.Sequences, e.Most)
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
	q := c.queue.Load()
	d.over = nil
	now, err := d.choose(q, choice{}, 0)
	if err != nil {
		return nil, err
	}
	p := &Permit{demand: d, lines: &c.lines}
	if now, err = c.reserve(ctx, q, d, p, now); err != nil {
		return nil, err
	}
	permitted := false
	defer func() {
		if !permitted { // also if the caller's code panics
			p.cancel()
		}
	}()
	p.Headers, p.Reserved = p.grant.Headers, now.level
	if d.over = p.grant.Over; d.over != nil && p.told {
		return nil, d.over // its caller was told a level at which nothing would be limited
	} else if d.over != nil {
		if now, err = d.choose(q, choice{level: degrade.SmallerModel, reason: reasonLimit}, 0); err != nil {
			return nil, err
		}
	}
	if err := p.enter(ctx, q, d, now); err != nil {
		return nil, err
	}
	permitted = true
	return p, nil
}

// choice is at which level a request is answered, and where.
type choice struct {
	pool   *Pool // nil: nowhere, since the answer is canned
	level  degrade.Level
	reason string
	retry  time.Time // when the level may fall at the earliest
}

// stays is how long the level stays at least, and up to a tenth more, so that callers
// do not return together.
func (c *choice) stays() time.Duration {
	left := max(time.Until(c.retry), time.Second)
	return left + rand.N(left/10)
}

// choose decides by what the ladder and the queue say now, and by nothing that changes
// by itself; the level is at least that of least, and the request has waited so long. A
// model of whose backends in rotation none can hold the request is one without any.
func (d *Demand) choose(q *queueing, least choice, waited time.Duration) (choice, error) {
	v := d.Pool.level.Verdict()
	from := v.Level // at which it is answered at least
	if !v.Pinned {
		from = degrade.Shift(from, d.Request.Tier)
	}
	n := d.sequences(max(from, least.level))
	own := d.Pool.look(n)
	c := d.Pool.standing(v, own, d.Request.Tier)
	if !v.Pinned && q.Degrade {
		d.crowded(q, &c, own, waited)
	}
	if least.level > c.level {
		c.level, c.reason, c.retry = least.level, least.reason, least.retry
	}
	if fewer := d.sequences(c.level); fewer != n {
		n = fewer
		own = d.Pool.look(n)
	}
	if c.level >= degrade.SmallerModel && c.ofLoad() && d.over == nil && d.findRoom(&c, own) {
		return c, d.accepts(c)
	}
	if c.level == degrade.Canned && least.pool != nil && c.ofLoad() {
		// Who waits already is served, where it can be; who comes now is not let in.
		if level := max(least.level, degrade.ThinkingOff); least.pool.fits(d.sequences(level)) == nil {
			c.pool, c.level = least.pool, level
			return c, d.accepts(c)
		}
	}
	if c.level == degrade.Canned {
		c.pool = nil
		return c, d.accepts(c)
	}
	if !own.up || c.level == degrade.SmallerModel {
		smaller := d.smaller()
		switch {
		case smaller != nil:
			c.pool = smaller
		case !own.up:
			return c, cmp.Or(d.Pool.fits(n), ErrNoBackend)
		default:
			c.level = degrade.ThinkingOff // the least that its own servers can give
		}
	}
	if !own.up {
		if d.MaxLevel < degrade.SmallerModel {
			return c, cmp.Or(d.Pool.fits(n), ErrNoBackend)
		}
		if c.level < degrade.SmallerModel {
			c.level, c.reason = degrade.SmallerModel, reasonDown
		}
	}
	if d.over != nil && c.level < degrade.SmallerModel {
		return c, d.over // nothing would be limited without the smaller model
	}
	return c, d.accepts(c)
}

// standing is the level at which a model stands for requests of a tier, by its own
// verdict and by that of its coolest backend.
func (p *Pool) standing(v *degrade.Verdict, own outlook, tier string) choice {
	c := choice{p, v.Level, v.Reason, v.Retry}
	if v.Pinned {
		return c
	}
	if own.level > c.level {
		c.level, c.reason, c.retry = own.level, own.reason, own.retry
	}
	c.level = degrade.Shift(c.level, tier)
	return c
}

// Standing returns the level at which the model stands now for requests of a tier, by
// which limits shrink, and its reason; empty at L0.
func (p *Pool) Standing(tier string) (degrade.Level, string) {
	c := p.standing(p.level.Verdict(), p.look(1), tier)
	if c.level == degrade.Full {
		return c.level, ""
	}
	return c.level, c.reason
}

// ofLoad reports whether the level comes from how much is asked, which a place that is
// free disproves, and not from the cards or their memory.
func (c *choice) ofLoad() bool { return c.reason == reasonQueue || c.reason == reasonTTFT }

// findRoom gives a request at L3 or L4 a place that is free now, first one of its own
// model's: levels that come from load last for a while after it, and no server must be
// idle meanwhile, unless it is also hot. At L3 it waits for its own model where there is none, since the
// smaller one must not be swamped; it is asked again and again whether it has room.
func (d *Demand) findRoom(c *choice, own outlook) bool {
	hot := own.firm >= degrade.SmallerModel
	if (!own.up || own.full || hot) && d.MaxLevel >= degrade.SmallerModel {
		if smaller := d.smaller(); smaller != nil && !smaller.look(d.sequences(degrade.SmallerModel)).full {
			c.pool, c.level = smaller, degrade.SmallerModel
			return true
		}
	}
	if !own.up || hot || own.full && c.level == degrade.Canned {
		return false
	}
	c.level = degrade.ThinkingOff
	return true
}

// crowded makes the answer of a request smaller that finds no place, long before the
// ladder has confirmed what its signals say: without thinking, so that places become
// free sooner, and by the smaller model's servers where the first token would
// otherwise be late and they have a place. Batch requests go there at once, critical
// ones wait for their place first. Nobody is refused on account of it.
func (d *Demand) crowded(q *queueing, c *choice, own outlook, waited time.Duration) {
	if !own.up || !own.full || d.TTFT == 0 || c.level >= degrade.SmallerModel {
		return
	}
	tier, tenant := tierIndex(d.Request.Tier), q.tenant(&d.Request.Subjects)
	level := degrade.ThinkingOff
	if max(d.Pool.wouldWait(tier, tenant, q.weight(tenant)), waited) > d.TTFT/2 {
		level = degrade.SmallerModel
	}
	if level = min(degrade.Shift(level, d.Request.Tier), d.MaxLevel); level < degrade.ThinkingOff {
		return // L1 alone frees no place
	}
	if level == degrade.SmallerModel {
		if smaller := d.smaller(); smaller == nil || smaller.look(d.sequences(degrade.SmallerModel)).full {
			level = degrade.ThinkingOff
		}
	}
	if level == degrade.ThinkingOff && !d.Request.Thinking {
		return // there is none to be saved
	}
	if level > c.level {
		c.level, c.reason, c.retry = level, reasonQueue, time.Time{}
	}
}

// accepts refuses an answer smaller than the caller accepts.
func (d *Demand) accepts(c choice) error {
	if c.level <= d.MaxLevel {
		return nil
	}
	if d.over != nil {
		return d.over
	}
	return &Overloaded{ShedLevel, c.level, c.reason, c.stays()}
}

// smaller is the pool of the first smaller model that is below L3 itself, has a
// backend, and can answer the request; nil: there is none.
func (d *Demand) smaller() *Pool {
	for p := d.Pool.next(); p != nil && p != d.Pool; p = p.next() { // while it is reloaded the way may lead back
		if p.level.Verdict().Level >= degrade.SmallerModel {
			continue
		}
		sequences := d.sequences(degrade.SmallerModel)
		if p.ever(sequences) != nil {
			continue
		}
		if there := p.look(sequences); there.up && there.level < degrade.SmallerModel && d.Caller != nil && d.Caller.Fits(p) {
			return p
		}
	}
	return nil
}

func (p *Pool) next() *Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fallback
}

// on is the choice for a request that has a place on b, which may stand higher than
// the lowest of its pool.
func (d *Demand) on(b *Backend, c choice) (choice, error) {
	if c.pool != d.Pool || d.Pool.level.Verdict().Pinned {
		return c, nil
	}
	v := b.gauge.Verdict()
	if level := min(degrade.Shift(v.Level, d.Request.Tier), degrade.ThinkingOff); level > c.level {
		c.level, c.reason, c.retry = level, v.Reason, v.Retry
	}
	return c, d.accepts(c)
}

// Status is what the limits say of a caller now.
func (c *Controller) Status(ctx context.Context, r limit.Request) (limit.Status, error) {
	return c.limits.Status(ctx, r)
}

// Refused says what is known to refuse a request of these subjects, before anything
// else of it is known; nil: nothing.
func (c *Controller) Refused(r limit.Request) *limit.Denied {
	return c.limits.Refused(r, c.lines.standsBefore)
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
