// Package degrade holds the ladder by which answers get smaller instead of
// failing when the fleet is under pressure. The levels are cumulative: L3 also
// does what L1 and L2 do.
package degrade

// Level is a rung of the ladder.
type Level int

// The rungs. Full is the whole answer, as asked for.
const (
	Full         Level = iota // L0
	StreamingOff              // L1
	ThinkingOff               // L2
	SmallerModel              // L3
	Canned                    // L4
)

// String is the name that callers and operators see, L0 to L4.
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
