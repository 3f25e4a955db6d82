// Package admission decides who may reach a GPU, when, and which one.
//
// Admit and the choice of a backend are one act: a Permit names the backend and
// holds one of its places until Settle gives it back, once, whatever happened in
// between. The choice is the backend with the fewest requests in flight for its
// weight among those in rotation; equals are taken in turn. What other gateways
// have sent to the same server is not known here, so this is a least-in-flight
// rule over the gateway's own view.
package admission

import (
	"context"
	"errors"
	"sync/atomic"

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
	Pool *Pool
}

// Controller admits requests. It is safe for concurrent use.
type Controller struct{}

// New returns a controller.
func New() *Controller { return &Controller{} }

// Admit waits for nothing yet takes a place: it returns a permit, or ErrNoBackend.
func (c *Controller) Admit(ctx context.Context, d Demand) (*Permit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &Permit{Level: degrade.Full, pool: d.Pool, backend: -1, failed: -1}
	if !p.take() {
		return nil, ErrNoBackend
	}
	return p, nil
}

// Permit is a place on a backend. One goroutine may use it.
type Permit struct {
	Level  degrade.Level
	Reason string // why Level is not L0

	pool    *Pool
	backend int
	failed  int
}

// Backend is the index, in the pool, of the backend to use.
func (p *Permit) Backend() int { return p.backend }

// Another gives the place back and takes one on another backend, after an
// attempt failed; false where there is none.
func (p *Permit) Another() bool {
	p.release()
	return p.take()
}

// Settle gives the place back. A second call does nothing.
func (p *Permit) Settle() { p.release() }

func (p *Permit) take() bool {
	i := p.pool.pick(p.failed)
	if i < 0 {
		return false
	}
	p.pool.backends[i].inFlight.Add(1)
	p.backend = i
	return true
}

func (p *Permit) release() {
	if p.backend >= 0 {
		p.pool.backends[p.backend].inFlight.Add(-1)
		p.failed, p.backend = p.backend, -1
	}
}
