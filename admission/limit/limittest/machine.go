package limittest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"tidegate/admission/limit"
)

// clock is the suite's own clock. One goroutine advances it; others may read it while it does
// not move.
type clock struct{ ms int64 }

func (c *clock) now() time.Time { return time.UnixMilli(c.ms) }

// newClock returns a clock at a moment shortly before the hour, when the machines' quotas
// begin anew.
func newClock() *clock {
	return &clock{time.Date(2026, 3, 1, 10, 58, 7, 123e6, time.UTC).UnixMilli()}
}

// machine drives a store and the model through the same history. draw chooses a
// number below n.
type machine struct {
	store  limit.Store
	model  *model
	clock  *clock
	draw   func(n int) int
	fail   func(format string, args ...any)
	prefix string // of keys and ids, so that histories can share a store

	ids  []string // admitted and not forgotten
	next int
}

func (m *machine) number(low, high int) int64 { return int64(low + m.draw(high-low+1)) }

const shapes = 7

// dim returns one of a few counters, with numbers that change as if rules were edited.
func (m *machine) dim(shape int) limit.Dim {
	d := limit.Dim{Rule: fmt.Sprint(shape), Key: fmt.Sprintf("tg:{t:%s%d}:%d", m.prefix, shape%2, shape), Failure: limit.FailLocal}
	d.Cost = m.number(0, 6)
	d.Limit = m.number(5, 20)
	if m.draw(20) == 0 {
		d.Cost = 21
	}
	d.Kind, d.Metric, d.WindowMs, d.BucketMs = limit.Window, limit.Tokens, 60_000, 5_000
	switch shape {
	case 1:
		d.Burst = m.number(3, int(d.Limit))
	case 2:
		d.Kind, d.Metric, d.WindowMs, d.BucketMs, d.Cost = limit.Lease, limit.Concurrency, 0, 0, m.number(1, 3)
		d.Limit = m.number(2, 6)
	case 3:
		d.Kind, d.WindowMs, d.BucketMs = limit.Quota, 0, 0
		const hour = 3_600_000
		d.BeginMs = m.clock.ms / hour * hour
		if m.clock.ms-d.BeginMs < limit.CalendarSkew.Milliseconds() && m.draw(3) == 0 {
			d.BeginMs -= hour // an asker whose clock is behind
		}
		d.EndMs = d.BeginMs + hour
	case 4:
		d.Soft = true
	case 5:
		d.WindowMs, d.BucketMs = 1_000, 84
	case 6:
		d.WindowMs, d.BucketMs, d.Burst = 60_000, 1_000, 4
	}
	d.Floor = min(d.Cost, m.number(0, 3))
	if d.Kind != limit.Quota && m.draw(6) == 0 {
		d.EdgeMs = m.clock.ms + m.number(-100, 70_000)
		d.NextLimit = max(d.Limit+m.number(-4, 8), 1)
		if d.Burst > 0 {
			d.NextBurst = min(d.Burst, d.NextLimit)
		}
	}
	return d
}

// dims returns some of the counters, none twice.
func (m *machine) dims() []limit.Dim {
	var out []limit.Dim
	for shape := range shapes {
		if m.draw(2) == 0 {
			out = append(out, m.dim(shape))
		}
	}
	return out
}

func (m *machine) fullDims() []limit.Dim {
	var out []limit.Dim
	for shape := range shapes {
		out = append(out, m.dim(shape))
	}
	return out
}

func (m *machine) reserve(r limit.Reservation) limit.Decision {
	decision, err := m.store.Reserve(context.Background(), r)
	if err != nil {
		m.fail("reserve %s: %v", r.ID, err)
	}
	return decision
}

func (m *machine) compareDecision(operation string, r limit.Reservation) limit.Decision {
	want, decision := m.model.reserve(r, m.clock.ms), m.reserve(r)
	if len(want.States) == 0 && len(decision.States) == 0 {
		want.States, decision.States = nil, nil
	}
	want.Shared = decision.Shared // only the store knows whose counters decided
	if !reflect.DeepEqual(decision, want) {
		m.fail("%s %s at %d of %+v:\ngot  %+v\nwant %+v", operation, r.ID, m.clock.ms, r.Dims, decision, want)
	}
	return decision
}

func (m *machine) ask() {
	m.next++
	r := limit.Reservation{ID: fmt.Sprintf("%s-%d", m.prefix, m.next), Dims: m.dims()}
	if m.compareDecision("reserve", r).Allowed {
		m.ids = append(m.ids, r.ID)
	}
}

// known returns an id that was admitted; false where there is none.
func (m *machine) known() (string, bool) {
	m.model.forget(m.clock.ms)
	m.ids = slices.DeleteFunc(m.ids, func(id string) bool { return m.model.requests[id] == nil })
	if len(m.ids) == 0 {
		return "", false
	}
	return m.ids[m.draw(len(m.ids))], true
}

