package redislimit

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"tidegate/admission/limit"
)

// What a replica enforces while it cannot ask Redis. A rule of mode open refuses
// nobody, one of mode closed everybody. For mode local the replica has a share of
// each limit (fleet.go); the shares of all add up to one.
//
// A window and a burst are enforced at the share of their limit, over the shadow:
// all that this replica let in before and since. That alone would let a fleet have
// more than the limit in the first window: a caller that had used all of its limit
// through one replica would find the shares of the others untouched. So as long as
// the use that Redis last told of may still be in the window, this replica also lets
// in no more than its share of what then remained. The sum is then within the limit
// for what replicas have seen; a caller that appears at a replica which had not seen
// it within the window is known only to the others.
//
// Of slots a replica has its share of the limit. Of a quota it has its share of what
// was last known to remain, or of a twentieth where it was never told.
//
// What was let in here is settled in Redis as new when its truth is known and Redis
// is there, quotas always and windows as long as they would still count. An id is
// settled once, so a reservation that Redis had made, but could not say so, is not
// charged twice. The settlements wait in memory; what a replica that dies had not
// yet told of is in the ledger's journal, from which quotas are restored. That is
// marked in Redis (Mark), so that what others have still to tell is not added to it.

// unknownPart is what of a quota is taken to remain where that is not known.
const unknownPart = 20

// maxWaiting bounds the settlements that wait.
const maxWaiting = 100_000

const (
	maxSeen = 50_000  // counters in each of two halves
	ample   = 1 << 50 // more than any limit
)

// local is a request that was let in without Redis.
type local struct {
	dims    []limit.Dim // in the shadow: those of the request, and then those that owners has
	owners  []int
	skipped []bool // soft and over: not charged, there neither
	ms      int64
}

// charges adds those of the further dimensions.
func (l *local) charges(of []int64) []int64 {
	out := append([]int64(nil), of...)
	for _, i := range l.owners {
		out = append(out, of[i])
	}
	return out
}

// home is how Redis is told.
func (l *local) home(s limit.Settlement) settlement {
	s.New, s.Charges = true, append([]int64(nil), s.Charges...)
	for i, skipped := range l.skipped {
		if skipped {
			s.Charges[i] = 0
		}
	}
	return settlement{Settlement: s, ms: l.ms}
}

// settlement is one that Redis is to be told of.
type settlement struct {
	limit.Settlement
	ms int64 // when it was let in here; 0: Redis knows it
}

// due is the settlement at a time: windows that have passed are left alone.
func (s *settlement) due(now int64) limit.Settlement {
	if s.ms == 0 {
		return s.Settlement
	}
	out := s.Settlement
	out.Charges = append([]int64(nil), s.Charges...)
	for i := range out.Dims {
		if d := &out.Dims[i]; d.Kind == limit.Window && s.ms+d.WindowMs <= now {
			out.Charges[i] = 0
		}
	}
	return out
}

func (g *Guarded) isHere(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.here[id] != nil
}

// leave ends what is known of a request that was let in here.
func (g *Guarded) leave(id string) *local {
	if g.hereCount.Load() == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.here[id]
	delete(g.here, id)
	g.hereCount.Store(int64(len(g.here)))
	return l
}

// reserveHere decides without Redis.
func (g *Guarded) reserveHere(r limit.Reservation) (limit.Decision, error) {
	for i := range r.Dims {
		if d := &r.Dims[i]; d.Failure == limit.FailClosed && !d.Soft {
			return limit.Decision{}, fmt.Errorf("rule %s: %w", d.Rule, ErrClosed)
		}
	}
	now := g.with.Now()
	l := g.locally(r.Dims, now.UnixMilli())
	found, err := g.shadow.Reserve(context.Background(), limit.Reservation{ID: r.ID, Dims: l.dims, Peek: r.Peek, Settled: r.Settled})
	if err != nil {
		return limit.Decision{}, err
	}
	states := l.states(r.Dims, found.States)
	if found.Again {
		return limit.Decision{Allowed: true, Again: true, Binding: -1, States: states}, nil
	}
	out := limit.Decide(r.Dims, states)
	if out.Allowed && !r.Peek {
		for i := range r.Dims {
			l.skipped[i] = found.States[i].Over
		}
		g.recent.add(now)
		g.mu.Lock()
		g.here[r.ID] = l
		g.hereCount.Store(int64(len(g.here)))
		g.mu.Unlock()
	}
	return out, nil
}

