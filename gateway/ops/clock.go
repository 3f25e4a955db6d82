package ops

import (
	"fmt"
	"time"
)

// minStep is the smallest step of the machine's clock that is reported. Clocks
// that are slewed never are: the monotonic clock, which counts from the start of the
// machine, is slewed alike.
const minStep = 5 * time.Second

// clockWarning returns a warning where the wall clock of the machine has been set since
// the gateway began; empty: it was not, or was set right again.
//
// wall is the time that passed by the wall clock, and passed by the monotonic one.
func clockWarning(wall, passed time.Duration) string {
	step := (wall - passed).Round(time.Second)
	direction := "ahead"
	if step < 0 {
		direction = "back"
	}
	if step.Abs() < minStep {
		return ""
	}
	return fmt.Sprintf("the clock of this machine was set %s by %v since the gateway began: keys may seem expired or good for longer, and limits and quotas may count for another time; see docs/operating.md, \"A clock jump\"",
		direction, step.Abs())
}
