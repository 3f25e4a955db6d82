package redislimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidegate/admission/limit"
)

// This file has what a replica enforces while it cannot ask Redis. A rule of mode open refuses
// nobody, one of mode closed everybody. For mode local the replica has a share of each limit
// (fleet.go). It enforces the share over the shadow: over all that it admitted before and
// since.
//
// Of two replicas each has half. That alone would admit more than the limit in the first
// window: a caller that had used all of its limit through one would find the half of the other
// untouched. So a replica also admits no more than what the others leave of the whole limit, as
// far as Redis last reported, and as long as that may still be in the window. A caller that
// uses half of its limit is never refused by this: the others cannot have admitted more than
// the other half. For what replicas have seen, two are within the limit then; a caller that
// appears at a replica which had not seen it within the window is known only to the others.
//
// Slots are enforced in the same way; what the others held counts for one lease. A request
// that alone is larger than a share is admitted when nothing else of its counter counts. Of a
// window, a request that is no more than an eighth of the share is admitted beyond it. What
// running requests may use at most (limit.Dim.Ceiling) is enforced whole: a request holds much
// of it and does not use it, and usage above the limit is carried into the windows that follow.
//
// Of a quota a replica has its share of what remained. That is what Redis last reported, or
// what the ledger knows (Recall), if that is more: the ledger goes on counting for all replicas
// while Redis is away. A quota whose use is not known at all is assumed to have a twentieth
// left.
//
// A Redis that was emptied knows nothing of the windows that are running. For the length of a
// window after that, a replica enforces its share beside the counters of Redis. So it does for
// a while after every time alone: until the others have handed in what they admitted, Redis
// knows of less than that.
//
// What was admitted here is settled in Redis as new, when its usage is known and Redis is
// there: quotas always, and windows as long as they would still count. What still runs is
// reserved there (adopt). An id is settled once, so a reservation that Redis had made without
// an answer is not charged twice. The settlements wait in memory. Those of a replica that dies
// are in the ledger's journal, from which quotas are restored. The restoration is marked in
// Redis (Mark), so that what others have still to hand in is not added to it.

// unknownPart divides a quota whose use is not known: that part is assumed to remain.
const unknownPart = 20

// maxWaiting bounds the settlements that wait for Redis.
const maxWaiting = 100_000

const (
	maxSeen = 50_000 // counters in each of two halves
	// smallPart divides a share: a request that costs no more than that part is small.
	smallPart = 8
	// recallLife is the time for which an absence in the ledger means that a quota was not
	// used.
	recallLife = 2 * time.Minute
	// shadowBuckets is the number of parts into which the shadow cuts a window. A part counts
	// in full, and with the usual twelve half of a limit would count as more than half.
	shadowBuckets = 60
)

// localRequest is a request that was admitted without Redis.
type localRequest struct {
	whole    []limit.Dim // dimensions of the request
	dims     []limit.Dim // the same as the shadow has them
	priorUse []int64     // by dimension: use of a quota that the shadow does not count
	remote   []int64     // by dimension: part of the window that other replicas have
	skipped  []bool      // soft and exceeded: not charged, in Redis neither
	ms       int64       // time of admission, in milliseconds since 1970
	adopted  bool        // Redis holds a reservation, too
}

// fineDims returns dimensions as the shadow counts them.
func fineDims(dims []limit.Dim) []limit.Dim {
	out := slices.Clone(dims)
	for i := range out {
		if d := &out[i]; d.Kind == limit.Window {
			d.BucketMs = min(d.BucketMs, max(d.WindowMs/shadowBuckets, 1))
		}
	}
	return out
}

// settlementOf returns the settlement for Redis.
func (l *localRequest) settlementOf(s limit.Settlement) settlement {
	s.New, s.Charges = true, slices.Clone(s.Charges)
	for i, skipped := range l.skipped {
		if skipped {
			s.Charges[i] = 0
		}
	}
	if l.adopted {
		return settlement{Settlement: s}
	}
	return settlement{Settlement: s, ms: l.ms}
}

// settlement is a settlement that Redis has not accepted yet.
type settlement struct {
	limit.Settlement
	ms int64 // time of admission here, in milliseconds since 1970; 0 where Redis knows the reservation
}

// due returns the settlement as of now: windows are charged for the time of admission.
func (s *settlement) due(now int64) limit.Settlement {
	out := s.Settlement
	if s.ms != 0 {
		out.AgeMs = max(now-s.ms, 0)
	}
	return out
}

