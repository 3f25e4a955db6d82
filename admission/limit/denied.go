package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Denied says why a request may not pass.
type Denied struct {
	Rule       string
	Per        string
	Metric     Metric
	Limit      int64         // in force, in the metric's own unit
	Window     time.Duration // of a rate; 0: none
	RetryAfter time.Duration // exact for a quota; of what is Running about how long an answer lasts; else up to a tenth (a minute at most) more, so that callers do not return together; 0 where Never
	Never      bool          // the request is larger than the limit ever is
	Quota      bool          // the limit is a quota
	Cached     bool          // nobody was asked: the same was refused a moment ago
	Running    bool          // what is running may use the rest of the limit and more
	Cost       int64         // of the request, as far as it is known or reserved, in the metric's own unit
	Headers    Headers
	Used       int64         // of the limit now, in the metric's own unit
	Left       int64         // of the limit, in the metric's own unit
	Prompt     int64         // what the prompt alone counts, in the metric's own unit
	Shrunk     Shrunk        // what pressure has made of the limit
	Wait       time.Duration // the longest that the rule lets a request wait for a place; 0: it is refused at once
	Waited     time.Duration // that the request has waited for a place
	Counter    string        // names the counter that refused
	Shared     bool          // all replicas' counters decided, not this process's alone
	Forgotten  bool          // the store settles the request's id to nothing: who asks again needs another id

	// Share is the part of the limit that this replica enforces alone, while the
	// store that counts for all does not answer, in the metric's own unit. It refused,
	// not the limit. 0: the limit did.
	Share int64

	place place // that an estimate of the wait for a place starts from
}

// Amount is the limit in words, such as 50 requests in 1m per user.
func (d *Denied) Amount() string {
	of := " per " + d.Per
	if d.Per == byNone.String() {
		of = " for all callers together"
	}
	switch {
	case d.Metric == Concurrency:
		return fmt.Sprintf("%d requests at a time%s", d.Limit, of)
	case d.Window > 0:
		return fmt.Sprintf("%d %s in %s%s", d.Limit, d.Metric, windowText(d.Window), of)
	}
	return fmt.Sprintf("%d %s%s", d.Limit, d.Metric, of)
}

func (d *Denied) Error() string {
	what := "rule " + d.Rule + ": " + d.Amount()
	if d.Share > 0 {
		what += fmt.Sprintf(", of which this replica enforces %d while it counts alone", d.Share)
	}
	if d.Running {
		what += ", and what is running may use the rest"
	}
	if d.Never {
		return what + ": the request is larger than that"
	}
	return fmt.Sprintf("%s: try again in %s", what, d.RetryAfter.Round(time.Millisecond))
}

// Headers are the numbers for a caller: of the tightest rule on requests and the
// tightest on tokens.
type Headers struct {
	Requests, Tokens Line
	Factor           Factor // the least that pressure leaves of one of these limits, in thousandths; 0: all
}

// Line is one rule's numbers. A Limit of 0 says that there is no such rule.
type Line struct {
	Limit, Remaining int64
	Reset            time.Duration // until all is there again
}

// own is the index of a dimension, or of the one that a ceiling is of: its limit is
// the one that people know.
func (p *plan) own(i int) int {
	if p.ceiling(i) {
		return i - 1
	}
	return i
}

