package limit

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// hold is what a running request holds of a counter, and for how much longer.
type hold struct {
	left   time.Duration
	amount int64
}

const (
	minPlaceWait = 10 * time.Millisecond // the shortest wait for a place that anybody is told
	// tailParts and lateParts divide what an answer takes usually, or has taken so far: so
	// much longer lasts one that is nearly over, and one that has outlasted the others.
	tailParts, lateParts = 8, 4
)

// remaining estimates how much longer a request runs: as long as such requests take, less
// what it has run. One that has outlasted them is taken to go on for a quarter of its
// age, and where nothing is known of such requests for as long as it has run.
func remaining(age, typical time.Duration) time.Duration {
	switch {
	case typical == 0:
		return max(age, minRetryDelay)
	case age < typical:
		return max(typical-age, typical/tailParts)
	}
	return age / lateParts
}

// place is what an estimate of the wait for a place starts from.
type place struct {
	used, cost, limit int64
	typical           time.Duration // that such requests take; 0: not known
}

// PlaceIn estimates how long a request that a concurrency limit refused waits until its
// places are free, once those who go first have theirs: ahead of them wait for so many
// places. It goes by the ages of the requests that run here and by how long such
// requests took; those of other replicas are taken to end evenly.
func (l *Limiter) PlaceWait(d *Rejection, ahead int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.placeWait(d.Counter, d.place, ahead, l.opts.Now())
}

// placeIn does what PlaceIn does. The lock is held.
func (l *Limiter) placeWait(counter string, p place, ahead int64, now time.Time) time.Duration {
	// One that was refused needs one place at least: this replica alone may have less
	// than the limit.
	needed := max(p.used+p.cost-p.limit, 1) + ahead
	var holds []hold
	grants := l.holders.byCounter[counter]
	for g, i := range grants {
		if len(holds) == maxHolds {
			break
		}
		holds = append(holds, hold{remaining(now.Sub(g.began), cmp.Or(g.plan.callerDuration, p.typical)), g.plan.dims[i].Cost})
	}
	if len(grants) > maxHolds { // those that were looked at are some of all
		needed = max(needed*maxHolds/int64(len(grants)), 1)
		p.used = p.used * maxHolds / int64(len(grants))
	}
	remote := p.used
	for _, h := range holds {
		remote -= h.amount
	}
	typical := cmp.Or(p.typical, minRetryDelay)
	for n := range max(min(remote, maxElsewhere), 0) {
		holds = append(holds, hold{typical * time.Duration(n+1) / time.Duration(remote+1), 1})
	}
	if len(holds) == 0 {
		return max(typical, minPlaceWait)
	}
	slices.SortFunc(holds, func(a, b hold) int { return cmp.Compare(a.left, b.left) })
	var total int64
	for _, h := range holds {
		total += h.amount
	}
	// Beyond what runs now come those who wait, which run as long as is usual.
	rounds := (needed - 1) / max(total, 1)
	needed -= rounds * total
	for _, h := range holds {
		if needed -= h.amount; needed <= 0 {
			return max(h.left+time.Duration(rounds)*typical, minPlaceWait)
		}
	}
	return max(typical*time.Duration(rounds+1), minPlaceWait)
}

const (
	// maxHolds bounds the requests of a counter that an estimate looks at, and
	// maxElsewhere the places of other replicas.
	maxHolds     = 512
	maxElsewhere = 10_000
)

// holders are the running requests by the counters of which they hold what they may give
// back: places, and what is reserved for an answer.
type holders struct {
	byCounter map[string]map[*Grant]int // with the number of the dimension
	spare     []map[*Grant]int          // empty, for the next counter
}

// maxSpare bounds the maps that are kept for the next counter: without any, each request
// of a caller who has none running would make them anew.
const maxSpare = 16

func (h *holders) add(g *Grant) {
	for i := range g.plan.dims {
		if !g.plan.refunds(i) {
			continue
		}
		key := g.plan.dims[i].Key
		grants := h.byCounter[key]
		switch n := len(h.spare); {
		case grants != nil:
		case n > 0:
			grants, h.spare = h.spare[n-1], h.spare[:n-1]
		default:
			grants = map[*Grant]int{}
		}
		grants[g], h.byCounter[key] = i, grants
	}
}

func (h *holders) remove(g *Grant) {
	for i := range g.plan.dims {
		key := g.plan.dims[i].Key
		grants := h.byCounter[key]
		if delete(grants, g); grants == nil || len(grants) > 0 {
			continue
		}
		if delete(h.byCounter, key); len(h.spare) < maxSpare {
			h.spare = append(h.spare, grants)
		}
	}
}

