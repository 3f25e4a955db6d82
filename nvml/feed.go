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

// Bounds of one source's answer.
const (
	maxGPUs    = 1024
	maxText    = 128 // bytes of a name or UUID
	maxReasons = 32
)

// sample is one answer of a source. It is immutable.
type sample struct {
	gpus         []*GPU
	node, driver string
	warning      string
}

// source is an origin of readings. Only one goroutine uses it.
type source interface {
	// read requests the readings once, until the deadline at most; ctx lasts as long as the
	// source is in use. Beside an error it may return the readings that it got.
	read(ctx context.Context, deadline time.Time) (*sample, error)
	// close releases the connection; the source may be read again.
	close()
}

// feed polls one source.
type feed struct {
	config  Config
	monitor *Monitor
	source  source
	limit   time.Duration // time limit of one answer
	child   *child        // nil: the source runs elsewhere
	last    atomic.Pointer[sample]
	logged  map[string]bool // warnings in the log; used by the polling goroutine alone
	dropped map[string]bool // GPUs that the log has as dropped, by UUID; used by the polling goroutine alone

	mu         sync.Mutex
	failures   int       // failed requests in a row
	failed     string    // error of the last request; empty: there was none
	answeredAt time.Time // time of the last answer; zero: there was none
	restarts   int
}

const (
	agentLimit   = 500 * time.Millisecond
	dcgmLimit    = 2 * time.Second // an exporter collects while it answers
	silentFactor = 5               // divisor of the request rate of a source that is long silent
)

func newFeed(c Config, m *Monitor) *feed {
	f := &feed{config: c, monitor: m, limit: agentLimit, logged: map[string]bool{}, dropped: map[string]bool{}}
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

// run polls until ctx ends. The requests to many sources are spread over the interval, and
// none waits for the answer of another source.
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
		startedAt := time.Now()
		f.poll(ctx)
		<-f.monitor.slots
		pause := f.config.Every
		if f.silence(began) > heldFor {
			pause *= silentFactor
		}
		timer.Reset(f.monitor.onGrid(NextPoll(pause, startedAt)))
	}
}

// NextPoll returns the time to wait before the next poll of a source, given when the last
// one began: 0.9 to 1.1 times the pause from one begin to the next, so that many replicas
// do not poll at once, and a tenth of it at least.
func NextPoll(pause time.Duration, began time.Time) time.Duration {
	pause += time.Duration(rand.Int64N(int64(pause)/5)) - pause/10
	return max(pause-time.Since(began), pause/10)
}

// grid is the distance of the moments at which sources are polled: hundreds of them wake this
// process ten times a second, not hundreds of times.
const grid = 100 * time.Millisecond

// onGrid lengthens a pause to the next moment of the grid.
func (m *Monitor) onGrid(pause time.Duration) time.Duration {
	phase := time.Since(m.began) + pause
	return pause + (grid - phase%grid)
}

// silence returns the time since the last answer of the source, or since began.
func (f *feed) silence(began time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answeredAt.After(began) {
		began = f.answeredAt
	}
	return time.Since(began)
}

// poll requests the readings once and publishes the answer.
func (f *feed) poll(ctx context.Context) {
	s, err := f.source.read(ctx, time.Now().Add(f.limit))
	if ctx.Err() != nil {
		return
	}
	previous := f.last.Load()
	if s != nil {
		var warning string
		if s.gpus, warning = clean(s.gpus, f.config.Name); warning != "" {
			s.warning = join(warning, s.warning)
		}
		f.monitor.publish(f, s)
	}
	if earlier, now := f.record(s != nil && err == nil, err); earlier != now {
		if now == "" {
			f.monitor.log.Info("GPU readings come", "source", f.config.Name, "gpus", len(s.gpus))
		} else {
			f.monitor.log.Warn("no GPU readings", "source", f.config.Name, "reason", now)
		}
	}
	if s != nil && err == nil {
		f.logProblems(previous, s, time.Now())
	}
}

