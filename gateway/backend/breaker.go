package backend

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"

	"tidegate/admission"
	"tidegate/degrade"
)

// tuning is what a reload changes of a backend that stays.
type tuning struct {
	absolute    bool // memory counts as used fraction
	maxInFlight int  // requests it is given at a time
	priority    bool
	config      Breaker
	breaker     *degrade.Breaker
}

// tune takes over what may change while the backend serves.
func (b *Backend) tune(c Config) {
	t := &tuning{absolute: c.Memory == memoryAbsolute, priority: c.Priority, config: c.breaker, maxInFlight: cmp.Or(c.MaxInFlight, defaultInFlight)}
	if old := b.tuned.Load(); old != nil && old.config == t.config {
		t.breaker = old.breaker
	} else {
		t.breaker = degrade.NewBreaker(degrade.BreakerConfig{
			Failures: c.breaker.Failures, Ratio: failedShare, Open: c.breaker.Open, Ignore: harmless, Changed: b.breakerChanged,
		})
	}
	b.tuned.Store(t)
	b.Seat.SetWeight(c.weight())
	b.Seat.SetBounds(admission.Bounds{InFlight: t.maxInFlight, Waiting: cmp.Or(c.MaxWaiting, defaultWaiting)})
}

// failedShare of the requests of a second opens a breaker too, where those are many.
const failedShare = 0.5

// Guard makes a request of the backend through its breaker: while too many have
// failed it is not asked at all, and the error is Retryable.
func (b *Backend) Guard(request func() error) error {
	err := b.tuned.Load().breaker.Do(request)
	if err == nil {
		return nil // before anything is allocated
	}
	if errors.Is(err, degrade.ErrOpen) {
		return &brokenError{"not asked", err}
	}
	if status := statusOf(err); Doubtful(err) || status == http.StatusBadGateway || status == http.StatusGatewayTimeout {
		b.suspect(err) // its health probe knows whether the engine is dead
	}
	return err
}

// Blame counts a Doubtful failure against the backend, since other has answered the same
// request: a server that fails what others can do is kept from callers even where its
// health probe says that it is well. An answer of another release says nothing: the
// request may be one that b's release cannot stand, and then its caller could take an
// older server from everybody.
func (b *Backend) Blame(err error, peer *Backend) {
	if b.Facts().Version != peer.Facts().Version {
		return
	}
	text := errors.New(err.Error()) // what it is counted as hangs no more on what it is
	// The breaker returns what it is given.
	_ = b.tuned.Load().breaker.Do(func() error { return &brokenError{"answered by another backend", text} })
}

// harmless reports whether an error says nothing against the backend: the caller
// left, the request was refused, or the engine has enough to do. A 500 may be the
// request's own fault, and one caller's bad requests must not take a server from the
// others; of an engine that is dead the health probe tells, or Blame.
func harmless(err error) bool {
	if status := statusOf(err); status != 0 {
		return status != http.StatusBadGateway && status != http.StatusGatewayTimeout
	}
	var timeout *TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == Total || Doubtful(err)
	}
	var broken *brokenError
	return !errors.As(err, &broken)
}

// broke is told when the breaker opens and closes.
func (b *Backend) breakerChanged(open bool) {
	if open {
		b.takeOut(cmp.Or(b.stalled(), b.breakerReason()))
	}
	b.probeNow()
}

func (b *Backend) breakerReason() string {
	c := b.tuned.Load().config
	return fmt.Sprintf("its breaker is open: requests failed there, %d in a row or half of a second's; it is tried again after %v", c.Failures, c.Open)
}

// recovers asks a breaker that has been open for long enough whether a server that
// answers its health probe may be asked again; empty: it may.
func (b *Backend) checkBreaker() string {
	if b.tuned.Load().breaker.Probe(func() error { return nil }) == nil {
		return ""
	}
	return b.breakerReason()
}

// BreakerOpen reports whether requests are kept from the backend.
func (b *Backend) BreakerOpen() bool { return !b.tuned.Load().breaker.Closed() }

// ByPriority reports whether its engine schedules by priority; else it refuses one.
func (b *Backend) ByPriority() bool { return b.tuned.Load().priority }
