package degrade

import (
	"math"
	"testing"
	"time"
)

// TestScale: levels begin and end where the table says, and a level that is asked
// for is kept, even where it begins and ends at the same value.
func TestScale(t *testing.T) {
	margin, kv := newScale(temperature, Table{Levels: []float64{12, 9, 6, 2}, Exit: 5}), newScale(kvCache, Table{Levels: []float64{.2, .4, .6, .8}})
	for _, test := range []struct {
		scale       *scale
		value       float64
		enter, keep Level
		pressure    float64
	}{
		{&margin, -33, Full, Full, 0},
		{&margin, -22, Full, Full, .25},
		{&margin, -16, Full, StreamingOff, .4},
		{&margin, -12, StreamingOff, ThinkingOff, .5},
		{&margin, -10.5, StreamingOff, SmallerModel, .575},
		{&margin, -2, Canned, Canned, .95},
		{&margin, 50, Canned, Canned, 1},
		{&kv, .4, ThinkingOff, ThinkingOff, .65},
		{&kv, .1, Full, Full, .25},
	} {
		a := test.scale.assess(test.value)
		if a.enter != test.enter || a.keep != test.keep || math.Abs(a.pressure-test.pressure) > 1e-9 {
			t.Errorf("%v: enters %v, keeps %v, pressure %v; want %+v", test.value, a.enter, a.keep, a.pressure, test)
		}
	}
}

// TestSignalLevels takes each signal through its levels, by the thresholds that
// docs/pressure.md states: a level begins at its threshold and not short of it, and it
// lasts until the signal is back at its exit.
func TestSignalLevels(t *testing.T) {
	for s, test := range map[signal]struct {
		set          func(r *rig, v float64)
		enter, leave [4]float64
		grain        float64 // the least difference; towards calm
	}{
		temperature: {func(r *rig, v float64) { r.gpu.Margin = new(int(v)) }, [4]float64{12, 9, 6, 2}, [4]float64{18, 15, 12, 8}, 1},
		memory: {func(r *rig, v float64) {
			r.gpu.MemoryTotal, r.gpu.MemoryFree = new(uint64(80<<30)), new(uint64((6.25-6*v)*(1<<30)))
		}, [4]float64{.40, .60, .75, .90}, [4]float64{.25, .45, .60, .75}, -.001},
		memoryUsed: {func(r *rig, v float64) {
			r.r.Absolute, r.gpu.MemoryTotal, r.gpu.MemoryUsed = true, new(uint64(1e12)), new(uint64(v*1e12))
		}, [4]float64{.88, .92, .95, .98}, [4]float64{.85, .89, .92, .95}, -.001},
		kvCache: {func(r *rig, v float64) { r.r.KV = v }, [4]float64{.80, .87, .92, .97}, [4]float64{.70, .77, .82, .87}, -.001},
		queue:   {func(r *rig, v float64) { r.r.Waiting = int(v) }, [4]float64{5, 10, 20, 40}, [4]float64{2, 5, 10, 20}, -1},
		ttft: {func(r *rig, v float64) {
			r.r.Objective, r.r.TTFT = time.Second, time.Duration(v*float64(time.Second))
		}, [4]float64{1, 1.5, 2, 4}, [4]float64{.5, .75, 1, 2}, -.001},
	} {
		for i := range test.enter {
			level := Level(i + 1)
			r := newRig(t)
			run := func(seconds int) Level {
				for range seconds {
					r.r.EngineAt = r.now.Add(time.Second)
					r.run(1)
				}
				return r.w.standings[acting].level
			}
			if s == memory {
				test.set(r, 0)
				run(61)
			}
			e, x := test.enter[i], test.leave[i]
			// A millionth more, so that the exits of a sum of decimals are reached.
			test.set(r, e+test.grain)
			if got := run(6); got != level-1 {
				t.Errorf("%v short of %v of %v: %v", s, e, level, got)
			}
			test.set(r, e+math.Copysign(1e-6, -test.grain))
			if got := run(6); got != level {
				t.Errorf("%v at %v: %v, want %v", s, e, got, level)
			}
			test.set(r, x-test.grain)
			if got := run(40); got != level {
				t.Errorf("%v at %v, short of the exit of %v: %v", s, x-test.grain, level, got)
			}
			test.set(r, x+math.Copysign(1e-6, test.grain))
			if got := run(20); got >= level {
				t.Errorf("%v at its exit of %v: still at %v", s, x, got)
			}
		}
	}
}
