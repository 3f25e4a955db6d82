package redislimit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// ErrClosed means that Redis cannot be asked, and that a rule lets nothing pass then.
var ErrClosed = errors.New("the limits' store cannot be reached")

const (
	defaultTimeout = 50 * time.Millisecond
	probeInterval  = time.Second // time between probes, and the wait of a caller whose share is too small
)

// GuardOptions configures a Guarded. Only Replica is required.
type GuardOptions struct {
	Replica string           // name of this replica, unlike all others'
	Timeout time.Duration    // timeout of one call; 0 means 50 ms
	Now     func() time.Time // nil: time.Now
	Breaker degrade.BreakerConfig
	// Changed is called when this replica is left alone and when it no longer is, with the
	// last failure. It must not block.
	Changed  func(alone bool, last error)
	Registry prometheus.Registerer // nil for no metrics
}

// Guarded is a Store that goes on deciding when Redis does not answer, by the rules in
// failure.go. Run must be running, or it never finds out that Redis is back. It is safe for
// concurrent use.
type Guarded struct {
	store   *Store
	opts    GuardOptions
	breaker *degrade.Breaker
	metrics *metrics
	shadow  *limit.Memory // counts all that this replica admitted
	fleet   fleet

	link    link
	loss    loss
	local   localRequests
	backlog backlog
	seen    observations
	recalls recalls
	prober  prober
}

var _ limit.Store = (*Guarded)(nil)

// Guard returns a guard in front of a store.
func Guard(store *Store, o GuardOptions) *Guarded {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g := &Guarded{
		store: store, opts: o, shadow: limit.NewMemory(o.Now), fleet: fleet{name: o.Replica}, local: localRequests{byID: map[string]*localRequest{}},
		seen: observations{now: map[string]observation{}}, prober: prober{home: "{probe}"},
	}
	g.metrics = newMetrics(o.Registry, g)
	b := o.Breaker
	b.Ignore = func(err error) bool { return errors.Is(err, errCaller) || errors.Is(err, limit.ErrDims) }
	b.Changed = g.changed
	g.breaker = degrade.NewBreaker(b)
	return g
}

// errCaller means that a call ended with its caller, not with Redis.
var errCaller = errors.New("the caller is gone")

func (g *Guarded) changed(alone bool) {
	last := g.link.setAlone(alone, g.opts.Now())
	if g.opts.Changed != nil {
		g.opts.Changed(alone, last)
	}
}

// tryCall calls Redis within the budget, unless the breaker is open.
func (g *Guarded) tryCall(parent context.Context, dims []limit.Dim, op func(context.Context) error) error {
	return g.breaker.Do(func() error { return g.call(parent, dims, op) })
}

func (g *Guarded) call(parent context.Context, dims []limit.Dim, op func(context.Context) error) error {
	// A timer ends late, and the failure has to be dealt with inside of the budget.
	ctx, cancel := context.WithTimeout(parent, g.opts.Timeout-g.opts.Timeout/20)
	defer cancel()
	began := time.Now()
	err := op(ctx)
	g.metrics.called(began)
	switch {
	case err == nil || errors.Is(err, limit.ErrDims):
		return err
	case isOver(parent):
		return fmt.Errorf("%w: %w", errCaller, err)
	}
	g.link.setError(err)
	g.prober.setHome(dims)
	return err
}

