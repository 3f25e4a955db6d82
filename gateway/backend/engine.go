package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"tidegate/nvml"
	"tidegate/nvml/promtext"
)

// Engine is one reading of a vLLM server's load, over all its data-parallel engines. It
// is immutable. Unknown counts are negative.
type Engine struct {
	Time         time.Time // time of the reading
	Engines      int       // number of engines
	Running      int       // running requests of all engines
	Waiting      int       // waiting requests of all engines
	KV           float64   // share of the fullest engine's KV cache that is used, 0 to 1
	KVTokens     int       // size of the KV caches of all engines, in tokens
	Preemptions  int       // preemptions since the server started
	Preempted    int       // preemptions in the last 5 s
	PromptTokens int       // prompt tokens since the server started
	OutputTokens int       // output tokens since the server started
	Speed        float64   // output tokens per second of all requests, over the last 5 s
	Sleep        string    // awake | weights_offloaded | discard_all | asleep; empty if unknown

	// Time of the last restart that was seen; zero before the first.
	Started time.Time
	process float64 // start of the server's process by its own clock, in Unix seconds; 0 if unknown
}

// restartGap is the least difference between the start times of two processes, in
// seconds.
const restartGap = 1

// inherit copies the start time from the reading before, or sets it to now after a
// restart. If two servers share one address, the younger one counts.
func (e *Engine) inherit(old *Engine, now time.Time) {
	e.Started = old.Started
	if e.process > 0 {
		if old.process > 0 && e.process >= old.process+restartGap {
			e.Started = now
		}
		e.process = max(e.process, old.process)
	}
}

// updateEngine replaces the reading by the one that next makes of it, and returns the
// old one. The scraper and the prober both call it, so next may run more than once.
func (b *Backend) updateEngine(next func(old *Engine) *Engine) (old *Engine) {
	for {
		loaded := b.engine.Load()
		if old = loaded; old == nil {
			old = &Engine{}
		}
		if b.engine.CompareAndSwap(loaded, next(old)) {
			return old
		}
	}
}

// setRestarted records a restart after an outage that is long enough for one. A process
// start time from the engine itself is better, since only the network may have been
// down.
func (b *Backend) setRestarted(now time.Time) {
	b.updateEngine(func(old *Engine) *Engine {
		e := *old
		if e.process == 0 {
			e.Started = now
		}
		return &e
	})
}

// Age returns the age of the reading.
func (e *Engine) Age(now time.Time) time.Duration { return max(now.Sub(e.Time), 0) }

// Freshness returns the uses that the age of the reading allows.
func (e *Engine) Freshness(now time.Time) nvml.Freshness { return nvml.FreshnessAtAge(now.Sub(e.Time)) }

// Asleep reports whether an engine has given up its weights or its cache.
func (e *Engine) Asleep() bool { return e.Sleep != "" && e.Sleep != awake }

const awake = "awake"

// Engine returns the last reading of the load, however old; nil before the first one.
func (b *Backend) Engine() *Engine {
	if e := b.engine.Load(); e != nil && !e.Time.IsZero() {
		return e
	}
	return nil
}

// LoadError returns the error of the last attempt to read the load; empty after a
// success.
func (b *Backend) LoadError() string {
	if p := b.loadError.Load(); p != nil {
		return *p
	}
	return ""
}

// sleepReason returns the reason for being out of rotation if the engine sleeps, else
// "". The last reading holds until the backend was down after it, since a restart wakes
// the engine.
func (b *Backend) sleepReason(lastDown time.Time) string {
	if e := b.Engine(); e != nil && e.Asleep() && e.Time.After(lastDown) {
		return "the engine is asleep (" + e.Sleep + ")"
	}
	return ""
}

// maxMetrics bounds a page of metrics, in bytes. The page of one engine has some 60 KB.
const maxMetrics = 4 << 20

var errNoEngine = errors.New("GET /metrics: no vllm: metrics: was the server started with --disable-log-stats?")

