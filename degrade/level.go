// Package degrade holds the ladder, by which answers get smaller instead of failing when
// the fleet is under pressure, and the breakers, which stop calls to backends that fail. The
// levels are cumulative: L3 also does what L1 and L2 do.
//
// The ladder turns readings into a level four times a second, for each backend.
//
// Each signal (the margin of the card, the reasons of its clocks, memory, KV cache, queue,
// preemptions, time to first token) has a table of its own. An assessment is the level that
// the last value calls for, and the level that it does not yet release (hysteresis). With
// several cards the worst counts. A confirmation counts the samples behind an assessment: two
// of one card or engine, at least 3 s apart, confirm a level. The margin is smoothed (0.5
// falling, 0.1 rising), which confirms as well, so two samples that call for any level are
// enough. The reasons of the clocks need no confirmation. A stage is the level of a signal. It
// goes up straight to the highest confirmed level. It goes down one level at a time, after a
// dwell of 30 s, which doubles up to 300 s where a level returns within 120 s, and is 30 s
// again after 600 s without a step down. The level of a backend is that of its highest stage.
//
// The pressure puts all this on one scale: L1 to L4 begin at 0.50, 0.65, 0.80 and 0.95, it is
// piecewise linear between, and it never leaves the range of the level that holds. The
// pressure of a model is the mean over its backends, by weight, without those that are out of
// rotation, unusable or blind. Its level is that of the mean, with the same dwell on the way
// down. A request has the higher of the levels of its model and of its backend.
//
// A value is fresh up to an age of 3 s. Up to 10 s it is held, and no level falls. Then it is
// dropped: its signal steps down, and a backend whose cards are dropped gets no more requests
// at a time than it had while all was well. A value that fresh readings lack ages like any
// other. A value that was never reported is unknown, not old. A GPU that is lost or needs a
// reset takes its backend out of use; that is less availability and never pressure. An engine
// that has restarted shows that its card can be used, and gets a new baseline of memory, as
// does every backend that shares the card.
//
// Two laws hold, each tested on random traces: the level is monotone in every signal, and no
// level falls while a reading that counts is held. The numbers come from a simulated card with
// two time constants, not from a real one.
//
// The steps of a backend and of a model depend on their state, the readings and the time
// alone. The Ladder owns the clock, publishes the verdicts behind atomic pointers, reports
// each change once, and explains all of them in its Status.
package degrade

// Level is a step of the ladder.
type Level int

// The levels. Full is the whole answer, as asked for.
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
