package degrade

import (
	"math"
	"time"
)

// Status explains every decision of the ladder.
type Status struct {
	Observe bool          `json:"observe"` // nothing of it acts
	Models  []ModelStatus `json:"models"`  // in the order of the configuration
}

// ModelStatus is the level of a model, with its causes.
type ModelStatus struct {
	Model     string          `json:"model"`
	Level     string          `json:"level"`
	WouldBe   string          `json:"would_be"` // if no signal were only observed, and none pinned
	Pressure  float64         `json:"pressure"` // mean of the backends that count, by weight
	Reason    string          `json:"reason,omitempty"`
	Backend   string          `json:"backend,omitempty"` // that asks for most
	ChangedAt *time.Time      `json:"since,omitempty"`   // null: since the start
	MayFall   *time.Time      `json:"may_fall,omitempty"`
	Pin       *PinStatus      `json:"pin,omitempty"`
	Backends  []BackendStatus `json:"backends"`
}

// PinStatus is a level that an operator has fixed.
type PinStatus struct {
	Level   string     `json:"level"`
	Expires *time.Time `json:"until,omitempty"` // null: for good
	Reason  string     `json:"why,omitempty"`
	Author  string     `json:"by,omitempty"`
}

// BackendStatus is the level of a backend, with its causes.
type BackendStatus struct {
	Backend    string           `json:"backend"`
	Level      string           `json:"level"`
	WouldBe    string           `json:"would_be"`
	Pressure   float64          `json:"pressure"`
	Reason     string           `json:"reason,omitempty"` // the signal that asks for most
	MayFall    *time.Time       `json:"may_fall,omitempty"`
	Weight     int              `json:"weight"`
	InRotation bool             `json:"up"`
	Counts     bool             `json:"counts"`           // in the model's mean
	GPUs       string           `json:"gpus"`             // fresh | held | dropped | unknown: the oldest reading that counts
	Engine     string           `json:"engine"`           // likewise
	Out        string           `json:"out,omitempty"`    // why it must not be used
	Cap        int              `json:"cap,omitempty"`    // in flight, while readings are too old
	InFlight   int              `json:"in_flight"`        //
	Signals    []SignalStatus   `json:"signals"`          // without those that are off
	Memory     []BaselineStatus `json:"memory,omitempty"` // by which burned headroom is judged
}

// SignalStatus is one signal of a backend. A number that is not known is null.
type SignalStatus struct {
	Signal    string     `json:"signal"`
	Observe   bool       `json:"observe,omitempty"` // it moves nothing
	Value     *float64   `json:"value"`
	Level     string     `json:"level"`
	Asks      string     `json:"asks"`            // the level that the last reading calls for; above Level it waits to be confirmed
	Entered   *float64   `json:"entered"`         // threshold of Level
	Leaves    *float64   `json:"leaves"`          // the value at which Level may be left
	Next      *float64   `json:"next"`            // threshold of the level above
	ChangedAt *time.Time `json:"since,omitempty"` // null: since the start
	MayFall   *time.Time `json:"may_fall,omitempty"`
	DwellMs   int64      `json:"dwell_ms"` // on each level on the way down, as it is now
}

// BaselineStatus is the memory that one GPU had free when the engine had started.
type BaselineStatus struct {
	GPU      string   `json:"gpu"`
	Baseline *float64 `json:"baseline_bytes"` // null: not known yet
}

// Status returns the state of all models and backends. It is for people, not for each
// request.
func (l *Ladder) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{Observe: l.rules.config.Observe, Models: []ModelStatus{}}
	for _, m := range l.models {
		v, t := m.model.Verdict(), &m.states[acting]
		status := ModelStatus{
			Model: m.model.Name, Level: v.Level.String(), WouldBe: m.states[wouldBe].stage.level.String(), Pressure: v.Pressure,
			Reason: v.Reason, Backend: t.top.backend, ChangedAt: moment(t.stage.changed), MayFall: moment(v.Retry), Backends: []BackendStatus{},
		}
		if v.Pinned {
			status.Pin = &PinStatus{Level: m.pin.Level.String(), Expires: moment(m.pin.Expires), Reason: m.pin.Reason, Author: m.pin.Author}
		}
		for _, w := range m.backends {
			status.Backends = append(status.Backends, w.status())
		}
		s.Models = append(s.Models, status)
	}
	return s
}

func (w *watched) status() BackendStatus {
	v := w.gauge.Verdict()
	s := BackendStatus{
		Backend: w.gauge.Name, Level: v.Level.String(), WouldBe: w.standings[wouldBe].level.String(), Pressure: v.Pressure, Reason: v.Reason,
		MayFall: moment(v.Retry), Weight: w.gauge.Weight(), InRotation: w.life.inRotation, Counts: w.membership[acting].counted,
		GPUs: w.oldest(wouldBe, 0, cardSignals).String(), Engine: w.oldest(wouldBe, cardSignals, signals).String(),
		Out: v.Out, Cap: v.Cap, InFlight: w.readings.InFlight, Signals: []SignalStatus{},
	}
	for i := range w.cards {
		if c := &w.cards[i]; c.ref != "" && !w.disabled[memory] && !w.readings.Absolute {
			b := BaselineStatus{GPU: c.ref}
			if c.headroom.baseline > 0 {
				b.Baseline = number(c.headroom.baseline)
			}
			s.Memory = append(s.Memory, b)
		}
	}
	for kind := range signals {
		if w.disabled[kind] {
			continue
		}
		stage, a := &w.stages[kind], &w.assessments[kind]
		status := SignalStatus{
			Signal: kind.String(), Observe: w.observe[kind], Level: stage.level.String(), Asks: a.enter.String(), ChangedAt: moment(stage.changed),
			MayFall: moment(stage.retry), DwellMs: stage.dwell.Milliseconds(),
			Entered: number(a.scale.entry(stage.level)), Leaves: number(a.scale.exit(stage.level)), Next: number(a.scale.entry(stage.level + 1)),
		}
		if a.known {
			status.Value = number(a.value)
		}
		s.Signals = append(s.Signals, status)
	}
	return s
}

// number returns a value for JSON, which has no NaN.
func number(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	v = rounded(v)
	return &v
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
