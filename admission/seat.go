package admission

import (
	"sync/atomic"
	"time"

	"tidegate/degrade"
)

// Bounds limit what one backend is sent at a time.
type Bounds struct {
	InFlight int // sequences of this gateway; 0: unbounded
	Waiting  int // requests that wait in the engine; 0: unbounded
}

// Load is an engine's report of its requests, from all gateways together.
type Load struct {
	Time    time.Time
	Running int
	Waiting int
}

// loadLifetime is the time for which a Load counts.
const loadLifetime = 3 * time.Second

// Seat is a backend as admission sees it: its rotation, its load and the room left on it. It
// is safe for concurrent use; the zero value is out of rotation.
type Seat struct {
	weight     atomic.Int64
	bounds     atomic.Pointer[Bounds]
	gauge      *degrade.Gauge
	inFlight   atomic.Int64
	inRotation atomic.Bool
	doubted    atomic.Bool
	load       atomic.Pointer[loadReading]
	pool       atomic.Pointer[Pool]
	share      share // shares of the GPUs' time
	credit     int64 // lag behind its share of all requests, in weights; guarded by the pool's lock
}

// loadReading is a Load with this gateway's sequences in flight at that time.
type loadReading struct {
	Load
	inFlight int64
	slots    int // requests that the engine runs at a time, as last shown; 0 where not shown yet
}

// NewSeat returns a seat that is out of rotation. The gauge's weight is its share of its
// model's requests; a nil gauge is at L0 with weight 1.
func NewSeat(gauge *degrade.Gauge, bounds Bounds) *Seat {
	if gauge == nil {
		gauge = degrade.NewGauge("", 1, nil)
	}
	b := &Seat{gauge: gauge}
	b.weight.Store(int64(gauge.Weight()))
	b.bounds.Store(&bounds)
	return b
}

// SetBounds replaces the bounds of what the backend is sent at a time.
func (s *Seat) SetBounds(bounds Bounds) {
	s.bounds.Store(&bounds)
	s.dispatch()
}

// SetWeight replaces the backend's share of its model's requests. With 0 it gets no new
// ones, and those under way go on.
func (s *Seat) SetWeight(weight int) {
	s.weight.Store(int64(max(weight, 0)))
	s.gauge.SetWeight(weight)
	s.dispatch()
}

// Drained reports whether the backend gets no new requests, because its weight is 0.
func (s *Seat) Drained() bool { return s.weight.Load() == 0 }

// SetRotation puts the backend in rotation or takes it out, and reports whether that changed
// anything. Requests under way are not touched.
func (s *Seat) SetRotation(rotating bool) (changed bool) {
	changed = s.inRotation.Swap(rotating) != rotating
	if changed {
		s.dispatch()
	}
	return changed
}

// SetDoubt sets whether the backend is in doubt until a probe finds out. Requests then go to
// other backends, as long as one in rotation can serve them. A dead backend that refuses at
// once has the fewest requests in flight, and would draw all.
func (s *Seat) SetDoubt(doubted bool) {
	if s.doubted.Swap(doubted) && !doubted {
		s.dispatch()
	}
}

// InRotation reports whether the backend is in rotation.
func (s *Seat) InRotation() bool { return s.inRotation.Load() }

// InFlight returns the number of sequences that have a place on the backend.
func (s *Seat) InFlight() int { return int(s.inFlight.Load()) }

// SetLoad sets the engine's load.
func (s *Seat) SetLoad(l Load) {
	next := &loadReading{Load: l, inFlight: s.inFlight.Load()}
	if last := s.load.Load(); last != nil {
		next.slots = last.slots
	}
	switch {
	case l.Waiting > 0 && l.Running > 0:
		next.slots = l.Running
	case l.Running > next.slots:
		next.slots = 0 // it has more of them than it last showed
	}
	s.load.Store(next)
	s.dispatch()
}

// dispatch hands places that have become free to those who wait.
func (s *Seat) dispatch() {
	if p := s.pool.Load(); p != nil {
		p.dispatch()
	}
}

// Usable reports whether the backend may be sent requests at all: it is in rotation, and its
// GPUs are present.
func (s *Seat) Usable() bool { return s.inRotation.Load() && s.gauge.Verdict().Out == "" }

// accepts reports whether the backend gets new requests.
func (s *Seat) accepts() bool { return s.acceptsUnder(s.gauge.Verdict()) }

// acceptsUnder is accepts for a verdict that was read already.
func (s *Seat) acceptsUnder(v *degrade.Verdict) bool {
	return s.inRotation.Load() && v.Out == "" && !s.Drained()
}

// room is the answer to whether a backend may be sent one more request.
type room int

const (
	roomNone  room = iota
	roomLater      // not known to be full, but sent much since the last reading
	roomFree
)

// burst is the number of requests that a backend is sent between two readings of its queue
// while it has not shown how many it runs at a time, or as many as it runs if that is more.
// A backend that takes few must not be sent hundreds before anybody knows.
const burst = 32

// allows reports whether the bound of the backend allows so many sequences at a time.
func (s *Seat) allows(sequences int64) bool {
	bound := int64(s.bounds.Load().InFlight)
	return bound == 0 || sequences <= bound
}

// room returns whether the backend may be sent one more request of so many sequences.
// Between two readings of the engine's queue, what this gateway has sent since counts as
// waiting, unless the engine had slots left. Bounds that are not configured let in a request
// that is larger than they are once nothing else is there.
func (s *Seat) room(sequences int64) room { return s.roomUnder(s.gauge.Verdict(), sequences) }

// roomUnder is room for a verdict that was read already.
func (s *Seat) roomUnder(v *degrade.Verdict, sequences int64) room {
	n, bounds := s.inFlight.Load(), s.bounds.Load()
	if bounds.InFlight > 0 && n+sequences > int64(bounds.InFlight) {
		return roomNone
	}
	if bound := int64(v.Cap); bound > 0 && n+min(sequences, bound) > bound {
		return roomNone
	}
	t := s.load.Load()
	if bounds.Waiting == 0 || t == nil || time.Since(t.Time) > loadLifetime {
		return roomFree
	}
	sent := n - t.inFlight
	if t.slots == 0 && t.Waiting == 0 {
		bound := int64(max(burst, t.Running))
		if sent+min(sequences, bound) > bound {
			return roomLater
		}
		return roomFree
	}
	if t.slots > 0 {
		sent -= int64(max(t.slots-t.Running, 0))
	}
	bound := int64(t.slots + bounds.Waiting) // requests in the engine at a time
	if int64(t.Waiting)+sent+min(sequences, bound) > int64(bounds.Waiting) {
		return roomNone
	}
	return roomFree
}

// Queued returns the backend's share of the requests that wait for one of its model.
func (s *Seat) Queued() int {
	if p := s.pool.Load(); p != nil {
		return p.queuedPerBackend()
	}
	return 0
}
