package backend

import (
	"testing"
	"time"
	"unsafe"
)

// setBack returns a time as time.Now gives it after the machine's clock was set back: the
// wall clock shows an earlier time, and the monotonic one has gone on. The time must be of
// time.Now, whose first word holds the seconds of the wall clock above 30 bits (package
// time, type Time).
func setBack(t *testing.T, now time.Time, seconds uint64) time.Time {
	t.Helper()
	moved := now
	*(*uint64)(unsafe.Pointer(&moved)) -= seconds << 30
	if moved.Sub(now) != 0 || now.Round(0).Sub(moved.Round(0)) != time.Duration(seconds)*time.Second {
		t.Skip("the times of this Go are of another form")
	}
	return moved
}

// TestMeterClockJump: what was counted before the clock of the machine was set back by an
// hour is over in time, and so is what comes after.
func TestMeterClockJump(t *testing.T) {
	var m Meter
	now := time.Now()
	m.Add(now, 1000)
	now = setBack(t, now, 3600)
	for range 300 { // seconds
		now = now.Add(time.Second)
		m.Add(now, 10)
	}
	if got := m.PerSecond(now); got < 9 || got > 12 {
		t.Errorf("%v tokens a second, want 10", got)
	}
}
