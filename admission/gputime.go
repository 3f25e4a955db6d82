package admission

import (
	"sync"
	"time"
)

// share divides the time of a backend's GPUs among the sequences on it: at each instant a
// sequence has GPUs/n where n are there. It keeps the integral of that over the time in
// which any was there. What one request had is the difference between its end and its
// beginning, however many came and went meanwhile, and all together have exactly the time in
// which the GPUs were used. Every place counts, whether the engine computes for it or lets
// it wait.
type share struct {
	mu      sync.Mutex
	gpus    int
	n       int
	updated time.Time     // time of sum
	sum     time.Duration // GPU time of one sequence since the start
}

// change adds sequences, or removes them where negative, and returns the integral.
func (s *share) change(sequences int, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	s.n += sequences
	return s.sum
}

// advance brings sum up to now. The lock is held.
func (s *share) advance(now time.Time) {
	if d := now.Sub(s.updated); d > 0 {
		if s.n > 0 && s.gpus > 0 {
			s.sum += d * time.Duration(s.gpus) / time.Duration(s.n)
		}
		s.updated = now
	}
}

// SetGPUs sets how many GPUs the backend runs on. With 0, as at first, the number is unknown
// and no request has GPU time.
func (s *Seat) SetGPUs(n int) {
	shared := &s.share
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.advance(time.Now())
	shared.gpus = max(n, 0)
}

// acquire acquires the places of so many sequences and returns the integral of the share of
// one.
func (s *Seat) acquire(sequences int64) time.Duration {
	s.inFlight.Add(sequences)
	return s.share.change(int(sequences), time.Now())
}

// release releases the places of so many sequences and returns the integral of the share of
// one.
func (s *Seat) release(sequences int64) time.Duration {
	s.inFlight.Add(-sequences)
	return s.share.change(-int(sequences), time.Now())
}