// read parses a page of vLLM's /metrics, with the names of both generations.
func (e *Engine) read(page io.Reader, scan *promtext.Scanner) error {
	*e = Engine{Running: -1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}
	scan.Reset(page, "", maxMetrics)
	for scan.Next() {
		switch string(scan.Name()) {
		case "vllm:num_requests_running":
			if add(&e.Running, scan) {
				e.Engines++
			}
		case "vllm:num_requests_waiting":
			add(&e.Waiting, scan)
		case "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc":
			if v, ok := scan.Value(); ok && v >= 0 {
				e.KV = max(e.KV, min(v, 1))
			}
		case "vllm:num_preemptions_total":
			add(&e.Preemptions, scan)
		case "vllm:prompt_tokens_total":
			add(&e.PromptTokens, scan)
		case "vllm:generation_tokens_total":
			add(&e.OutputTokens, scan)
		case "vllm:engine_sleep_state":
			e.sleep(scan)
		case "process_start_time_seconds":
			if v, ok := scan.Value(); ok && v > 0 && v < maxCount {
				e.process = v
			}
		case "vllm:cache_config_info":
			if n := tokens(scan); n > 0 {
				e.KVTokens = max(e.KVTokens, 0) + n
			}
		}
	}
	if err := scan.Err(); err != nil {
		return err
	}
	if e.Engines == 0 {
		return errNoEngine
	}
	return nil
}

// maxCount bounds a count, so that no sum overflows.
const maxCount = 1 << 50

// add adds a sample to the sum of all engines.
func add(sum *int, scan *promtext.Scanner) bool {
	v, ok := scan.Value()
	if !ok || v < 0 || v > maxCount {
		return false
	}
	*sum = min(max(*sum, 0)+int(v), maxCount)
	return true
}

// sleep adds one sleep state of one engine. One sleeping engine is enough.
func (e *Engine) sleep(scan *promtext.Scanner) {
	v, ok := scan.Value()
	if !ok {
		return
	}
	inState := v > 0
	switch string(scan.Label("sleep_state")) {
	case "awake":
		switch {
		case !inState && !e.Asleep():
			e.Sleep = "asleep"
		case inState && e.Sleep == "":
			e.Sleep = awake
		}
	case "weights_offloaded":
		if inState {
			e.Sleep = "weights_offloaded"
		}
	case "discard_all":
		if inState {
			e.Sleep = "discard_all"
		}
	}
}

// tokens returns the size of one engine's KV cache in tokens; 0 if it is unknown. vLLM
// writes the numbers as text, and None for missing ones.
func tokens(scan *promtext.Scanner) int {
	if n := number(scan, "kv_cache_size_tokens"); n > 0 {
		return n
	}
	return number(scan, "num_gpu_blocks") * number(scan, "block_size")
}

func number(scan *promtext.Scanner, label string) int {
	text := scan.Label(label)
	if len(text) > 9 {
		return 0
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0 // None, for one
		}
		n = 10*n + int(c-'0')
	}
	return n
}

// preemptedWindow is the time over which preemptions and tokens are counted.
const preemptedWindow = 5 * time.Second

// counterReading is the value of a counter at one moment.
type counterReading struct {
	time time.Time
	n    int
}

// scraper reads one backend's load, one page after another. A late page delays only the
// next one of the same backend.
type scraper struct {
	b           *Backend
	get         func(ctx context.Context) (*http.Response, error)
	log         *slog.Logger
	every       time.Duration
	slow        time.Duration // interval while scrapes fail
	scan        promtext.Scanner
	preemptions []counterReading // readings of the preemptions
	output      []counterReading // readings of the output tokens
}

func newScraper(p *prober) *scraper {
	return &scraper{b: p.b, log: p.log, every: p.scrape, slow: max(p.every, p.scrape), get: func(ctx context.Context) (*http.Response, error) {
		return p.get(ctx, "/metrics")
	}}
}

