package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
	"tidegate/nvml"
)

// ModelConfig configures one model and its backends.
type ModelConfig struct {
	Name      string            `yaml:"name"`      // what callers ask for, and what answers say
	Aliases   []string          `yaml:"aliases"`   // other names by which callers may ask for it
	Reasoning string            `yaml:"reasoning"` // both | reasoning | reasoning_content
	Timeouts  exchange.Timeouts `yaml:"timeouts"`
	Probe     time.Duration     `yaml:"probe"`   // between two health probes
	Scrape    time.Duration     `yaml:"scrape"`  // between two readings of a server's /metrics
	Weights   limit.Weights     `yaml:"weights"` // of its tokens in quota units
	Prices    []Price           `yaml:"prices"`  // of its tokens, in the order of their days; reports show the cost
	Pace      int               `yaml:"pace"`    // tokens per second of one choice that a server is believed to make until an answer has shown its speed
	Backends  []Config          `yaml:"backends"`

	Fallback   string     `yaml:"fallback"`   // the smaller model, where L3 goes; empty: L3 is no less than L2
	AutoTools  bool       `yaml:"auto_tools"` // its servers run with --enable-auto-tool-choice
	Objectives Objectives `yaml:"objectives"`
	Retry      Retry      `yaml:"retry"`
	Breaker    Breaker    `yaml:"breaker"`
}

// Objectives holds the promises of a model to its callers.
type Objectives struct {
	TTFT time.Duration `yaml:"ttft_p90"` // to the first token of nine requests in ten; 0: nothing
}

// Retry configures the retries of requests whose caller has seen nothing of an answer.
type Retry struct {
	Attempts int     `yaml:"attempts"` // at most, the first one included
	Budget   float64 `yaml:"budget"`   // retries, as a share of all requests
}

// Breaker configures when failed requests take a backend out of rotation.
type Breaker struct {
	Failures int           `yaml:"failures"` // in a row
	Open     time.Duration `yaml:"open"`     // until it is tried again
	Stall    time.Duration `yaml:"stall"`    // how long nothing may come of three requests, and the engine's metrics stand still, before the backend is taken to hang, while another one of its model works; 0: it is never
}

// DefaultModel returns the defaults of a model.
func DefaultModel() ModelConfig {
	return ModelConfig{
		Reasoning: "both",
		Timeouts:  exchange.Timeouts{Connect: 3 * time.Second, FirstToken: 30 * time.Second, FirstByte: 30 * time.Second, Idle: 20 * time.Second, Total: 10 * time.Minute},
		Probe:     2 * time.Second,
		Scrape:    250 * time.Millisecond,
		Weights:   limit.DefaultWeights(),
		Pace:      DefaultPace,

		AutoTools:  true,
		Objectives: Objectives{TTFT: 2 * time.Second},
		Retry:      Retry{Attempts: 2, Budget: 0.1},
		Breaker:    Breaker{Failures: 5, Open: 30 * time.Second, Stall: 8 * time.Second},
	}
}

// UnmarshalYAML decodes a model over the defaults.
func (m *ModelConfig) UnmarshalYAML(decode func(any) error) error {
	type plain ModelConfig
	p := plain(DefaultModel())
	if err := decode(&p); err != nil {
		return err
	}
	*m = ModelConfig(p)
	return nil
}

