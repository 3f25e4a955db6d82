package degrade

import (
	"slices"
	"time"
)

const (
	clearFor = 10 * time.Second // time without a throttle reason, or a preemption, before its level may be left
	hotFor   = 10 * time.Second // time of HW thermal slowdown after which the card calls for L4
)

// throttling holds the recent reasons why the clocks of a card were held down. The zero value
// has none.
type throttling struct {
	heldDown [5]bool   // samples with clocks held down by heat or a power brake, newest first
	software [5]bool   // samples with SW thermal slowdown, newest first
	softAt   time.Time // time of the last SW thermal slowdown
	hardAt   time.Time // time of the last HW thermal slowdown or power brake
	hotSince time.Time // start of an unbroken HW thermal slowdown; zero where there is none
}

// step returns the throttling after a new sample's reasons. HW slowdown without one of its
// two causes does not count: it blinks when a card changes its clocks. It is pure.
func (t throttling) step(reasons []string, now time.Time) throttling {
	soft, hot := slices.Contains(reasons, "sw_thermal"), slices.Contains(reasons, "hw_thermal")
	hard := hot || slices.Contains(reasons, "hw_power_brake")
	copy(t.software[1:], t.software[:])
	if t.software[0] = soft; soft {
		t.softAt = now
	}
	copy(t.heldDown[1:], t.heldDown[:])
	if t.heldDown[0] = soft || hard; hard {
		t.hardAt = now
	}
	if !hot {
		t.hotSince = time.Time{}
	} else if t.hotSince.IsZero() {
		t.hotSince = now
	}
	return t
}

// assess returns the level that the clocks call for. Its value is the number of the last five
// samples in which they were held down.
func (t *throttling) assess(now time.Time) assessment {
	enter, keep, soft, held := Full, Full, 0, 0.0
	for i := range t.software {
		if t.software[i] {
			soft++
		}
		if t.heldDown[i] {
			held++
		}
	}
	recent := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) < clearFor }
	if recent(t.softAt) {
		keep = ThinkingOff
		if soft >= 2 {
			enter = ThinkingOff
		}
	}
	if recent(t.hardAt) {
		enter, keep = SmallerModel, Canned
		if !t.hotSince.IsZero() && t.hardAt.Sub(t.hotSince) > hotFor {
			enter = Canned
		}
	}
	return flat(held, enter, keep)
}