// isOver reports whether a caller has gone away or its time is over. The connection may notice
// a deadline before the context does.
func isOver(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// Reserve implements limit.Store. While Redis cannot be asked it decides alone, and
// returns ErrClosed where a rule forbids that.
func (g *Guarded) Reserve(ctx context.Context, r limit.Reservation) (out limit.Decision, err error) {
	if !r.Peek && g.local.contains(r.ID) {
		return g.reserveLocally(r)
	}
	if !r.Peek {
		if out, refused := g.rejectedByShare(r); refused {
			return out, nil
		}
	}
	err = g.tryCall(ctx, r.Dims, func(ctx context.Context) (err error) {
		out, err = g.store.Reserve(ctx, r)
		return err
	})
	if errors.Is(err, errKept) {
		g.cancelLater(r)
		out.Shared, out.Forgotten = true, true
		return out, nil
	}
	switch {
	case err == nil:
		out.Shared = true
		if !r.Settled {
			g.observe(r, out)
		}
		return out, nil
	case errors.Is(err, limit.ErrDims):
		return out, err
	case errors.Is(err, errCaller):
		g.cancelLater(r)
		return out, err
	}
	asked := !errors.Is(err, degrade.ErrOpen)
	out, err = g.reserveLocally(r)
	if asked && (err != nil || !out.Allowed) {
		g.cancelLater(r)
		out.Forgotten = true
	}
	return out, err
}

// observe keeps the shadow in step with a decision of Redis, and records what Redis knows
// beyond it.
func (g *Guarded) observe(r limit.Reservation, out limit.Decision) {
	var mine []limit.State
	dims := fineDims(r.Dims)
	if out.Allowed && !out.Repeated && !r.Peek {
		mine = g.shadow.Note(limit.Reservation{ID: r.ID, Dims: dims}, out)
	} else if found, err := g.shadow.Reserve(context.Background(), limit.Reservation{Dims: dims, Peek: true}); err == nil {
		mine = found.States
	}
	g.record(r.Dims, out.States, mine)
}

// record notes what Redis reported of counters, of which mine are the shadow's states.
func (g *Guarded) record(dims []limit.Dim, states, mine []limit.State) {
	g.loss.addWindows(dims)
	now := g.opts.Now()
	g.seen.record(dims, states, mine, now.UnixMilli(), g.loss.isRecent(now))
}

// handInTime is the time that other replicas may take to hand in what they counted alone,
// after this one asks Redis again.
const handInTime = 10 * time.Second

// awaitsHandIn reports whether other replicas may still have to hand in what they counted
// alone, so that Redis knows of less than was admitted.
func (g *Guarded) awaitsHandIn(now time.Time) bool {
	return isRecent(g.link.backMs.Load(), now, handInTime)
}

// isRecent reports whether a moment, in milliseconds since 1970, is no longer ago than d. 0
// never is, and neither is one that lies ahead: the clock was set back since, and it would
// hold for as long as that.
func isRecent(ms int64, now time.Time, d time.Duration) bool {
	ago := now.UnixMilli() - ms
	return ms != 0 && ago >= 0 && ago < d.Milliseconds()
}

// cancelLater takes back what Redis may have admitted without an answer.
func (g *Guarded) cancelLater(r limit.Reservation) {
	if !r.Peek {
		g.backlog.add(settlement{Settlement: limit.Settlement{ID: r.ID, Dims: r.Dims, Charges: make([]int64, len(r.Dims))}})
	}
}

// Settle implements limit.Store. It fails only where the dimensions are wrong: what
// Redis does not take waits until it does.
func (g *Guarded) Settle(ctx context.Context, s limit.Settlement) (limit.Settled, error) {
	if len(s.Dims) != len(s.Charges) {
		return limit.Settled{}, limit.ErrDims
	}
	shared := settlement{Settlement: s}
	var mine limit.Settled
	if l := g.local.remove(s.ID); l != nil {
		if len(l.skipped) != len(s.Dims) {
			return limit.Settled{}, limit.ErrDims
		}
		mine, _ = g.shadow.Settle(ctx, limit.Settlement{ID: s.ID, Dims: l.dims, Charges: s.Charges})
		shared = l.settlementOf(s)
	} else {
		mine, _ = g.shadow.Settle(ctx, limit.Settlement{ID: s.ID, Dims: fineDims(s.Dims), Charges: s.Charges, New: s.New})
	}
	var out limit.Settled
	err := g.tryCall(ctx, s.Dims, func(ctx context.Context) (err error) {
		out, err = g.store.Settle(ctx, shared.due(g.opts.Now().UnixMilli()))
		return err
	})
	if err == nil {
		g.record(s.Dims, out.States, mine.States)
		return out, nil
	}
	if errors.Is(err, limit.ErrDims) {
		return limit.Settled{}, err
	}
	g.backlog.add(shared)
	if len(mine.States) < len(s.Dims) {
		mine.States = make([]limit.State, len(s.Dims))
	}
	return limit.Settled{Applied: true, States: mine.States[:len(s.Dims)]}, nil
}

// Renew implements limit.Store. It is also this replica's heartbeat in the fleet.
func (g *Guarded) Renew(ctx context.Context, renewals []limit.Renewal) (lost []string, err error) {
	shared, mine := g.local.split(renewals)
	if _, err := g.shadow.Renew(ctx, mine); err != nil {
		return nil, err
	}
	if !g.breaker.Closed() {
		return nil, nil // what is reserved there cannot be renewed; its settlement will replace it
	}
	if lost, err = g.store.Renew(ctx, shared); err != nil {
		return lost, err
	}
	return lost, g.heartbeat(ctx)
}

// heartbeat is this replica's heartbeat in the fleet.
func (g *Guarded) heartbeat(ctx context.Context) error {
	n, err := g.fleet.heartbeat(ctx, g.store, g.opts.Now())
	if n.lost {
		g.loss.atMs.Store(g.opts.Now().UnixMilli())
	}
	if n.restored {
		g.backlog.skipQuotas()
	}
	return err
}

// Empty asks Redis whether it is new, or has lost its counters since the last Mark of
// any replica; later it is asked with each heartbeat. While Redis is not asked, what
// was last known is the answer.
func (g *Guarded) Empty(ctx context.Context) (bool, error) {
	empty, met := g.fleet.empty()
	if met || !g.breaker.Closed() {
		return empty, nil
	}
	err := g.call(ctx, nil, g.heartbeat)
	empty, _ = g.fleet.empty()
	return empty, err
}

// Mark reports to all replicas that quotas are now at what a ledger knows of them. The ledger
// also knows what a replica has still to hand in from before, so that leaves the quotas alone.
func (g *Guarded) Mark(ctx context.Context) error {
	return g.call(ctx, nil, func(ctx context.Context) error {
		if err := g.store.client.Set(ctx, markKey, rand.Text(), 0).Err(); err != nil {
			return fmt.Errorf("redis: mark: %w", err)
		}
		return g.heartbeat(ctx)
	})
}

// Run checks whether Redis is back, and hands in the backlog, until ctx ends.
func (g *Guarded) Run(ctx context.Context) error {
	if err := g.heartbeat(ctx); err != nil && ctx.Err() == nil {
		g.link.setError(err)
	}
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			g.check(ctx)
		}
	}
}

