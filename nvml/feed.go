package nvml

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what one source may say.
const (
	maxGPUs    = 1024
	maxText    = 128 // bytes of a name or UUID
	maxReasons = 32
)

// sample is what a source said last. It is immutable.
type sample struct {
	gpus         []*GPU
	node, driver string
	warning      string
}

// source is where readings come from. Only one goroutine asks it.
type source interface {
	// read asks once, until a moment at most; ctx is as long as the source is asked
	// at all. Beside an error it may return what could be read all the same.
	read(ctx context.Context, until time.Time) (*sample, error)
	// close gives back what reading holds; it may be read again.
	close()
}

// feed asks one source again and again.
type feed struct {
	config  Config
	monitor *Monitor
	source  source
	limit   time.Duration // for one answer
	child   *child        // nil: the source runs elsewhere
	last    atomic.Pointer[sample]
	told    map[string]bool // warnings that the log has; of the goroutine that asks
	dropped map[string]bool // by UUID, GPUs of which the log has that they say nothing; likewise

	mu       sync.Mutex
	failures int // in a row
	failed   string
	heard    time.Time // zero: never
	restarts int
}

const (
	agentLimit = 500 * time.Millisecond
	dcgmLimit  = 2 * time.Second // an exporter collects while it answers
	seldom     = 5               // a source that is long silent is asked so many times less often
)

func newFeed(c Config, m *Monitor) *feed {
	f := &feed{config: c, monitor: m, limit: agentLimit, told: map[string]bool{}, dropped: map[string]bool{}}
	f.last.Store(&sample{})
	switch c.kind() {
	case "agent":
		f.source = newAgent(&f.config, c.Agent, f.restarted)
	case "dcgm":
		f.source, f.limit = newDCGM(&f.config), dcgmLimit
	case "local":
		f.child = &child{command: c.command(), log: m.log.With("source", c.Name)}
		f.source = &local{child: f.child, config: &f.config, restarted: f.restarted}
	default:
		f.source = &replay{file: c.Replay}
	}
	return f
}

// run asks until ctx ends. Questions of many sources are spread over the time
// between two, and no question waits for another source's answer.
func (f *feed) run(ctx context.Context) {
	defer f.source.close()
	if f.child != nil {
		var running sync.WaitGroup
		defer running.Wait()
		running.Go(func() { f.child.run(ctx) })
	}
	timer := time.NewTimer(f.monitor.onGrid(time.Duration(rand.Int64N(int64(f.config.Every)))))
	defer timer.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		select {
		case <-ctx.Done():
			return
		case f.monitor.slots <- struct{}{}:
		}
		asked := time.Now()
		f.ask(ctx)
		<-f.monitor.slots
		pause := f.config.Every
		if f.silent(began) > heldFor {
			pause *= seldom
		}
		// 0.9 to 1.1 times that, from one question to the next
		pause += time.Duration(rand.Int64N(int64(pause)/5)) - pause/10
		timer.Reset(f.monitor.onGrid(max(pause-time.Since(asked), pause/10)))
	}
}

// grid is the time between two moments at which sources are asked: hundreds of them
// wake this process ten times a second, not hundreds of times.
const grid = 100 * time.Millisecond

// onGrid lengthens a pause to the next moment at which sources are asked.
func (m *Monitor) onGrid(pause time.Duration) time.Duration {
	at := time.Since(m.began) + pause
	return pause + (grid - at%grid)
}

// silent is for how long the source has said nothing.
func (f *feed) silent(began time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.heard.After(began) {
		began = f.heard
	}
	return time.Since(began)
}

// ask asks once and publishes the answer.
func (f *feed) ask(ctx context.Context) {
	s, err := f.source.read(ctx, time.Now().Add(f.limit))
	if ctx.Err() != nil {
		return
	}
	before := f.last.Load()
	if s != nil {
		var doubts string
		if s.gpus, doubts = clean(s.gpus, f.config.Name); doubts != "" {
			s.warning = join(doubts, s.warning)
		}
		f.monitor.publish(f, s)
	}
	if was, now := f.note(s != nil && err == nil, err); was != now {
		if now == "" {
			f.monitor.log.Info("GPU readings come", "source", f.config.Name, "gpus", len(s.gpus))
		} else {
			f.monitor.log.Warn("no GPU readings", "source", f.config.Name, "reason", now)
		}
	}
	if s != nil && err == nil {
		f.report(before, s, time.Now())
	}
}

