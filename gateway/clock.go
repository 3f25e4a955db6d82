package gateway

import (
	"fmt"
	"time"
)

// leastStep is by how much the clock of the machine must have been set to be told. Clocks
// that are slewed never are: the monotonic clock, which counts from the start of the
// machine, is slewed alike.
const leastStep = 5 * time.Second

// clockStep is by how much the clock of the machine has been set since the process began:
// what has passed by the wall clock, less what has passed.
func clockStep(wall, passed time.Duration) time.Duration { return wall - passed }

// clockWarning returns a warning where the clock of the machine is not the one by which the gateway
// began; empty: it is, or was set back to it.
func (g *Gateway) clockWarning(now time.Time) string {
	step := clockStep(now.Round(0).Sub(g.beganWall), now.Sub(g.began)).Round(time.Second)
	direction := "ahead"
	if step < 0 {
		direction = "back"
	}
	if step.Abs() < leastStep {
		return ""
	}
	return fmt.Sprintf("the clock of this machine was set %s by %v since the gateway began: keys may seem expired or good for longer, and limits and quotas may count for another time; see docs/operating.md, \"A clock jump\"",
		direction, step.Abs())
}
