package backend

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestMeter: a steady stream shows its rate, and nothing is left of it a while later.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		if m.PerSecond(time.Now()) != 0 {
			t.Error("a rate without any tokens")
		}
		for i := range 600 {
			m.Add(time.Now(), 7)
			m.Add(time.Now(), -3)
			time.Sleep(100 * time.Millisecond)
			if got := m.PerSecond(time.Now()); i > 200 && (got < 69 || got > 71) {
				t.Fatalf("after %d: %v tokens a second", i, got)
			}
		}
		if m.Total() != 4200 {
			t.Errorf("%d in all", m.Total())
		}
		time.Sleep(10 * time.Second)
		if got := m.PerSecond(time.Now()); got > 35 {
			t.Errorf("%v tokens a second 10 s later", got)
		}
		time.Sleep(5 * time.Second)
		if got := m.PerSecond(time.Now()); got != 0 || m.Total() != 4200 {
			t.Errorf("%v tokens a second 15 s later, %d in all", got, m.Total())
		}
	})
}

// TestSpeed: it is what answers have lately shown, in one piece or as streams.
func TestSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		if p.Speed(time.Now()) != 0 {
			t.Error("known without any answer")
		}
		for i, want := range []float64{0, 0, 0, 0, 100, 100} {
			p.Observe(time.Second, 990*time.Millisecond, 100)
			if got := p.Speed(time.Now()); got != want {
				t.Errorf("%v after %d answers", got, i+1)
			}
		}
		time.Sleep(speedFor + 1)
		if got := p.Speed(time.Now()); got != 0 {
			t.Errorf("%v long after", got)
		}
	})
}

func TestSlower(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   []bool
	}{
		{nil, []bool{}},
		{[]float64{10}, []bool{false}},
		{[]float64{10, 20}, []bool{true, false}},
		{[]float64{11, 20}, []bool{false, false}},
		{[]float64{0, 20, 0}, []bool{false, false, false}},
		{[]float64{40, 10, 0, 40, 50}, []bool{false, true, false, false, false}},
		{[]float64{10, 10, 40}, []bool{false, false, false}}, // the one that is fast is the odd one
		{[]float64{10, 10, 40, 40, 40}, []bool{true, true, false, false, false}},
	} {
		if got := Slower(c.values, 2); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v: %v", c.values, got)
		}
	}
}