func (g *Guarded) check(ctx context.Context) {
	if !g.breaker.Closed() {
		// The counts are handed in before Redis admits anybody again.
		_ = g.breaker.Probe(func() error {
			if err := g.probe(ctx); err != nil {
				return err
			}
			if err := g.call(ctx, nil, g.heartbeat); err != nil {
				return err
			}
			return g.catchUp(ctx)
		})
		return
	}
	// Without this the next request would find that Redis is away, and wait for it.
	_ = g.breaker.Do(func() error {
		if err := g.call(ctx, nil, g.heartbeat); err != nil {
			return err
		}
		return g.catchUp(ctx)
	})
}

// catchUp brings to Redis what was decided without it.
func (g *Guarded) catchUp(ctx context.Context) error {
	if err := g.handIn(ctx); err != nil {
		return err
	}
	return g.adopt(ctx)
}

// probe makes and ends a reservation with the real script, in the home where the
// last one failed: a server that is read-only, full or loading still answers PING.
func (g *Guarded) probe(ctx context.Context) error {
	id, dims := g.prober.next(g.opts.Replica)
	if err := g.call(ctx, dims, func(ctx context.Context) error {
		_, err := g.store.Reserve(ctx, limit.Reservation{ID: id, Dims: dims})
		return err
	}); err != nil {
		return err
	}
	return g.call(ctx, dims, func(ctx context.Context) error {
		_, err := g.store.Settle(ctx, limit.Settlement{ID: id, Dims: dims, Charges: []int64{0}})
		return err
	})
}
