package limit

import (
	"container/list"
	"math"
)

// leases holds the leases of one counter by request id, in the order in which they end.
type leases struct {
	order list.List // elements are *lease
	byID  map[string]*list.Element
	sum   int64 // slots of all leases in order
}

// lease holds the slots of one request, as many as its sequences.
type lease struct {
	id          string
	ends, slots int64
}

// held returns the slots of leases that have not ended, and the first of those leases.
func (l *leases) held(now int64) (n int64, first *list.Element) {
	n = l.sum
	for e := l.order.Front(); e != nil; e = e.Next() {
		one := e.Value.(*lease)
		if one.ends > now {
			return n, e
		}
		n -= one.slots
	}
	return 0, nil
}

func (l *leases) check(d *Dim, now int64) State {
	limit, _ := d.inForce(now)
	n, first := l.held(now)
	s := State{Limit: limit, Used: n, Remaining: max(limit-n, 0)}
	if n > 0 {
		s.ResetMs = l.order.Back().Value.(*lease).ends - now
	}
	if d.Cost == 0 || n+d.Cost <= limit {
		return s
	}
	s.Exceeded = true
	end := endsAt(first, n-(limit-d.Cost))
	if d.EdgeMs > now && end >= d.EdgeMs {
		n, first = l.held(d.EdgeMs)
		end = d.EdgeMs
		if excess := n - (d.NextLimit - d.Cost); excess > 0 {
			end = endsAt(first, excess)
		}
	}
	if s.TooLarge = end == farFuture; !s.TooLarge {
		s.RetryAfterMs = end - now
	}
	return s
}

// endsAt returns the time at which n slots of the leases from e on have ended.
func endsAt(e *list.Element, n int64) int64 {
	for ; e != nil; e = e.Next() {
		one := e.Value.(*lease)
		if n -= one.slots; n <= 0 {
			return one.ends
		}
	}
	return farFuture
}

func (l *leases) charge(d *Dim, id string, now, leaseEnds int64) part {
	for e := l.order.Front(); e != nil && e.Value.(*lease).ends <= now; e = l.order.Front() {
		l.remove(e)
	}
	if d.Cost > 0 {
		if l.byID == nil {
			l.byID = map[string]*list.Element{}
		}
		l.byID[id] = l.insert(&lease{id, leaseEnds, d.Cost})
		l.sum += d.Cost
	}
	return part{charged: d.Cost}
}

// insert adds a lease behind those that end no later.
func (l *leases) insert(one *lease) *list.Element {
	for e := l.order.Back(); e != nil; e = e.Prev() {
		if e.Value.(*lease).ends <= one.ends {
			return l.order.InsertAfter(one, e)
		}
	}
	return l.order.PushFront(one)
}

func (l *leases) remove(e *list.Element) {
	one := e.Value.(*lease)
	delete(l.byID, one.id)
	l.sum -= one.slots
	l.order.Remove(e)
}

// adjust does nothing: a lease is held or not.
func (l *leases) adjust(*Dim, *part, int64, int64) {}

func (l *leases) renew(id string, now, leaseEnds int64) {
	e := l.byID[id]
	if e == nil || e.Value.(*lease).ends <= now || leaseEnds <= e.Value.(*lease).ends {
		return
	}
	one := e.Value.(*lease)
	l.order.Remove(e)
	one.ends = leaseEnds
	l.byID[id] = l.insert(one)
}

func (l *leases) release(id string) {
	if e := l.byID[id]; e != nil {
		l.remove(e)
	}
}

func (l *leases) idleAt() int64 {
	if last := l.order.Back(); last != nil {
		return last.Value.(*lease).ends
	}
	return math.MinInt64
}
