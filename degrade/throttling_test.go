package degrade

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	r := newRig(t)
	r.gpu.Reasons = []string{"sw_power_cap", "gpu_idle", "hw_slowdown"}
	r.want("what is normal", r.run(5), "00000")
	r.gpu.Reasons = []string{"sw_thermal"}
	r.want("two of five", r.run(2), "02")
	r = newRig(t)
	r.gpu.Reasons = []string{"hw_power_brake"}
	r.want("at once", r.run(20), strings.Repeat("3", 20))
	r.gpu.Reasons = []string{"hw_thermal"}
	r.want("hot for more than 10 s", r.run(12), "333333333334")
	r.gpu.Reasons = []string{}
	r.want("clear", r.run(90), strings.Repeat("4", 29)+strings.Repeat("3", 30)+strings.Repeat("2", 30)+"1")
}

// TestThrottleTells in how many of five samples the clocks were held down.
func TestThrottleTells(t *testing.T) {
	r := newRig(t)
	r.gpu.Reasons = []string{}
	r.run(5)
	r.gpu.Reasons = []string{"hw_power_brake"}
	r.run(2)
	r.gpu.Reasons = []string{"sw_thermal"}
	r.run(1)
	if a := r.w.assessments[throttle]; a.value != 3 || a.enter != SmallerModel {
		t.Errorf("%v by %v", a.enter, a.value)
	}
}

// TestThrottlingStep is the pure step by itself: from the samples of so many seconds to
// what they call for.
func TestThrottlingStep(t *testing.T) {
	const soft, hot, brake = "sw_thermal", "hw_thermal", "hw_power_brake"
	samples := func(n int, reason string) []string { return slices.Repeat([]string{reason}, n) }
	for name, test := range map[string]struct {
		samples     []string // one a second; of one reason each
		later       int      // seconds between the last one and the look
		enter, keep Level
		down        float64
	}{
		"none":                        {samples(5, "gpu_idle"), 0, Full, Full, 0},
		"HW slowdown without a cause": {samples(5, "hw_slowdown"), 0, Full, Full, 0},
		"one of five by software":     {[]string{soft}, 0, Full, ThinkingOff, 1},
		"two of five":                 {[]string{soft, "", "", "", soft}, 0, ThinkingOff, ThinkingOff, 2},
		"two of six":                  {[]string{soft, "", "", "", "", soft}, 0, Full, ThinkingOff, 1},
		"software, 9 s ago":           {samples(5, soft), 9, ThinkingOff, ThinkingOff, 5},
		"software, 10 s ago":          {samples(5, soft), 10, Full, Full, 5},
		"a power brake":               {[]string{brake}, 0, SmallerModel, Canned, 1},
		"a power brake for long":      {samples(30, brake), 0, SmallerModel, Canned, 5},
		"hardware, 9 s ago":           {[]string{hot}, 9, SmallerModel, Canned, 1},
		"hardware, 10 s ago":          {[]string{hot}, 10, Full, Full, 1},
		"hot for 10 s":                {samples(11, hot), 0, SmallerModel, Canned, 5},
		"hot for more than 10 s":      {samples(12, hot), 0, Canned, Canned, 5},
		"hot for long, but once cool": {append(append(samples(8, hot), ""), samples(8, hot)...), 0, SmallerModel, Canned, 5},
	} {
		var state throttling
		now := time.Unix(1e9, 0)
		for _, reason := range test.samples {
			now = now.Add(time.Second)
			before := state
			next := state.step([]string{reason}, now)
			if state != before {
				t.Errorf("%s: the step has changed the state that it began with", name)
			}
			state = next
		}
		a := state.assess(now.Add(time.Duration(test.later) * time.Second))
		if a.enter != test.enter || a.keep != test.keep || a.value != test.down || !a.known {
			t.Errorf("%s: enters %v, keeps %v, %v of five; want %v, %v, %v", name, a.enter, a.keep, a.value, test.enter, test.keep, test.down)
		}
	}
}
