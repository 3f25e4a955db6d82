package admission

import (
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// kind is the outcome of a decision.
type kind uint8

const (
	kindGo     kind = iota // acquires a place in the decision's pool, or begins to wait there
	kindStay               // keeps its pool: goes on waiting, or keeps its place
	kindMove               // changes from the pool where it waits to the decision's
	kindCanned             // gets the canned answer
	kindRefuse             // is refused
)

// target is a level for a request and the pool that serves it there.
type target struct {
	pool   *Pool // nil for a canned answer
	level  degrade.Level
	reason string    // signal, rule or state that asks for the level
	retry  time.Time // earliest time at which the level may fall
}

// retryAfter returns how long the level lasts from now on, and one second at the least.
func (c *target) retryAfter(now time.Time) time.Duration {
	return max(c.retry.Sub(now), time.Second)
}

// decision is the outcome for a request, with its level, pool and cause.
type decision struct {
	kind kind
	target
	refusedFor time.Duration // of a refusal for the level: time until that may fall
	cause      error         // of a refusal; nil if the level alone is the reason
}

// progress is the result of earlier decisions about a request. The zero value is that of a
// new request.
type progress struct {
	target    target           // earlier target: a lower bound of the level, and the pool where the request waits
	waited    time.Duration    // time spent waiting for a place on a backend
	rejection *limit.Rejection // rejection that a rate rule replaces by the smaller model
}

// decide returns what to do with a request. It is pure: it takes no lock, reads no clock, and
// writes nothing but its result. docs/pressure.md states the rules.
func decide(q *QueueConfig, d *Demand, s *situation) decision {
	tier, earlier := d.Request.Tier, &s.past.target
	primary := s.primary(max(tierLevel(s.verdict.Level, tier), earlier.level))
	c := modelTarget(d.Pool, s.verdict, primary, tier)
	if !s.verdict.Pinned && q.Degrade {
		c.shrinkWhenFull(d, primary, s)
	}
	if earlier.level > c.level {
		c.level, c.reason, c.retry = earlier.level, earlier.reason, earlier.retry
	}
	primary = s.primary(c.level)
	if c.level >= degrade.SmallerModel && c.fromLoad() && s.past.rejection == nil && c.useFreePlace(d, primary, s) {
		return conclude(d, c, s)
	}
	if c.level == degrade.Canned && earlier.pool != nil && c.fromLoad() && s.targetFits {
		// A request that waits already keeps its turn, and a new one is not let in.
		c.pool, c.level = earlier.pool, max(earlier.level, degrade.ThinkingOff)
		return conclude(d, c, s)
	}
	if c.level == degrade.Canned {
		c.pool = nil
		return conclude(d, c, s)
	}
	smaller := s.fallback.usable()
	if c.level == degrade.SmallerModel && primary.available && !smaller {
		c.level = degrade.ThinkingOff // the smallest answer of its own backends
	}
	if !primary.available {
		if !smaller || d.MaxLevel < degrade.SmallerModel {
			return decision{kind: kindRefuse, target: c, cause: primary.unfit}
		}
		if c.level < degrade.SmallerModel {
			c.level, c.reason = degrade.SmallerModel, reasonDown
		}
	}
	if c.level == degrade.SmallerModel {
		c.pool = s.fallback.pool
	}
	if s.past.rejection != nil && c.level < degrade.SmallerModel {
		return decision{kind: kindRefuse, target: c, cause: s.past.rejection} // the rule would limit nothing
	}
	return conclude(d, c, s)
}

// decideOnSeat returns what to do with a request that has acquired a place on a backend,
// whose level may be higher than the lowest of its pool. It is pure, as decide is.
func decideOnSeat(d *Demand, s *situation, verdict *degrade.Verdict) decision {
	c := s.past.target
	level := min(tierLevel(verdict.Level, d.Request.Tier), degrade.ThinkingOff)
	if c.pool != d.Pool || s.verdict.Pinned || level <= c.level {
		return decision{kind: kindStay, target: c}
	}
	c.level, c.reason, c.retry = level, verdict.Reason, verdict.Retry
	return conclude(d, c, s)
}

// conclude refuses an answer that is smaller than the caller accepts, and otherwise returns
// what leads from the pool where the request waits to the chosen one.
func conclude(d *Demand, c target, s *situation) decision {
	switch {
	case c.level > d.MaxLevel && s.past.rejection != nil:
		return decision{kind: kindRefuse, target: c, cause: s.past.rejection}
	case c.level > d.MaxLevel:
		return decision{kind: kindRefuse, target: c, refusedFor: c.retryAfter(s.now)}
	case c.pool == nil:
		return decision{kind: kindCanned, target: c}
	case s.past.target.pool == nil:
		return decision{kind: kindGo, target: c}
	case s.past.target.pool == c.pool:
		return decision{kind: kindStay, target: c}
	default:
		return decision{kind: kindMove, target: c}
	}
}

// modelTarget returns the level of a model for requests of a tier: the higher of the model's
// own and that of its coolest backend, shifted by the tier. A pin is exact.
func modelTarget(p *Pool, model *degrade.Verdict, primary *outlook, tier string) target {
	c := target{p, model.Level, model.Reason, model.Retry}
	if model.Pinned {
		return c
	}
	if primary.level > c.level {
		c.level, c.reason, c.retry = primary.level, primary.reason, primary.retry
	}
	c.level = tierLevel(c.level, tier)
	return c
}

// fromLoad reports whether the level comes from load, which a free place disproves, and not
// from the cards or their memory.
func (c *target) fromLoad() bool { return c.reason == reasonQueue || c.reason == reasonTTFT }

// useFreePlace chooses a place that is free now for a request at L3 or L4, and reports whether
// there is one. Levels from load outlast their cause, and no backend must be idle meanwhile
// unless it is hot. Its own model comes first. At L3 a request waits for that where all are
// full, or the smaller model would be flooded; each later decision looks for room again.
func (c *target) useFreePlace(d *Demand, primary *outlook, s *situation) bool {
	hot := primary.firm >= degrade.SmallerModel
	if (!primary.available || primary.full || hot) && d.MaxLevel >= degrade.SmallerModel && s.fallback.usable() && !s.fallback.full {
		c.pool, c.level = s.fallback.pool, degrade.SmallerModel
		return true
	}
	if !primary.available || hot || primary.full && c.level == degrade.Canned {
		return false
	}
	c.level = degrade.ThinkingOff
	return true
}

// shrinkWhenFull makes the answer of a request that finds no place smaller, long before the
// ladder confirms its signals. Without thinking, places become free sooner. The smaller model
// answers where the first token would come late and it has a place. Batch requests go there at
// once, and critical ones wait first. Nobody is refused for it.
func (c *target) shrinkWhenFull(d *Demand, primary *outlook, s *situation) {
	if !d.shrinksWhenFull(primary) || c.level >= degrade.SmallerModel {
		return
	}
	level := degrade.ThinkingOff
	if max(s.wait, s.past.waited) > d.TTFT/2 {
		level = degrade.SmallerModel
	}
	if level = min(tierLevel(level, d.Request.Tier), d.MaxLevel); level < degrade.ThinkingOff {
		return // L1 alone frees no place
	}
	if level == degrade.SmallerModel && (!s.fallback.usable() || s.fallback.full) {
		level = degrade.ThinkingOff
	}
	if level == degrade.ThinkingOff && !d.Request.Thinking {
		return // the request does not think anyway
	}
	if level > c.level {
		c.level, c.reason, c.retry = level, reasonQueue, time.Time{}
	}
}

// shrinksWhenFull reports whether the request finds no place and is promised a first token in
// time.
func (d *Demand) shrinksWhenFull(primary *outlook) bool {
	return primary.available && primary.full && d.TTFT > 0
}

// tierLevel returns the level for requests of a tier: one more for batch, which can wait,
// and one less for critical.
func tierLevel(l degrade.Level, tier string) degrade.Level {
	return degrade.Shift(l, degrade.Level(limit.TierIndex(tier)-limit.TierIndex(limit.Standard)))
}