// Validate returns all faults, each beginning with its path.
func (m *ModelConfig) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for i, name := range append([]string{m.Name}, m.Aliases...) {
		path := "name"
		if i > 0 {
			path = fmt.Sprintf("aliases[%d]", i-1)
		}
		if !printable(name) {
			fault("%s: must be 1 to 200 printable ASCII characters without spaces or quotes, not %q", path, name)
		}
	}
	if m.Name == "other" {
		fault("name: other stands for all unknown models in metrics; expected another name")
	}
	if _, ok := reasoningNames(m.Reasoning); !ok {
		fault("reasoning: must be both, reasoning or reasoning_content, not %q", m.Reasoning)
	}
	for _, t := range []struct {
		path string
		d    time.Duration
	}{
		{"timeouts.connect", m.Timeouts.Connect}, {"timeouts.first_token", m.Timeouts.FirstToken}, {"timeouts.first_byte", m.Timeouts.FirstByte},
		{"timeouts.idle", m.Timeouts.Idle}, {"timeouts.total", m.Timeouts.Total}, {"probe", m.Probe},
	} {
		if t.d < time.Millisecond {
			fault("%s: must be at least 1ms, such as 3s", t.path)
		}
	}
	if m.Scrape < 50*time.Millisecond || m.Scrape > 2*time.Second {
		fault("scrape: must be from 50ms to 2s, such as 250ms: each costs the server a few milliseconds, and none counts in full for longer than 3s")
	}
	if err := m.Weights.Validate(); err != nil {
		fault("weights.%w", err)
	}
	if err := ValidatePrices(m.Prices); err != nil {
		faults = append(faults, err)
	}
	if m.Pace < 1 || m.Pace > maxPace {
		fault("pace: must be from 1 to %d tokens per second, such as %d", maxPace, DefaultPace)
	}
	if m.Objectives.TTFT < 0 {
		fault("objectives.ttft_p90: must not be negative, such as 2s; 0s: none")
	}
	if m.Retry.Attempts < 1 || m.Retry.Attempts > 5 {
		fault("retry.attempts: must be from 1 to 5")
	}
	if !(m.Retry.Budget >= 0 && m.Retry.Budget <= 1) {
		fault("retry.budget: must be from 0 to 1, such as 0.1 for one retry to ten requests")
	}
	if m.Breaker.Failures < 1 || m.Breaker.Failures > 1000 {
		fault("breaker.failures: must be from 1 to 1000")
	}
	if m.Breaker.Open < time.Second {
		fault("breaker.open: must be at least 1s, such as 30s")
	}
	if m.Breaker.Stall != 0 && m.Breaker.Stall < minStall {
		fault("breaker.stall: must be at least %v, such as 8s; 0s: a backend that answers its health probe is never taken to hang", minStall)
	}
	if len(m.Backends) == 0 {
		fault("backends: is empty; expected at least one {url: http://host:port}")
	}
	seen := map[string]int{}
	for i := range m.Backends {
		if err := m.Backends[i].Validate(); err != nil {
			fault("backends[%d].%w", i, err)
		}
		name := m.Backends[i].name()
		if j, twice := seen[name]; twice {
			fault("backends[%d].url: is that of backends[%d]", i, j)
		}
		seen[name] = i
	}
	return errors.Join(faults...)
}

// minStall is the shortest silence that may count as a hang.
const minStall = 100 * time.Millisecond

// maxPace is the highest configurable pace, in tokens per second.
const maxPace = 10_000

func printable(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return len(name) > 0 && len(name) <= maxName
}

func reasoningNames(setting string) (n openai.Names, ok bool) {
	switch setting {
	case "both":
		return openai.BothNames, true
	case "reasoning":
		return openai.OnlyReasoning, true
	case "reasoning_content":
		return openai.OnlyReasoningContent, true
	}
	return 0, false
}

// Model is a model that callers may ask for. It is immutable; the state of its backends
// is not.
type Model struct {
	Name      string
	Aliases   []string
	Reasoning openai.Names
	Timeouts  exchange.Timeouts
	Weights   limit.Weights
	Backends  []*Backend
	Pool      *admission.Pool
	Level     *degrade.Model // state in the ladder
	Fallback  *Model         // the smaller model; nil if there is none
	AutoTools bool
	Objective time.Duration // objective of the time to the first token; 0 if there is none
	Attempts  int
	Retries   *RetryBudget
}

// BackendOf returns the backend of a seat; nil if the model has none.
func (m *Model) BackendOf(seat *admission.Seat) *Backend {
	for _, b := range m.Backends {
		if b.Seat == seat {
			return b
		}
	}
	return nil
}

// Context returns the most tokens that a prompt and its answer may have together: the
// lowest context of the backends in rotation, since any may be picked. 0 if it is
// unknown.
func (m *Model) Context() int {
	lowest := 0
	for _, b := range m.Backends {
		if n := b.Facts().MaxModelLen; n > 0 && (lowest == 0 || n < lowest) && b.Seat.InRotation() {
			lowest = n
		}
	}
	return lowest
}

