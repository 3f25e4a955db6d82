package degrade

import (
	"sync/atomic"
	"time"

	"tidegate/nvml"
)

// Readings holds the readings of one backend at a moment. KV, Waiting and Preempted are
// negative if they are not known; times and durations are zero.
type Readings struct {
	GPUs        []*nvml.GPU   // last readings of its cards; nil for a card without any
	Absolute    bool          // its engine does not pre-allocate: the used share of memory counts
	InRotation  bool          // it gets requests
	Started     time.Time     // time of the last observed restart of its engine; zero: none
	EngineAt    time.Time     // time of the reading of the engine's load
	KV          float64       // used share of its fullest KV cache, 0 to 1
	Waiting     int           // requests that wait for it, in the engine and here
	Queued      int           // requests that wait for it here
	Preempted   int           // sequences that the engine preempted in the last 5 s
	TTFT        time.Duration // p90 of the recent times to the first token
	Objective   time.Duration // objective of the model for the TTFT
	InFlight    int           // requests that hold a place on it
	MaxInFlight int           // bound of InFlight; 0: not known
}

// Verdict is the ladder's decision about a backend or a model. It is immutable.
type Verdict struct {
	Level    Level
	Firm     Level     // level of a backend without the signals of load, queue and ttft, which a free place disproves
	Reason   string    // signal, or pin, that sets the level; empty at L0
	Pressure float64   // 0 to 1; L1 to L4 begin at 0.50, 0.65, 0.80 and 0.95
	Cap      int       // bound of requests in flight while readings are too old; 0 where there is none
	Out      string    // why a backend must not be used, such as a lost GPU; empty where it may be
	Pinned   bool      // an operator has fixed the level of the model; those of its backends do not count
	Retry    time.Time // earliest time at which the level may fall, or a dwell from now while its cause lasts; zero at L0
}

// Gauge is the pressure on one backend. It is safe for concurrent use; a read costs
// one load.
type Gauge struct {
	Name    string
	weight  atomic.Int64
	read    func(now time.Time) Readings
	verdict atomic.Pointer[Verdict]
}

// NewGauge returns a gauge at L0; read must be quick and safe for concurrent use.
func NewGauge(name string, weight int, read func(now time.Time) Readings) *Gauge {
	g := &Gauge{Name: name, read: read}
	g.weight.Store(int64(max(weight, 1)))
	g.verdict.Store(&Verdict{})
	return g
}

// Weight returns the backend's share of the model's capacity; 0 where it gets no new
// requests and its pressure does not count.
func (g *Gauge) Weight() int { return int(g.weight.Load()) }

// SetWeight replaces the share.
func (g *Gauge) SetWeight(weight int) { g.weight.Store(int64(max(weight, 0))) }

// Verdict returns the current verdict on the backend; never nil.
func (g *Gauge) Verdict() *Verdict { return g.verdict.Load() }

// Model is the pressure on one model. It is safe for concurrent use.
type Model struct {
	Name    string
	verdict atomic.Pointer[Verdict]
	changed atomic.Pointer[chan struct{}]
}

// NewModel returns a model at L0 that no ladder moves.
func NewModel(name string) *Model {
	m := &Model{Name: name}
	m.publish(&Verdict{}, true)
	return m
}

// Verdict returns the current verdict on the model as a whole; never nil.
func (m *Model) Verdict() *Verdict { return m.verdict.Load() }

// Changed returns a channel that is closed at the next change: of the level of the model or
// of one of its backends, of whether a backend may be used, of its cap, or of a pin. Call it
// before the verdicts are read, so that no change is missed.
func (m *Model) Changed() <-chan struct{} { return *m.changed.Load() }

// publish stores a verdict, and closes the channel of Changed if wake is set.
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