// refunds reports whether a request gives back of a dimension when it ends.
func (p *plan) refunds(i int) bool {
	return p.dims[i].Kind == Lease || !p.ceiling(i) && p.counters[i].bounded()
}

// expect puts estimates in the place of retry times that say only when reservations
// end by themselves: what runs gives a place back when it ends, and most of what is
// reserved for an answer that is not used.
func (l *Limiter) estimateWaits(p *plan, out *Decision, now time.Time) {
	changed := false
	for i := range out.States {
		s := &out.States[i]
		if !s.Exceeded || s.TooLarge {
			continue
		}
		exact := time.Duration(s.RetryAfterMs) * time.Millisecond
		sooner := exact
		switch d := &p.dims[i]; {
		case d.Kind == Lease:
			l.mu.Lock()
			sooner = l.placeWait(d.Key, p.place(i, s), 0, now)
			l.mu.Unlock()
		case p.ceiling(i):
			sooner = p.retryDelay(exact)
		case p.counters[i].bounded():
			sooner = min(exact, l.refundWait(d, d.Cost-s.Remaining, now))
		}
		if sooner != exact {
			s.RetryAfterMs, changed = max(sooner.Milliseconds(), 1), true
		}
	}
	if changed && !out.Allowed {
		updated := Decide(p.dims, out.States)
		out.Binding, out.RetryAfterMs, out.TooLarge = updated.Binding, updated.RetryAfterMs, updated.TooLarge
	}
}

// refunded estimates how long it takes until running requests have given back so much of
// what they have reserved of a window and will probably not use; never, where they will
// not give back so much. Those of other replicas are not known, and count for nothing.
func (l *Limiter) refundWait(d *Dim, missing int64, now time.Time) time.Duration {
	var refunds []hold
	l.mu.Lock()
	grants, seen := l.holders.byCounter[d.Key], 0
	for g, i := range grants {
		if seen == maxHolds {
			missing = missing * maxHolds / int64(len(grants)) // of some of all
			break
		}
		seen++
		if refund := g.refund(i); refund > 0 {
			refunds = append(refunds, hold{remaining(now.Sub(g.began), g.plan.medianDuration), refund})
		}
	}
	l.mu.Unlock()
	slices.SortFunc(refunds, func(a, b hold) int { return cmp.Compare(a.left, b.left) })
	for _, r := range refunds {
		if missing -= r.amount; missing <= 0 {
			return max(r.left+r.left/lateParts, minPlaceWait)
		}
	}
	return math.MaxInt64
}

// refund returns what a running request will probably give back of its reservation of
// one dimension: what is reserved beyond what three of four such answers have, or this
// one has already.
func (g *Grant) refund(i int) int64 {
	u := g.plan.likelyUsage
	if u.Output == 0 {
		return 0
	}
	g.mu.Lock()
	u.Output, u.Reasoning = max(u.Output, g.progress.Output), max(u.Reasoning, g.progress.Reasoning)
	g.mu.Unlock()
	u.Input = g.request.Prompt
	d := &g.plan.dims[i]
	return d.Cost - charge(d.Metric, u, Weights{})
}

// place is what an estimate for one of the plan's concurrency limits starts from.
func (p *plan) place(i int, s *State) place {
	return place{used: s.Used, cost: p.dims[i].Cost, limit: s.Limit, typical: p.callerDuration}
}

// behind returns the first concurrency limit of the plan at which others wait, who go
// first; -1: there is none.
func (p *plan) behind(waits func(counter string) bool) int {
	if waits == nil {
		return -1
	}
	return slices.IndexFunc(p.dims, func(d Dim) bool { return d.Kind == Lease && !d.Soft && waits(d.Key) })
}

// Counters returns the names of the concurrency limits of which the request holds
// places.
func (g *Grant) Counters() (names []string) {
	for i := range g.plan.dims {
		if d := &g.plan.dims[i]; d.Kind == Lease && !d.Soft {
			names = append(names, d.Key)
		}
	}
	return names
}

// Waits counts that a refused request waits for a place instead.
func (l *Limiter) CountWait(d *Rejection) { l.metrics.count(d.Rule, "wait", d.store()) }

// Refuse counts and returns the refusal of a request that might have waited for a
// place, or has. Before it, ahead requests wait for places of the same counter.
func (l *Limiter) Reject(d *Rejection, ahead int64, waited time.Duration) *Rejection {
	l.metrics.count(d.Rule, "deny", d.store())
	rejection := *d
	if rejection.Waited = waited; d.Wait > 0 {
		rejection.RetryAfter = l.jittered(l.PlaceWait(d, ahead), false)
	}
	return &rejection
}

// store names whose counters refused.
func (d *Rejection) store() string {
	if d.Shared {
		return "redis"
	}
	return "local"
}
