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
	minDrainTime = time.Second
	minDrained   = 3
	// drainMost is the longest wait that is predicted.
	maxPredictedWait = time.Hour
	// drainFor is how long after the last queue the rate still means something.
	drainMemory = time.Minute
)

// drain is the rate at which a queue empties: requests dispatched from it over the
// time in which any waited, both fading with drainWindow. Time without a queue says
// nothing of how fast one would empty, so it does not count; time in which a queue
// stands still does. The zero value knows nothing. Its owner's lock guards it.
type drain struct {
	waiting    bool
	updated    time.Time // when the others were true
	dispatched float64   // faded
	waited     float64   // seconds, faded
	count      int       // dispatched ever, up to drainSeen
}

// note says that so many waiting requests were dispatched now, and whether any still
// waits. It is to be called whenever either changes.
func (d *drain) record(now time.Time, dispatched int, waiting bool) {
	if d.stale(now) {
		*d = drain{}
	}
	d.dispatched, d.waited = d.sums(now)
	d.dispatched += float64(dispatched)
	d.count = min(d.count+dispatched, minDrained)
	d.waiting, d.updated = waiting, now
}

// until is the faded sums at a later time.
func (d *drain) sums(now time.Time) (dispatched, waited float64) {
	if gap := now.Sub(d.updated); d.waiting && gap > 0 {
		keep := math.Exp(-gap.Seconds() / drainWindow.Seconds())
		return d.dispatched * keep, d.waited*keep + drainWindow.Seconds()*(1-keep)
	}
	return d.dispatched, d.waited
}

// wait predicts how long a new request waits that has so many before it, at most
// drainMost; false where too little was seen to say.
func (d *drain) wait(now time.Time, ahead int) (time.Duration, bool) {
	dispatched, waited := d.sums(now)
	if d.stale(now) || d.count < minDrained || waited < minDrainTime.Seconds() {
		return 0, false
	}
	s := float64(max(ahead, 0)+1) * waited / dispatched
	if s >= maxPredictedWait.Seconds() { // also where dispatched faded to nothing
		return maxPredictedWait, true
	}
	return time.Duration(s * float64(time.Second)), true
}

// old reports whether there has been no queue for so long that nothing is known of how
// fast one would empty.
func (d *drain) stale(now time.Time) bool { return !d.waiting && now.Sub(d.updated) > drainMemory }
