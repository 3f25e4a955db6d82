package degrade

import "time"

// Constants of the smoothed margin.
const (
	weightFalling = 0.5 // weight of a new margin that is smaller than the mean
	weightRising  = 0.1 // weight of a new margin that is larger
	maxFall       = 10  // largest fall of a margin, in degrees a second
)

// thermal is the temperature of a card, as the margin to its slowdown in degrees. The zero
// value knows none.
type thermal struct {
	known    bool
	smoothed float64   // margin, smoothed
	margin   float64   // last margin, bounded by maxFall
	last     time.Time // time of the last margin
}

// step returns the temperature after one more margin. The margin falls no faster than a
// card can heat, so that one wild sample is worth as much as a second's fall. It is pure.
func (t thermal) step(margin float64, now time.Time) thermal {
	if t.known {
		margin = max(margin, t.margin-maxFall*max(now.Sub(t.last), time.Second).Seconds())
	}
	switch {
	case !t.known:
		t.smoothed, t.known = margin, true
	case margin < t.smoothed:
		t.smoothed += weightFalling * (margin - t.smoothed)
	default:
		t.smoothed += weightRising * (margin - t.smoothed)
	}
	t.margin, t.last = margin, now
	return t
}
