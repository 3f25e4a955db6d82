package limit

// quota counts in one calendar period, which its begin names. held is the part of used that
// belongs to reservations which are not settled yet.
type quota struct{ begin, end, used, held int64 }

// current returns the amount that was used in the dimension's period, and the end of that. The
// state of a later period is that of now: the asker's calendar is behind. What ended so long
// ago that it may be forgotten is forgotten.
func (q *quota) current(d *Dim, now int64) (used, end int64) {
	used, end = q.used, q.end
	if q.begin < d.BeginMs {
		used, end = 0, d.EndMs
	}
	if now >= end+CalendarSkew.Milliseconds() {
		used = 0
	}
	return used, end
}

func (q *quota) check(d *Dim, now int64) State {
	used, end := q.current(d, now)
	s := State{Limit: d.Limit, Used: used, Remaining: max(d.Limit-used, 0), ResetMs: max(end-now, 0)}
	if d.Cost > 0 && used+d.Cost > d.Limit {
		s.Exceeded, s.TooLarge = true, d.Cost > d.Limit
		if !s.TooLarge {
			s.RetryAfterMs = max(end-now, 1)
		}
	}
	return s
}

func (q *quota) charge(d *Dim, _ string, _, _ int64) part {
	q.enter(d)
	q.used = min(q.used+d.Cost, MaxDebt)
	q.held = min(q.held+d.Cost, MaxDebt)
	return part{charged: d.Cost, floor: d.Floor, chargedAt: q.begin}
}

func (q *quota) enter(d *Dim) {
	if q.begin < d.BeginMs {
		*q = quota{begin: d.BeginMs, end: d.EndMs}
	}
}

// adjust changes the reservation's own period; after its end an overage goes to
// the period of now and a refund is dropped.
func (q *quota) adjust(d *Dim, p *part, delta, _ int64) {
	q.enter(d)
	if p.chargedAt == q.begin || delta > 0 {
		q.used = min(max(q.used+delta, 0), MaxDebt)
	}
}

// hold changes by delta the amount that a live reservation holds of the counter.
func (q *quota) hold(p *part, delta int64) {
	if p.chargedAt == q.begin {
		q.held = min(max(q.held+delta, 0), MaxDebt)
	}
}

// settled returns the counter without what may still be given back.
func (q *quota) settled() *quota {
	return &quota{begin: q.begin, end: q.end, used: max(q.used-q.held, 0)}
}

func (q *quota) renew(string, int64, int64) {}

func (q *quota) release(string) {}

// idleAt returns a time that allows for askers whose clock is behind.
func (q *quota) idleAt() int64 { return q.end + CalendarSkew.Milliseconds() }
