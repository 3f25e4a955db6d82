package limit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrNoID means that a request has no id of its own.
var ErrNoID = errors.New("a request needs an id")

// ErrStore means that the store does not answer.
var ErrStore = errors.New("the store of the limits does not answer")

const (
	heartbeat     = 10 * time.Second // interval between renewals; three fit into LeaseLife
	settleTimeout = 2 * time.Second
	maxUnsettled  = 10_000
)

// Options configures a Limiter. Only the Store is required.
type Options struct {
	Store    Store
	Now      func() time.Time // nil means time.Now
	Random   func() float64   // from 0 to 1, for jitter; nil means math/rand
	Shadow   func(Breach)     // called when a shadow rule would have rejected; it must not block
	Trouble  func(error)      // called when the store fails where no request waits for it; it must not block
	Registry prometheus.Registerer
}

// Breach is a rejection by a shadow rule, which was not made.
type Breach struct {
	Rule   string
	Scope  string
	Metric Metric
	Limit  int64
}

// Limiter decides by a Set over a Store. It is safe for concurrent use.
type Limiter struct {
	opts       Options
	set        atomic.Pointer[Set]
	estimates  *estimator
	rejections rejectionCache
	metrics    *metrics

	mu        sync.Mutex
	running   map[string]*Grant
	holders   holders
	unsettled map[string]Settlement // settlements that the store has not accepted
}

// New returns a limiter. Run keeps its reservations alive.
func New(set *Set, o Options) *Limiter {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	l := &Limiter{
		opts: o, estimates: newEstimator(), metrics: newMetrics(&o, set), rejections: rejectionCache{byCounter: map[string]cachedRejection{}},
		running: map[string]*Grant{}, holders: holders{byCounter: map[string]map[*Grant]int{}}, unsettled: map[string]Settlement{},
	}
	l.set.Store(set)
	return l
}

func (l *Limiter) random() float64 { return l.opts.Random() }

// Replace puts other rules in force. Counters stay; running requests are settled by the rules
// that admitted them.
func (l *Limiter) Replace(set *Set) {
	l.set.Store(set)
	l.metrics.setSeries(set)
}

// Admit admits a request, or returns a *Rejection. ErrStore means that the store does not
// answer, and that nothing is held.
func (l *Limiter) Admit(ctx context.Context, r Request) (*Grant, error) {
	set, now := l.set.Load(), l.opts.Now()
	p := set.plan(&r, l.estimates.estimate(&r), now)
	g := &Grant{limiter: l, set: set, request: r, plan: p, began: now}
	if len(p.dims) == 0 {
		return g, nil
	}
	if r.ID == "" {
		return nil, ErrNoID
	}
	if !r.Waiting {
		if rejection := l.cachedRejection(&p, now); rejection != nil {
			return nil, rejection
		}
	}
	behind := p.behind(r.Behind)
	out, err := l.reserve(ctx, Reservation{ID: r.ID, Peek: behind >= 0}, &p)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w: %w", ErrStore, err)
	}
	if behind >= 0 && out.Allowed {
		out.Allowed, out.Binding, out.States[behind].Exceeded = false, behind, true
	}
	l.estimateWaits(&p, &out, now)
	if out.Allowed || !r.Waiting {
		l.metrics.countDecision(&p, &out)
		l.reportExceeded(&p, &out, g, now)
	}
	if !out.Allowed {
		rejection, exact := l.newRejection(&p, &out, now)
		if !out.TooLarge {
			d := &p.dims[out.Binding]
			shared := *rejection
			index := p.limitIndex(out.Binding)
			shared.Headers = p.headers(out.States, index, index+1) // the other headers are this caller's alone
			l.rejections.put(d.Key, cachedRejection{
				expiry: now.Add(min(exact, rejectionLife)), retryAt: now.Add(exact), cost: d.Cost, limit: d.Limit, rejection: shared,
			}, now)
		}
		rejection.Forgotten = out.Forgotten
		return nil, rejection
	}
	g.Headers = p.headers(out.States, 0, len(p.dims))
	l.mu.Lock()
	l.forget(r.ID) // a repeated id holds its places once
	l.running[r.ID] = g
	l.holders.add(g)
	l.mu.Unlock()
	return g, nil
}

// reserve asks the store. What is left of a quota may be less than the expected answer, and
// belongs to its owner all the same: the request then reserves the rest. So a quota is used up
// before it refuses, one answer may pass it, and a second one that comes meanwhile finds
// nothing left.
func (l *Limiter) reserve(ctx context.Context, r Reservation, p *plan) (out Decision, err error) {
	r.Dims = p.dims
	for range len(p.dims) + 1 { // each round lowers what one quota is asked for
		out, err = l.opts.Store.Reserve(ctx, r)
		if err != nil || out.Allowed || out.TooLarge || out.Forgotten || !p.lower(out.Binding, out.States[out.Binding].Remaining) {
			break
		}
	}
	return out, err
}

