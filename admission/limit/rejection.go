package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Rejection is the error of a request that a limit or a quota rejects.
type Rejection struct {
	ExceededLimit

	Cost     int64   // amount that the request needs, as far as it is known or reserved
	Prompt   int64   // part of Cost that is the prompt
	TooLarge bool    // the request is larger than the limit ever is
	Headers  Headers // remaining amounts for the response headers

	// Time until a retry can pass; 0 where TooLarge. It is exact for a quota. Where the
	// running requests use the rest of the limit, it is about the duration of an answer.
	// Otherwise it includes a jitter of up to a tenth (a minute at most), so that callers do
	// not return together.
	RetryAfter time.Duration

	Wait   time.Duration // longest wait for a place that the rule allows; 0 for none
	Waited time.Duration // time that the request has waited for a place

	Cached    bool // the store was not asked: it rejected the same a moment ago
	Shared    bool // the counters of all replicas decided, not those of this process alone
	Forgotten bool // the store settles this request id to nothing, so a retry needs another one

	place place // input of the estimate of the wait for a place
}

// ExceededLimit is the limit or quota that rejects a request, and its state then. Amounts are
// in the metric's own unit.
type ExceededLimit struct {
	Rule    string
	Scope   string // subjects that the rule counts by, such as user or user,model
	Metric  Metric
	Quota   bool          // the limit is a quota
	Limit   int64         // limit in force
	Window  time.Duration // window of a rate; 0 for other limits
	Used    int64
	Left    int64
	Running bool   // the running requests may use the rest of the limit and more
	Shrunk  Shrunk // effect of pressure on the limit
	Counter string // key of the counter

	// Share is the part of the limit that this replica enforces while the store that counts
	// for all replicas does not answer. It is 0 where the limit itself rejects.
	Share int64
}

// Amount returns the limit in words, such as 50 requests in 1m per user.
func (r *Rejection) Amount() string {
	scope := " per " + r.Scope
	if r.Scope == byNone.String() {
		scope = " for all callers together"
	}
	switch {
	case r.Metric == Concurrency:
		return fmt.Sprintf("%d requests at a time%s", r.Limit, scope)
	case r.Window > 0:
		return fmt.Sprintf("%d %s in %s%s", r.Limit, r.Metric, windowText(r.Window), scope)
	}
	return fmt.Sprintf("%d %s%s", r.Limit, r.Metric, scope)
}

func (r *Rejection) Error() string {
	text := "rule " + r.Rule + ": " + r.Amount()
	if r.Share > 0 {
		text += fmt.Sprintf(", of which this replica enforces %d while it counts alone", r.Share)
	}
	if r.Running {
		text += ", and what is running may use the rest"
	}
	if r.TooLarge {
		return text + ": the request is larger than that"
	}
	return fmt.Sprintf("%s: try again in %s", text, r.RetryAfter.Round(time.Millisecond))
}

// Headers holds the numbers for a caller: those of the tightest rule on requests and of the
// tightest on tokens.
type Headers struct {
	Requests, Tokens Line
	Factor           Factor // smallest part that pressure leaves of one of these limits, in thousandths; 0 for all
}

// Line holds one rule's numbers. A Limit of 0 means that there is no such rule.
type Line struct {
	Limit, Remaining int64
	Reset            time.Duration // time until the whole limit is free again
}

// limitIndex returns the index of the dimension whose limit people know: i itself, or that of
// the dimension which the ceiling i belongs to.
func (p *plan) limitIndex(i int) int {
	if p.ceiling(i) {
		return i - 1
	}
	return i
}

// headers returns the headers from the states of enforced windows, between two indexes. The
// tightest window has the least left; of equals, it is the one that takes longer to be full
// again.
func (p *plan) headers(states []State, start, end int) (h Headers) {
	for i := start; i < end; i++ {
		d, s := &p.dims[i], &states[i]
		line := &h.Tokens
		switch {
		case d.Kind != Window || p.counters[i].shadow || p.ceiling(i) || d.Metric == ReasoningTokens:
			continue
		case d.Metric == Requests:
			line = &h.Requests
		}
		reset := time.Duration(s.ResetMs) * time.Millisecond
		if f := Factor(p.counters[i].factors[p.tier][p.level]); f < 1000 && (h.Factor == 0 || f < h.Factor) {
			h.Factor = f
		}
		if line.Limit == 0 || s.Remaining < line.Remaining || s.Remaining == line.Remaining && reset > line.Reset {
			*line = Line{s.Limit, s.Remaining, reset}
		}
	}
	return h
}

const (
	maxJitter           = time.Minute
	rejectionLife       = time.Second      // time for which a rejection answers for the same request
	maxCachedRejections = 16_384           // keys
	minLevelTime        = 30 * time.Second // shortest time for which a level of pressure stays
)

