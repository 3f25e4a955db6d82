package degrade

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// ErrOpen is returned for a call that a breaker did not let through: its backend has failed
// and has not yet been seen to work.
var ErrOpen = errors.New("the breaker is open")

// BreakerConfig configures when a breaker opens, and for how long.
type BreakerConfig struct {
	Failures int           // in a row; 0: 5
	Ratio    float64       // of the calls of the last Window, where those are at least MinCalls; 0: 0.2
	MinCalls int           // 0: 20
	Window   time.Duration // 0: 1 s
	Open     time.Duration // until a probe is let through; 0: 1 s
	// Ignore says which errors are not failures of what is guarded: a caller that has
	// gone away, a call that was wrong. Nil: every error is a failure.
	Ignore func(error) bool
	// Changed is told of each opening (true) and closing. It must not block and not
	// call the breaker.
	Changed func(open bool)
}

// Breaker stops calls to what fails. Calls of requests go through Do: none of them
// ever has to find out whether a failed thing works again. That is for Probe, which
// somebody calls in the background. It is safe for concurrent use.
type Breaker struct {
	circuit *gobreaker.CircuitBreaker[struct{}]
	ignore  func(error) bool
	// row counts failures in a row, however far apart they are: gobreaker forgets
	// those that are older than its window.
	row atomic.Int64
	era atomic.Int64 // counts the times it closed: what was begun before says nothing of now
}

// NewBreaker returns a closed breaker.
func NewBreaker(c BreakerConfig) *Breaker {
	orElse(&c.Failures, 5)
	orElse(&c.Ratio, 0.2)
	orElse(&c.MinCalls, 20)
	orElse(&c.Window, time.Second)
	orElse(&c.Open, time.Second)
	b := &Breaker{ignore: c.ignored}
	b.circuit = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: c.Window, BucketPeriod: c.Window / 10, Timeout: c.Open, IsExcluded: c.ignored,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			return b.row.Load() >= int64(c.Failures) ||
				n.Requests >= uint32(c.MinCalls) && float64(n.TotalFailures) > c.Ratio*float64(n.Requests)
		},
		OnStateChange: func(_ string, from, to gobreaker.State) {
			if to == gobreaker.StateClosed {
				b.era.Add(1)
				b.row.Store(0)
			}
			switch {
			case c.Changed == nil || from == gobreaker.StateHalfOpen && to == gobreaker.StateOpen || to == gobreaker.StateHalfOpen:
			default:
				c.Changed(to == gobreaker.StateOpen)
			}
		},
	})
	return b
}

func orElse[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

func (c *BreakerConfig) ignored(err error) bool {
	return err != nil && c.Ignore != nil && c.Ignore(err)
}

// Closed reports whether Do lets calls through.
func (b *Breaker) Closed() bool { return b.circuit.State() == gobreaker.StateClosed }

// Do calls, or returns ErrOpen without calling while the breaker is not closed. The
// error is that of the call.
func (b *Breaker) Do(call func() error) error {
	if !b.Closed() {
		return ErrOpen
	}
	return b.run(call)
}

// Probe calls when the breaker has been open for long enough, and closes it if the
// call succeeds. While the breaker is closed, or for as long as it is to stay open,
// it returns nil or ErrOpen without calling.
func (b *Breaker) Probe(call func() error) error {
	switch b.circuit.State() {
	case gobreaker.StateClosed:
		return nil
	case gobreaker.StateOpen:
		return ErrOpen
	}
	return b.run(call)
}

func (b *Breaker) run(call func() error) error {
	era := b.era.Load()
	_, err := b.circuit.Execute(func() (struct{}, error) {
		err := call()
		if b.era.Load() != era {
			return struct{}{}, err
		}
		if err == nil {
			b.row.Store(0)
		} else if !b.ignore(err) {
			b.row.Add(1)
		}
		return struct{}{}, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return ErrOpen
	}
	return err
}
