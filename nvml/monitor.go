package nvml

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Age limits of a reading.
const (
	freshFor = 3 * time.Second // the reading counts in full
	heldFor  = DroppedAfter    // no level may fall because of the reading
)

// DroppedAfter is the age after which a reading is not used.
const DroppedAfter = 10 * time.Second

// Freshness is the age class of a reading.
type Freshness int

// The age classes, worst first.
const (
	Dropped Freshness = iota // too old for any decision
	Held                     // keeps decisions, but relaxes none
	Fresh                    // counts in full
)

// String returns the freshness in one word.
func (f Freshness) String() string { return [...]string{"dropped", "held", "fresh"}[f] }

// The states of a Reading.
const (
	StateOK     = "ok"
	StateWedged = "wedged" // a call of the driver hangs, and the values age
	StateLost   = "lost"   // the driver no longer reaches the GPU
)

// GPU is one GPU as a source reported it. It is immutable.
type GPU struct {
	Reading
	Source     string
	MeasuredAt time.Time // time of the measurement, by this process's clock

	shadowed bool // another GPU of the source has the same index
}

// Ref returns SOURCE/INDEX, or the UUID of a GPU that shares its index: a MIG device, or a
// lost GPU after a restart of the driver.
func (g *GPU) Ref() string {
	if g.Parent != "" || g.shadowed {
		return g.UUID
	}
	return g.Source + "/" + strconv.Itoa(g.Index)
}

// Age returns the age of the values.
func (g *GPU) Age(now time.Time) time.Duration { return max(now.Sub(g.MeasuredAt), 0) }

// Freshness returns the age class of the values.
func (g *GPU) Freshness(now time.Time) Freshness { return FreshnessAtAge(now.Sub(g.MeasuredAt)) }

// FreshnessAtAge returns the age class of a reading of some age.
func FreshnessAtAge(age time.Duration) Freshness {
	switch {
	case age <= freshFor:
		return Fresh
	case age <= heldFor:
		return Held
	}
	return Dropped
}

// View is a view of one GPU. It is safe for concurrent use; a read costs two loads.
type View struct {
	Ref string
	gpu atomic.Pointer[GPU]
}

// Load returns the last report of the GPU, however old; nil: no source has ever reported it.
func (v *View) Load() *GPU { return v.gpu.Load() }

// Monitor polls the sources and keeps their last answers. It is safe for concurrent use.
type Monitor struct {
	log     *slog.Logger
	slots   chan struct{} // bounds the number of open requests
	changed chan struct{}
	began   time.Time

	mu    sync.Mutex
	feeds []*feed // in the order of the configuration
	views map[string]*View
}

// maxRequests bounds the number of open requests. Silent sources are polled less often, so
// that a dead half of a fleet leaves room for the rest.
const maxRequests = 256

// New returns a monitor without sources. It starts nothing.
func New(log *slog.Logger) *Monitor {
	return &Monitor{log: log, slots: make(chan struct{}, maxRequests), changed: make(chan struct{}, 1), began: time.Now(), views: map[string]*View{}}
}

// sources returns the feeds in the order of the configuration.
func (m *Monitor) sources() []*feed {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.feeds)
}

// Watch returns the view of a GPU by SOURCE/INDEX or UUID. No source needs to have reported it
// yet. Equal names share one view.
func (m *Monitor) Watch(ref string) *View {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.views[ref]
	if v == nil {
		v = &View{Ref: ref}
		m.views[ref] = v
		for _, f := range m.feeds {
			for _, g := range f.last.Load().gpus {
				m.update(v, g)
			}
		}
	}
	return v
}

// update stores a GPU in a view of it. Where two sources report the same UUID, the first wins
// while it is fresh. The caller holds the lock.
func (m *Monitor) update(v *View, g *GPU) {
	if v == nil || v.Ref != g.UUID && v.Ref != g.Ref() {
		return
	}
	old := v.gpu.Load()
	if old != nil && old.Source != g.Source && old.Freshness(time.Now()) == Fresh {
		return
	}
	if old != nil && old.UUID != g.UUID {
		m.log.Warn("an index names another GPU than before: name GPUs by UUID", "gpu", v.Ref, "was", old.UUID, "is", g.UUID)
	}
	v.gpu.Store(g)
}

// publish stores an answer of a source and updates the views.
func (m *Monitor) publish(f *feed, s *sample) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.feeds, f) {
		return // it was removed during the request
	}
	f.last.Store(s)
	if len(m.views) == 0 {
		return
	}
	for _, g := range s.gpus {
		m.update(m.views[g.UUID], g)
		if ref := g.Ref(); ref != g.UUID {
			m.update(m.views[ref], g)
		}
	}
}

// Replace replaces the sources, which must be valid. Unchanged sources go on; GPUs that only
// removed sources reported are forgotten.
func (m *Monitor) Replace(sources []Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var next []*feed
	for _, c := range sources {
		i := slices.IndexFunc(m.feeds, func(f *feed) bool { return reflect.DeepEqual(f.config, c) })
		if i >= 0 {
			next = append(next, m.feeds[i])
		} else {
			next = append(next, newFeed(c, m))
		}
	}
	m.feeds = next
	for _, v := range m.views {
		g := v.gpu.Load()
		if g != nil && !slices.ContainsFunc(next, func(f *feed) bool { return f.config.Name == g.Source && f.reports(g) }) {
			v.gpu.Store(nil)
		}
	}
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run polls the sources until ctx ends; then it returns nil.
func (m *Monitor) Run(ctx context.Context) error {
	var polling sync.WaitGroup
	defer polling.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := map[*feed]context.CancelFunc{}
	for {
		wanted := m.sources()
		for f, stop := range running {
			if !slices.Contains(wanted, f) {
				stop()
				delete(running, f)
			}
		}
		for _, f := range wanted {
			if running[f] == nil {
				ctx, stop := context.WithCancel(ctx)
				running[f] = stop
				polling.Go(func() { f.run(ctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.changed:
		}
	}
}

// SourceStatus is the state of a source.
type SourceStatus struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"` // agent | dcgm | local | replay
	Address  string `json:"address"`
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"`   // error of the last request
	Warning  string `json:"warning,omitempty"` // problem of the last answer
	Failures int    `json:"failures"`          // failed requests in a row
	HeardMs  *int64 `json:"heard_ms"`          // time since the last answer; null: there was none
	Node     string `json:"node,omitempty"`
	Driver   string `json:"driver,omitempty"`
	Restarts int    `json:"restarts"` // restarts of the agent that were noticed
	GPUs     int    `json:"gpus"`
}

// GPUStatus is the state of a GPU, with its current age.
type GPUStatus struct {
	GPU       string `json:"gpu"`
	Source    string `json:"source"`
	Freshness string `json:"freshness"`
	Reading
}

// Status returns all sources in the order of the configuration, and all GPUs of their last
// answers, by source and index.
func (m *Monitor) Status() ([]SourceStatus, []GPUStatus) {
	now := time.Now()
	sources, gpus := []SourceStatus{}, []GPUStatus{}
	for _, f := range m.sources() {
		sources = append(sources, f.status(now))
		for _, g := range f.last.Load().gpus {
			s := GPUStatus{GPU: g.Ref(), Source: g.Source, Freshness: g.Freshness(now).String(), Reading: g.Reading}
			s.AgeMs = g.Age(now).Milliseconds()
			gpus = append(gpus, s)
		}
	}
	return sources, gpus
}
