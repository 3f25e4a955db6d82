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

// tick is the time between two looks at everything.
const tick = 250 * time.Millisecond

// Watch is one model and its backends. Where a model or a gauge is the same as
// before, where it stands stays.
type Watch struct {
	Model  *Model
	Gauges []*Gauge
}

// Pin is a level that an operator has set for a model.
type Pin struct {
	Level Level
	Until time.Time // zero: for good
	Why   string
	By    string // who set it
}

// Change is a step of the ladder.
type Change struct {
	At        time.Time
	Model     string
	Backend   string // empty: the model as a whole
	Observed  bool   // it is only told: nothing follows from it
	From, To  Level
	Signal    string  // that asks for most, or of a step down that let go; empty: none did; pin where an operator has set the level
	Cause     string  // of a model: the backend that it comes from
	Value     float64 // of the signal, as read
	Threshold float64 // that it has passed; NaN: the signal has none
	Out       string  // of a backend that is left out from now on: why
	Back      bool    // of a backend that was left out and is not any more
	Pin       Pin     // of a model that is pinned from now on
}

// Ladder keeps the verdicts of all models and backends. It is safe for concurrent
// use; its readers need nothing of it, they read the verdicts of Gauges and Models.
type Ladder struct {
	// Changed is told of each step, if it is set before Run. It must not block, and
	// not call the ladder.
	Changed func(Change)

	log    *slog.Logger
	config atomic.Pointer[Config]

	mu     sync.Mutex
	book   *book
	models []*model
	pins   map[string]Pin
	last   time.Time // when everything was looked at
}

// model is a watched model.
type model struct {
	model    *Model
	pool     pool
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
	readings Readings // as of the last look
}

// New makes a ladder that watches nothing. The configuration must be valid. It
// starts nothing.
func New(c Config, log *slog.Logger, reg prometheus.Registerer) *Ladder {
	l := &Ladder{log: log, book: newBook(c)}
	l.config.Store(&c)
	newMetrics(reg, l)
	return l
}

// Effect is what a level does to a request. It takes no lock.
func (l *Ladder) Effect(v Level) Effect { return l.config.Load().Effect(v) }

// Canned is the answer of L4.
func (l *Ladder) Canned() Answer { return l.config.Load().Canned }

// Reload changes the configuration, which must be valid.
func (l *Ladder) Reload(c Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config.Store(&c)
	if was := l.book; !reflect.DeepEqual(was.config, c) {
		l.book = newBook(c)
		for _, m := range l.models {
			if c.Observe && !was.config.Observe {
				m.pool.tracks[acting] = newTrack() // it ends at once, not by steps
			}
		}
	}
	l.look(time.Now())
}

// Watch changes what is watched. What is not watched any more stands at L0 from then
// on.
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
			m = &model{model: w.Model, pool: newPool()}
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
	l.look(time.Now())
}

// SetPins says which models are pinned, by name, instead of those that were before.
// A pinned model stands where the pin says until it expires; what the ladder makes
// of the readings goes on underneath.
func (l *Ladder) SetPins(pins map[string]Pin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pins = make(map[string]Pin, len(pins))
	for name, p := range pins {
		p.Level = min(max(p.Level, Full), Canned)
		p.Until = p.Until.Round(0).UTC() // so that equal pins are ==
		l.pins[name] = p
	}
	l.look(time.Now())
}

// Run looks at everything four times a second until ctx ends; then it returns nil.
func (l *Ladder) Run(ctx context.Context) error {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
			l.mu.Lock()
			l.look(time.Now())
			l.mu.Unlock()
		}
	}
}

// look steps everything once. The lock is held.
func (l *Ladder) look(now time.Time) {
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
			was, out, cap := w.stand, w.out, w.cap
			asks := w.asks
			w.step(l.book, &w.readings, now)
			if w.began {
				l.began(w)
			}
			l.told(m, w, was, asks, out, now)
			wake = w.publish() || wake || w.cap != cap
		}
		l.stand(m, wake, now)
	}
}

// began takes in that an engine has come up: what is free on its cards is another
// baseline for whoever shares them.
func (l *Ladder) began(w *watched) {
	for _, m := range l.models {
		for _, other := range m.backends {
			other.neighbour(&w.backend)
		}
	}
}

// publish shows where a backend stands, and reports whether that may let a request
// pass that waits, or stop one.
func (w *watched) publish() bool {
	st := &w.stand[acting]
	old := w.gauge.Verdict()
	v := Verdict{Level: st.level, Firm: w.firm(), Pressure: st.pressure, Cap: w.cap, Out: w.out, Retry: st.retry}
	if st.level > Full {
		v.Reason = st.by.String()
	}
	if v == *old {
		return false
	}
	w.gauge.verdict.Store(keep(v))
	return v.Level != old.Level || v.Out != old.Out
}

// firm is the level without the signals of load.
func (w *watched) firm() (l Level) {
	for s := range signals {
		if s != queue && s != ttft && !w.off[s] && !w.observe[s] {
			l = max(l, w.rungs[s].level)
		}
	}
	return l
}

// keep puts a verdict where it stays. It is a function of its own so that only a
// verdict that has changed is put there.
func keep(v Verdict) *Verdict { return &v }

// stand moves a model and shows where it stands.
func (l *Ladder) stand(m *model, wake bool, now time.Time) {
	was := [sides]Level{m.pool.tracks[acting].rung.level, m.pool.tracks[wouldBe].rung.level}
	m.pool.step(m.backends, l.book, now)
	t := &m.pool.tracks[acting]
	v := Verdict{Level: t.rung.level, Pressure: t.pressure, Retry: t.rung.retry}
	if v.Level > Full {
		v.Reason = t.top.by.String()
	}
	pin, pinned := l.pins[m.model.Name]
	if pinned = pinned && (pin.Until.IsZero() || now.Before(pin.Until)); pinned {
		v.Level, v.Pinned, v.Reason, v.Retry = pin.Level, true, "pin", pin.Until
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
	l.moved(m, was, *old, v, pin, now)
	m.pin, m.pinned = pin, pinned
}
