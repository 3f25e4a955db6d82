package limittest

import (
	"maps"
	"slices"
	"sort"

	"tidegate/admission/limit"
)

// model is a store that is slow and plain: it keeps every charge, computes every number from
// the beginning, and finds a retry by trying times. One goroutine uses it.
type model struct {
	windows  map[string][]entry
	debts    map[string][]change
	quotas   map[string]map[int64]int64 // usage by the begin of the period
	leases   map[string]map[string]lease
	requests map[string]*request
}

// entry is one charge of a window.
type entry struct {
	id     string
	timeMs int64
	amount int64
	bucket int64
}

// lease is the number of slots that one request holds, and the end of the hold.
type lease struct{ slots, ends int64 }

// change is one change of a token bucket, in tokens times milliseconds, and the
// rate at which it drains from then on.
type change struct{ timeMs, amount, rate int64 }

// request is the part of its counters that one id has.
type request struct {
	dims      []limit.Dim
	charged   []int64
	floor     []int64
	chargedAt []int64 // of a quota the begin of the period
	debt      []int64
	skipped   []bool
	age       int64 // age of what windows are charged
	ends      int64
	state     string // live, reaped, settled
}

func newModel() *model {
	return &model{
		windows: map[string][]entry{}, debts: map[string][]change{}, quotas: map[string]map[int64]int64{},
		leases: map[string]map[string]lease{}, requests: map[string]*request{},
	}
}

// used returns the sum that counts at a time: entries whose bucket was charged within a window
// before it.
func (m *model) used(d *limit.Dim, t int64) (sum int64) {
	newest := map[int64]int64{}
	for _, e := range m.windows[d.Key] {
		newest[e.bucket] = max(newest[e.bucket], e.timeMs)
	}
	for _, e := range m.windows[d.Key] {
		if newest[e.bucket] > t-d.WindowMs {
			sum += e.amount
		}
	}
	return sum
}

// drop forgets what counts no longer, so that nothing can be added to its buckets.
func (m *model) drop(d *limit.Dim, now int64) {
	newest := map[int64]int64{}
	for _, e := range m.windows[d.Key] {
		newest[e.bucket] = max(newest[e.bucket], e.timeMs)
	}
	m.windows[d.Key] = slices.DeleteFunc(m.windows[d.Key], func(e entry) bool { return newest[e.bucket] <= now-d.WindowMs })
}

// debt replays all changes of a token bucket and lets it drain until t.
func (m *model) debt(d *limit.Dim, t int64) (debt, rate int64) {
	last := int64(0)
	rate = 1
	for _, c := range m.debts[d.Key] {
		debt = max(drained(debt, rate, c.timeMs-last)+c.amount, 0)
		last, rate = c.timeMs, c.rate
	}
	return drained(debt, rate, t-last), rate
}

func drained(debt, rate, elapsed int64) int64 {
	return debt - min(debt, rate*min(elapsed, debt/rate+1))
}

func inForce(d *limit.Dim, t int64) (amount, burst int64) {
	if d.EdgeMs != 0 && t >= d.EdgeMs {
		return d.NextLimit, d.NextBurst
	}
	return d.Limit, d.Burst
}

// fits reports whether a dimension would let its cost through at t, if nothing
// happens between now and then.
func (m *model) fits(d *limit.Dim, now, t int64) bool {
	amount, burst := inForce(d, t)
	switch d.Kind {
	case limit.Lease:
		return m.held(d, t)+d.Cost <= amount
	case limit.Quota:
		used, end := m.period(d, now)
		if t < end || t == now { // an asker whose calendar is behind asks the old period once more
			return used+d.Cost <= amount
		}
		return d.Cost <= amount
	}
	if m.used(d, t)+d.Cost > amount {
		return false
	}
	if burst == 0 {
		return true
	}
	debt, _ := m.debt(d, t)
	return debt+d.Cost*d.WindowMs <= burst*d.WindowMs
}

func (m *model) held(d *limit.Dim, t int64) (n int64) {
	for _, l := range m.leases[d.Key] {
		if l.ends > t {
			n += l.slots
		}
	}
	return n
}

// period returns the use in the newest of the periods, and its end.
func (m *model) period(d *limit.Dim, now int64) (used, end int64) {
	newest := d.BeginMs
	for begin := range m.quotas[d.Key] {
		newest = max(newest, begin)
	}
	if end = newest + d.EndMs - d.BeginMs; now < end+limit.CalendarSkew.Milliseconds() {
		used = m.quotas[d.Key][newest]
	}
	return used, end
}

// ages is longer than anything lasts, in milliseconds.
const ages = int64(1) << 41

// firstFit returns the first time at which the cost fits; ok is false where there is none.
// While one limit is in force, what once fits goes on to fit.
func (m *model) firstFit(d *limit.Dim, now int64) (fitAt int64, ok bool) {
	search := func(start, end int64) (int64, bool) {
		n := sort.Search(int(end-start), func(i int) bool { return m.fits(d, now, start+int64(i)) })
		return start + int64(n), int64(n) < end-start
	}
	if d.Kind != limit.Quota && d.EdgeMs > now {
		if fitAt, ok = search(now, d.EdgeMs); ok {
			return fitAt, true
		}
		return search(d.EdgeMs, d.EdgeMs+ages)
	}
	return search(now, now+ages)
}

