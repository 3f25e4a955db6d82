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

// Ages of a reading.
const (
	freshFor = 3 * time.Second // up to here it counts in full
	heldFor  = DroppedAfter    // and up to here nothing may be relaxed on its account
)

// DroppedAfter is the age from which on a reading is not used.
const DroppedAfter = 10 * time.Second

// Freshness says what a reading may still be used for.
type Freshness int

// The three of them, worst first.
const (
	Dropped Freshness = iota // too old for any decision
	Held                     // what was decided on it stays
	Fresh
)

// String is the freshness in one word.
func (f Freshness) String() string { return [...]string{"dropped", "held", "fresh"}[f] }

// The states of a Reading.
const (
	StateOK     = "ok"
	StateWedged = "wedged" // a call of the driver hangs; the values grow old
	StateLost   = "lost"   // the driver does not reach the GPU any more
)

// GPU is one GPU as a source reported it. It is immutable.
type GPU struct {
	Reading
	Source string
	At     time.Time // when the values were measured, by this process's clock

	shadowed bool // another GPU of the source has its index
}

// Ref is SOURCE/INDEX; of a GPU whose index is not its own, as that of a MIG device
// or of a lost GPU after a restart of the driver, the UUID.
func (g *GPU) Ref() string {
	if g.Parent != "" || g.shadowed {
		return g.UUID
	}
	return g.Source + "/" + strconv.Itoa(g.Index)
}

// Age is how old the values are.
func (g *GPU) Age(now time.Time) time.Duration { return max(now.Sub(g.At), 0) }

// Freshness says what the values may be used for.
func (g *GPU) Freshness(now time.Time) Freshness { return AtAge(now.Sub(g.At)) }

// AtAge is the freshness of a reading of some age.
func AtAge(age time.Duration) Freshness {
	switch {
	case age <= freshFor:
		return Fresh
	case age <= heldFor:
		return Held
	}
	return Dropped
}

// View is a window on one GPU. It is safe for concurrent use and costs a reader
// two loads.
type View struct {
	Ref string
	gpu atomic.Pointer[GPU]
}

// Load is the GPU as it was last reported, however long ago; nil: no source has
// ever reported it.
func (v *View) Load() *GPU { return v.gpu.Load() }

// Monitor keeps what the sources say. It is safe for concurrent use.
type Monitor struct {
	log     *slog.Logger
	slots   chan struct{} // bounds how many questions are open
	changed chan struct{}
	began   time.Time

	mu    sync.Mutex
	feeds []*feed // in the order of the configuration
	views map[string]*View
}

// maxOpen bounds how many questions are open at a time. Sources that do not answer
// are asked less often, so that a dead half of a fleet leaves room for the rest.
const maxOpen = 256

// New makes a monitor without sources. It starts nothing.
func New(log *slog.Logger) *Monitor {
	return &Monitor{log: log, slots: make(chan struct{}, maxOpen), changed: make(chan struct{}, 1), began: time.Now(), views: map[string]*View{}}
}

// running are the feeds in the order of the configuration.
func (m *Monitor) running() []*feed {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.feeds)
}

// Watch returns the window on a GPU named SOURCE/INDEX or by its UUID, which need
// not be there yet. Equal names have the same window.
func (m *Monitor) Watch(ref string) *View {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.views[ref]
	if v == nil {
		v = &View{Ref: ref}
		m.views[ref] = v
		for _, f := range m.feeds {
			for _, g := range f.last.Load().gpus {
				m.show(v, g)
			}
		}
	}
	return v
}

// show lets a window have a GPU if it is the one that it is on. Where two sources
// report the same UUID the first stays while it is fresh. The lock is held.
func (m *Monitor) show(v *View, g *GPU) {
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

// publish shows what a source has said.
func (m *Monitor) publish(f *feed, s *sample) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.feeds, f) {
		return // it was removed while it was asking
	}
	f.last.Store(s)
	if len(m.views) == 0 {
		return
	}
	for _, g := range s.gpus {
		m.show(m.views[g.UUID], g)
		if ref := g.Ref(); ref != g.UUID {
			m.show(m.views[ref], g)
		}
	}
}

// Replace changes the sources, which must be valid. Those that are as before go on;
// what only removed ones reported is forgotten.
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
		if g != nil && !slices.ContainsFunc(next, func(f *feed) bool { return f.config.Name == g.Source && f.has(g) }) {
			v.gpu.Store(nil)
		}
	}
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run asks the sources until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := map[*feed]context.CancelFunc{}
	for {
		wanted := m.running()
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
				asking.Go(func() { f.run(ctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.changed:
		}
	}
}

// SourceStatus is how a source is doing.
type SourceStatus struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"` // agent | dcgm | local | replay
	Address  string `json:"address"`
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"`   // of the last question
	Warning  string `json:"warning,omitempty"` // it answers, but
	Failures int    `json:"failures"`          // in a row
	HeardMs  *int64 `json:"heard_ms"`          // since its last answer; null: never
	Node     string `json:"node,omitempty"`
	Driver   string `json:"driver,omitempty"`
	Restarts int    `json:"restarts"` // of the agent, seen from here
	GPUs     int    `json:"gpus"`
}

// GPUStatus is a GPU for people; its age is as of now.
type GPUStatus struct {
	GPU       string `json:"gpu"`
	Source    string `json:"source"`
	Freshness string `json:"freshness"`
	Reading
}

// Status tells all sources in the order of the configuration, and all GPUs that
// they have reported, by source and index.
func (m *Monitor) Status() ([]SourceStatus, []GPUStatus) {
	now := time.Now()
	sources, gpus := []SourceStatus{}, []GPUStatus{}
	for _, f := range m.running() {
		sources = append(sources, f.status(now))
		for _, g := range f.last.Load().gpus {
			s := GPUStatus{GPU: g.Ref(), Source: g.Source, Freshness: g.Freshness(now).String(), Reading: g.Reading}
			s.AgeMs = g.Age(now).Milliseconds()
			gpus = append(gpus, s)
		}
	}
	return sources, gpus
}
