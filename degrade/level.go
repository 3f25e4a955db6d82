// Package degrade holds the ladder by which answers get smaller instead of
// failing when the fleet is under pressure, and the breakers that stop calls to what
// fails. The levels are cumulative: L3 also does what L1 and L2 do.
//
// From readings to a level, four times a second and for each backend:
//
// Each signal (the card's margin, its clocks' reasons, memory, KV cache, queue,
// preemptions, time to first token) asks for a level by its own table, and lets go of
// one only some way back (hysteresis). With several cards the worst counts. It stands
// on a rung of its own: up when two samples of one card or engine, at least 3 s apart,
// have asked, straight to the highest level that is confirmed; down one level at a time, 30 s on each, which
// doubles to 300 s where a level comes back within 120 s and is 30 s again after
// 600 s without a step down. The margin is smoothed (0.5 falling, 0.1 rising), which
// confirms as well: for it two samples that ask for anything are enough. The clocks'
// reasons need none. The backend stands where its worst signal stands.
//
// The scalar of all this is the pressure: 0.50, 0.65, 0.80 and 0.95 where L1 to L4
// begin, piecewise linear between, and always within the level that holds. A model's
// pressure is the mean of its backends', by weight, over those that are up, not out,
// and not blind; its level is that of the mean, with the same dwell on the way down.
// A request has the higher of its model's level and that of the backend it lands on.
//
// A value counts up to 3 s of age; up to 10 s nothing is relaxed while it is held;
// then it is dropped, its signal steps down, and a backend whose cards are not seen
// any more may have no more in flight than it had while all was well. One that fresh
// readings do not have any more grows old like any other. What was never reported is
// unknown, not stale. A lost GPU, or one that needs a reset, takes its
// backend out; that is less availability and never pressure. An engine that has been
// started anew shows that its card can be used, and has another baseline of memory, as
// has whoever shares the card.
//
// Two laws hold, each on random traces: the level is monotone in every signal, and
// nothing steps down while a reading that counts is held. The numbers are from a
// simulated card with two time constants, not from a real one.
//
// The steps of a backend and of a model are functions of what is remembered, the
// readings and the time. The Ladder holds the clock, publishes the verdicts behind
// atomic pointers, tells each change once, and explains all in its Status.
package degrade

// Level is a step of the ladder.
type Level int

// The rungs. Full is the whole answer, as asked for.
const (
	Full         Level = iota // L0
	StreamingOff              // L1
	ThinkingOff               // L2
	SmallerModel              // L3
	Canned                    // L4
)

// String returns the name that callers and operators see, L0 to L4.
func (l Level) String() string {
	names := [...]string{"L0", "L1", "L2", "L3", "L4"}
	if l < Full || l > Canned {
		return "L?"
	}
	return names[l]
}

// ParseLevel reads what String writes.
func ParseLevel(s string) (l Level, ok bool) {
	if len(s) != 2 || s[0] != 'L' || s[1] < '0' || s[1] > '4' {
		return Full, false
	}
	return Level(s[1] - '0'), true
}