func (m *model) state(d *limit.Dim, now int64) (s limit.State) {
	var burst int64
	s.Limit, burst = inForce(d, now)
	switch d.Kind {
	case limit.Lease:
		s.Used = m.held(d, now)
		for _, l := range m.leases[d.Key] {
			s.ResetMs = max(s.ResetMs, l.ends-now)
		}
	case limit.Quota:
		var end int64
		s.Limit = d.Limit
		s.Used, end = m.period(d, now)
		s.ResetMs = max(end-now, 0)
	default:
		s.Used = m.used(d, now)
		s.ResetMs = int64(sort.Search(1<<40, func(i int) bool { return m.used(d, now+int64(i)) == 0 }))
	}
	s.Remaining = max(s.Limit-s.Used, 0)
	if burst > 0 {
		debt, rate := m.debt(d, now)
		s.Remaining = max(min(s.Remaining, burst-(debt+d.WindowMs-1)/d.WindowMs), 0)
		s.ResetMs = max(s.ResetMs, (debt+rate-1)/rate)
	}
	if d.Cost == 0 || m.fits(d, now, now) {
		return s
	}
	s.Exceeded = true
	fitAt, ok := m.firstFit(d, now)
	if s.TooLarge = !ok; ok {
		s.RetryAfterMs = fitAt - now
	}
	return s
}

// unsettled returns the part of a quota's newest period that is charged to live reservations.
func (m *model) unsettled(d *limit.Dim) (sum int64) {
	newest := int64(-1)
	for begin := range m.quotas[d.Key] {
		newest = max(newest, begin)
	}
	for _, req := range m.requests {
		for i := range req.dims {
			if req.state == "live" && req.dims[i].Key == d.Key && !req.skipped[i] && req.chargedAt[i] == newest {
				sum += req.charged[i]
			}
		}
	}
	return sum
}

func (m *model) reserve(r limit.Reservation, now int64) limit.Decision {
	out := limit.Decision{Allowed: true, Binding: -1}
	if !r.Peek && m.requests[r.ID] != nil {
		out.Repeated = true
		for _, d := range r.Dims {
			d.Cost = 0
			out.States = append(out.States, m.state(&d, now))
		}
		return out
	}
	for i := range r.Dims {
		s := m.state(&r.Dims[i], now)
		out.States = append(out.States, s)
		if s.Exceeded && !r.Dims[i].Soft {
			out.Allowed, out.TooLarge = false, out.TooLarge || s.TooLarge
			out.RetryAfterMs = max(out.RetryAfterMs, s.RetryAfterMs)
		}
	}
	if !out.Allowed {
		for i, s := range out.States {
			if !r.Dims[i].Soft && s.Exceeded && (out.TooLarge && s.TooLarge || !out.TooLarge && s.RetryAfterMs == out.RetryAfterMs) {
				out.Binding = i
				break
			}
		}
		if out.TooLarge {
			out.RetryAfterMs = 0
		}
		return out
	}
	if r.Peek {
		return out
	}
	m.charge(r, out.States, now)
	for i := range r.Dims {
		if d := r.Dims[i]; !out.States[i].Exceeded {
			d.Cost = 0
			out.States[i] = m.state(&d, now)
		}
	}
	return out
}

func (m *model) charge(r limit.Reservation, states []limit.State, now int64) {
	n := len(r.Dims)
	req := &request{
		dims: r.Dims, charged: make([]int64, n), floor: make([]int64, n), chargedAt: make([]int64, n), debt: make([]int64, n),
		skipped: make([]bool, n), ends: now + limit.LeaseLife.Milliseconds(), state: "live",
	}
	m.requests[r.ID] = req
	for i := range r.Dims {
		d := &r.Dims[i]
		if req.skipped[i] = states[i].Exceeded; req.skipped[i] {
			continue
		}
		req.charged[i], req.floor[i], req.chargedAt[i] = d.Cost, d.Floor, now
		switch d.Kind {
		case limit.Lease:
			if d.Cost > 0 {
				m.lease(d.Key)[r.ID] = lease{d.Cost, req.ends}
			}
		case limit.Quota:
			req.chargedAt[i] = m.enter(d)
			m.quotas[d.Key][req.chargedAt[i]] += d.Cost
		default:
			m.add(d, r.ID, d.Cost, now)
			if rate, burst := inForce(d, now); burst > 0 {
				m.debts[d.Key] = append(m.debts[d.Key], change{now, d.Cost * d.WindowMs, rate})
			}
			req.debt[i], _ = m.debt(d, now)
		}
	}
}

func (m *model) lease(key string) map[string]lease {
	if m.leases[key] == nil {
		m.leases[key] = map[string]lease{}
	}
	return m.leases[key]
}

