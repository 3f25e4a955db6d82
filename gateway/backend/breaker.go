package backend

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend/exchange"
)

// tuning holds the settings that a reload changes on a running backend.
type tuning struct {
	absolute    bool // whether the used fraction of memory counts
	maxInFlight int  // most requests at a time
	priority    bool
	config      Breaker
	breaker     *degrade.Breaker
}

// tune applies the settings that may change while the backend serves.
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

// failedShare is the share of failed requests within a second that opens a breaker, if
// they are many.
const failedShare = 0.5

// Guard runs a request through the breaker of the backend. While the breaker is open, it
// returns a Retryable error without running the request.
func (b *Backend) Guard(request func() error) error {
	err := b.tuned.Load().breaker.Do(request)
	if err == nil {
		return nil // before anything is allocated
	}
	if errors.Is(err, degrade.ErrOpen) {
		return &exchange.BrokenError{Action: "not asked", Err: err}
	}
	if status := statusOf(err); Doubtful(err) || status == http.StatusBadGateway || status == http.StatusGatewayTimeout {
		b.suspect(err) // its health probe knows whether the engine is dead
	}
	return err
}

// Blame counts a Doubtful failure against b, because peer has answered the same request.
// So a backend that fails where its peers succeed is taken out even if its health probe
// passes. It ignores an answer of another release: a request that only b's release fails
// could otherwise take an older backend from everybody.
func (b *Backend) Blame(err error, peer *Backend) {
	if b.Facts().Version != peer.Facts().Version {
		return
	}
	text := errors.New(err.Error()) // as text, so that its type no longer decides how it counts
	// The breaker returns what it is given.
	_ = b.tuned.Load().breaker.Do(func() error { return &exchange.BrokenError{Action: "answered by another backend", Err: text} })
}

// harmless reports whether an error does not count against the backend: the caller left,
// the request was refused, or the engine is overloaded. A 500 may be the request's own
// fault, and one caller's bad requests must not take a backend from the others. The
// health probe or Blame finds an engine that is dead.
func harmless(err error) bool {
	if status := statusOf(err); status != 0 {
		return status != http.StatusBadGateway && status != http.StatusGatewayTimeout
	}
	var timeout *exchange.TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == exchange.Total || Doubtful(err)
	}
	var broken *exchange.BrokenError
	return !errors.As(err, &broken)
}

// breakerChanged handles the opening and closing of the breaker.
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

// checkBreaker closes a breaker that has been open for long enough, after a successful
// health probe. It returns the reason if the breaker stays open, else "".
func (b *Backend) checkBreaker() string {
	if b.tuned.Load().breaker.Probe(func() error { return nil }) == nil {
		return ""
	}
	return b.breakerReason()
}

// BreakerOpen reports whether requests are kept from the backend.
func (b *Backend) BreakerOpen() bool { return !b.tuned.Load().breaker.Closed() }

// ByPriority reports whether the engine schedules by priority. Other engines refuse a
// request with a priority.
func (b *Backend) ByPriority() bool { return b.tuned.Load().priority }
