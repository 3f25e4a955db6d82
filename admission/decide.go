package admission

import (
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// verb is what becomes of a request now.
type verb uint8

const (
	goes    verb = iota // takes a place in the decision's pool, or waits for one there
	waits               // goes on waiting where it does
	moves               // leaves the pool where it waits for the decision's
	cans                // gets the canned answer
	refuses             // is turned away
)

// choice is a level for a request and the pool that serves it there.
type choice struct {
	pool   *Pool // nil for a canned answer
	level  degrade.Level
	reason string    // signal, rule or state that asks for the level
	retry  time.Time // earliest time at which the level may fall
}

// decision is what to do with a request. It says nothing of time: whoever acts on it knows
// the clock.
type decision struct {
	verb verb
	choice
	cause error // of a refusal; nil where the level is higher than the caller accepts
}

// progress is what was decided of a request before. The zero value is that of a request
// that comes now.
type progress struct {
	least  choice        // lower bound of its level; a pool where it waits there
	waited time.Duration // for a place on a backend
	over   *limit.Denied // rate rule that it is over, which asks for the smaller model instead of a rejection
}

// situation is all that a decision about one request reads of what changes by itself. It is
// a snapshot: every field was read once.
type situation struct {
	verdict *degrade.Verdict // of the model that the caller asked for
	whole   outlook          // of its backends, for the request's sequences at L0
	reduced outlook          // for its sequences from L1 on

	smaller     *Pool // first smaller model that is below L3, is up and can answer the request; nil where none does, or none is needed
	smallerFull bool  // it has no free place
	wait        time.Duration
	keeps       bool // the pool where the request waits can hold it at L2
}

// own returns what the request meets at its own model's backends at a level.
func (s *situation) own(level degrade.Level) *outlook {
	if level >= degrade.StreamingOff {
		return &s.reduced
	}
	return &s.whole
}

// decide returns what to do with a request. It is pure: it reads no lock and no clock, and
// writes nothing. The rules are those of docs/pressure.md. The level is at least that of
// past.least.
func decide(q *QueueConfig, d *Demand, past *progress, s *situation) decision {
	tier := d.Request.Tier
	own := s.own(max(degrade.Shift(s.verdict.Level, tier), past.least.level))
	c := standing(d.Pool, s.verdict, own, tier)
	if !s.verdict.Pinned && q.Degrade {
		crowded(d, &c, own, past.waited, s)
	}
	if past.least.level > c.level {
		c.level, c.reason, c.retry = past.least.level, past.least.reason, past.least.retry
	}
	own = s.own(c.level)
	if c.level >= degrade.SmallerModel && c.ofLoad() && past.over == nil && findRoom(d, &c, own, s) {
		return d.accept(c, past)
	}
	if c.level == degrade.Canned && past.least.pool != nil && c.ofLoad() && s.keeps {
		// A request that waits already is served, where it can be; one that comes now is not
		// let in.
		c.pool, c.level = past.least.pool, max(past.least.level, degrade.ThinkingOff)
		return d.accept(c, past)
	}
	if c.level == degrade.Canned {
		c.pool = nil
		return d.accept(c, past)
	}
	if c.level == degrade.SmallerModel && own.up && s.smaller == nil {
		c.level = degrade.ThinkingOff // the least that its own backends can give
	}
	if !own.up {
		if s.smaller == nil || d.MaxLevel < degrade.SmallerModel {
			return decision{refuses, c, cause(own.unfit)}
		}
		if c.level < degrade.SmallerModel {
			c.level, c.reason = degrade.SmallerModel, reasonDown
		}
	}
	if c.level == degrade.SmallerModel {
		c.pool = s.smaller
	}
	if past.over != nil && c.level < degrade.SmallerModel {
		return decision{refuses, c, past.over} // nothing would be limited without the smaller model
	}
	return d.accept(c, past)
}

// cause returns why no backend can take a request.
func cause(unfit error) error {
	if unfit != nil {
		return unfit
	}
	return ErrNoBackend
}

// accept refuses an answer smaller than the caller accepts, and else names what to do.
func (d *Demand) accept(c choice, past *progress) decision {
	switch in := past.least.pool; {
	case c.level > d.MaxLevel && past.over != nil:
		return decision{refuses, c, past.over}
	case c.level > d.MaxLevel:
		return decision{refuses, c, nil}
	case c.pool == nil:
		return decision{cans, c, nil}
	case in == nil:
		return decision{goes, c, nil}
	case c.pool == in:
		return decision{waits, c, nil}
	default:
		return decision{moves, c, nil}
	}
}

// standing returns the level of a model for requests of a tier, by its own verdict and by
// that of its coolest backend.
func standing(p *Pool, v *degrade.Verdict, own *outlook, tier string) choice {
	c := choice{p, v.Level, v.Reason, v.Retry}
	if v.Pinned {
		return c
	}
	if own.level > c.level {
		c.level, c.reason, c.retry = own.level, own.reason, own.retry
	}
	c.level = degrade.Shift(c.level, tier)
	return c
}

// ofLoad reports whether the level comes from how much is asked, which a free place
// disproves, and not from the cards or their memory.
func (c *choice) ofLoad() bool { return c.reason == reasonQueue || c.reason == reasonTTFT }

// findRoom gives a request at L3 or L4 a place that is free now, first one of its own
// model's: levels that come from load last for a while after it, and no backend must be
// idle meanwhile, unless it is also hot. At L3 the request waits for its own model where
// there is none, since the smaller one must not be swamped; it is decided again and again
// whether that has room.
func findRoom(d *Demand, c *choice, own *outlook, s *situation) bool {
	hot := own.firm >= degrade.SmallerModel
	if (!own.up || own.full || hot) && d.MaxLevel >= degrade.SmallerModel && s.smaller != nil && !s.smallerFull {
		c.pool, c.level = s.smaller, degrade.SmallerModel
		return true
	}
	if !own.up || hot || own.full && c.level == degrade.Canned {
		return false
	}
	c.level = degrade.ThinkingOff
	return true
}

// crowded makes the answer of a request smaller that finds no place, long before the ladder
// has confirmed what its signals say: without thinking, so that places become free sooner,
// and by the smaller model's backends where the first token would otherwise be late and
// they have a place. Batch requests go there at once, critical ones wait for their place
// first. Nobody is refused on account of it.
func crowded(d *Demand, c *choice, own *outlook, waited time.Duration, s *situation) {
	if !d.mayCrowd(own) || c.level >= degrade.SmallerModel {
		return
	}
	level := degrade.ThinkingOff
	if max(s.wait, waited) > d.TTFT/2 {
		level = degrade.SmallerModel
	}
	if level = min(degrade.Shift(level, d.Request.Tier), d.MaxLevel); level < degrade.ThinkingOff {
		return // L1 alone frees no place
	}
	if level == degrade.SmallerModel && (s.smaller == nil || s.smallerFull) {
		level = degrade.ThinkingOff
	}
	if level == degrade.ThinkingOff && !d.Request.Thinking {
		return // there is none to be saved
	}
	if level > c.level {
		c.level, c.reason, c.retry = level, reasonQueue, time.Time{}
	}
}

// mayCrowd reports whether the request finds no place and is promised a first token in
// time.
func (d *Demand) mayCrowd(own *outlook) bool { return own.up && own.full && d.TTFT > 0 }

// snapshot reads all that a decision about a request needs, once. What no rule can need it
// leaves out: the smaller models where the own one has a place at a low level.
func (c *Controller) snapshot(q *queueing, d *Demand, past *progress) situation {
	s := situation{verdict: d.Pool.level.Verdict()}
	s.whole, s.reduced = d.Pool.lookTwice(d.sequences(degrade.Full), d.sequences(degrade.StreamingOff))
	own := &s.whole
	if d.mayCrowd(&s.whole) || d.mayCrowd(&s.reduced) {
		tenant := q.tenant(&d.Request.Subjects)
		s.wait = d.Pool.wouldWait(tierIndex(d.Request.Tier), tenant, q.weight(tenant))
	}
	level := degrade.Shift(max(s.verdict.Level, s.whole.level, s.reduced.level), d.Request.Tier)
	high := max(level, s.verdict.Level, past.least.level) >= degrade.SmallerModel
	if high || past.over != nil || !own.up || own.full || !s.reduced.up || s.reduced.full {
		s.smaller, s.smallerFull = d.smaller()
	}
	if past.least.pool != nil && high {
		s.keeps = past.least.pool.fits(d.sequences(degrade.ThinkingOff)) == nil
	}
	return s
}

// choose decides about a request by what is now.
func (c *Controller) choose(q *queueing, d *Demand, past *progress) decision {
	s := c.snapshot(q, d, past)
	return decide(&q.QueueConfig, d, past, &s)
}

// refusal returns the error of a decision that refuses; nil for another one. The level
// stays for some time, and callers must not return together.
func (d *decision) refusal() error {
	switch {
	case d.verb != refuses:
		return nil
	case d.cause != nil:
		return d.cause
	}
	return &Overloaded{ShedLevel, d.level, d.reason, d.stays()}
}
