package degrade

import (
	"math"
	"time"
)

// model is a watched model. This file alone writes its state.
type model struct {
	model    *Model
	states   states
	backends []*watched
	pin      Pin
	pinned   bool
	changes  [Canned + 1]float64
	seconds  [Canned + 1]float64
}

// watched is a watched backend.
type watched struct {
	gauge *Gauge
	backend
	readings   Readings // readings of the last step
	membership [sides]membership
}

// membership is a backend's part in the mean of its model.
type membership struct {
	counted    bool    // it is in the mean
	remembered bool    // it was in the mean once
	pressure   float64 // its last pressure in the mean
	peak       peak    // its highest pressure since the last change of the model
}

// states are the states of a model on both sides.
type states [sides]modelState

// modelState is the level of a model on one side.
type modelState struct {
	stage      stage
	pressure   float64
	top        cause     // signal with the highest pressure; none at L0
	lastCause  cause     // cause of the last change of the level, up or down
	lastUsable time.Time // last time that a backend could be used
}

// cause is a signal of a backend.
type cause struct {
	signal    signal
	backend   string
	value     float64 // reading, in the signal's unit
	threshold float64 // threshold that the reading has passed; NaN where there is none
}

// peak is the highest pressure of a backend since its model's last change.
type peak struct {
	pressure   float64
	signal     signal
	assessment assessment
}

func newModelState() modelState {
	return modelState{top: cause{signal: noSignal}, lastCause: cause{signal: noSignal}}
}

func newStates() states { return states{newModelState(), newModelState()} }

// step assesses a model once. It depends on the backends, the states and the time.
func (p *states) step(backends []*watched, k *rules, now time.Time) {
	for _, w := range backends {
		for side, unusable := range [sides]string{w.outReason, w.unusable} {
			member := &w.membership[side]
			if member.counted = w.life.inRotation && unusable == "" && !w.blind[side]; member.counted {
				member.remembered, member.pressure = true, w.standings[side].pressure
			}
		}
	}
	for side := range sides {
		p[side].step(backends, side, k, now)
	}
}

// mean returns the mean pressure of the backends that count, by weight, and their weight; 0
// where there are none.
//
// A calm backend that leaves, as with a lost GPU, would raise the mean of the rest. But fewer
// cards are less availability, and no pressure on those that stay. So backends that left
// count as they were last where that makes the mean smaller. The result is the least mean
// over any set of them: the set of those below it, found in a few rounds, each of which is
// smaller. A request has at least the level of its backend in any case.
func mean(backends []*watched, side int) (pressure, weight float64) {
	sum := 0.0
	for _, w := range backends {
		if w.membership[side].counted {
			sum, weight = sum+float64(w.gauge.Weight())*w.standings[side].pressure, weight+float64(w.gauge.Weight())
		}
	}
	if weight == 0 {
		return 0, 0
	}
	pressure = sum / weight
	for {
		total, totalWeight := sum, weight
		for _, w := range backends {
			if !w.membership[side].counted && w.membership[side].remembered && w.membership[side].pressure < pressure {
				total, totalWeight = total+float64(w.gauge.Weight())*w.membership[side].pressure, totalWeight+float64(w.gauge.Weight())
			}
		}
		if total/totalWeight >= pressure {
			return pressure, weight
		}
		pressure = total / totalWeight
	}
}

// step assesses the model once on one side.
func (t *modelState) step(backends []*watched, side int, k *rules, now time.Time) {
	pressure, weight := mean(backends, side)
	old, highest := 0.0, 0.0
	var top assessment
	for _, w := range backends {
		if !w.membership[side].counted {
			continue
		}
		if w.held[side] {
			old += float64(w.gauge.Weight())
		}
		st := &w.standings[side]
		if st.signal == noSignal {
			continue
		}
		if st.pressure > highest {
			highest, top = st.pressure, w.assessments[st.signal]
			t.top = cause{st.signal, w.gauge.Name, top.value, math.NaN()}
		}
		if st.pressure >= w.membership[side].peak.pressure {
			w.membership[side].peak = peak{st.pressure, st.signal, w.assessments[st.signal]}
		}
	}
	if weight > 0 {
		t.lastUsable = now
	}
	l := levelAt(pressure)
	// No level falls while half of the weight is held. A single held backend would not do:
	// with slow sources one of many nearly always is. Nor does it fall in the first moment
	// without any backend.
	held := weight > 0 && 2*old >= weight || weight == 0 && now.Sub(t.lastUsable) <= clearFor
	previous, fell := t.stage.level, t.stage.changed.Equal(t.stage.lowered)
	t.stage.step(l, l, held, &k.config.Dwell, now)
	t.pressure = clampTo(pressure, t.stage.level)
	switch {
	case t.stage.level > previous:
		t.lastCause = t.top
		t.lastCause.threshold = top.scale.entry(t.stage.level)
	case t.stage.level < previous:
		if origin := released(backends, side); origin.signal != noSignal || !fell {
			t.lastCause = origin // else the cause of the step before still holds
		}
	}
	if t.stage.level != previous {
		for _, w := range backends {
			w.membership[side].peak = peak{}
			if st := &w.standings[side]; w.membership[side].counted && st.signal != noSignal {
				w.membership[side].peak = peak{st.pressure, st.signal, w.assessments[st.signal]}
			}
		}
	}
	if t.stage.level == Full {
		t.top = cause{signal: noSignal}
	}
}

// released returns the cause of a step down: of the backends that count, the one whose
// pressure fell most, by weight. The reading is the current one, or the last one of a signal
// that has become silent.
func released(backends []*watched, side int) cause {
	origin, largest := cause{signal: noSignal, threshold: math.NaN()}, 0.0
	for _, w := range backends {
		m, now := &w.membership[side].peak, w.standings[side].pressure
		drop := float64(w.gauge.Weight()) * (m.pressure - now)
		if !w.membership[side].counted || drop <= largest {
			continue
		}
		a := w.assessments[m.signal]
		if !a.known {
			a = m.assessment
		}
		largest, origin = drop, cause{m.signal, w.gauge.Name, a.value, math.NaN()}
		if l := levelAt(m.pressure); levelAt(now) < l {
			origin.threshold = a.scale.exit(l)
		}
	}
	return origin
}

// stepModel steps a model and publishes its verdict.
func (l *Ladder) stepModel(m *model, wake bool, now time.Time) {
	previous := [sides]Level{m.states[acting].stage.level, m.states[wouldBe].stage.level}
	m.states.step(m.backends, l.rules, now)
	t := &m.states[acting]
	v := Verdict{Level: t.stage.level, Pressure: t.pressure, Retry: t.stage.retry}
	if v.Level > Full {
		v.Reason = t.top.signal.String()
	}
	pin, pinned := l.pins[m.model.Name]
	if pinned = pinned && (pin.Expires.IsZero() || now.Before(pin.Expires)); pinned {
		v.Level, v.Pinned, v.Reason, v.Retry = pin.Level, true, "pin", pin.Expires
	}
	old := m.model.Verdict()
	if v.Level != old.Level {
		m.changes[v.Level]++
	}
	if v != *old {
		m.model.publish(keep(v), wake || v.Level != old.Level || v.Pinned != old.Pinned)
	} else if wake {
		m.model.wake()
	}
	l.reportModel(m, previous, *old, v, pin, now)
	m.pin, m.pinned = pin, pinned
}