// NoThinking reports whether a backend in rotation switches thinking off by default,
// which makes a prompt longer. If the backends differ, the longer prompt is reserved.
func (m *Model) NoThinking() bool {
	for _, b := range m.Backends {
		if b.Facts().NoThinking && b.Seat.InRotation() {
			return true
		}
	}
	return false
}

// HasStructuredOutputs reports whether all backends in rotation support
// structured_outputs, which older ones ignore.
func (m *Model) HasStructuredOutputs() bool {
	for _, b := range m.Backends {
		if f := b.Facts(); b.Seat.InRotation() && f.Capabilities.Known && !f.Capabilities.StructuredOutputs {
			return false
		}
	}
	return true
}

// models is one state of the configuration.
type models struct {
	list    []*Model
	byName  map[string]*Model
	probers map[*Backend]prober
}

// Fleet holds all models and backends. It is safe for concurrent use.
type Fleet struct {
	log      *slog.Logger
	agent    string // User-Agent of the requests
	gpus     *nvml.Monitor
	ladder   *degrade.Ladder
	client   *http.Client
	now      atomic.Pointer[models]
	apply    sync.Mutex // held while the models or onChange change
	onChange func([]*Model)
	changed  chan struct{}
}

// NewFleet returns a fleet without models. agent is the User-Agent of its requests, gpus
// monitors the GPUs that backends name, and ladder watches their pressure.
func NewFleet(log *slog.Logger, agent string, gpus *nvml.Monitor, ladder *degrade.Ladder) *Fleet {
	f := &Fleet{log: log, agent: agent, gpus: gpus, ladder: ladder, changed: make(chan struct{}, 1), client: ProbeClient()}
	f.now.Store(&models{})
	return f
}

// ProbeClient returns the client of the probes. Its connections end before vLLM closes
// them, and the head of an answer is bounded. It follows no redirect: a backend must not
// choose other hosts for the gateway to ask.
func ProbeClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{IdleConnTimeout: exchange.IdleLife, DisableCompression: true, MaxResponseHeaderBytes: exchange.MaxHead},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Model returns a model by its name or an alias.
func (f *Fleet) Model(name string) (*Model, bool) {
	m, ok := f.now.Load().byName[name]
	return m, ok
}

// Models returns all models, in the order of the configuration.
func (f *Fleet) Models() []*Model { return f.now.Load().list }

// Names returns the names of all models, aliases included.
func (f *Fleet) Names() []string {
	var names []string
	for _, m := range f.Models() {
		names = append(append(names, m.Name), m.Aliases...)
	}
	return names
}

// Notify calls onChange with the models, now and after each change, before Apply
// returns.
func (f *Fleet) Notify(onChange func([]*Model)) {
	f.apply.Lock()
	defer f.apply.Unlock()
	f.onChange = onChange
	onChange(f.Models())
}

// Ready reports whether some backend of some model is in rotation.
func (f *Fleet) Ready() bool {
	for _, m := range f.Models() {
		if m.Pool.Available() {
			return true
		}
	}
	return false
}

// Run probes every backend, each on a goroutine of its own so that a slow one
// delays no other, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	var probing sync.WaitGroup
	defer f.client.CloseIdleConnections()
	defer probing.Wait()
	type running struct {
		prober
		stop context.CancelFunc
	}
	now := map[*Backend]running{}
	defer func() {
		for b, r := range now {
			r.stop()
			b.Close()
		}
	}()
	for {
		wanted := f.now.Load().probers
		for b, r := range now {
			p, ok := wanted[b]
			if ok && p.every == r.every && p.scrape == r.scrape && slices.Equal(p.names, r.names) {
				continue
			}
			r.stop()
			delete(now, b)
			if !ok {
				b.takeOut(removed)
				b.Close()
			}
		}
		for b, p := range wanted {
			if _, ok := now[b]; !ok {
				ctx, stop := context.WithCancel(ctx)
				now[b] = running{p, stop}
				probing.Go(func() { p.run(ctx) })
				probing.Go(func() { newScraper(&p).run(ctx) })
				probing.Go(func() { newWatcher(&p).run(ctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed:
		}
	}
}
