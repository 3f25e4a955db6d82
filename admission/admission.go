// Package admission decides who may reach a GPU, when, and which one.
//
// Admit asks the rate limits and quotas (package limit) and picks a backend, in
// one act: a Permit names the backend and holds one of its places and what the
// limits reserved until Settle gives both back, once, whatever happened in
// between. What the limits reserved for a request that then finds no backend is
// taken back. The choice is the backend with the fewest requests in flight for its
// weight among those in rotation; equals are taken in turn. What other gateways
// have sent to the same server is not known here, so this is a least-in-flight
// rule over the gateway's own view.
package admission

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// ErrNoBackend says that no backend of the model is in rotation (or, after a
// failed attempt, no other one).
var ErrNoBackend = errors.New("no backend in rotation")

// Backend is one vLLM server as admission sees it: whether it is in rotation and
// how much it is doing. It is safe for concurrent use; the zero value is out of
// rotation.
type Backend struct {
	weight   int64
	inFlight atomic.Int64
	up       atomic.Bool
	share    share // of its GPUs' time
}

// NewBackend makes a backend that is out of rotation. Twice the weight draws
// twice the requests; a weight below 1 counts as 1.
func NewBackend(weight int) *Backend { return &Backend{weight: max(int64(weight), 1)} }

// Rotate puts the backend in rotation or takes it out. Requests it already has
// are not touched. It reports whether that changed anything.
func (b *Backend) Rotate(in bool) (changed bool) { return b.up.Swap(in) != in }

// Up reports whether the backend is in rotation.
func (b *Backend) Up() bool { return b.up.Load() }

// InFlight is the number of requests that hold a place on the backend.
func (b *Backend) InFlight() int { return int(b.inFlight.Load()) }

// Pool is the backends of one model. It is immutable but for its turn.
type Pool struct {
	backends []*Backend
	turn     atomic.Uint64
}

// NewPool joins backends; a Permit names one by its index here.
func NewPool(backends []*Backend) *Pool { return &Pool{backends: backends} }

// Up reports whether any backend is in rotation.
func (p *Pool) Up() bool {
	for _, b := range p.backends {
		if b.Up() {
			return true
		}
	}
	return false
}

// pick returns the index of the least loaded backend in rotation other than
// avoid, or -1.
func (p *Pool) pick(avoid int) int {
	best, n := -1, len(p.backends)
	if n == 0 {
		return best
	}
	for k := range n {
		i := (int(p.turn.Load()%uint64(n)) + k) % n
		b := p.backends[i]
		if i == avoid || !b.Up() {
			continue
		}
		// a/wa < b/wb without division
		if best < 0 || b.inFlight.Load()*p.backends[best].weight < p.backends[best].inFlight.Load()*b.weight {
			best = i
		}
	}
	p.turn.Add(1)
	return best
}

// Demand is what a request asks for.
type Demand struct {
	Pool    *Pool
	Request limit.Request
}

// Controller admits requests. It is safe for concurrent use.
type Controller struct{ limits *limit.Limiter }

// New returns a controller that holds requests to limits.
func New(limits *limit.Limiter) *Controller { return &Controller{limits} }

// Admit waits for nothing yet takes a place: it returns a permit, a *limit.Denied,
// ErrNoBackend, or limit.ErrStore.
func (c *Controller) Admit(ctx context.Context, d Demand) (*Permit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	grant, err := c.limits.Admit(ctx, d.Request)
	if err != nil {
		return nil, err
	}
	p := &Permit{Level: degrade.Full, Headers: grant.Headers, grant: grant, pool: d.Pool, backend: -1, failed: -1}
	if !p.take() {
		// What the store does not take back now is tried again by the limits' own loop.
		_ = grant.Cancel()
		return nil, ErrNoBackend
	}
	return p, nil
}

// Status is what the limits say of a caller now.
func (c *Controller) Status(ctx context.Context, r limit.Request) (limit.Status, error) {
	return c.limits.Status(ctx, r)
}

// Refused says what is known to refuse a request of these subjects, before anything
// else of it is known; nil: nothing.
func (c *Controller) Refused(r limit.Request) *limit.Denied { return c.limits.Refused(r) }

// Rules are the names of the limits and quotas in force.
func (c *Controller) Rules() []string { return c.limits.Rules() }

// CheckOverride says why an override could not be used with the limits in force.
func (c *Controller) CheckOverride(o limit.Override) error { return c.limits.CheckOverride(o) }

// Permit is a place on a backend. One goroutine may use it.
type Permit struct {
	Level   degrade.Level
	Reason  string        // why Level is not L0
	Headers limit.Headers // what the limits leave the caller

	grant   *limit.Grant
	pool    *Pool
	backend int
	failed  int
	entered time.Duration // the integral of the backend's share when the place was taken
	gpu     time.Duration // of GPUs' time, on backends whose place was given back
}

// Backend is the index, in the pool, of the backend to use.
func (p *Permit) Backend() int { return p.backend }

// Another gives the place back and takes one on another backend, after an
// attempt failed; false where there is none.
func (p *Permit) Another() bool {
	p.release()
	return p.take()
}

// Progress says what a request that goes on has used so far, so that a gateway
// that dies loses little of it.
func (p *Permit) Progress(u limit.Usage) { p.grant.Progress(u) }

// Settle gives the place back and charges what was used; a request that failed
// before its first token has used nothing but itself. served is the model that
// answered. A second call does nothing. The error says that the limits' store did
// not take it and will be asked again.
func (p *Permit) Settle(u limit.Usage, served string) error {
	p.release()
	return p.grant.Settle(u, served)
}

func (p *Permit) take() bool {
	i := p.pool.pick(p.failed)
	if i < 0 {
		return false
	}
	p.entered = p.pool.backends[i].enter()
	p.backend = i
	return true
}

func (p *Permit) release() {
	if p.backend >= 0 {
		p.gpu += p.pool.backends[p.backend].leave() - p.entered
		p.failed, p.backend = p.backend, -1
	}
}
