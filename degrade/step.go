package degrade

import (
	"math"
	"time"

	"tidegate/nvml"
)

// The two sides of everything: what acts, and what would be if no signal were only
// observed.
const (
	acting = iota
	wouldBe
	sides
)

// standing is where a backend or a model stands on one side.
type standing struct {
	level    Level
	pressure float64
	by       signal // that binds; at L0 none
	retry    time.Time
}

// backend is what is remembered of one backend.
type backend struct {
	cards     []card
	rungs     [signals]rung
	asks      [signals]ask  // as of the last step
	observe   [signals]bool // likewise
	off       [signals]bool
	engineAt  time.Time // of the engine's reading that was judged last
	thrownOut time.Time // when preemptions were seen last

	seen      bool // it was stepped before
	up        bool
	downSince time.Time
	restarted time.Time

	best     [2]int    // most in flight while all was well: in this half of the window, and in the one before
	bestFrom time.Time // when this half began

	stand  [sides]standing
	hold   [sides]bool    // nothing may be relaxed, since a reading that counts is held
	gpu    nvml.Freshness // of the oldest reading that counts
	motor  nvml.Freshness // the engine's
	known  [2]bool        // whether there is a reading of the GPUs, and of the engine
	cap    int
	out    string
	member bool // it is in the model's mean
	ghost  [sides]float64
	ghosts bool // ghost is set: it was in the mean once
}

// bestOver is for how long the most that was in flight is remembered: long enough
// that a quiet night leaves something of the day before.
const bestOver = 12 * time.Hour

// step is one look at a backend: a function of what is remembered, the readings and
// the time, and of nothing else.
func (b *backend) step(k *book, r *Readings, now time.Time) {
	b.rotate(r.Up, now)
	newGPU := b.look(k, r, now)
	newEngine := b.listen(k, r, now)
	b.hold = b.held()
	for s := range signals {
		if b.off[s] {
			b.rungs[s] = rung{}
			continue
		}
		sample, need := true, eachLevel
		switch s {
		case temperature:
			need = anyLevel
		case throttle:
			need = none
		}
		mine := b.hold[acting]
		switch {
		case s.ofGPU():
			sample, mine = newGPU, mine || b.known[0] && b.gpu == nvml.Held
		case s.ofEngine():
			sample, mine = newEngine, mine || b.known[1] && b.motor == nvml.Held
		}
		b.rungs[s].step(b.asks[s], sample, mine, need, &k.config.Dwell, now)
	}
	b.settle(r, now)
	if k.config.Observe {
		b.cap, b.out = 0, "" // the acting side stands at L0 already: all is observed
	}
}

// rotate follows the backend's health, which is how a restart is seen.
func (b *backend) rotate(up bool, now time.Time) {
	switch {
	case !b.seen:
		b.downSince = now
	case b.up && !up:
		b.downSince = now
	case !b.up && up && now.Sub(b.downSince) >= restartTakes:
		b.restarted = now
		for i := range b.cards {
			b.cards[i].restart()
		}
	}
	b.seen, b.up = true, up
}

// look judges the cards, and reports whether any of them has a new reading.
func (b *backend) look(k *book, r *Readings, now time.Time) (fresh bool) {
	b.align(r.GPUs)
	var rules *ruleSet // of the cards so far
	b.gpu, b.known[0], b.out = nvml.Fresh, false, ""
	for i, g := range r.GPUs {
		c := &b.cards[i]
		if g == nil {
			*c = card{}
			continue
		}
		c.set(k, g)
		if why := c.judge(g, b.restarted, now); why != "" && b.out == "" {
			b.out = why
		}
		off := b.allow(c.rules, rules == nil)
		rules = c.rules
		age := g.Freshness(now)
		switch {
		case g.State == nvml.StateLost:
			c.forget() // what it left says nothing, and is no older than it is gone
			continue
		case age == nvml.Dropped:
			c.forget()
		default:
			fresh = c.take(g, r.Up, r.Absolute, now) || fresh
		}
		if !off {
			b.gpu, b.known[0] = min(b.gpu, age), true
		}
		for s := range c.asks {
			b.asks[s].worse(c.asks[s])
		}
	}
	if rules == nil {
		b.allow(k.engine, true)
	}
	return fresh
}

// allow takes in what may be done on account of one more card, and reports whether
// nothing of it counts. A signal that is only observed on one card moves nothing.
func (b *backend) allow(rules *ruleSet, first bool) (off bool) {
	off = true
	for s := temperature; s <= memoryUsed; s++ {
		if first {
			b.asks[s], b.off[s], b.observe[s] = ask{}, true, false
		}
		off = off && rules[s].Off
		b.off[s] = b.off[s] && rules[s].Off
		b.observe[s] = b.observe[s] || rules[s].Observe && !rules[s].Off
	}
	return off
}