// run scrapes until ctx ends. The jitter spreads the scrapes of gateways that started
// together.
func (s *scraper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began, pause := time.Now(), s.every
		err := s.scrape(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.setLoadError(err); err != nil {
			pause = s.slow
		}
		timer.Reset(nvml.NextPoll(pause, began))
	}
}

// scrape reads one page.
func (s *scraper) scrape(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	resp, err := s.get(ctx)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	e := new(Engine)
	now := time.Now()
	if err := e.read(resp.Body, &s.scan); err != nil {
		if errors.Is(err, errNoEngine) {
			if e.process > 0 { // --disable-log-stats leaves that
				s.b.updateEngine(func(old *Engine) *Engine {
					next := *old
					next.process = e.process
					next.inherit(old, now)
					return &next
				})
			}
			return err
		}
		return fmt.Errorf("GET /metrics: %w", cause(err))
	}
	e.Time, e.Preempted = now, s.preempted(now, e.Preemptions)
	e.Speed = s.speed(now, e.OutputTokens)
	previous := s.b.updateEngine(func(old *Engine) *Engine {
		e := *e
		e.inherit(old, now)
		return &e
	})
	if !previous.Time.IsZero() && e.differs(previous) {
		s.b.progress.sign(now)
	}
	if e.Waiting > 0 || e.Preempted > 0 {
		s.b.queuedAt.Store(&now)
	}
	if load, known := e.load(); known {
		s.b.Seat.SetLoad(load)
	}
	if e.Asleep() != previous.Asleep() {
		s.b.probeNow()
	}
	return nil
}

// preempted returns the number of preemptions in the window that ends at now.
func (s *scraper) preempted(now time.Time, n int) int {
	count, _ := inWindow(&s.preemptions, now, n)
	return count
}

// speed returns the output tokens per second in the window that ends at now; negative if
// it is unknown.
func (s *scraper) speed(now time.Time, generated int) float64 {
	n, elapsed := inWindow(&s.output, now, generated)
	if generated < 0 || elapsed <= 0 {
		return -1
	}
	return float64(n) / elapsed.Seconds()
}

// inWindow adds a reading of a counter to the window that ends at now. It returns the
// rise of the counter in the window and the time between the first and the last reading.
// It starts anew after a restart, and after a time in which the counter was unknown. The
// readings are oldest first; the first is the last one before the window.
func inWindow(readings *[]counterReading, now time.Time, n int) (rise int, elapsed time.Duration) {
	past := *readings
	if len(past) > 0 {
		last := past[len(past)-1]
		if n < last.n || last.n < 0 || now.Sub(last.time) > preemptedWindow {
			past = past[:0]
		}
	}
	past = append(past, counterReading{now, n})
	old := 0
	for old+1 < len(past) && now.Sub(past[old+1].time) >= preemptedWindow {
		old++
	}
	past = past[:copy(past, past[old:])]
	*readings = past
	return n - past[0].n, now.Sub(past[0].time)
}

// differs reports whether any figure differs from the reading before. The figures of an
// idle engine do not change.
func (e *Engine) differs(old *Engine) bool {
	return e.Running != old.Running || e.Waiting != old.Waiting || e.KV != old.KV || e.Preemptions != old.Preemptions ||
		e.PromptTokens != old.PromptTokens || e.OutputTokens != old.OutputTokens
}

// setLoadError stores the error of a scrape and logs a change.
func (s *scraper) setLoadError(err error) {
	old, now := s.b.LoadError(), ""
	if err != nil {
		now = err.Error()
	}
	if old == now {
		return
	}
	s.b.loadError.Store(&now)
	switch {
	case now == "":
		s.log.Info("backend tells its load", "backend", s.b.Name)
	case s.b.Seat.InRotation():
		s.log.Warn("the load of a backend is not known", "backend", s.b.Name, "reason", now)
	}
}