// headers picks from the states, between two indexes, of enforced windows. The tightest has the least
// left; of equals, the one that takes longer to be full again.
func (p *plan) headers(states []State, from, to int) (h Headers) {
	for i := from; i < to; i++ {
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
	maxJitter   = time.Minute
	denialLife  = time.Second      // for which a refusal answers for the same request
	maxDenials  = 16_384           // keys
	levelDwells = 30 * time.Second // the least time for which a level of pressure stays
)

// denied makes the refusal of a decision.
func (l *Limiter) denied(p *plan, out *Decision, now time.Time) (*Denied, time.Duration) {
	i := out.Binding
	d, c := &p.dims[i], p.counters[i]
	refusal := &Denied{
		Rule: d.Rule, Per: c.per, Metric: d.Metric, Limit: shown(d.Metric, out.States[p.own(i)].Limit), Quota: d.Kind == Quota,
		Window: time.Duration(d.WindowMs) * time.Millisecond, Never: out.Never, Headers: p.headers(out.States, 0, len(p.dims)),
		Running: p.ceiling(i), Cost: shown(d.Metric, d.Cost), Used: shown(d.Metric, out.States[p.own(i)].Used), Counter: d.Key, Shared: out.Shared,
		Left: left(d.Metric, out.States[i].Remaining), Prompt: shown(d.Metric, d.Floor), Shrunk: p.shrunk(i, now),
		Share: shown(d.Metric, out.States[i].Share),
	}
	if d.Kind == Lease && !out.Never {
		refusal.Wait, refusal.place = c.wait, p.place(i, &out.States[i])
	}
	exact := time.Duration(out.RetryAfterMs) * time.Millisecond
	largest := c.largest
	if p.ceiling(i) {
		largest = ceilingOf(largest)
	}
	if out.Never && d.Cost <= largest {
		refusal.Never, exact = false, c.later(d, now)
	}
	if !refusal.Never {
		refusal.RetryAfter = l.jittered(exact, refusal.UsedUp())
	}
	return refusal, exact
}

// later is how long a request waits that fits the rule, but not now: for the
// next schedule, or for the pressure to fall.
func (c *counter) later(d *Dim, now time.Time) time.Duration {
	if c.schedule != nil {
		spell := c.schedule.at(now)
		if next := c.amounts[spell.next]; d.Cost <= capacity(next.limit, next.burst) {
			return spell.until.Sub(now)
		}
	}
	return levelDwells
}

// UsedUp reports whether a quota is used up, so that the refusal stands until its
// period ends.
func (d *Denied) UsedUp() bool { return d.Quota && !d.Never && d.Share == 0 }

// jittered is when a caller may return. The end of a quota is a time that people are
// told, and no client waits for it by itself.
func (l *Limiter) jittered(exact time.Duration, period bool) time.Duration {
	if period {
		return exact
	}
	return exact + time.Duration(l.random()*float64(min(exact/10, maxJitter)))
}

// left is a remainder in the unit that people read; part of a unit is none.
func left(m Metric, n int64) int64 {
	if m == Units {
		return n / 1000
	}
	return n
}

// shown is an amount in the unit that people read; part of a unit counts whole.
func shown(m Metric, n int64) int64 {
	if m == Units {
		return ceilDiv(n, 1000)
	}
	return n
}

// denials are the refusals of the last second by the counter that refused. A
// request that asks at least as much of such a counter is refused without asking
// the store, until something is settled there.
type denials struct {
	size  atomic.Int64
	mu    sync.Mutex
	byKey map[string]denial
}

type denial struct {
	until       time.Time // when to ask again
	retryAt     time.Time
	cost, limit int64
	refusal     Denied
}

// find returns the refusal that one of the dimensions meets, and which one.
func (d *denials) find(dims []Dim, now time.Time) (denial, int, bool) {
	if d.size.Load() == 0 {
		return denial{}, 0, false
	}
	for i := range dims {
		if !dims[i].Soft && dims[i].Cost > capacity(dims[i].Limit, dims[i].Burst) {
			return denial{}, 0, false // to be told that it never fits, not to wait
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range dims {
		one := &dims[i]
		if one.Soft {
			continue
		}
		found, ok := d.byKey[one.Key]
		if !ok {
			continue
		}
		if !now.Before(found.until) {
			d.drop(one.Key)
		} else if one.Cost >= found.cost && one.Limit <= found.limit {
			return found, i, true
		}
	}
	return denial{}, 0, false
}

func (d *denials) put(key string, one denial, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.byKey) >= maxDenials {
		for other, found := range d.byKey {
			if !now.Before(found.until) {
				d.drop(other)
			}
		}
		if len(d.byKey) >= maxDenials {
			return
		}
	}
	d.byKey[key] = one
	d.size.Store(int64(len(d.byKey)))
}

// forget lets the next request ask again.
func (d *denials) forget(dims []Dim) {
	if d.size.Load() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range dims {
		d.drop(dims[i].Key)
	}
}

func (d *denials) drop(key string) {
	delete(d.byKey, key)
	d.size.Store(int64(len(d.byKey)))
}
