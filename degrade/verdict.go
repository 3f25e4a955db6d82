package degrade

import (
	"sync/atomic"
	"time"

	"tidegate/nvml"
)

// Readings are what is known of one backend at a moment. Counts that are not known
// are negative, times and durations that are not known are zero.
type Readings struct {
	GPUs      []*nvml.GPU   // those it runs on, as last reported; nil where none ever was
	Absolute  bool          // its engine does not pre-allocate: memory counts as used fraction
	Up        bool          // in rotation
	Started   time.Time     // when its engine was last seen to have been started anew; zero: it was not
	EngineAt  time.Time     // when the engine's load was read
	KV        float64       // of its fullest KV cache, 0 to 1
	Waiting   int           // requests that wait for it, in the engine and here
	Queued    int           // of those, here
	Preempted int           // sequences that the engine preempted in the last 5 s
	TTFT      time.Duration // p90 of those observed lately
	Objective time.Duration // what the model promises for it
	InFlight  int           // requests that hold a place on it
	Most      int           // that it may ever have in flight; 0: not known
}

// Verdict is what the ladder says of a backend or a model now. It is immutable.
type Verdict struct {
	Level    Level
	Firm     Level     // of a backend: without the signals of load, queue and ttft, which a place that is free disproves
	Reason   string    // the signal that asks for most, such as gpu_temperature; empty at L0
	Pressure float64   // 0 to 1; L1 to L4 begin at 0.50, 0.65, 0.80 and 0.95
	Cap      int       // requests in flight at most, while readings are too old; 0: no cap
	Out      string    // of a backend: why it must not be used, such as a lost GPU; empty: it may
	Pinned   bool      // of a model: an operator has set the level; the backends' own do not count
	Retry    time.Time // when the level may fall: at the earliest, or a dwell from now while its cause lasts; zero: it is L0
}

// Gauge is the pressure on one backend. It is safe for concurrent use; a read costs
// one load.
type Gauge struct {
	Name    string
	weight  atomic.Int64
	read    func(now time.Time) Readings
	verdict atomic.Pointer[Verdict]
}

// NewGauge makes a gauge at L0; read must be quick and safe for concurrent use.
func NewGauge(name string, weight int, read func(now time.Time) Readings) *Gauge {
	g := &Gauge{Name: name, read: read}
	g.weight.Store(int64(max(weight, 1)))
	g.verdict.Store(&Verdict{})
	return g
}

// Weight is the backend's share of the model's capacity; 0: it gets no new requests, and
// its pressure is not the model's.
func (g *Gauge) Weight() int { return int(g.weight.Load()) }

// SetWeight replaces the share.
func (g *Gauge) SetWeight(weight int) { g.weight.Store(int64(max(weight, 0))) }

// Verdict is what the ladder says of the backend now; never nil.
func (g *Gauge) Verdict() *Verdict { return g.verdict.Load() }

// Model is the pressure on one model. It is safe for concurrent use.
type Model struct {
	Name    string
	verdict atomic.Pointer[Verdict]
	changed atomic.Pointer[chan struct{}]
}

// NewModel makes a model at L0 that no ladder moves.
func NewModel(name string) *Model {
	m := &Model{Name: name}
	m.publish(&Verdict{}, true)
	return m
}

// Verdict is what the ladder says of the model as a whole now; never nil.
func (m *Model) Verdict() *Verdict { return m.verdict.Load() }

// Changed is closed when next the level of the model or of one of its backends
// changes, a backend must not be used or may be again, its cap moves, or a pin is set
// or ends. Take it before the verdicts are read, so that no change is missed.
func (m *Model) Changed() <-chan struct{} { return *m.changed.Load() }

// publish shows a verdict, and wakes who waits for a change if it is one of those.
func (m *Model) publish(v *Verdict, wake bool) {
	m.verdict.Store(v)
	if wake {
		m.wake()
	}
}

func (m *Model) wake() {
	next := make(chan struct{})
	if old := m.changed.Swap(&next); old != nil {
		close(*old)
	}
}
