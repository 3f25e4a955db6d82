package degrade

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// tick is the period of the ladder's steps.
const tick = 250 * time.Millisecond

// Watch is one model and its backends. A model or a gauge that was watched before keeps its
// level.
type Watch struct {
	Model  *Model
	Gauges []*Gauge
}

// Pin is a level that an operator has set for a model.
type Pin struct {
	Level   Level
	Expires time.Time // end of the pin; zero where it does not expire
	Reason  string
	Author  string // name of the operator
}

// Change is a step of the ladder.
type Change struct {
	Time      time.Time
	Model     string
	Backend   string // name of the backend; empty for the model as a whole
	Observed  bool   // the change is only reported: nothing follows from it
	From, To  Level
	Signal    string  // signal with the highest pressure, or with the largest fall for a step down; empty: none; "pin" where an operator has set the level
	Cause     string  // backend that changed the level of a model
	Value     float64 // reading of the signal, in its unit
	Threshold float64 // threshold that the reading has passed; NaN: there is none
	OutReason string  // reason why a backend is left out from now on; empty: it is not
	Recovered bool    // the backend was left out, and may be used again
	Pin       Pin     // new pin of a model; zero: there is none
}

// Ladder keeps the verdicts of all models and backends. It is safe for concurrent use.
// Readers take the verdicts from Gauges and Models, without a lock.
type Ladder struct {
	// Changed is called with each step, if it is set before Run. It must not block, and
	// not call the ladder.
	Changed func(Change)

	log    *slog.Logger
	config atomic.Pointer[Config]

	mu     sync.Mutex
	rules  *rules
	models []*model
	pins   map[string]Pin
	last   time.Time // time of the last step
}

// New returns a ladder that watches nothing. The configuration must be valid. It
// starts nothing.
func New(c Config, log *slog.Logger, reg prometheus.Registerer) *Ladder {
	l := &Ladder{log: log, rules: newRules(c)}
	l.config.Store(&c)
	newMetrics(reg, l)
	return l
}

// Effect returns what a level does to a request. It takes no lock.
func (l *Ladder) Effect(v Level) Effect { return l.config.Load().Effect(v) }

// Canned returns the answer of L4.
func (l *Ladder) Canned() Answer { return l.config.Load().Canned }

// Reload changes the configuration, which must be valid.
func (l *Ladder) Reload(c Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config.Store(&c)
	if old := l.rules; !reflect.DeepEqual(old.config, c) {
		l.rules = newRules(c)
		for _, m := range l.models {
			if c.Observe && !old.config.Observe {
				m.states[acting] = newModelState() // observing ends the level at once, not by steps
			}
		}
	}
	l.step(time.Now())
}

// Watch replaces the models and backends that are watched. Those that are no longer watched
// get level L0.
func (l *Ladder) Watch(watch []Watch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	models, backends := map[*Model]*model{}, map[*Gauge]*watched{}
	for _, m := range l.models {
		models[m.model] = m
		for _, w := range m.backends {
			backends[w.gauge] = w
		}
	}
	l.models = nil
	for _, w := range watch {
		m := models[w.Model]
		if m == nil {
			m = &model{model: w.Model, states: newStates()}
		}
		delete(models, w.Model)
		m.backends = nil
		for _, g := range w.Gauges {
			b := backends[g]
			if b == nil {
				b = &watched{gauge: g}
			}
			delete(backends, g)
			m.backends = append(m.backends, b)
		}
		l.models = append(l.models, m)
	}
	for g := range backends {
		g.verdict.Store(&Verdict{})
	}
	for m := range models {
		m.publish(&Verdict{}, true)
	}
	l.step(time.Now())
}

// SetPins replaces the pins, by the name of the model. A pinned model has the level of its pin
// until that expires; meanwhile the ladder goes on assessing readings.
func (l *Ladder) SetPins(pins map[string]Pin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pins = make(map[string]Pin, len(pins))
	for name, p := range pins {
		p.Level = min(max(p.Level, Full), Canned)
		p.Expires = p.Expires.Round(0).UTC() // so that equal pins are ==
		l.pins[name] = p
	}
	l.step(time.Now())
}

// Run steps the ladder four times a second until ctx ends; then it returns nil.
func (l *Ladder) Run(ctx context.Context) error {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
			l.mu.Lock()
			l.step(time.Now())
			l.mu.Unlock()
		}
	}
}

// step steps all backends and models once. The lock is held.
func (l *Ladder) step(now time.Time) {
	passed := 0.0
	if !l.last.IsZero() {
		passed = max(now.Sub(l.last).Seconds(), 0)
	}
	l.last = now
	for _, m := range l.models {
		m.seconds[m.model.Verdict().Level] += passed
		wake := false
		for _, w := range m.backends {
			w.readings = w.gauge.read(now)
			old, out, cap := w.standings, w.outReason, w.inFlightCap
			asks := w.assessments
			w.step(l.rules, &w.readings, now)
			if w.life.newEngine {
				l.restartShared(w)
			}
			l.reportBackend(m, w, old, asks, out, now)
			wake = w.publish() || wake || w.inFlightCap != cap
		}
		l.stepModel(m, wake, now)
	}
}

// restartShared restarts the memory baselines of all backends that share a card with one whose
// engine has come up.
func (l *Ladder) restartShared(w *watched) {
	for _, m := range l.models {
		for _, neighbour := range m.backends {
			neighbour.restartShared(&w.backend)
		}
	}
}

// publish stores a backend's verdict, and reports whether it may let a waiting request pass,
// or stop one.
func (w *watched) publish() bool {
	st := &w.standings[acting]
	old := w.gauge.Verdict()
	v := Verdict{Level: st.level, Firm: w.firm(), Pressure: st.pressure, Cap: w.inFlightCap, Out: w.outReason, Retry: st.retry}
	if st.level > Full {
		v.Reason = st.signal.String()
	}
	if v == *old {
		return false
	}
	w.gauge.verdict.Store(keep(v))
	return v.Level != old.Level || v.Out != old.Out
}

// firm returns the level without the signals of load.
func (w *watched) firm() (l Level) {
	for s := range signals {
		if s != queue && s != ttft && !w.disabled[s] && !w.observe[s] {
			l = max(l, w.stages[s].level)
		}
	}
	return l
}

// keep returns a copy of a verdict on the heap. It is a function of its own so that only a
// verdict that has changed is copied.
func keep(v Verdict) *Verdict { return &v }
