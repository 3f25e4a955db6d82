package degrade

import "time"

// Times of the way up and down.
const (
	recurrence  = 120 * time.Second // a level that comes back within this doubles the dwell
	dwellMemory = 600 * time.Second // without a step down the dwell is the first again
)

// stage is the level of one signal or model, and its way: up when a level is confirmed,
// straight to it; down one level at a time, after a dwell.
type stage struct {
	level   Level
	changed time.Time     // last change of the level; zero before the first
	lowered time.Time     // last step down; zero before the first
	dwell   time.Duration // time before the next step down; 0 before the first
	retry   time.Time     // earliest time of the next step down; zero at L0
}

// step moves it by at most one change: to target where that is higher, or one down
// where keep is lower and it is not held. A level that comes back soon doubles the
// dwell, once for each time that it had gone down. Where what it stands on lasts it
// may go down a dwell from now, in whole seconds so that it tells that seldom.
func (r *stage) step(target, keep Level, held bool, d *Dwell, now time.Time) {
	if r.dwell < d.Fall || now.Sub(r.lowered) > dwellMemory {
		r.dwell = d.Fall
	}
	r.dwell = min(r.dwell, max(d.DownMax, d.Fall))
	switch {
	case target > r.level:
		if now.Sub(r.lowered) < recurrence && r.changed.Equal(r.lowered) {
			r.dwell = min(2*r.dwell, max(d.DownMax, d.Fall))
		}
		r.level, r.changed = target, now
	case r.level > Full && keep < r.level && !held && now.Sub(r.changed) >= r.dwell:
		r.level--
		r.changed, r.lowered = now, now
	}
	if r.retry = (time.Time{}); r.level > Full {
		r.retry = r.changed.Add(r.dwell)
		if lasts := now.Add(r.dwell).Truncate(time.Second); (held || keep >= r.level) && lasts.After(r.retry) {
			r.retry = lasts
		}
	}
}
