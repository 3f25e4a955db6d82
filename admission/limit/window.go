package limit

import "slices"

// bucket is the sum that was charged in one bucket's time, and the time of the last charge.
type bucket struct{ last, sum int64 }

// window is a sliding window with an optional token bucket. The buckets are in the order of
// time; those that count are at most one more than the window has.
type window struct {
	buckets []bucket

	// Token bucket: the debt that has not drained, in tokens times milliseconds of the window
	// it was charged under, at whose rate it drains. So a retry time stays true when the limit
	// changes meanwhile.
	debt, debtAt, debtWindowMs, debtRate int64
}

// used returns the sum that counts at a time: every bucket whose newest charge is not yet a
// window old, in full.
func (w *window) used(now, windowMs int64) (sum int64) {
	for i := len(w.buckets) - 1; i >= 0 && w.buckets[i].last > now-windowMs; i-- {
		sum += w.buckets[i].sum
	}
	return sum
}

// roomAt returns the first time from now on at which no more than a sum counts.
func (w *window) roomAt(now, windowMs, sum int64) int64 {
	if sum < 0 {
		return farFuture
	}
	used := w.used(now, windowMs)
	for _, b := range w.buckets {
		if used <= sum {
			return now
		}
		if b.last > now-windowMs {
			used -= b.sum
			if used <= sum {
				return b.last + windowMs
			}
		}
	}
	return now
}

// owed returns the debt at a time, in the unit in which it was charged.
func (w *window) owed(now int64) int64 { return drain(w.debt, w.debtRate, now-w.debtAt) }

// owedIn returns the debt at a time in tokens times milliseconds of another window.
func (w *window) owedIn(windowMs, now int64) int64 {
	owed := w.owed(now)
	if owed == 0 || w.debtWindowMs == windowMs {
		return owed
	}
	return min(ceilDiv(owed, w.debtWindowMs), MaxDebt/windowMs) * windowMs
}

// debtOf returns an amount that is not negative in tokens times milliseconds of the
// dimension's window.
func (w *window) debtOf(d *Dim, amount int64) int64 {
	return min(amount, MaxDebt/d.WindowMs) * d.WindowMs
}

// drain subtracts rate per millisecond from a debt.
func drain(debt, rate, elapsedMs int64) int64 {
	if debt == 0 || elapsedMs <= 0 {
		return debt
	}
	if elapsedMs > debt/rate {
		return 0
	}
	return debt - rate*elapsedMs
}

// fitsAt returns the first time from now on at which the cost fits a limit and a burst.
func (w *window) fitsAt(d *Dim, limit, burst, now int64) int64 {
	freeAt := w.roomAt(now, d.WindowMs, limit-d.Cost)
	if burst == 0 || freeAt == farFuture {
		return freeAt
	}
	if d.Cost > burst {
		return farFuture
	}
	if excess := w.owed(now) - (burst-d.Cost)*w.debtWindowMs; excess > 0 {
		freeAt = max(freeAt, now+ceilDiv(excess, w.debtRate))
	}
	return freeAt
}

// passesAt returns the first time from now on at which the dimension lets its cost through,
// with the limit that is then in force.
func (w *window) passesAt(d *Dim, now int64) int64 {
	limit, burst := d.inForce(now)
	freeAt := w.fitsAt(d, limit, burst, now)
	if d.EdgeMs <= now || freeAt < d.EdgeMs {
		return freeAt
	}
	return w.fitsAt(d, d.NextLimit, d.NextBurst, d.EdgeMs)
}

func (w *window) check(d *Dim, now int64) State {
	limit, burst := d.inForce(now)
	s := State{Limit: limit, Used: w.used(now, d.WindowMs)}
	s.Remaining = limit - s.Used
	for i := len(w.buckets) - 1; i >= 0; i-- {
		if w.buckets[i].sum > 0 {
			s.ResetMs = max(w.buckets[i].last+d.WindowMs-now, 0)
			break
		}
	}
	if burst > 0 {
		s.Remaining = min(s.Remaining, burst)
		if owed := w.owed(now); owed > 0 {
			s.Remaining = min(s.Remaining, burst-ceilDiv(owed, w.debtWindowMs))
			s.ResetMs = max(s.ResetMs, ceilDiv(owed, w.debtRate))
		}
	}
	s.Remaining = max(s.Remaining, 0)
	if d.Cost == 0 {
		return s
	}
	if freeAt := w.passesAt(d, now); freeAt == farFuture {
		s.Exceeded, s.TooLarge = true, true
	} else if freeAt > now {
		s.Exceeded, s.RetryAfterMs = true, freeAt-now
	}
	return s
}