// newRejection returns the rejection of a decision, and the time until a retry passes without
// jitter.
func (l *Limiter) newRejection(p *plan, out *Decision, now time.Time) (*Rejection, time.Duration) {
	i := out.Binding
	d, c := &p.dims[i], p.counters[i]
	rejection := &Rejection{
		ExceededLimit: p.exceededLimit(out, now), TooLarge: out.TooLarge, Headers: p.headers(out.States, 0, len(p.dims)),
		Cost: roundedUp(d.Metric, d.Cost), Prompt: roundedUp(d.Metric, d.Floor), Shared: out.Shared,
	}
	if d.Kind == Lease && !out.TooLarge {
		rejection.Wait, rejection.place = c.wait, p.place(i, &out.States[i])
	}
	exact := time.Duration(out.RetryAfterMs) * time.Millisecond
	largest := c.largest
	if p.ceiling(i) {
		largest = ceilingOf(largest)
	}
	if out.TooLarge && d.Cost <= largest {
		rejection.TooLarge, exact = false, c.later(d, now)
	}
	if !rejection.TooLarge {
		rejection.RetryAfter = l.jittered(exact, rejection.UsedUp())
	}
	return rejection, exact
}

// exceededLimit returns the limit that binds a decision, with its state.
func (p *plan) exceededLimit(out *Decision, now time.Time) ExceededLimit {
	i := out.Binding
	d, c, s, whole := &p.dims[i], p.counters[i], &out.States[i], &out.States[p.limitIndex(i)]
	return ExceededLimit{
		Rule: d.Rule, Scope: c.scope, Metric: d.Metric, Quota: d.Kind == Quota, Limit: roundedUp(d.Metric, whole.Limit),
		Window: time.Duration(d.WindowMs) * time.Millisecond, Used: roundedUp(d.Metric, whole.Used), Left: roundedDown(d.Metric, s.Remaining),
		Running: p.ceiling(i), Shrunk: p.shrunk(i, now), Counter: d.Key, Share: roundedUp(d.Metric, s.Share),
	}
}

// later returns the wait of a request that fits the rule, but not now: until the next
// schedule, or until the pressure falls.
func (c *counter) later(d *Dim, now time.Time) time.Duration {
	if c.schedule != nil {
		spell := c.schedule.spellAt(now)
		if next := c.amounts[spell.next]; d.Cost <= capacity(next.limit, next.burst) {
			return spell.end.Sub(now)
		}
	}
	return minLevelTime
}

// UsedUp reports whether a quota is used up, so that the rejection holds until its period
// ends.
func (r *Rejection) UsedUp() bool { return r.Quota && !r.TooLarge && r.Share == 0 }

// jittered returns the time after which a caller may return. The end of a quota has no jitter:
// people are shown it, and no client waits for it by itself.
func (l *Limiter) jittered(exact time.Duration, period bool) time.Duration {
	if period {
		return exact
	}
	return exact + time.Duration(l.random()*float64(min(exact/10, maxJitter)))
}

// roundedDown returns a remainder in the unit that people read; part of a unit counts as none.
func roundedDown(m Metric, n int64) int64 {
	if m == Units {
		return n / 1000
	}
	return n
}

// roundedUp returns an amount in the unit that people read; part of a unit counts whole.
func roundedUp(m Metric, n int64) int64 {
	if m == Units {
		return ceilDiv(n, 1000)
	}
	return n
}

// rejectionCache holds the rejections of the last second by the counter that rejected. A
// request that asks at least as much of such a counter is rejected without asking the store,
// until something is settled there.
type rejectionCache struct {
	size      atomic.Int64
	mu        sync.Mutex
	byCounter map[string]cachedRejection
}

type cachedRejection struct {
	expiry      time.Time // time after which the store is asked again
	retryAt     time.Time
	cost, limit int64
	rejection   Rejection
}

// find returns the rejection that one of the dimensions meets, and the index of that
// dimension.
func (d *rejectionCache) find(dims []Dim, now time.Time) (cachedRejection, int, bool) {
	if d.size.Load() == 0 {
		return cachedRejection{}, 0, false
	}
	for i := range dims {
		if !dims[i].Soft && dims[i].Cost > capacity(dims[i].Limit, dims[i].Burst) {
			return cachedRejection{}, 0, false // its rejection is that it never fits
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range dims {
		one := &dims[i]
		if one.Soft {
			continue
		}
		found, ok := d.byCounter[one.Key]
		if !ok {
			continue
		}
		if !now.Before(found.expiry) {
			d.drop(one.Key)
		} else if one.Cost >= found.cost && one.Limit <= found.limit {
			return found, i, true
		}
	}
	return cachedRejection{}, 0, false
}

func (d *rejectionCache) put(key string, entry cachedRejection, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.byCounter) >= maxCachedRejections {
		for old, found := range d.byCounter {
			if !now.Before(found.expiry) {
				d.drop(old)
			}
		}
		if len(d.byCounter) >= maxCachedRejections {
			return
		}
	}
	d.byCounter[key] = entry
	d.size.Store(int64(len(d.byCounter)))
}

// forget removes the entries of dimensions, so that the next request asks the store.
func (d *rejectionCache) forget(dims []Dim) {
	if d.size.Load() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range dims {
		d.drop(dims[i].Key)
	}
}

func (d *rejectionCache) drop(key string) {
	delete(d.byCounter, key)
	d.size.Store(int64(len(d.byCounter)))
}
