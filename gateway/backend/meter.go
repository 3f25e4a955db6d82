package backend

import (
	"slices"
	"sync"
	"time"
)

// Meter counts tokens, and tells how many came a second of late. The zero value has
// counted none. It is safe for concurrent use.
type Meter struct {
	mu      sync.Mutex
	total   int64
	buckets [meterBuckets]int64
	clock   Buckets
}

// meterBuckets is how many buckets a Meter looks back at: the one that is being filled and
// two before.
const meterBuckets = 3

// Add counts n tokens; a negative n counts none.
func (m *Meter) Add(now time.Time, n int) {
	if n <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buckets[m.roll(now)] += int64(n)
	m.total += int64(n)
}

// Total returns how many tokens were counted.
func (m *Meter) Total() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// PerSecond returns how many tokens a second were counted in the last 10 to 15 seconds.
func (m *Meter) PerSecond(now time.Time) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roll(now)
	var sum int64
	for _, n := range m.buckets {
		sum += n
	}
	return m.clock.PerSecond(sum, now, meterBuckets)
}

// roll empties the buckets that time has passed by, and returns the place of the newest.
// The lock is held.
func (m *Meter) roll(now time.Time) (newest int64) {
	return m.clock.Roll(now, meterBuckets, func(place int64) { m.buckets[place] = 0 })
}

// Speed returns how many tokens a second the backend lately made for one choice; 0: not
// known, since too few answers have shown it, or none in the last minutes.
func (p *Pace) Speed(now time.Time) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers < speedAnswers || p.token <= 0 || now.Sub(p.learned) > speedFor {
		return 0
	}
	return time.Second.Seconds() / p.token.Seconds()
}

const (
	speedFor     = 5 * time.Minute // after the last answer, for which the speed is shown
	speedAnswers = 5               // of which the speed can be told
)

// Slower reports for each value whether the median of the others is at least times as
// large; values of 0 are not known and are nobody's peers.
func Slower(values []float64, times float64) []bool {
	sorted := make([]float64, 0, len(values))
	for _, v := range values {
		if v > 0 {
			sorted = append(sorted, v)
		}
	}
	slices.Sort(sorted)
	out := make([]bool, len(values))
	for i, v := range values {
		if v <= 0 || len(sorted) < 2 {
			continue
		}
		index, _ := slices.BinarySearch(sorted, v)
		middle := (len(sorted) - 2) / 2 // of the others, the lower one of two
		if middle >= index {
			middle++
		}
		out[i] = sorted[middle] >= times*v
	}
	return out
}