func (w *window) charge(d *Dim, _ string, now, _ int64) part {
	if limit, burst := d.inForce(now); burst > 0 {
		w.debt, w.debtAt, w.debtWindowMs, w.debtRate = w.owedIn(d.WindowMs, now), now, d.WindowMs, limit
		w.owe(d, w.debtOf(d, d.Cost), now)
	}
	w.add(d, d.Cost, now)
	return part{charged: d.Cost, floor: d.Floor, chargedAt: now, debt: w.debt}
}

// add charges an amount to the bucket of now.
func (w *window) add(d *Dim, amount, now int64) {
	w.drop(now - d.WindowMs)
	if n := len(w.buckets); n > 0 && w.buckets[n-1].last/d.BucketMs >= now/d.BucketMs {
		b := &w.buckets[n-1]
		b.last, b.sum = max(b.last, now), min(b.sum+amount, MaxSum)
		return
	}
	w.buckets = append(w.buckets, bucket{now, min(amount, MaxSum)})
}

// drop forgets the buckets whose newest charge is no later than a time.
func (w *window) drop(cutoff int64) {
	dead := 0
	for dead < len(w.buckets) && w.buckets[dead].last <= cutoff {
		dead++
	}
	w.buckets = w.buckets[:copy(w.buckets, w.buckets[dead:])]
}

// addPast charges an amount that was used at an earlier time. The token bucket is charged what
// has not drained since.
func (w *window) addPast(d *Dim, amount, usedAt, now int64) {
	if usedAt <= now-d.WindowMs {
		return
	}
	if limit, burst := d.inForce(now); burst > 0 && limit > 0 {
		w.owe(d, drain(w.debtOf(d, amount), limit, now-usedAt), now)
	}
	w.drop(now - d.WindowMs)
	i := 0
	for i < len(w.buckets) && w.buckets[i].last/d.BucketMs < usedAt/d.BucketMs {
		i++
	}
	if i == len(w.buckets) || w.buckets[i].last/d.BucketMs != usedAt/d.BucketMs {
		w.buckets = slices.Insert(w.buckets, i, bucket{last: usedAt})
	}
	b := &w.buckets[i]
	b.last, b.sum = max(b.last, usedAt), min(b.sum+amount, MaxSum)
}

// adjust charges more to the bucket of now, where it was used. It gives back to the bucket of
// the reservation, while that counts, at most what the reservation put there. Of a refund the
// token bucket gets the part of the reservation that has not drained: charges drain in their
// order, so that is what is left of the debt of that time.
func (w *window) adjust(d *Dim, p *part, delta, now int64) {
	if delta > 0 && p.ageMs == 0 {
		w.owe(d, w.debtOf(d, delta), now)
		w.add(d, delta, now)
		return
	}
	if delta > 0 {
		w.addPast(d, delta, now-p.ageMs, now)
		return
	}
	b := w.bucketOf(d, p.chargedAt, now)
	if b == nil {
		return
	}
	refund := min(-delta, d.Cost)
	b.sum = max(b.sum-refund, 0)
	w.owe(d, -min(w.debtOf(d, refund), drain(p.debt, w.debtRate, now-p.chargedAt)), now)
}

// owe changes the debt, if the dimension has a burst. What is owed already goes on
// to drain at its rate.
func (w *window) owe(d *Dim, change, now int64) {
	limit, burst := d.inForce(now)
	if burst == 0 {
		return
	}
	owed := w.owed(now)
	if owed == 0 {
		w.debtWindowMs, w.debtRate = d.WindowMs, limit
	} else if w.debtWindowMs != d.WindowMs {
		bound := MaxDebt / w.debtWindowMs
		change = min(max(change/d.WindowMs, -bound), bound) * w.debtWindowMs
	}
	w.debt, w.debtAt = min(max(owed+change, 0), MaxDebt), now
}

// bucketOf returns the bucket of a charge at some time, or nil where it no longer counts.
func (w *window) bucketOf(d *Dim, chargedAt, now int64) *bucket {
	for i := range w.buckets {
		b := &w.buckets[i]
		if b.last >= chargedAt {
			if b.last > now-d.WindowMs && b.last/d.BucketMs == chargedAt/d.BucketMs {
				return b
			}
			return nil
		}
	}
	return nil
}

func (w *window) renew(string, int64, int64) {}

func (w *window) release(string) {}

func (w *window) idleAt() int64 { return 0 } // the store knows the window's length
