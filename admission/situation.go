package admission

import (
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// situation is all that a decision about one request reads of what changes by itself. It is
// a snapshot: every lock is taken and every verdict is read once.
type situation struct {
	now     time.Time
	past    progress
	verdict *degrade.Verdict // of the model that the caller asked for
	full    outlook          // of that model's backends, for the request's sequences at L0
	reduced outlook          // for its sequences from L1 on

	wait       time.Duration // predicted wait for a place; zero where unknown or without effect
	fallback   candidate     // smaller model; zero where there is none, or no rule needs one
	targetFits bool          // the pool where the request waits can serve it at L2
}

// primary returns the outlook at the backends of the model that was asked for, at a level.
func (s *situation) primary(level degrade.Level) *outlook {
	if level >= degrade.StreamingOff {
		return &s.reduced
	}
	return &s.full
}

// outlook is the state of a pool for one request, from the backends that can serve it.
type outlook struct {
	available bool          // some backend accepts requests
	level     degrade.Level // lowest level of those backends
	firm      degrade.Level // highest level of those backends that does not come from load
	reason    string        // signal that asks for level
	retry     time.Time     // earliest time at which level may fall
	full      bool          // the request would wait until another one ends
	unfit     error         // ErrNoBackend or *TooMany; nil where some backend can serve the request
}

// candidate is a smaller model that might answer a request.
type candidate struct {
	pool      *Pool
	level     degrade.Level // higher one of the model's and of its coolest backend's
	available bool          // some backend accepts the request's sequences
	full      bool          // no place is free
	answers   bool          // the model can answer: context, tools, constraints
}

// usable reports whether the model can answer at L3.
func (c *candidate) usable() bool {
	return c.available && c.answers && c.level < degrade.SmallerModel
}

// snapshot reads all that a decision about a request needs. It leaves out what no rule can
// need: the smaller models where the own one has a place at a low level.
func (c *Controller) snapshot(q *queueing, d *Demand, past *progress) situation {
	s := situation{now: time.Now(), past: *past, verdict: d.Pool.level.Verdict()}
	d.Pool.survey(q, d, &s)
	level := tierLevel(max(s.verdict.Level, s.full.level, s.reduced.level), d.Request.Tier)
	high := max(level, s.verdict.Level, past.target.level) >= degrade.SmallerModel
	if high || past.rejection != nil || !s.full.available || s.full.full || !s.reduced.available || s.reduced.full {
		s.fallback = d.fallback()
	}
	switch waiting := past.target.pool; {
	case waiting == nil || !high:
	case waiting == d.Pool:
		s.targetFits = s.reduced.unfit == nil
	case waiting == s.fallback.pool:
		s.targetFits = s.fallback.available
	default:
		s.targetFits = waiting.checkFit(d.sequences(degrade.ThinkingOff)) == nil
	}
	return s
}

// choose decides about a request by the situation of this moment.
func (c *Controller) choose(q *queueing, d *Demand, past *progress) decision {
	s := c.snapshot(q, d, past)
	return decide(&q.QueueConfig, d, &s)
}

// survey reads what a request meets at the backends of its own model, and predicts its wait
// where that has an effect.
func (p *Pool) survey(q *queueing, d *Demand, s *situation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.full, s.reduced = p.look(d.sequences(degrade.Full), d.sequences(degrade.StreamingOff))
	if d.shrinksWhenFull(&s.full) || d.shrinksWhenFull(&s.reduced) {
		tenant := q.tenant(&d.Request.Subjects)
		s.wait, _ = p.drain.wait(s.now, p.queue.ahead(limit.TierIndex(d.Request.Tier), tenant, q.weight(tenant)))
	}
}

// fallback returns the first smaller model that can answer the request, or else the last one
// of the chain.
func (d *Demand) fallback() (c candidate) {
	sequences := d.sequences(degrade.SmallerModel)
	for p := d.Pool.next(); p != nil && p != d.Pool; p = p.next() { // during a reload the chain may lead back
		if c = p.candidate(sequences); !c.available || c.level >= degrade.SmallerModel || d.Caller == nil {
			continue
		}
		if c.answers = d.Caller.Fits(p); c.answers {
			break
		}
	}
	return c
}

// candidate returns what a request of so many sequences meets at a smaller model, but for
// whether that can answer it.
func (p *Pool) candidate(sequences int64) candidate {
	model := p.level.Verdict().Level
	p.mu.Lock()
	defer p.mu.Unlock()
	o, _ := p.look(sequences, sequences)
	return candidate{pool: p, level: max(model, o.level), available: o.unfit == nil, full: o.full}
}

// look returns the outlooks for one more request, of so many sequences at L0 and of so many
// from L1 on. The lock is held.
func (p *Pool) look(full, reduced int64) (atFull, atReduced outlook) {
	a, b := p.newView(full), p.newView(reduced)
	for _, seat := range p.seats {
		v := seat.gauge.Verdict()
		if !seat.acceptsUnder(v) {
			continue
		}
		a.add(seat, v)
		if reduced != full {
			b.add(seat, v)
		}
	}
	if atFull = a.outlook(p); reduced == full {
		return atFull, atFull
	}
	return atFull, b.outlook(p)
}

// view gathers the outlook of a request of some sequences, backend by backend.
type view struct {
	o         outlook
	sequences int64
	oversized bool // no backend, in rotation or not, may have so many: bounds are ignored
	accepting bool // some backend accepts requests, of whatever size
	limit     int  // largest bound of those backends
	room      room // best of those that can serve the request
}

// newView returns the view of a pool of which no backend was looked at. The lock is held.
func (p *Pool) newView(sequences int64) view {
	return view{sequences: sequences, oversized: !p.allows(sequences), room: roomNone}
}

// add looks at a backend that accepts requests.
func (w *view) add(s *Seat, v *degrade.Verdict) {
	w.accepting, w.limit = true, max(w.limit, s.bounds.Load().InFlight)
	if !w.oversized && !s.allows(w.sequences) {
		return
	}
	if !w.o.available || v.Level < w.o.level {
		w.o.level, w.o.reason, w.o.retry, w.o.available = v.Level, v.Reason, v.Retry, true
	}
	w.o.firm, w.room = max(w.o.firm, v.Firm), max(w.room, s.roomUnder(v, w.sequences))
}

// outlook returns what was gathered. The pool's lock is held.
func (w *view) outlook(p *Pool) outlook {
	w.o.full = w.room == roomNone || w.room == roomFree && p.queue.len() > 0
	switch {
	case w.oversized:
		w.o.unfit = &TooMany{Sequences: w.sequences, Max: p.maxInFlight(false)}
	case !w.accepting:
		w.o.unfit = ErrNoBackend
	case !w.o.available:
		w.o.unfit = &TooMany{Sequences: w.sequences, Max: w.limit, Temporary: true}
	}
	return w.o
}
