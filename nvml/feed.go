package nvml

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
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
	f := &feed{config: c, monitor: m, limit: agentLimit}
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
	if s != nil {
		s.gpus = clean(s.gpus, f.config.Name)
		f.monitor.publish(f, s)
	}
	if was, now := f.note(s != nil && err == nil, err); was != now {
		if now == "" {
			f.monitor.log.Info("GPU readings come", "source", f.config.Name, "gpus", len(s.gpus))
		} else {
			f.monitor.log.Warn("no GPU readings", "source", f.config.Name, "reason", now)
		}
	}
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
	if out.Error == "" && f.heard.IsZero() {
		out.Error = "not asked yet"
	}
	if !f.heard.IsZero() {
		ms := now.Sub(f.heard).Milliseconds()
		out.HeardMs = &ms
	}
	return out
}

// clean makes what came from outside fit for use: GPUs without a UUID and second
// ones of the same UUID are left out, texts are bounded, and numbers that no GPU
// can have are unknown.
func clean(gpus []*GPU, name string) []*GPU {
	seen := make(map[string]bool, len(gpus))
	var out []*GPU // not a part of gpus, which may be much longer
	for _, g := range gpus {
		g.Source = name
		for _, s := range []*string{&g.UUID, &g.Name, &g.Parent, &g.State} {
			*s = cleanText(*s)
		}
		if g.UUID == "" || seen[g.UUID] || len(out) == maxGPUs {
			continue
		}
		seen[g.UUID] = true
		if g.State != StateWedged && g.State != StateLost {
			g.State = StateOK
		}
		within(&g.Margin, -100, 200)
		within(&g.Temperature, -50, 200)
		within(&g.HBM, -50, 200)
		within(&g.Utilisation, 0, 100)
		for _, m := range []**uint64{&g.MemoryTotal, &g.MemoryUsed, &g.MemoryFree, &g.MemoryReserved, &g.Power, &g.PowerLimit} {
			within(m, 0, 1<<50)
		}
		g.XIDs = g.XIDs[max(len(g.XIDs)-MaxXIDs, 0):]
		g.Reasons = g.Reasons[:min(len(g.Reasons), maxReasons)]
		for i := range g.Reasons {
			g.Reasons[i] = cleanText(g.Reasons[i])
		}
		cleanThrottle(&g.Reading)
		out = append(out, g)
	}
	lost := func(g *GPU) int {
		if g.State == StateLost {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(out, func(a, b *GPU) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), strings.Compare(a.Parent, b.Parent), cmp.Compare(lost(a), lost(b)))
	})
	for i := 1; i < len(out); i++ {
		// A lost GPU keeps its index, which the driver may have given to another since.
		out[i].shadowed = out[i].Parent == "" && out[i-1].Parent == "" && out[i].Index == out[i-1].Index
	}
	return out
}

// cleanThrottle leaves out a map that would make series without end.
func cleanThrottle(r *Reading) {
	for reason := range r.ThrottleNs {
		if len(r.ThrottleNs) > maxReasons || cleanText(reason) != reason {
			r.ThrottleNs = nil
			return
		}
	}
}

// cleanText bounds a text, and drops what a terminal could take for an order.
func cleanText(s string) string {
	plain := len(s) <= maxText
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return s
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), maxText)], ""))
}

// within makes unknown what is out of bounds.
func within[N int | uint64](v **N, low, high N) {
	if *v != nil && (**v < low || **v > high) {
		*v = nil
	}
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