// CachedRejection returns the rejection that the last second is known to give any request of
// these subjects; nil where nothing is known. It asks no store, so that callers who hammer are
// turned away before anything is read of them. A request that may wait for a place is not
// rejected so, unless more wait for it than there are places, and longer than the rule allows.
// waiting returns the places that are waited for, by counter.
func (l *Limiter) CachedRejection(r Request, waiting func(counter string) int64) *Rejection {
	if l.rejections.size.Load() == 0 {
		return nil
	}
	now := l.opts.Now()
	full := l.set.Load().plan(&r, Estimate{}, now)
	var p plan
	for i, d := range full.dims {
		if d.Metric == Requests || d.Metric == Concurrency {
			p.add(d, full.counters[i])
		}
	}
	found, i, ok := l.rejections.find(p.dims, now)
	if !ok {
		return nil
	}
	if d := &found.rejection; d.Wait > 0 {
		ahead := waiting(d.Counter)
		evenly := cmp.Or(d.place.typical, minRetryDelay) / time.Duration(d.Limit) * time.Duration(ahead+1)
		if d.Wait = p.counters[i].wait; d.Wait > 0 && (ahead < d.Limit || evenly <= d.Wait) {
			return nil
		}
		d.Wait, found.retryAt = 0, now.Add(max(found.retryAt.Sub(now), evenly))
	}
	return l.repeat(found, now)
}

// cachedRejection returns a rejection of the last second; nil for none. One that may wait for
// a place is counted later, by CountWait or Reject.
func (l *Limiter) cachedRejection(p *plan, now time.Time) *Rejection {
	found, i, ok := l.rejections.find(p.dims, now)
	if !ok {
		return nil
	}
	if found.rejection.Wait > 0 {
		found.rejection.Wait = p.counters[i].wait // the rule may have changed since
	}
	return l.repeat(found, now)
}

// repeat returns a cached rejection as it is now.
func (l *Limiter) repeat(found cachedRejection, now time.Time) *Rejection {
	rejection := found.rejection
	rejection.Cached, rejection.Shared, rejection.RetryAfter = true, false, l.jittered(max(found.retryAt.Sub(now), time.Millisecond), rejection.UsedUp())
	if rejection.Wait == 0 {
		l.metrics.count(rejection.Rule, "deny", "local")
	}
	return &rejection
}

// reportExceeded reports the shadow rules that were exceeded, and sets the grant's Exceeded.
func (l *Limiter) reportExceeded(p *plan, out *Decision, g *Grant, now time.Time) {
	for i := range p.dims {
		d, c := &p.dims[i], p.counters[i]
		switch {
		case !d.Soft || !out.States[i].Exceeded || p.ceiling(i) && out.States[i-1].Exceeded:
		case c.shadow:
			if l.opts.Shadow != nil {
				l.opts.Shadow(Breach{d.Rule, c.scope, d.Metric, roundedUp(d.Metric, out.States[p.limitIndex(i)].Limit)})
			}
		case g.Exceeded == nil:
			s := out.States[i]
			g.Exceeded, _ = l.newRejection(p, &Decision{Binding: i, States: out.States, TooLarge: s.TooLarge, RetryAfterMs: s.RetryAfterMs}, now)
		}
	}
}

// Run renews the running reservations, retries settlements that the store did not accept, and
// lets the store forget, until ctx ends. Stop it only after the last request has been settled.
func (l *Limiter) Run(ctx context.Context) error {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			l.beat(ctx)
		}
	}
}

// beat renews first: leases must not end because there is much to settle.
func (l *Limiter) beat(ctx context.Context) {
	now := l.opts.Now()
	l.mu.Lock()
	renewals := make([]Renewal, 0, len(l.running))
	for _, g := range l.running {
		renewals = append(renewals, g.renewal(now))
	}
	unsettled := slices.Collect(maps.Values(l.unsettled))
	l.mu.Unlock()
	callCtx, cancel := context.WithTimeout(ctx, settleTimeout)
	lost, err := l.opts.Store.Renew(callCtx, renewals)
	cancel()
	if err != nil {
		l.trouble(fmt.Errorf("renew: %w", err))
	}
	// What is lost was reaped while this process could not reach the store. Its
	// settlement still replaces what it was charged then.
	l.mu.Lock()
	for _, id := range lost {
		l.forget(id)
	}
	l.mu.Unlock()
	callCtx, cancel = context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for _, s := range unsettled {
		// A settlement that the store will never accept is not retried.
		if _, err := l.opts.Store.Settle(callCtx, s); err != nil && !errors.Is(err, ErrDims) {
			l.trouble(fmt.Errorf("settle again: %w", err))
			return
		}
		l.mu.Lock()
		delete(l.unsettled, s.ID)
		l.mu.Unlock()
	}
}