// reserveLocally decides without Redis.
func (g *Guarded) reserveLocally(r limit.Reservation) (limit.Decision, error) {
	for i := range r.Dims {
		if d := &r.Dims[i]; d.Failure == limit.FailClosed && !d.Soft {
			return limit.Decision{}, fmt.Errorf("rule %s: %w", d.Rule, ErrClosed)
		}
	}
	l := g.newLocalRequest(r.Dims, g.opts.Now().UnixMilli())
	found, err := g.shadow.Reserve(context.Background(), limit.Reservation{ID: r.ID, Dims: l.dims, Peek: r.Peek, Settled: r.Settled})
	if err != nil {
		return limit.Decision{}, err
	}
	states := l.states(found.States)
	if found.Repeated {
		return limit.Decision{Allowed: true, Repeated: true, Binding: -1, States: states}, nil
	}
	out := limit.Decide(r.Dims, states)
	if out.Allowed && !r.Peek {
		for i := range r.Dims {
			l.skipped[i] = found.States[i].Exceeded
		}
		g.local.add(r.ID, l)
	}
	return out, nil
}

// rejectedByShare decides by this replica's shares where Redis knows of less than was
// admitted: of the windows that were running when it lost its counters, and of all until other
// replicas have handed in what they counted alone. It reports whether the shares refuse the
// request.
func (g *Guarded) rejectedByShare(r limit.Reservation) (out limit.Decision, refused bool) {
	now := g.opts.Now()
	handsIn := g.awaitsHandIn(now)
	if !handsIn && !g.loss.isRecent(now) {
		return out, false
	}
	l := g.newLocalRequest(r.Dims, now.UnixMilli())
	found, err := g.shadow.Reserve(context.Background(), limit.Reservation{ID: r.ID, Dims: l.dims, Peek: true})
	if err != nil {
		return out, false
	}
	states, lost := l.states(found.States), g.loss.atMs.Load()
	for i := range states {
		d := &r.Dims[i]
		if d.Kind == limit.Quota || !handsIn && now.UnixMilli() >= lost+memoryMs(d) {
			states[i].Exceeded = false
		}
	}
	out = limit.Decide(r.Dims, states)
	return out, !out.Allowed
}

// memoryMs returns the time for which an admitted request counts, in milliseconds. Quotas have
// a ledger to remember them.
func memoryMs(d *limit.Dim) int64 {
	switch d.Kind {
	case limit.Window:
		return d.WindowMs
	case limit.Lease:
		return limit.LeaseLife.Milliseconds()
	}
	return 0
}

// newLocalRequest returns a request with its dimensions as this replica enforces them alone.
func (g *Guarded) newLocalRequest(dims []limit.Dim, now int64) *localRequest {
	outage := outageSuffix(g.link.outageNumber())
	l := &localRequest{
		whole: dims, dims: fineDims(dims), ms: now,
		priorUse: make([]int64, len(dims)), remote: make([]int64, len(dims)), skipped: make([]bool, len(dims)),
	}
	for i := range l.dims {
		d := &l.dims[i]
		switch {
		case d.Failure == limit.FailOpen:
			d.Soft = true
		case d.Kind == limit.Quota:
			k := g.knownUse(d, now)
			d.Key += outage
			remains := max(d.Limit-k.used, 0)
			l.priorUse[i] = k.used - k.local
			d.Limit = max(k.local+g.fleet.share(remains), min(d.Cost, remains))
		case !d.Ceiling:
			l.remote[i] = g.reduceLimit(d, now)
		}
	}
	return l
}

// reduceLimit reduces the limit of a window or of slots to this replica's own, and returns the
// part that others have of it.
func (g *Guarded) reduceLimit(d *limit.Dim, now int64) (remote int64) {
	last := g.seen.lookup(d.Key)
	if last.expiry > now {
		remote = last.remote
	}
	// A request that is larger than the share has to be alone. A small one may be beyond
	// it: requests that come at half of a limit come a little early at times.
	reduced := func(whole, remote int64) int64 {
		share, left := g.fleet.share(whole), max(whole-remote, 0)
		if d.Kind == limit.Window && d.Cost <= share/smallPart {
			share += d.Cost
		}
		return max(min(share, left), min(d.Cost, left))
	}
	burst := func(whole int64) int64 {
		if whole <= 0 {
			return whole
		}
		return reduced(whole, 0)
	}
	whole := d.Limit
	d.Limit, d.Burst = reduced(d.Limit, remote), burst(d.Burst)
	switch {
	case d.EdgeMs != 0:
		d.NextLimit, d.NextBurst = reduced(d.NextLimit, remote), burst(d.NextBurst)
	case remote > 0: // they leave the window then
		d.EdgeMs, d.NextLimit, d.NextBurst = last.expiry, reduced(whole, 0), d.Burst
	}
	return remote
}

