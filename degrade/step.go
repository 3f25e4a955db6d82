package degrade

import (
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

// news is how old is what is known of a signal; with several cards, of any.
type news struct{ known, held, dropped bool }

// from takes in when something was told; zero: it never was.
func (n *news) from(at, now time.Time) {
	if !at.IsZero() {
		age := nvml.AtAge(now.Sub(at))
		n.known, n.held, n.dropped = true, n.held || age == nvml.Held, n.dropped || age == nvml.Dropped
	}
}

// String is the age of the oldest reading in one word.
func (n news) String() string {
	switch {
	case !n.known:
		return "unknown"
	case n.dropped:
		return nvml.Dropped.String()
	case n.held:
		return nvml.Held.String()
	}
	return nvml.Fresh.String()
}

// backend is what is remembered of one backend.
type backend struct {
	cards     []card
	rungs     [signals]rung
	claims    [signals]claim // of the engine's signals
	ownQueue  claim          // of those that wait here, whatever the engine says
	asks      [signals]ask   // as of the last step
	observe   [signals]bool  // likewise
	off       [signals]bool
	news      [signals]news
	told      [signals]time.Time // when the engine's signals last had a value
	engineAt  time.Time          // of the engine's reading that was judged last
	thrownOut time.Time          // when preemptions were seen last

	stepped bool      // it was stepped before
	up      bool      // in rotation
	wasUp   bool      // it was so once
	started time.Time // as told last
	began   bool      // an engine has come up that did not run before, as far as it is known

	best     [2]int    // most in flight while all was well: in this half of the window, and in the one before
	bestFrom time.Time // when this half began

	stand  [sides]standing
	hold   [sides]bool // nothing may be relaxed, since a reading that counts is held
	blind  [sides]bool // one that counts is too old, so that less is known of it than of others
	cap    int
	why    string      // it must not be used
	out    string      // likewise; empty where the whole ladder observes
	member [sides]bool // it is in the model's mean
	ghost  [sides]float64
	ghosts [sides]bool // ghost is set: it was in the mean once
	mark   [sides]mark
}

// bestOver is for how long the most that was in flight is remembered: long enough
// that a quiet night leaves something of the day before.
const bestOver = 12 * time.Hour

// leastCap is the part of a backend's own bound that it may always have: a source may
// die before there was anything in flight to be remembered.
const leastCap = 4

// step is one look at a backend: a function of what is remembered, the readings and
// the time, and of nothing else.
func (b *backend) step(k *book, r *Readings, now time.Time) {
	b.follow(r)
	b.look(k, r, now)
	newEngine := b.listen(k, r, now)
	for side := range sides {
		of := b.oldest(side, temperature, ttft)
		b.hold[side], b.blind[side] = of.held, of.dropped
	}
	for s := range signals {
		if b.off[s] {
			b.rungs[s], b.claims[s] = rung{}, claim{}
			continue
		}
		side := acting
		if b.observe[s] {
			side = wouldBe
		}
		b.rungs[s].step(b.proven(s, k, r, newEngine, now), b.asks[s].keep, b.hold[side], &k.config.Dwell, now)
	}
	b.settle(r, now)
	if b.out = b.why; k.config.Observe {
		b.cap, b.out = 0, "" // the acting side stands at L0 already: all is observed
	}
}

// follow follows the engine's starts. Its first coming up here is none that anything
// of it is forgiven for; but who shares its cards has less memory from then on.
func (b *backend) follow(r *Readings) {
	anew := b.stepped && r.Started.After(b.started)
	b.began = anew || r.Up && !b.wasUp
	b.stepped, b.up, b.wasUp, b.started = true, r.Up, b.wasUp || r.Up, r.Started
	if anew {
		for i := range b.cards {
			b.cards[i].restart()
		}
	}
}

// neighbour takes in that an engine has come up, which may be on a card of this one.
func (b *backend) neighbour(of *backend) {
	for i := range b.cards {
		for j := range of.cards {
			if c := &b.cards[i]; c.uuid != "" && c.uuid == of.cards[j].uuid {
				c.restart()
			}
		}
	}
}

// look judges the cards.
func (b *backend) look(k *book, r *Readings, now time.Time) {
	b.align(r.GPUs)
	var rules *ruleSet // of the cards so far
	b.why = ""
	for i, g := range r.GPUs {
		c := &b.cards[i]
		if !c.known(k, g, now) {
			continue
		}
		if why := c.judge(g, b.started, now); b.why == "" {
			b.why = why
		}
		c.take(g, r.Up, r.Absolute, now)
		b.allow(c.rules, rules == nil)
		rules = c.rules
		for s := range c.asks {
			b.asks[s].worse(c.asks[s])
			if !c.rules[s].Off {
				b.news[s].from(c.told[s], now)
			}
		}
	}
	if rules == nil {
		b.allow(k.engine, true)
	}
}

// allow takes in what may be done on account of one more card. A signal that is only
// observed on one card moves nothing.
func (b *backend) allow(rules *ruleSet, first bool) {
	for s := temperature; s <= memoryUsed; s++ {
		if first {
			b.asks[s], b.news[s], b.off[s], b.observe[s] = ask{}, news{}, true, false
		}
		b.off[s] = b.off[s] && rules[s].Off
		b.observe[s] = b.observe[s] || rules[s].Observe && !rules[s].Off
	}
}

// proven is the level that a signal has shown to call for.
func (b *backend) proven(s signal, k *book, r *Readings, newEngine bool, now time.Time) (target Level) {
	raised, d := b.rungs[s].level > Full, &k.config.Dwell
	if s.ofGPU() {
		for i := range b.cards {
			c := &b.cards[i]
			target = max(target, c.claims[s].step(c.asks[s], c.fresh[s], raised, s.proof(), d, now))
		}
		return target
	}
	sample := s == ttft || newEngine || s == queue && r.EngineAt.IsZero()
	target = b.claims[s].step(b.asks[s], sample, raised, s.proof(), d, now)
	if s == queue {
		own := k.engine[s].scale.asked(float64(max(r.Queued, 0)))
		target = max(target, b.ownQueue.step(own, true, raised, s.proof(), d, now))
	}
	return target
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
// has said anything new. A value that the engine does not tell any more stays as it
// was told last, and grows old.
func (b *backend) listen(k *book, r *Readings, now time.Time) bool {
	fresh := !r.EngineAt.Equal(b.engineAt)
	b.engineAt = r.EngineAt
	for s := kvCache; s < signals; s++ {
		b.news[s], b.off[s], b.observe[s] = news{}, k.engine[s].Off, k.engine[s].Observe
	}
	rate := func(s signal, known bool, v float64) {
		if b.asks[s] = (ask{}); known && finite(v) && !b.off[s] {
			b.asks[s] = k.engine[s].scale.asked(v)
		}
	}
	rate(ttft, r.TTFT > 0 && r.Objective > 0, float64(r.TTFT)/float64(r.Objective))
	rate(queue, r.Waiting >= 0, float64(r.Waiting))
	b.told[queue] = r.EngineAt // what waits here is always known, what waits there is as old as this
	if r.KV >= 0 && finite(r.KV) {
		b.told[kvCache] = r.EngineAt
		rate(kvCache, true, min(r.KV, 1))
	}
	if r.Preempted >= 0 {
		b.told[preemptions] = r.EngineAt
		b.asks[preemptions] = b.thrown(r.Preempted, now)
	}
	for _, s := range []signal{kvCache, queue, preemptions} {
		b.news[s].from(b.told[s], now)
		if n := b.news[s]; s != queue && (b.off[s] || !n.known || n.dropped) {
			b.asks[s] = ask{}
		}
	}
	if !b.asks[preemptions].known {
		b.thrownOut = time.Time{}
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

// oldest is the age of what counts on a side, over some signals.
func (b *backend) oldest(side int, from, to signal) (of news) {
	for s := from; s <= to; s++ {
		if n := b.news[s]; !b.off[s] && (side == wouldBe || !b.observe[s]) {
			of = news{of.known || n.known, of.held || n.held, of.dropped || n.dropped}
		}
	}
	return of
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
			if at.level > st.level || at.level == st.level && at.retry.After(st.retry) {
				st.level, st.retry = at.level, at.retry
			}
		}
		b.stand[side] = st
	}
	b.cap = 0
	switch gpus := b.oldest(acting, temperature, memoryUsed); {
	case gpus.dropped:
		b.cap = max(b.best[0], b.best[1], r.Most/leastCap, 1)
	case gpus.known && !gpus.held && b.stand[acting].level == Full:
		if now.Sub(b.bestFrom) > bestOver/2 {
			b.best, b.bestFrom = [2]int{0, b.best[0]}, now
		}
		b.best[0] = max(b.best[0], r.InFlight)
	}
}