func (l *Limiter) trouble(err error) {
	if l.opts.Trouble != nil {
		l.opts.Trouble(err)
	}
}

// Running returns the number of requests that hold reservations.
func (l *Limiter) Running() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.running)
}

// forget removes a running request. The lock is held.
func (l *Limiter) forget(id string) {
	if g := l.running[id]; g != nil {
		delete(l.running, id)
		l.holders.remove(g)
	}
}

// Grant is the reservation of an admitted request. Settle or Cancel ends it, once; the first
// call counts. It is safe for concurrent use.
type Grant struct {
	Headers  Headers
	Exceeded *Rejection // first exceeded rule that asks for a smaller model instead of a rejection; nil for none

	limiter *Limiter
	set     *Set
	request Request
	plan    plan
	began   time.Time
	ended   atomic.Bool

	mu       sync.Mutex
	progress Usage
	seen     bool
	prepaid  []prepaid // by dimension
}

// Progress records the usage of a running request so far, so that long ones are charged while
// they run and a gateway that dies loses little.
func (g *Grant) Progress(u Usage) {
	g.mu.Lock()
	g.progress, g.seen = u, true
	g.mu.Unlock()
}

func (g *Grant) renewal(now time.Time) Renewal {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := Renewal{ID: g.request.ID, Dims: g.plan.dims}
	charges := g.charges(g.progress, g.request.Model)
	if held := g.raisePrepaid(charges, now.Add(heartbeat).Sub(g.began)); held || g.seen {
		r.Charges = charges
	}
	return r
}

func (g *Grant) charges(u Usage, model string) []int64 {
	w := g.set.weightsOf(model)
	sequences := cmp.Or(u.Sequences, g.request.sequences())
	out := make([]int64, len(g.plan.dims))
	for i := range out {
		switch m := g.plan.dims[i].Metric; m {
		case Requests, Concurrency:
			out[i] = sequences
		default:
			out[i] = charge(m, u, w)
		}
	}
	return out
}

// raisePrepaid raises the charges of ceilings to what is prepaid for a request that will have
// run for age at the next heartbeat. That is what it could have in a window when it was
// admitted and, each time that this is about to leave the window, what it may have in another.
// A window with a ceiling is two heartbeats long at least, so only one passes at a time. It
// reports whether anything is held beyond the reservation. The lock is held.
func (g *Grant) raisePrepaid(charges []int64, age time.Duration) (extra bool) {
	r := &g.request
	for i := range g.plan.dims {
		if !g.plan.ceiling(i) {
			continue
		}
		d := &g.plan.dims[i]
		if g.prepaid == nil {
			g.prepaid = make([]prepaid, len(g.plan.dims))
		}
		h := &g.prepaid[i]
		if windows := age.Milliseconds() / d.WindowMs; windows > h.windows {
			left := charge(d.Metric, Usage{Input: r.Prompt, Output: r.MaxTokens, Reasoning: r.MaxTokens}, Weights{}) - charges[i]
			h.windows, h.charge = windows, max(h.charge, d.Cost, charges[i])+min(d.Cost-d.Floor, max(left, 0))
		}
		charges[i] = max(charges[i], h.charge)
		extra = extra || h.charge > 0
	}
	return extra
}

// prepaid is the charge of a ceiling for a request that has run for some windows.
type prepaid struct{ windows, charge int64 }

// Settle records the final usage of a request; zero where it failed before its first token.
// served is the model that answered, or empty for the one that was asked for. An error means
// that the store did not accept it; Run tries again.
func (g *Grant) Settle(u Usage, served string) error {
	if served == "" {
		served = g.request.Model
	}
	if g.ended.Swap(true) {
		return nil
	}
	g.limiter.estimates.learn(&g.request, u, served, g.limiter.opts.Now().Sub(g.began))
	charges := g.charges(u, served)
	if u.Input+u.Output > 0 {
		g.limiter.metrics.observeSettlement(&g.plan, g.request.Model, charges)
	}
	return g.end(charges)
}

// Cancel takes everything back, the request too: it was refused for another reason after it
// was admitted here.
func (g *Grant) Cancel() error {
	if g.ended.Swap(true) {
		return nil
	}
	return g.end(make([]int64, len(g.plan.dims)))
}

func (g *Grant) end(charges []int64) error {
	if len(charges) == 0 {
		return nil
	}
	l, s := g.limiter, Settlement{ID: g.request.ID, Dims: g.plan.dims, Charges: charges}
	l.mu.Lock()
	l.forget(s.ID)
	l.mu.Unlock()
	// The caller may be gone, and what it used is charged all the same.
	_, err := l.opts.Store.Settle(context.Background(), s)
	l.rejections.forget(s.Dims)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	if len(l.unsettled) < maxUnsettled && !errors.Is(err, ErrDims) {
		l.unsettled[s.ID] = s
	}
	l.mu.Unlock()
	return fmt.Errorf("settle: %w: %w", ErrStore, err)
}
