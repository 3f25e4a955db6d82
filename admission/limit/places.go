package limit

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// hold is the amount that a running request holds of a counter, and for how much longer.
type hold struct {
	left   time.Duration
	amount int64
}

const (
	minPlaceWait = 10 * time.Millisecond // shortest wait for a place that is announced
	// tailParts and lateParts divide the usual duration of an answer, and the time that it has
	// run. An answer that is nearly over lasts that much longer, and so does one that has
	// outlasted the others.
	tailParts, lateParts = 8, 4
)

// remaining estimates how much longer a request runs: the typical duration of such requests,
// less what it has run. One that has outlasted them is assumed to go on for a quarter of its
// age, and where no duration is known, for as long as it has run.
func remaining(age, typical time.Duration) time.Duration {
	switch {
	case typical == 0:
		return max(age, minRetryDelay)
	case age < typical:
		return max(typical-age, typical/tailParts)
	}
	return age / lateParts
}

// place is the input of an estimate of the wait for a place.
type place struct {
	used, cost, limit int64
	typical           time.Duration // duration of such requests; 0 where unknown
}

// PlaceWait estimates how long a request that a concurrency limit rejected waits until its
// places are free, once those who go first have theirs: ahead is the number of places that
// they wait for. It uses the ages of the requests that run here and how long such requests
// took; those of other replicas are assumed to end evenly.
func (l *Limiter) PlaceWait(d *Rejection, ahead int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.placeWait(d.Counter, d.place, ahead, l.opts.Now())
}

// placeWait does the work of PlaceWait. The lock is held.
func (l *Limiter) placeWait(counter string, p place, ahead int64, now time.Time) time.Duration {
	// A rejected request needs one place at least: this replica alone may have less than
	// the limit.
	needed := max(p.used+p.cost-p.limit, 1) + ahead
	var holds []hold
	grants := l.holders.byCounter[counter]
	for g, i := range grants {
		if len(holds) == maxHolds {
			break
		}
		holds = append(holds, hold{remaining(now.Sub(g.began), cmp.Or(g.plan.callerDuration, p.typical)), g.plan.dims[i].Cost})
	}
	if len(grants) > maxHolds { // only a part was looked at
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
	// After the running requests come those who wait, which run for a typical duration.
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

// holders indexes the running requests by the counters of which they hold what they may give
// back: places, and what is reserved for an answer.
type holders struct {
	byCounter map[string]map[*Grant]int // value: index of the dimension
	spare     []map[*Grant]int          // empty maps for the next counter
}

// maxSpare bounds the empty maps that are kept. Without any, each request of a caller who has
// none running would make them anew.
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

// refunds reports whether a request gives back part of a dimension when it ends.
func (p *plan) refunds(i int) bool {
	return p.dims[i].Kind == Lease || !p.ceiling(i) && p.counters[i].bounded()
}

// estimateWaits replaces retry times that state only when reservations end by themselves. A
// running request gives a place back when it ends, and most of what is reserved for an answer
// and not used.
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

// refundWait estimates the time until running requests have given back an amount that they
// have reserved of a window and will probably not use; the longest duration where they will
// not give back so much. Those of other replicas are not known, and count for nothing.
func (l *Limiter) refundWait(d *Dim, missing int64, now time.Time) time.Duration {
	var refunds []hold
	l.mu.Lock()
	grants, seen := l.holders.byCounter[d.Key], 0
	for g, i := range grants {
		if seen == maxHolds {
			missing = missing * maxHolds / int64(len(grants)) // only a part was looked at
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

// refund returns the part of its reservation of one dimension that a running request will
// probably give back: what is reserved beyond what three of four such answers have, or this
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

// place returns the input of an estimate for one of the plan's concurrency limits.
func (p *plan) place(i int, s *State) place {
	return place{used: s.Used, cost: p.dims[i].Cost, limit: s.Limit, typical: p.callerDuration}
}

// behind returns the first concurrency limit of the plan at which others wait, who go first;
// -1 for none.
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

// CountWait counts that a rejected request waits for a place instead.
func (l *Limiter) CountWait(d *Rejection) { l.metrics.count(d.Rule, "wait", d.store()) }

// Reject counts and returns the rejection of a request that might have waited for a place, or
// has. ahead is the number of places of the same counter that others wait for before it.
func (l *Limiter) Reject(d *Rejection, ahead int64, waited time.Duration) *Rejection {
	l.metrics.count(d.Rule, "deny", d.store())
	rejection := *d
	if rejection.Waited = waited; d.Wait > 0 {
		rejection.RetryAfter = l.jittered(l.PlaceWait(d, ahead), false)
	}
	return &rejection
}

// store returns the label of the store whose counters rejected.
func (r *Rejection) store() string {
	if r.Shared {
		return "redis"
	}
	return "local"
}
