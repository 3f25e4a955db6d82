package degrade

import (
	"time"

	"tidegate/nvml"
)

// The two sides of each level: the one that acts, and the one that would if no signal were
// only observed.
const (
	acting = iota
	wouldBe
	sides
)

// standing is the level and the pressure of a backend on one side.
type standing struct {
	level    Level
	pressure float64
	signal   signal // signal that binds; noSignal at L0
	retry    time.Time
}

// freshness is the age class of a signal's readings; with several cards, of all of them.
type freshness struct{ known, held, dropped bool }

// add merges the time of one reading; the zero time is none.
func (n *freshness) add(read, now time.Time) {
	if !read.IsZero() {
		age := nvml.FreshnessAtAge(now.Sub(read))
		n.known, n.held, n.dropped = true, n.held || age == nvml.Held, n.dropped || age == nvml.Dropped
	}
}

// String returns the age class of the oldest reading.
func (n freshness) String() string {
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

// backend is the state of one backend.
type backend struct {
	cards         []card
	stages        [signals]stage
	confirmations [signals]confirmation // of the engine's signals
	gatewayQueue  confirmation          // of the requests that wait here, whatever the engine states
	assessments   [signals]assessment   // as of the last step
	observe       [signals]bool         // signals that move nothing, as of the last step
	disabled      [signals]bool         // signals that are off, as of the last step
	freshness     [signals]freshness
	lastValue     [signals]time.Time // last value of the engine's signals
	engineAt      time.Time          // time of the last reading of the engine that was judged
	lastPreempted time.Time          // time of the last preemptions

	life    lifecycle
	busiest busiest

	standings   [sides]standing
	held        [sides]bool // a reading that counts is held, so that no level may fall
	blind       [sides]bool // a reading that counts is dropped, so that the backend is not in the mean
	inFlightCap int         // bound of requests in flight while readings are dropped; 0: no bound
	unusable    string      // reason not to use the backend; empty where it may be used
	outReason   string      // unusable, but empty where the whole ladder only observes
}

// lifecycle holds the starts of a backend's engine.
type lifecycle struct {
	stepped    bool      // the backend was stepped before
	inRotation bool      // the backend is in rotation
	wasUp      bool      // the backend was in rotation once
	started    time.Time // last known start of the engine
	newEngine  bool      // this step has found an engine that did not run before
}

// busiest is the largest number of requests in flight while all was well.
type busiest struct {
	inFlight [2]int    // in this half of the window, and in the one before
	begin    time.Time // start of this half
}

// bestOver is the window of busiest. It is long enough that a quiet night leaves something of
// the day before.
const bestOver = 12 * time.Hour

// leastCap divides a backend's own bound into the part that it may always have, since a source
// may die before any request was in flight.
const leastCap = 4

// step assesses a backend once. It depends on the state of the backend, the readings and the
// time, and on nothing else.
func (b *backend) step(k *rules, r *Readings, now time.Time) {
	b.followStarts(r)
	b.judgeCards(k, r, now)
	newEngine := b.judgeEngine(k, r, now)
	for side := range sides {
		oldest := b.oldest(side, 0, signals)
		b.held[side], b.blind[side] = oldest.held, oldest.dropped
	}
	for s := range signals {
		if b.disabled[s] {
			b.stages[s], b.confirmations[s] = stage{}, confirmation{}
			if s.ofGPU() { // else one reading would confirm a level when the signal is on again
				for i := range b.cards {
					b.cards[i].confirmations[s] = confirmation{}
				}
			}
			continue
		}
		side := acting
		if b.observe[s] {
			side = wouldBe
		}
		b.stages[s].step(b.confirmed(s, k, r, newEngine, now), b.assessments[s].keep, b.held[side], &k.config.Dwell, now)
	}
	b.summarize(r, now)
	if b.outReason = b.unusable; k.config.Observe {
		b.inFlightCap, b.outReason = 0, "" // the acting side stands at L0 already: all is observed
	}
}

// followStarts records the starts of the engine. The first one seen here excuses no fault of
// the cards; but backends that share them have less memory from then on.
func (b *backend) followStarts(r *Readings) {
	anew := b.life.stepped && r.Started.After(b.life.started)
	b.life.newEngine = anew || r.InRotation && !b.life.wasUp
	b.life.stepped, b.life.inRotation, b.life.wasUp, b.life.started = true, r.InRotation, b.life.wasUp || r.InRotation, r.Started
	if anew {
		for i := range b.cards {
			b.cards[i].restart()
		}
	}
}

// restartShared restarts the memory baselines of cards that this backend shares with one
// whose engine has come up.
func (b *backend) restartShared(neighbour *backend) {
	for i := range b.cards {
		for j := range neighbour.cards {
			if c := &b.cards[i]; c.uuid != "" && c.uuid == neighbour.cards[j].uuid {
				c.restart()
			}
		}
	}
}

// judgeCards assesses the readings of the cards.
func (b *backend) judgeCards(k *rules, r *Readings, now time.Time) {
	b.align(r.GPUs)
	var rules *ruleSet // of the cards so far
	b.unusable = ""
	for i, g := range r.GPUs {
		c := &b.cards[i]
		if !c.identify(k, g, now) {
			continue
		}
		if unusable := c.unusable(g, b.life.started, now); b.unusable == "" {
			b.unusable = unusable
		}
		c.judge(g, r.InRotation, r.Absolute, now)
		b.applySwitches(c.ruleSet, rules == nil)
		rules = c.ruleSet
		for s := range c.assessments {
			b.assessments[s].worse(c.assessments[s])
			if !c.ruleSet[s].Disabled {
				b.freshness[s].add(c.lastValue[s], now)
			}
		}
	}
	if rules == nil {
		b.applySwitches(k.engine, true)
	}
}

// applySwitches merges the switches of one more card. A signal that is only
// observed on one card moves nothing.
func (b *backend) applySwitches(rules *ruleSet, first bool) {
	for s := range cardSignals {
		if first {
			b.assessments[s], b.freshness[s], b.disabled[s], b.observe[s] = assessment{}, freshness{}, true, false
		}
		b.disabled[s] = b.disabled[s] && rules[s].Disabled
		b.observe[s] = b.observe[s] || rules[s].Observe && !rules[s].Disabled
	}
}

// confirmed returns the level that a signal has been confirmed to call for.
func (b *backend) confirmed(s signal, k *rules, r *Readings, newEngine bool, now time.Time) (target Level) {
	raised, d := b.stages[s].level > Full, &k.config.Dwell
	if s.ofGPU() {
		for i := range b.cards {
			c := &b.cards[i]
			target = max(target, c.confirmations[s].step(c.assessments[s], c.fresh[s], raised, s.proof(), d, now))
		}
		return target
	}
	sample := s == ttft || newEngine || s == queue && r.EngineAt.IsZero()
	target = b.confirmations[s].step(b.assessments[s], sample, raised, s.proof(), d, now)
	if s == queue {
		waitingHere := k.engine[s].scale.assess(float64(max(r.Queued, 0)))
		target = max(target, b.gatewayQueue.step(waitingHere, true, raised, s.proof(), d, now))
	}
	return target
}

// align keeps the state of each card with its card when the list changes.
func (b *backend) align(gpus []*nvml.GPU) {
	unchanged := len(gpus) == len(b.cards)
	for i := 0; unchanged && i < len(gpus); i++ {
		unchanged = gpus[i] == nil || b.cards[i].uuid == gpus[i].UUID
	}
	if unchanged {
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

// judgeEngine assesses the readings of the engine and of the gateway, and reports whether
// the engine's are new. A value that the engine no longer reports stays as it was, and grows
// old.
func (b *backend) judgeEngine(k *rules, r *Readings, now time.Time) bool {
	fresh := !r.EngineAt.Equal(b.engineAt)
	b.engineAt = r.EngineAt
	for s := cardSignals; s < signals; s++ {
		b.freshness[s], b.disabled[s], b.observe[s] = freshness{}, k.engine[s].Disabled, k.engine[s].Observe
	}
	rate := func(s signal, known bool, v float64) {
		if b.assessments[s] = (assessment{}); known && finite(v) && !b.disabled[s] {
			b.assessments[s] = k.engine[s].scale.assess(v)
		}
	}
	rate(ttft, r.TTFT > 0 && r.Objective > 0, float64(r.TTFT)/float64(r.Objective))
	rate(queue, r.Waiting >= 0, float64(r.Waiting))
	b.lastValue[queue] = r.EngineAt // requests that wait here are always known
	if r.KV >= 0 && finite(r.KV) {
		b.lastValue[kvCache] = r.EngineAt
		rate(kvCache, true, min(r.KV, 1))
	}
	if r.Preempted >= 0 {
		b.lastValue[preemptions] = r.EngineAt
		b.assessments[preemptions] = b.assessPreemptions(r.Preempted, now)
	}
	for _, s := range []signal{kvCache, queue, preemptions} {
		b.freshness[s].add(b.lastValue[s], now)
		if n := b.freshness[s]; s != queue && (b.disabled[s] || !n.known || n.dropped) {
			b.assessments[s] = assessment{}
		}
	}
	if !b.assessments[preemptions].known {
		b.lastPreempted = time.Time{}
	}
	return fresh
}

// assessPreemptions returns the level that preemptions call for: the caches are too small
// for what runs, and each preemption is work that is done twice.
func (b *backend) assessPreemptions(n int, now time.Time) assessment {
	enter, keep := Full, Full
	if n > 0 {
		b.lastPreempted, enter = now, ThinkingOff
	}
	if n > 5 {
		enter = SmallerModel
	}
	if !b.lastPreempted.IsZero() && now.Sub(b.lastPreempted) < clearFor {
		keep = Canned
	}
	return flat(float64(n), enter, keep)
}

// oldest returns the age class of the readings that count on a side, from one signal to
// another.
func (b *backend) oldest(side int, first, end signal) (oldest freshness) {
	for s := first; s < end; s++ {
		if n := b.freshness[s]; !b.disabled[s] && (side == wouldBe || !b.observe[s]) {
			oldest = freshness{oldest.known || n.known, oldest.held || n.held, oldest.dropped || n.dropped}
		}
	}
	return oldest
}

// summarize sets the standings and the cap: the worst signal is the backend's.
func (b *backend) summarize(r *Readings, now time.Time) {
	for side := range sides {
		st := standing{signal: noSignal}
		for s := range signals {
			if b.disabled[s] || side == acting && b.observe[s] {
				continue
			}
			stage := &b.stages[s]
			p := clampTo(b.assessments[s].pressure, stage.level)
			if p > st.pressure {
				if st.pressure = p; stage.level > Full {
					st.signal = s
				}
			}
			// All signals at the level must leave it before the backend does.
			if stage.level > st.level || stage.level == st.level && stage.retry.After(st.retry) {
				st.level, st.retry = stage.level, stage.retry
			}
		}
		b.standings[side] = st
	}
	b.inFlightCap = 0
	switch gpus := b.oldest(acting, 0, cardSignals); {
	case gpus.dropped:
		b.inFlightCap = max(b.busiest.inFlight[0], b.busiest.inFlight[1], r.MaxInFlight/leastCap, 1)
	case gpus.known && !gpus.held && b.standings[acting].level == Full:
		if now.Sub(b.busiest.begin) > bestOver/2 {
			b.busiest = busiest{[2]int{0, b.busiest.inFlight[0]}, now}
		}
		b.busiest.inFlight[0] = max(b.busiest.inFlight[0], r.InFlight)
	}
}
