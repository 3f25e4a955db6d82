package backend

import (
	"slices"
	"sync"
	"time"
)

// Meter counts tokens and their recent rate. The zero value has counted none. It is safe
// for concurrent use.
type Meter struct {
	mu      sync.Mutex
	total   int64
	buckets [meterBuckets]int64
	clock   Buckets
}

// meterBuckets is the number of buckets of a Meter: the one being filled and two before.
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

// Total returns the number of tokens counted.
func (m *Meter) Total() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// PerSecond returns the tokens per second of the last 10 to 15 seconds.
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

// roll empties the buckets that time has passed and returns the index of the newest. The
// caller holds the lock.
func (m *Meter) roll(now time.Time) (newest int64) {
	return m.clock.Roll(now, meterBuckets, func(place int64) { m.buckets[place] = 0 })
}

// Speed returns the recent tokens per second of one choice; 0 if there were too few
// answers, or none in the last minutes.
func (p *Pace) Speed(now time.Time) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers < speedAnswers || p.token <= 0 || now.Sub(p.learned) > speedFor {
		return 0
	}
	return time.Second.Seconds() / p.token.Seconds()
}

const (
	speedFor     = 5 * time.Minute // time after the last answer for which the speed is shown
	speedAnswers = 5               // least number of answers that gives a speed
)

// Slower reports for each value whether the median of the other values is at least
// factor times as large. Values of 0 are unknown and are ignored.
func Slower(values []float64, factor float64) []bool {
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
		middle := (len(sorted) - 2) / 2 // median of the others, the lower one of two
		if middle >= index {
			middle++
		}
		out[i] = sorted[middle] >= factor*v
	}
	return out
}