// maxLogged bounds the number of different warnings that are logged of one source.
const maxLogged = 32

// logProblems logs the problems of an answer, each once: its warning, and each GPU that is
// dropped from now on, because its values are too old or the source no longer has it.
func (f *feed) logProblems(previous, s *sample, now time.Time) {
	log := f.monitor.log.With("source", f.config.Name)
	if s.warning != "" && !f.logged[s.warning] && len(f.logged) < maxLogged {
		f.logged[s.warning] = true
		log.Warn("GPU readings are not as they should be", "reason", s.warning)
	}
	current := make(map[string]bool, len(s.gpus))
	for _, g := range s.gpus {
		current[g.UUID] = true
		switch age := g.Age(now); {
		case g.State == StateOK && FreshnessAtAge(age) == Dropped:
			if !f.dropped[g.UUID] {
				f.dropped[g.UUID] = true
				log.Warn("the readings of a GPU are dropped: the source repeats old values", "gpu", g.Ref(), "uuid", g.UUID, "age", age.Round(time.Second))
			}
		case f.dropped[g.UUID]:
			delete(f.dropped, g.UUID)
			log.Info("the readings of a GPU count again", "gpu", g.Ref(), "uuid", g.UUID)
		}
	}
	for _, g := range previous.gpus {
		if !current[g.UUID] && !f.dropped[g.UUID] {
			if len(f.dropped) >= maxGPUs {
				clear(f.dropped) // the source invents GPUs
			}
			f.dropped[g.UUID] = true
			log.Warn("the readings of a GPU are dropped: the source has it no more", "gpu", g.Ref(), "uuid", g.UUID)
		}
	}
}

// join returns two warnings as one; either may be empty.
func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// record stores the result of a request, and returns the errors before it and now.
func (f *feed) record(answered bool, err error) (earlier, current string) {
	if err != nil {
		current = err.Error()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	earlier, f.failed = f.failed, current
	f.failures++
	if answered {
		if f.answeredAt.IsZero() {
			earlier = "it was not asked before" // so that the first answer is logged
		}
		f.failures, f.answeredAt = 0, time.Now()
	}
	return earlier, current
}

func (f *feed) restarted() {
	f.mu.Lock()
	f.restarts++
	f.mu.Unlock()
	f.monitor.log.Info("the GPU agent has restarted", "source", f.config.Name)
}

// reports reports whether the last answer of the source has the GPU.
func (f *feed) reports(g *GPU) bool {
	return slices.ContainsFunc(f.last.Load().gpus, func(o *GPU) bool { return o.UUID == g.UUID })
}

func (f *feed) status(now time.Time) SourceStatus {
	s := f.last.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	out := SourceStatus{
		Name: f.config.Name, Kind: f.config.kind(), Address: f.config.address(), OK: f.failed == "" && !f.answeredAt.IsZero(), Error: f.failed,
		Warning: s.warning, Failures: f.failures, Node: s.node, Driver: s.driver, Restarts: f.restarts, GPUs: len(s.gpus),
	}
	if out.OK {
		out.Warning = join(stalenessWarning(s.gpus, now), s.warning)
	}
	if out.Error == "" && f.answeredAt.IsZero() {
		out.Error = "not asked yet"
	}
	if !f.answeredAt.IsZero() {
		ms := now.Sub(f.answeredAt).Milliseconds()
		out.HeardMs = &ms
	}
	return out
}

// ago returns the time that lies ms milliseconds before now. An age beyond a day, or a
// negative one, is nonsense and counts as a day.
func ago(now time.Time, ms int64) time.Time {
	const day = 24 * time.Hour
	if ms < 0 || ms > day.Milliseconds() {
		return now.Add(-day)
	}
	return now.Add(-time.Duration(ms) * time.Millisecond)
}

// statusError returns the error for a status other than 200.
func statusError(status int) error {
	if status == 401 || status == 403 {
		return fmt.Errorf("status %d: the token is wrong or missing: see token_env", status)
	}
	return fmt.Errorf("status %d", status)
}
