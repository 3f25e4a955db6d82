package degrade

import "time"

const (
	recurrence  = 120 * time.Second // time within which a level that returns doubles the dwell
	dwellMemory = 600 * time.Second // time without a step down after which the dwell is the first again
)

// stage is the level of one signal or model, and the rules of its changes: up straight to a
// confirmed level, and down one level at a time after a dwell.
type stage struct {
	level   Level
	changed time.Time     // last change of the level; zero before the first
	lowered time.Time     // last step down; zero before the first
	dwell   time.Duration // time before the next step down; 0 before the first
	retry   time.Time     // earliest time of the next step down; zero at L0
}

// step makes at most one change: to target where that is higher, or one level down where
// keep is lower and the level is not held. A level that returns soon doubles the dwell, once
// for each way down. While its cause lasts, the level may fall a dwell from now; that time is
// in whole seconds, so that it changes seldom.
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
