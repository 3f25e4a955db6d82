package admission

import (
	"math"
	"testing"
	"time"
)

func TestDrain(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	var d drain
	unknown := func(s float64, what string) {
		t.Helper()
		if w, ok := d.wait(at(s), 0); ok {
			t.Errorf("%s: %v; want unknown", what, w)
		}
	}
	near := func(s float64, ahead int, want time.Duration, what string) {
		t.Helper()
		if w, ok := d.wait(at(s), ahead); !ok || math.Abs(w.Seconds()/want.Seconds()-1) > 0.07 { // just after one went, the rate reads high
			t.Errorf("%s: %v, %t; want about %v", what, w, ok, want)
		}
	}
	unknown(0, "nothing was seen")
	d.record(at(0), 0, true)
	unknown(60, "nothing was ever dispatched")
	d = drain{}
	d.record(at(0), 0, true)
	d.record(at(0.1), 3, true)
	unknown(0.5, "half a second is too little")
	near(1.2, 2, 1200*time.Millisecond, "three in 1.2 s")

	// Four a second for a minute.
	d = drain{}
	d.record(at(0), 0, true)
	for i := 1; i <= 240; i++ {
		d.record(at(float64(i)/4), 1, true)
	}
	near(60, 0, 250*time.Millisecond, "the next one")
	near(60, 39, 10*time.Second, "39 before it")
	near(60, -1, 250*time.Millisecond, "no fewer than none before it")

	// Half a minute without a queue changes nothing.
	d.record(at(60), 0, false)
	near(90, 39, 10*time.Second, "half a minute without a queue")
	d.record(at(90), 0, true)

	// Then it stands still, and then goes at one a second.
	near(100, 39, 27*time.Second, "still for 10 s: e times as long")
	if w, ok := d.wait(at(10_000), 0); !ok || w != maxPredictedWait {
		t.Errorf("still for hours: %v, %t; want %v", w, ok, maxPredictedWait)
	}
	for i := 1; i <= 60; i++ {
		d.record(at(90+float64(i)), 1, true)
	}
	near(150, 9, 10*time.Second, "one a second")

	// A clock that goes back does no harm.
	d.record(at(0), 1, true)
	if w, ok := d.wait(at(0), 0); !ok || w <= 0 {
		t.Errorf("after the clock went back: %v, %t", w, ok)
	}

	// After a quiet time nothing is known: all who waited may have given up.
	d.record(at(150), 0, false)
	unknown(220, "a minute without a queue")
	d.record(at(220), 0, true)
	unknown(230, "then it stands still")
}
