package degrade

import (
	"math"
	"strings"
	"testing"
	"time"
)

// TestSmoothing: half of a fall counts, a tenth of a rise, and each sample once; and
// it falls by 10 degrees a second at most.
func TestSmoothing(t *testing.T) {
	r := newRig(t)
	for _, step := range []struct {
		margin int
		old    bool
		want   float64
	}{{40, false, 40}, {30, false, 35}, {30, true, 35}, {30, true, 35}, {45, false, 36}, {45, true, 36}, {-60, false, 30.5}, {-60, false, 22.75}, {-60, false, 13.875}, {-60, false, 4.4375}, {-60, false, -5.28125}, {40, false, -0.753125}} {
		r.gpu.Margin, r.old = new(step.margin), step.old
		if r.run(1); math.Abs(r.w.cards[0].thermal.smoothed-step.want) > 1e-9 {
			t.Errorf("after %+v the margin is %v", step, r.w.cards[0].thermal.smoothed)
		}
	}
}

// TestWildMargin: one sample from nowhere raises nothing.
func TestWildMargin(t *testing.T) {
	for _, m := range []int{0, -10, -30, -100} {
		r := newRig(t)
		r.gpu.Margin = new(20)
		r.run(30)
		r.gpu.Margin = new(m)
		got := r.run(1)
		r.gpu.Margin = new(20)
		if got += r.run(20); strings.Trim(got, "0") != "" {
			t.Errorf("margin 20, once %d: %s", m, got)
		}
	}
}

// TestThermalStep is the pure step by itself: from a mean and a margin to the next mean.
func TestThermalStep(t *testing.T) {
	begin := time.Unix(1e9, 0)
	mean := func(smoothed, margin float64) thermal { return thermal{true, smoothed, margin, begin} }
	for name, test := range map[string]struct {
		state  thermal
		margin float64
		after  time.Duration
		want   float64 // the next mean
	}{
		"the first margin":                     {thermal{}, 40, time.Second, 40},
		"a fall counts half":                   {mean(40, 40), 32, time.Second, 36},
		"a rise counts a tenth":                {mean(40, 40), 50, time.Second, 41},
		"ten degrees in a second":              {mean(40, 40), -60, time.Second, 35},
		"thirty in three seconds":              {mean(40, 40), -60, 3 * time.Second, 25},
		"no less than a second's":              {mean(40, 40), -60, time.Millisecond, 35},
		"bounded by the last, not by the mean": {mean(40, 30), -60, time.Second, 30},
		"the same":                             {mean(40, 40), 40, time.Second, 40},
	} {
		state := test.state
		if got := state.step(test.margin, begin.Add(test.after)); math.Abs(got.smoothed-test.want) > 1e-9 || !got.known || !got.last.Equal(begin.Add(test.after)) {
			t.Errorf("%s: %+v, want a mean of %v", name, got, test.want)
		}
		if state != test.state {
			t.Errorf("%s: the step has changed the state that it began with", name)
		}
	}
}