// align keeps each card's memory with it when the list of cards changes.
func (b *backend) align(gpus []*nvml.GPU) {
	same := len(gpus) == len(b.cards)
	for i := 0; same && i < len(gpus); i++ {
		same = gpus[i] == nil || b.cards[i].uuid == gpus[i].UUID
	}
	if same {
		return
	}
	cards := make([]card, len(gpus))
	for i, g := range gpus {
		for j := range b.cards {
			if g != nil && b.cards[j].uuid == g.UUID {
				cards[i] = b.cards[j]
			}
		}
	}
	b.cards = cards
}

// listen judges what the engine and the gateway say, and reports whether the engine
// has said anything new.
func (b *backend) listen(k *book, r *Readings, now time.Time) bool {
	fresh := !r.EngineAt.Equal(b.engineAt)
	b.engineAt = r.EngineAt
	b.motor, b.known[1] = nvml.Fresh, false
	if !r.EngineAt.IsZero() && !(k.engine[kvCache].Off && k.engine[preemptions].Off) {
		b.motor, b.known[1] = nvml.AtAge(now.Sub(r.EngineAt)), true
	}
	for s := kvCache; s < signals; s++ {
		b.asks[s], b.off[s], b.observe[s] = ask{}, k.engine[s].Off, k.engine[s].Observe
	}
	rate := func(s signal, v float64) {
		if v >= 0 && finite(v) && !b.off[s] {
			b.asks[s] = k.engine[s].scale.asked(v)
		}
	}
	rate(queue, float64(r.Waiting))
	if r.TTFT > 0 && r.Objective > 0 {
		rate(ttft, float64(r.TTFT)/float64(r.Objective))
	}
	if !b.known[1] || b.motor == nvml.Dropped {
		b.thrownOut = time.Time{}
		return fresh
	}
	rate(kvCache, math.Min(r.KV, 1))
	if r.Preempted >= 0 && !b.off[preemptions] {
		b.asks[preemptions] = b.thrown(r.Preempted, now)
	}
	return fresh
}

// thrown is what preemptions ask for: the caches are too small for what runs, and
// each of them is work that is done twice.
func (b *backend) thrown(n int, now time.Time) ask {
	enter, keep := Full, Full
	if n > 0 {
		b.thrownOut, enter = now, ThinkingOff
	}
	if n > 5 {
		enter = SmallerModel
	}
	if !b.thrownOut.IsZero() && now.Sub(b.thrownOut) < clearFor {
		keep = Canned
	}
	return flat(float64(n), enter, keep)
}

// held says on either side whether a reading that counts there is held, so that
// nothing may be relaxed.
func (b *backend) held() (held [sides]bool) {
	for s := range signals {
		old := s.ofGPU() && b.known[0] && b.gpu == nvml.Held || s.ofEngine() && b.known[1] && b.motor == nvml.Held
		if old && !b.off[s] {
			held[wouldBe] = true
			held[acting] = held[acting] || !b.observe[s]
		}
	}
	return held
}

// acts reports whether any signal of the GPUs moves something.
func (b *backend) acts() bool {
	for s := temperature; s <= memoryUsed; s++ {
		if !b.off[s] && !b.observe[s] {
			return true
		}
	}
	return false
}

// settle draws the sum: the worst signal is the backend's.
func (b *backend) settle(r *Readings, now time.Time) {
	for side := range sides {
		st := standing{by: noSignal}
		for s := range signals {
			if b.off[s] || side == acting && b.observe[s] {
				continue
			}
			at := &b.rungs[s]
			p := within(b.asks[s].pressure, at.level)
			if p > st.pressure {
				if st.pressure = p; at.level > Full {
					st.by = s
				}
			}
			// All signals at the level must leave it before the backend does.
			if at.level > st.level || at.level == st.level && at.retry().After(st.retry) {
				st.level, st.retry = at.level, at.retry()
			}
		}
		b.stand[side] = st
	}
	b.cap = 0
	blind := b.known[0] && b.gpu == nvml.Dropped && b.acts()
	switch {
	case blind:
		b.cap = max(b.best[0], b.best[1], 1)
	case b.known[0] && b.gpu == nvml.Fresh && b.stand[acting].level == Full:
		if now.Sub(b.bestFrom) > bestOver/2 {
			b.best, b.bestFrom = [2]int{0, b.best[0]}, now
		}
		b.best[0] = max(b.best[0], r.InFlight)
	}
}

// blind reports whether the backend has readings that are too old to count, so that
// less is known of it than of others.
func (b *backend) blind() bool {
	return b.known[0] && b.gpu == nvml.Dropped || b.known[1] && b.motor == nvml.Dropped
}