// locally are the dimensions as this replica enforces them alone.
func (g *Guarded) locally(dims []limit.Dim, now int64) *local {
	g.mu.Lock()
	outage := fmt.Sprintf("#%d", g.outage)
	g.mu.Unlock()
	l := &local{dims: append(make([]limit.Dim, 0, 2*len(dims)), dims...), skipped: make([]bool, len(dims)), ms: now}
	for i := range dims {
		d := &l.dims[i]
		if d.Failure == limit.FailOpen {
			d.Soft = true
			continue
		}
		was := g.seen.of(d.Key)
		if d.Kind == limit.Quota {
			d.Key += outage
			d.Limit = g.fleet.share(d.Key, was.remains(d))
			continue
		}
		whole := d.Limit
		d.Limit, d.NextLimit = g.fleet.share(d.Key, d.Limit), g.fleet.share(d.Key, d.NextLimit)
		if d.Burst > 0 {
			d.Burst = max(g.fleet.share(d.Key, d.Burst), 1)
		}
		if d.NextBurst > 0 {
			d.NextBurst = max(g.fleet.share(d.Key, d.NextBurst), 1)
		}
		if d.Kind == limit.Window && was.ms+d.WindowMs > now {
			left := *d
			left.Key += outage
			left.Limit, left.Burst = g.fleet.share(d.Key, max(whole-was.used, 0)), 0
			left.EdgeMs, left.NextLimit, left.NextBurst = was.ms+d.WindowMs, ample, 0
			l.dims, l.owners = append(l.dims, left), append(l.owners, i)
		}
	}
	return l
}

// states are those of the request's own dimensions, as a caller is to see them: with
// the limit of the rule, and never "never" for what only the share cannot hold.
func (l *local) states(dims []limit.Dim, found []limit.State) []limit.State {
	out := append([]limit.State(nil), found[:len(dims)]...)
	for k, i := range l.owners {
		s, left := &out[i], &found[len(dims)+k]
		s.Remaining = min(s.Remaining, left.Remaining)
		s.Over, s.Never = s.Over || left.Over, s.Never || left.Never
		s.RetryAfterMs = max(s.RetryAfterMs, left.RetryAfterMs)
	}
	for i := range out {
		d, s := &dims[i], &out[i]
		most := d.Limit
		if d.EdgeMs != 0 && d.Kind != limit.Quota && l.ms >= d.EdgeMs {
			most = d.NextLimit
		}
		s.Limit = most
		if d.Burst > 0 {
			most = min(most, d.Burst)
		}
		switch {
		case d.Failure == limit.FailOpen && !d.Soft:
			s.Over, s.Never, s.RetryAfterMs = false, false, 0
			s.Remaining = max(s.Limit-s.Used, 0)
		case s.Never && d.Cost <= most:
			s.Never, s.RetryAfterMs = false, lookAgain.Milliseconds()
		case s.Never:
			s.RetryAfterMs = 0
		}
	}
	return out
}

// wait keeps a settlement for when Redis is back.
func (g *Guarded) wait(s settlement) {
	g.mu.Lock()
	if len(g.waiting) < maxWaiting {
		g.waiting = append(g.waiting, s)
	} else {
		g.dropped++
	}
	g.waitingCount.Store(int64(len(g.waiting)))
	g.mu.Unlock()
}

// leaveQuotas lets what waits charge no quota: Redis was given what a ledger knows,
// which has counted these requests, too.
func (g *Guarded) leaveQuotas() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.waiting {
		for i := range s.Dims {
			if s.Dims[i].Kind == limit.Quota && s.ms != 0 {
				s.Charges[i] = 0 // the slice is the settlement's own
			}
		}
	}
}

// tell settles in Redis what waits, in its order, until nothing does or one fails.
func (g *Guarded) tell(ctx context.Context) error {
	for {
		g.mu.Lock()
		if len(g.waiting) == 0 {
			g.waiting = nil
			g.mu.Unlock()
			return nil
		}
		next := g.waiting[0]
		g.mu.Unlock()
		err := g.call(ctx, next.Dims, func(ctx context.Context) error {
			out, err := g.store.Settle(ctx, next.due(g.with.Now().UnixMilli()))
			if err == nil {
				g.seen.learn(next.Dims, out.States, g.with.Now().UnixMilli())
			}
			return err
		})
		if err != nil && !errors.Is(err, limit.ErrDims) {
			return err
		}
		g.mu.Lock()
		g.waiting = g.waiting[1:]
		g.waitingCount.Store(int64(len(g.waiting)))
		g.mu.Unlock()
	}
}

// seen is what Redis last said of counters. When one half is full it becomes the
// older one, and what was only in that is forgotten.
type seen struct {
	mu       sync.Mutex
	now, old map[string]sight
}

// sight is what Redis said of one counter. A zero one was never seen.
type sight struct{ used, begin, ms int64 }

func (s *seen) learn(dims []limit.Dim, states []limit.State, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range states {
		d := &dims[i]
		if d.Kind == limit.Lease {
			continue
		}
		if len(s.now) >= maxSeen {
			s.now, s.old = map[string]sight{}, s.now
		}
		s.now[d.Key] = sight{states[i].Used, d.BeginMs, now}
	}
}

func (s *seen) of(key string) sight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one, ok := s.now[key]; ok {
		return one
	}
	return s.old[key]
}

// remains is what of a quota is taken to remain for all replicas.
func (s *sight) remains(d *limit.Dim) int64 {
	switch {
	case s.ms == 0:
		return d.Limit / unknownPart
	case s.begin < d.BeginMs: // of a period of which nothing was used when it was seen
		return d.Limit
	}
	return max(d.Limit-s.used, 0)
}