// states returns the states of the request's own dimensions as a caller sees them: with the
// limit of the rule, and TooLarge only where the rule itself cannot hold the cost.
func (l *localRequest) states(found []limit.State) []limit.State {
	out := slices.Clone(found)
	for i := range out {
		d, s := &l.whole[i], &out[i]
		whole, burst := d.Limit, d.Burst
		if d.EdgeMs != 0 && d.Kind != limit.Quota && l.ms >= d.EdgeMs {
			whole, burst = d.NextLimit, d.NextBurst
		}
		share := s.Limit
		s.Limit = whole
		if d.Failure == limit.FailOpen && !d.Soft {
			s.Exceeded, s.TooLarge, s.RetryAfterMs = false, false, 0
			s.Remaining = max(s.Limit-s.Used, 0)
			continue
		}
		cost := d.Cost
		if d.Kind == limit.Quota {
			s.Used += l.priorUse[i]
			cost = max(d.Floor, 1) // a caller may reserve less
		}
		if burst > 0 {
			whole = min(whole, burst)
		}
		switch {
		case !s.Exceeded:
		case d.Cost > whole:
			s.TooLarge, s.RetryAfterMs = true, 0
		case s.Used+l.remote[i]+cost > s.Limit && d.Kind == limit.Quota:
			s.TooLarge, s.RetryAfterMs = false, max(d.EndMs-l.ms, 1)
			s.Remaining = max(s.Limit-s.Used, 0)
		default:
			if s.Used+l.remote[i]+cost <= s.Limit && !d.Ceiling {
				s.Share = max(share, 1)
			}
			if s.TooLarge || d.Kind == limit.Quota {
				s.TooLarge, s.RetryAfterMs = false, probeInterval.Milliseconds()
			}
		}
	}
	return out
}

// adopt reserves in Redis what was admitted here and still runs, so that it holds its slots
// there. Redis refuses none of it: what is above its limit is left out.
func (g *Guarded) adopt(ctx context.Context) error {
	for id, l := range g.local.unadopted() {
		dims := slices.Clone(l.whole)
		for i := range dims {
			dims[i].Soft = true
			if dims[i].Kind == limit.Quota || l.skipped[i] {
				dims[i].Cost, dims[i].Floor = 0, 0 // its settlement will say; a quota is never left out
			}
		}
		err := g.call(ctx, dims, func(ctx context.Context) error {
			_, err := g.store.Reserve(ctx, limit.Reservation{ID: id, Dims: dims})
			return err
		})
		if err != nil && !errors.Is(err, limit.ErrDims) {
			return err
		}
		g.local.setAdopted(id, l)
	}
	return nil
}

// handIn settles the backlog in Redis, in its order, until it is empty or a call fails.
func (g *Guarded) handIn(ctx context.Context) error {
	for {
		next, ok := g.backlog.first()
		if !ok {
			return nil
		}
		err := g.call(ctx, next.Dims, func(ctx context.Context) error {
			out, err := g.store.Settle(ctx, next.due(g.opts.Now().UnixMilli()))
			if err == nil {
				g.seen.record(next.Dims, out.States, nil, g.opts.Now().UnixMilli(), false) // quotas alone
			}
			return err
		})
		if err != nil && !errors.Is(err, limit.ErrDims) {
			return err
		}
		g.backlog.removeFirst()
	}
}

// observations holds what Redis last reported of counters. When one half is full it becomes
// the older one, and what was only in that is forgotten.
type observations struct {
	mu       sync.Mutex
	now, old map[string]observation
}

// observation is the last report of Redis on one counter; zero where there was none. Times are
// in milliseconds since 1970.
type observation struct {
	used, begin int64 // use of a quota, and the begin of its period
	remote      int64 // part of a window or of slots that this replica did not admit
	expiry      int64 // time at which the remote part counts no longer
	ms          int64 // time of the report
}

// record notes what Redis reported of counters, of which mine are the shadow's states. With
// keepRemote, the part of others is not forgotten while it counts: Redis has lost it.
func (s *observations) record(dims []limit.Dim, states, mine []limit.State, now int64, keepRemote bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range states {
		d := &dims[i]
		one := observation{used: states[i].Used, begin: d.BeginMs, ms: now}
		if d.Kind != limit.Quota {
			if i >= len(mine) || d.Ceiling {
				continue
			}
			one = observation{remote: max(states[i].Used-mine[i].Used, 0), expiry: now + memoryMs(d), ms: now}
			if previous := s.find(d.Key); keepRemote && previous.expiry > now && previous.remote > one.remote {
				continue
			}
		}
		if len(s.now) >= maxSeen {
			s.now, s.old = map[string]observation{}, s.now
		}
		s.now[d.Key] = one
	}
}

func (s *observations) lookup(key string) observation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(key)
}

// find returns an observation. The lock is held.
func (s *observations) find(key string) observation {
	if one, ok := s.now[key]; ok {
		return one
	}
	return s.old[key]
}
