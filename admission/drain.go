package admission

import (
	"math"
	"time"
)

const (
	// drainWindow is how far back the drain rate looks, in time in which something
	// waited.
	drainWindow = 10 * time.Second
	// drainLeast and drainSeen are how much of that, and how many requests, there must
	// have been before the rate means anything.
	drainLeast = time.Second
	drainSeen  = 3
	// drainMost is the longest wait that is predicted.
	drainMost = time.Hour
)

// drain is the rate at which a queue empties: requests dispatched from it over the
// time in which any waited, both fading with drainWindow. Time without a queue says
// nothing of how fast one would empty, so it does not count; time in which a queue
// stands still does. The zero value knows nothing. Its owner's lock guards it.
type drain struct {
	waiting    bool
	at         time.Time // when the others were true
	dispatched float64   // faded
	waited     float64   // seconds, faded
	seen       int       // dispatched ever, up to drainSeen
}

// note says that so many waiting requests were dispatched now, and whether any still
// waits. It is to be called whenever either changes.
func (d *drain) note(now time.Time, dispatched int, waiting bool) {
	d.dispatched, d.waited = d.until(now)
	d.dispatched += float64(dispatched)
	d.seen = min(d.seen+dispatched, drainSeen)
	d.waiting, d.at = waiting, now
}

// until is the faded sums at a later time.
func (d *drain) until(now time.Time) (dispatched, waited float64) {
	if gap := now.Sub(d.at); d.waiting && gap > 0 {
		keep := math.Exp(-gap.Seconds() / drainWindow.Seconds())
		return d.dispatched * keep, d.waited*keep + drainWindow.Seconds()*(1-keep)
	}
	return d.dispatched, d.waited
}

// wait predicts how long a new request waits that has so many before it, at most
// drainMost; false where too little was seen to say.
func (d *drain) wait(now time.Time, ahead int) (time.Duration, bool) {
	dispatched, waited := d.until(now)
	if d.seen < drainSeen || waited < drainLeast.Seconds() {
		return 0, false
	}
	s := float64(max(ahead, 0)+1) * waited / dispatched
	if s >= drainMost.Seconds() { // also where dispatched faded to nothing
		return drainMost, true
	}
	return time.Duration(s * float64(time.Second)), true
}

// pulse is the rate at which requests end, whether any waits or not: what a queue
// that begins to form will empty at. It fades with pulseWindow. The zero value knows
// nothing. Its owner's lock guards it.
type pulse struct {
	since time.Time // the first request
	at    time.Time // when sum was true
	sum   float64   // of requests, faded
}

const pulseWindow = 5 * time.Second

func (p *pulse) beat(now time.Time) {
	if p.since.IsZero() {
		p.since, p.at = now, now
	}
	p.sum, p.at = p.until(now)+1, now
}

func (p *pulse) until(now time.Time) float64 {
	return p.sum * math.Exp(-max(now.Sub(p.at), 0).Seconds()/pulseWindow.Seconds())
}

// wait is about how long a request waits that has so many before it; 0: it is not
// known.
func (p *pulse) wait(now time.Time, ahead int) time.Duration {
	seen := now.Sub(p.since).Seconds()
	sum := p.until(now)
	if p.since.IsZero() || seen <= 0 || sum <= 0 {
		return 0
	}
	// Over a shorter time than the window less has been added up.
	rate := sum / (pulseWindow.Seconds() * (1 - math.Exp(-seen/pulseWindow.Seconds())))
	return time.Duration(min(float64(ahead+1)/rate, drainMost.Seconds()) * float64(time.Second))
}
