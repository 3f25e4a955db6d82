package backend

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/nvml"
)

// readings are what the ladder is told of the backend.
func (b *Backend) readings(now time.Time) degrade.Readings {
	r := degrade.Readings{
		Absolute: b.config.Memory == memoryAbsolute, Up: b.Seat.Up(), KV: -1, Waiting: -1, Preempted: -1, Queued: b.Seat.Queued(),
		TTFT: b.Pace.TTFT(now), Objective: time.Duration(b.objective.Load()), InFlight: b.Seat.InFlight(), Most: cmp.Or(b.config.MaxInFlight, defaultInFlight),
	}
	views := b.GPUs()
	r.GPUs = make([]*nvml.GPU, len(views))
	for i, v := range views {
		r.GPUs[i] = v.Load()
	}
	if e := b.engine.Load(); e != nil {
		r.Started = e.Started
	}
	if e := b.Engine(); e != nil {
		r.EngineAt, r.KV = e.At, e.KV
		if e.Preemptions >= 0 {
			r.Preempted = e.Preempted
		}
		if e.Waiting >= 0 && e.Freshness(now) != nvml.Dropped {
			r.Waiting = e.Waiting / max(e.Engines, 1)
		}
	}
	r.Waiting = max(r.Waiting, 0) + r.Queued
	return r
}

// load tells admission of the engine's load.
func (e *Engine) load() (l admission.Load, known bool) {
	return admission.Load{At: e.At, Running: e.Running, Waiting: e.Waiting}, e.Running >= 0 && e.Waiting >= 0
}

// failedShare of the requests of a second opens a breaker too, where those are many.
const failedShare = 0.5

// Guard makes a request of the backend through its breaker: while too many have
// failed it is not asked at all, and the error is Retryable.
func (b *Backend) Guard(request func() error) error {
	err := b.breaker.Do(request)
	if errors.Is(err, degrade.ErrOpen) {
		return &brokenError{"not asked", err}
	}
	return err
}

// harmless reports whether an error says nothing against the backend: the caller
// left, the request was refused, or the engine has enough to do.
func harmless(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Status < 500 || status.Status == 501 || status.Status == 503
	}
	var timeout *TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == Total
	}
	var broken *brokenError
	return !errors.As(err, &broken)
}

// broke is told when the breaker opens and closes.
func (b *Backend) broke(open bool) {
	if open {
		b.out(b.brokenFor())
	}
	b.probeNow()
}

func (b *Backend) brokenFor() string {
	return fmt.Sprintf("its breaker is open: requests failed there, %d in a row or half of a second's; it is tried again after %v", b.config.breaker.Failures, b.config.breaker.Open)
}

// recovers asks a breaker that has been open for long enough whether a server that
// answers its health probe may be asked again; empty: it may.
func (b *Backend) recovers() string {
	if b.breaker.Probe(func() error { return nil }) == nil {
		return ""
	}
	return b.brokenFor()
}

// BreakerOpen reports whether requests are kept from the backend.
func (b *Backend) BreakerOpen() bool { return !b.breaker.Closed() }
