package admission

import (
	"sync/atomic"
	"time"

	"tidegate/degrade"
)

// Bounds of what one backend is given at a time.
type Bounds struct {
	InFlight int // sequences of this gateway; 0: no bound
	Waiting  int // requests that the engine itself may let wait; 0: no bound
}

// Load is what an engine said of the requests it has, of all gateways together.
type Load struct {
	Time    time.Time
	Running int
	Waiting int
}

// loadFor is how long a Load counts.
const loadLifetime = 3 * time.Second

// Seat is a backend as admission sees it: whether it is in rotation, how
// much it is doing, and how much more it may be given. It is safe for concurrent
// use; the zero value is out of rotation.
type Seat struct {
	weight     atomic.Int64
	bounds     atomic.Pointer[Bounds]
	gauge      *degrade.Gauge
	inFlight   atomic.Int64
	inRotation atomic.Bool
	doubted    atomic.Bool
	load       atomic.Pointer[loadReading]
	pool       atomic.Pointer[Pool]
	share      share // of its GPUs' time
	credit     int64 // of its pool's lock: how much of its share it is behind, in weights
}

// told is a Load and what this gateway had on the backend then.
type loadReading struct {
	Load
	inFlight int64
	slots    int // that the engine runs at a time, as it last showed; 0: it has not
}

// NewSeat returns a seat that is out of rotation. The gauge's weight is its share
// of its model's requests; a nil gauge is one at L0 of weight 1.
func NewSeat(gauge *degrade.Gauge, bounds Bounds) *Seat {
	if gauge == nil {
		gauge = degrade.NewGauge("", 1, nil)
	}
	b := &Seat{gauge: gauge}
	b.weight.Store(int64(gauge.Weight()))
	b.bounds.Store(&bounds)
	return b
}

// SetBounds replaces what the backend is given at a time.
func (s *Seat) SetBounds(bounds Bounds) {
	s.bounds.Store(&bounds)
	s.dispatch()
}

// SetWeight replaces the backend's share of its model's requests; 0: it gets no new ones,
// and what it has goes on.
func (s *Seat) SetWeight(weight int) {
	s.weight.Store(int64(max(weight, 0)))
	s.gauge.SetWeight(weight)
	s.dispatch()
}

// Drained reports whether the backend gets no new requests, because its weight is 0.
func (s *Seat) Drained() bool { return s.weight.Load() == 0 }

// SetRotation puts the backend in rotation or takes it out. Requests it already has
// are not touched. It reports whether that changed anything.
func (s *Seat) SetRotation(rotating bool) (changed bool) {
	changed = s.inRotation.Swap(rotating) != rotating
	if changed {
		s.dispatch()
	}
	return changed
}

// SetDoubt sends requests to other backends, as long as one is in rotation that can hold
// them, while it is being found out whether this one still works; or no longer. A dead
// server that refuses at once has the fewest requests in flight, and would draw all.
func (s *Seat) SetDoubt(doubted bool) {
	if s.doubted.Swap(doubted) && !doubted {
		s.dispatch()
	}
}

// Up reports whether the backend is in rotation.
func (s *Seat) InRotation() bool { return s.inRotation.Load() }

// InFlight is the number of sequences that hold a place on the backend.
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

// kick gives places that have become free to those who wait.
func (s *Seat) dispatch() {
	if p := s.pool.Load(); p != nil {
		p.dispatch()
	}
}

// Usable reports whether requests may be sent to the backend at all: it is in
// rotation, and its GPUs are there.
func (s *Seat) Usable() bool { return s.inRotation.Load() && s.gauge.Verdict().Out == "" }

// takes reports whether the backend gets new requests.
func (s *Seat) accepts() bool { return s.acceptsUnder(s.gauge.Verdict()) }

// acceptsAt is takes for a verdict that was read already.
func (s *Seat) acceptsUnder(v *degrade.Verdict) bool {
	return s.inRotation.Load() && v.Out == "" && !s.Drained()
}

// room says whether a backend may be given one more request.
type room int

const (
	roomNone  room = iota
	roomLater      // it is not known to be full, but has been given much since it last told
	roomFree
)

// burst is how many requests a backend is given between two readings of its queue
// while it has not shown how many it runs at a time, or as many as it runs if that is
// more: a server that takes few must not be sent hundreds before anybody knows.
const burst = 32

// holds reports whether the backend may ever have so many sequences at a time.
func (s *Seat) allows(sequences int64) bool {
	bound := int64(s.bounds.Load().InFlight)
	return bound == 0 || sequences <= bound
}

// room reports whether the backend may be given one more request of so many
// sequences. Between two readings of the engine's queue what this gateway has sent
// since counts as waiting, unless the engine had slots left. Bounds that are not
// configured let a request in that is larger than they are once nothing else is there.
func (s *Seat) room(sequences int64) room { return s.roomUnder(s.gauge.Verdict(), sequences) }

// roomAt is room for a verdict that was read already.
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
	bound := int64(t.slots + bounds.Waiting) // that the engine has at a time
	if int64(t.Waiting)+sent+min(sequences, bound) > int64(bounds.Waiting) {
		return roomNone
	}
	return roomFree
}

// Queued is the backend's share of the requests that wait for one of its model.
func (s *Seat) Queued() int {
	if p := s.pool.Load(); p != nil {
		return p.queuedPerBackend()
	}
	return 0
}
