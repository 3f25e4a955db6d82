package backend

import (
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/nvml"
)

// readings returns the input of the ladder.
func (b *Backend) readings(now time.Time) degrade.Readings {
	tuned := b.tuned.Load()
	r := degrade.Readings{
		Absolute: tuned.absolute, InRotation: b.Seat.InRotation(), KV: -1, Waiting: -1, Preempted: -1, Queued: b.Seat.Queued(),
		TTFT: b.Pace.TTFT(now), Objective: time.Duration(b.objective.Load()), InFlight: b.Seat.InFlight(), MaxInFlight: tuned.maxInFlight,
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
		r.EngineAt, r.KV = e.Time, e.KV
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

// load returns the engine's load for admission.
func (e *Engine) load() (l admission.Load, known bool) {
	return admission.Load{Time: e.Time, Running: e.Running, Waiting: e.Waiting}, e.Running >= 0 && e.Waiting >= 0
}
