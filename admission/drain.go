package admission

import (
	"math"
	"time"
)

const (
	// drainWindow is the time constant with which the drain rate forgets. Only time in which
	// something waited counts.
	drainWindow = 10 * time.Second
	// minDrainTime and minDrained are the time, and the requests dispatched in it, without
	// which the rate means nothing.
	minDrainTime = time.Second
	minDrained   = 3
	// maxPredictedWait is the longest wait that is predicted.
	maxPredictedWait = time.Hour
	// drainMemory is the time after the last queue in which the rate still means something.
	drainMemory = time.Minute
)

// drain is the rate at which a queue empties: requests dispatched from it over the time in
// which any waited, both fading with drainWindow. Time without a queue tells nothing about
// how fast one would empty, so it does not count; time in which a queue stands still does.
// The zero value predicts nothing. The lock of its pool guards it.
type drain struct {
	waiting    bool
	updated    time.Time // time of the figures below
	dispatched float64   // requests dispatched, faded
	waited     float64   // seconds in which any waited, faded
	count      int       // requests ever dispatched, up to minDrained
}

// record adds waiting requests that were dispatched now, and sets whether any still waits.
// It must be called whenever either changes.
func (d *drain) record(now time.Time, dispatched int, waiting bool) {
	if d.stale(now) {
		*d = drain{}
	}
	d.dispatched, d.waited = d.sums(now)
	d.dispatched += float64(dispatched)
	d.count = min(d.count+dispatched, minDrained)
	d.waiting, d.updated = waiting, now
}

// sums returns the faded figures at a later time.
func (d *drain) sums(now time.Time) (dispatched, waited float64) {
	if gap := now.Sub(d.updated); d.waiting && gap > 0 {
		keep := math.Exp(-gap.Seconds() / drainWindow.Seconds())
		return d.dispatched * keep, d.waited*keep + drainWindow.Seconds()*(1-keep)
	}
	return d.dispatched, d.waited
}

// wait predicts the wait of a new request behind so many others, at most maxPredictedWait;
// false where too little was seen.
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

// stale reports whether there has been no queue for so long that the rate means nothing.
func (d *drain) stale(now time.Time) bool { return !d.waiting && now.Sub(d.updated) > drainMemory }