// maxTold bounds how many different warnings of one source are logged.
const maxTold = 32

// report logs once what is wrong with an answer that came: its warning, and each GPU
// that has begun to say nothing, because its values are too old or because the
// source has it no more.
func (f *feed) report(before, s *sample, now time.Time) {
	log := f.monitor.log.With("source", f.config.Name)
	if s.warning != "" && !f.told[s.warning] && len(f.told) < maxTold {
		f.told[s.warning] = true
		log.Warn("GPU readings are not as they should be", "reason", s.warning)
	}
	has := make(map[string]bool, len(s.gpus))
	for _, g := range s.gpus {
		has[g.UUID] = true
		switch age := g.Age(now); {
		case g.State == StateOK && AtAge(age) == Dropped:
			if !f.dropped[g.UUID] {
				f.dropped[g.UUID] = true
				log.Warn("the readings of a GPU are dropped: the source repeats old values", "gpu", g.Ref(), "uuid", g.UUID, "age", age.Round(time.Second))
			}
		case f.dropped[g.UUID]:
			delete(f.dropped, g.UUID)
			log.Info("the readings of a GPU count again", "gpu", g.Ref(), "uuid", g.UUID)
		}
	}
	for _, g := range before.gpus {
		if !has[g.UUID] && !f.dropped[g.UUID] {
			if len(f.dropped) >= maxGPUs {
				clear(f.dropped) // a source that makes up GPUs
			}
			f.dropped[g.UUID] = true
			log.Warn("the readings of a GPU are dropped: the source has it no more", "gpu", g.Ref(), "uuid", g.UUID)
		}
	}
}

// join puts two warnings into one; either may be empty.
func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// note remembers how a question ended, and tells what was wrong before and is now.
func (f *feed) note(heard bool, err error) (was, now string) {
	if err != nil {
		now = err.Error()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	was, f.failed = f.failed, now
	f.failures++
	if heard {
		if f.heard.IsZero() {
			was = "it was not asked before" // so that the first answer is said
		}
		f.failures, f.heard = 0, time.Now()
	}
	return was, now
}

func (f *feed) restarted() {
	f.mu.Lock()
	f.restarts++
	f.mu.Unlock()
	f.monitor.log.Info("the GPU agent has restarted", "source", f.config.Name)
}

// has reports whether g is of what the source said last, or of before.
func (f *feed) has(g *GPU) bool {
	return slices.ContainsFunc(f.last.Load().gpus, func(o *GPU) bool { return o.UUID == g.UUID })
}

func (f *feed) status(now time.Time) SourceStatus {
	s := f.last.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	out := SourceStatus{
		Name: f.config.Name, Kind: f.config.kind(), Address: f.config.address(), OK: f.failed == "" && !f.heard.IsZero(), Error: f.failed,
		Warning: s.warning, Failures: f.failures, Node: s.node, Driver: s.driver, Restarts: f.restarts, GPUs: len(s.gpus),
	}
	if out.OK {
		out.Warning = join(tooOld(s.gpus, now), s.warning)
	}
	if out.Error == "" && f.heard.IsZero() {
		out.Error = "not asked yet"
	}
	if !f.heard.IsZero() {
		ms := now.Sub(f.heard).Milliseconds()
		out.HeardMs = &ms
	}
	return out
}

// ago is the moment that lay age_ms before now. An age beyond a day, or below
// nothing, is nonsense and as good as very old.
func ago(now time.Time, ms int64) time.Time {
	const day = 24 * time.Hour
	if ms < 0 || ms > day.Milliseconds() {
		return now.Add(-day)
	}
	return now.Add(-time.Duration(ms) * time.Millisecond)
}

// statusError says what a wrong status of an answer means.
func statusError(status int) error {
	if status == 401 || status == 403 {
		return fmt.Errorf("status %d: the token is wrong or missing: see token_env", status)
	}
	return fmt.Errorf("status %d", status)
}