func (m *machine) askAgain() {
	if id, ok := m.known(); ok {
		m.compareDecision("reserve again", limit.Reservation{ID: id, Dims: m.dims()})
	}
}

func (m *machine) look() {
	m.compareDecision("look", limit.Reservation{Dims: m.fullDims(), Peek: true})
	m.lookSettled()
}

// lookSettled compares quotas without what runs.
func (m *machine) lookSettled() {
	var dims []limit.Dim
	for _, d := range m.fullDims() {
		if d.Cost = 0; d.Kind == limit.Quota {
			dims = append(dims, d)
		}
	}
	decision := m.reserve(limit.Reservation{Dims: dims, Peek: true, Settled: true})
	for i := range dims {
		used := m.model.state(&dims[i], m.clock.ms).Used
		if want := max(used-m.model.unsettled(&dims[i]), 0); decision.States[i].Used != want {
			m.fail("settled at %d of %+v: %d, want %d (of %d)", m.clock.ms, dims[i], decision.States[i].Used, want, used)
		}
	}
}

func (m *machine) charges(n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = m.number(0, 9)
	}
	return out
}

func (m *machine) settle() {
	id, ok := m.known()
	if !ok {
		return
	}
	dims := m.model.requests[id].dims
	m.compareSettle(limit.Settlement{ID: id, Dims: dims, Charges: m.charges(len(dims)), New: m.draw(5) == 0})
}

func (m *machine) settleNew() {
	m.next++
	s := limit.Settlement{ID: fmt.Sprintf("%s-new-%d", m.prefix, m.next), Dims: m.dims(), New: m.draw(4) > 0}
	s.Charges = m.charges(len(s.Dims))
	if m.draw(2) == 0 {
		s.AgeMs = [...]int64{m.number(0, 300), m.number(0, 7_000), m.number(0, 90_000)}[m.draw(3)]
	}
	m.compareSettle(s)
	m.compareSettle(s)
}

func (m *machine) compareSettle(s limit.Settlement) {
	want := m.model.settle(s, m.clock.ms)
	settled, err := m.store.Settle(context.Background(), s)
	if err != nil || settled.Applied != want || len(settled.States) != len(s.Dims) {
		m.fail("settle %+v at %d: got %+v, %v; want applied %v", s, m.clock.ms, settled, err, want)
	}
	for i, d := range s.Dims {
		d.Cost = 0
		if state := m.model.state(&d, m.clock.ms); settled.States[i] != state {
			m.fail("settle %s at %d: %+v is\n%+v, want\n%+v", s.ID, m.clock.ms, d, settled.States[i], state)
		}
	}
}

func (m *machine) renew() {
	var renewals []limit.Renewal
	m.known()
	for _, id := range m.ids {
		req := m.model.requests[id]
		if req.state == "settled" || m.draw(2) == 0 {
			continue
		}
		r := limit.Renewal{ID: id, Dims: req.dims}
		if m.draw(2) == 0 {
			r.Charges = m.charges(len(r.Dims))
		}
		renewals = append(renewals, r)
	}
	want := m.model.renew(renewals, m.clock.ms)
	lost, err := m.store.Renew(context.Background(), renewals)
	slices.Sort(lost)
	slices.Sort(want)
	if err != nil || !slices.Equal(lost, want) {
		m.fail("renew at %d: lost %v, %v; want %v", m.clock.ms, lost, err, want)
	}
}

// wait advances the clock: a moment, or about a window, or hours.
func (m *machine) wait() {
	m.clock.ms += [...]int64{m.number(0, 300), m.number(0, 7_000), m.number(0, 90_000), m.number(0, 5_000_000)}[m.draw(4)]
}

// retry waits until the retry time of a refused request, and asks 10 ms before and then.
func (m *machine) retry() {
	r := limit.Reservation{Dims: m.dims(), Peek: true}
	out := m.compareDecision("look", r)
	if out.Allowed || out.TooLarge {
		return
	}
	retryAt := m.clock.ms + out.RetryAfterMs
	if early := retryAt - 10; early > m.clock.ms {
		m.clock.ms = early
		if m.reserve(r).Allowed {
			m.fail("allowed 10 ms before it was told to come back: %+v", out)
		}
	}
	m.clock.ms = retryAt
	for i, d := range r.Dims {
		if i != out.Binding && d.EdgeMs != 0 && retryAt >= d.EdgeMs && (d.NextLimit < d.Limit || d.NextBurst < d.Burst) {
			return // another rule has shrunk before the one that does lets in
		}
	}
	for i := range r.Dims {
		for d := &r.Dims[i]; d.Kind == limit.Quota && retryAt >= d.EndMs; {
			d.BeginMs, d.EndMs = d.EndMs, d.EndMs+d.EndMs-d.BeginMs
		}
	}
	if retried := m.reserve(r); !retried.Allowed {
		m.fail("refused when it was told to come back: %+v, then %+v, of %+v", out, retried, r.Dims)
	}
}
