package gateway

import (
	"sync"
	"time"
)

// sampler lets some of many like things be said: a burst, then one a second. It is safe
// for concurrent use. The zero value is ready.
type sampler struct {
	mu      sync.Mutex
	full    time.Time // when the whole burst is there again
	skipped int       // since the last that was said
}

// sampleBurst is the number of lines that may be written at once.
const sampleBurst = 10

// take reports whether one may be said now, and how many were not since the last that was.
func (s *sampler) take(now time.Time) (skipped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.After(s.full) {
		s.full = now
	}
	if s.full.Sub(now) > (sampleBurst-1)*time.Second {
		s.skipped++
		return 0, false
	}
	s.full = s.full.Add(time.Second)
	skipped, s.skipped = s.skipped, 0
	return skipped, true
}