// enter begins a dimension's period if it is the newest, and returns the newest.
func (m *model) enter(d *limit.Dim) (begin int64) {
	if m.quotas[d.Key] == nil {
		m.quotas[d.Key] = map[int64]int64{}
	}
	m.quotas[d.Key][d.BeginMs] += 0
	return slices.Max(slices.Collect(maps.Keys(m.quotas[d.Key])))
}

func (m *model) add(d *limit.Dim, id string, amount, now int64) {
	m.windows[d.Key] = append(m.windows[d.Key], entry{id, now, amount, now / d.BucketMs})
}

// owe changes the debt, which goes on to drain at its rate if there is any.
func (m *model) owe(d *limit.Dim, amount, now int64) {
	if rate, burst := inForce(d, now); burst > 0 {
		if owed, current := m.debt(d, now); owed > 0 {
			rate = current
		}
		m.debts[d.Key] = append(m.debts[d.Key], change{now, amount, rate})
	}
}

// adjust charges a reservation more or less.
func (m *model) adjust(id string, req *request, i int, d *limit.Dim, charge, now int64) {
	delta := charge - req.charged[i]
	req.charged[i] = charge
	if delta == 0 || d.Kind == limit.Lease || req.skipped[i] {
		return
	}
	if d.Kind == limit.Quota {
		if begin := m.enter(d); begin == req.chargedAt[i] || delta > 0 {
			m.quotas[d.Key][begin] = max(m.quotas[d.Key][begin]+delta, 0)
		}
		return
	}
	if age := req.age; delta > 0 && age > 0 {
		if age < d.WindowMs {
			rate, _ := inForce(d, now)
			m.drop(d, now)
			m.add(d, id, delta, now-age)
			m.owe(d, max(delta*d.WindowMs-rate*age, 0), now)
		}
		return
	}
	if delta > 0 {
		m.add(d, id, delta, now)
		m.owe(d, delta*d.WindowMs, now)
		return
	}
	bucket, newest := req.chargedAt[i]/d.BucketMs, int64(-1)
	for _, e := range m.windows[d.Key] {
		if e.bucket == bucket {
			newest = max(newest, e.timeMs)
		}
	}
	if newest <= now-d.WindowMs {
		return
	}
	refund := min(-delta, d.Cost) // what was charged later is of other buckets
	for j := range m.windows[d.Key] {
		if e := &m.windows[d.Key][j]; e.id == id && e.timeMs == req.chargedAt[i] {
			e.amount -= refund
			break
		}
	}
	_, rate := m.debt(d, now)
	m.owe(d, -min(refund*d.WindowMs, drained(req.debt[i], rate, now-req.chargedAt[i])), now)
}

func (m *model) settle(s limit.Settlement, now int64) (applied bool) {
	req := m.requests[s.ID]
	if req == nil && s.New {
		n := len(s.Dims)
		req = &request{charged: make([]int64, n), chargedAt: make([]int64, n), debt: make([]int64, n), skipped: make([]bool, n), state: "live", age: s.AgeMs}
		for i := range req.chargedAt {
			req.chargedAt[i] = -1 << 40
		}
		m.requests[s.ID] = req
	}
	if req == nil || req.state == "settled" {
		return false
	}
	m.finish(s.ID, req, s.Dims, s.Charges, now)
	req.state, req.ends = "settled", now+limit.SettledLife.Milliseconds()
	return true
}

func (m *model) finish(id string, req *request, dims []limit.Dim, charges []int64, now int64) {
	for i := range dims {
		m.adjust(id, req, i, &dims[i], max(charges[i], 0), now)
		if dims[i].Kind == limit.Lease {
			delete(m.leases[dims[i].Key], id)
		}
	}
}

func (m *model) renew(renewals []limit.Renewal, now int64) (lost []string) {
	for _, r := range renewals {
		req := m.requests[r.ID]
		if req == nil || req.state != "live" || req.ends <= now {
			lost = append(lost, r.ID)
			continue
		}
		req.ends = now + limit.LeaseLife.Milliseconds()
		for i := range r.Dims {
			if len(r.Charges) > 0 {
				req.floor[i] = max(req.floor[i], r.Charges[i])
				m.adjust(r.ID, req, i, &r.Dims[i], max(req.charged[i], r.Charges[i]), now)
			}
			if held, ok := m.leases[r.Dims[i].Key][r.ID]; ok && held.ends > now {
				m.leases[r.Dims[i].Key][r.ID] = lease{held.slots, req.ends}
			}
		}
	}
	for id, req := range m.requests {
		if req.state == "live" && req.ends <= now {
			m.finish(id, req, req.dims, req.floor, now)
			req.state, req.ends = "reaped", now+limit.ReapedLife.Milliseconds()
		}
	}
	return lost
}

// forget drops the ids that a store may have forgotten.
func (m *model) forget(now int64) {
	for id, req := range m.requests {
		if req.state != "live" && req.ends <= now {
			delete(m.requests, id)
		}
	}
}
