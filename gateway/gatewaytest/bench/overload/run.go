package overload

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidegate/gateway/gatewaytest/bench"
)

// Run is a run of one load in one mode.
type Run struct {
	Load          float64
	Mode          string
	Window        Window
	Outcomes      []*Outcome // of the requests sent under load
	LightOutcomes []*Outcome // of those sent after it, under light load
	Moments       []Moment   // in order, from the begin of the load to the end of the watch

	Gateway float64 // cores that the gateway used under load
	Clients float64 // the clients and the stand-ins, which are one process
	Foreign float64 // what is no part of the run
}

// Moment is the state of the system at a time since the begin of the load.
type Moment struct {
	Elapsed time.Duration
	Level   int // of the large model; -1: the gateway does not tell
	Running int // in all engines
	Waiting int
}

// Stage is a gateway that runs in front of servers.
type Stage struct {
	Client  *Client
	Ops     string // URL of the gateway's /metrics
	Gateway bench.Process
	Servers *Servers
	Tenants []*Tenant     // each as often as its share asks for
	Calm    time.Duration // L0 and no queue for so long after the load: there is no more to see
}

const (
	watching  = 250 * time.Millisecond
	lightLoad = 0.3 // after the load
)

// Perform plays a window, then light until all has been calm for a while or light is
// over.
func (s *Stage) Perform(ctx context.Context, load float64, mode string, w, light Window) *Run {
	r := &Run{Load: load, Mode: mode, Window: w}
	start := time.Now()
	calm, stop := context.WithCancel(ctx)
	defer stop()
	var parts sync.WaitGroup
	parts.Go(func() { r.Outcomes = s.Client.Replay(ctx, start, s.requests(w, 0)) })
	parts.Go(func() { r.LightOutcomes = s.Client.Replay(calm, start.Add(w.Length), s.requests(light, len(w.Rows))) })
	parts.Go(func() {
		s.watch(ctx, r, start, w.Length+light.Length)
		stop()
	})
	gateway, clients, machine := s.Gateway.CPU(), bench.CurrentProcess().CPU(), bench.MachineCPU()
	waitUntil(ctx, start.Add(w.Length))
	cores := func(d time.Duration) float64 { return d.Seconds() / w.Length.Seconds() }
	r.Gateway, r.Clients = cores(s.Gateway.CPU()-gateway), cores(bench.CurrentProcess().CPU()-clients)
	r.Foreign = cores(bench.MachineCPU()-machine) - r.Gateway - r.Clients
	parts.Wait()
	first := s.Servers.FirstTokens()
	for _, o := range append(append([]*Outcome(nil), r.Outcomes...), r.LightOutcomes...) {
		o.Engine = first[o.ID]
	}
	return r
}

// watch notes how things stand until they have been calm after the load, or the end.
func (s *Stage) watch(ctx context.Context, r *Run, start time.Time, end time.Duration) {
	last := r.Window.Length // when it was not calm
	for elapsed := time.Duration(0); elapsed <= end && waitUntil(ctx, start.Add(elapsed)); elapsed += watching {
		m := Moment{Elapsed: time.Since(start), Level: s.level(ctx)}
		m.Running, m.Waiting = s.Servers.Load()
		r.Moments = append(r.Moments, m)
		if m.Elapsed < r.Window.Length || m.Level > 0 || m.Waiting > 0 {
			last = max(m.Elapsed, r.Window.Length)
		}
		if m.Elapsed-last >= s.Calm {
			return
		}
	}
}

// level reads the large model's level from the gateway's metrics.
func (s *Stage) level(ctx context.Context) int {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Ops+"/metrics", nil)
	if err != nil {
		return -1
	}
	resp, err := s.Client.HTTP.Do(q)
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	return levelIn(resp.Body)
}

func levelIn(metrics io.Reader) int {
	level := -1
	for lines := bufio.NewScanner(metrics); lines.Scan(); {
		line := lines.Text()
		if !strings.HasPrefix(line, "tidegate_level{") || !strings.Contains(line, `model="`+LargeModel+`"`) || strings.Contains(line, "backend=") {
			continue
		}
		if v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64); err == nil {
			level = max(level, int(v))
		}
	}
	return level
}

// streamed is the share of requests that ask for a stream.
const streamed = 0.8

// requests returns the requests of a window: each row gets a tenant and a number.
func (s *Stage) requests(w Window, first int) []*Request {
	random := rand.New(rand.NewPCG(3, uint64(first)))
	requests := make([]*Request, len(w.Rows))
	for i, row := range w.Rows {
		requests[i] = &Request{Row: row, Number: first + i, Tenant: s.Tenants[random.IntN(len(s.Tenants))], Stream: random.Float64() < streamed}
	}
	return requests
}

// Recovery returns the time from the end of the load until the level was L0 and stayed so.
// It returns false if the gateway shows no level, or did not get there while it was watched.
func (r *Run) Recovery() (time.Duration, bool) {
	known := false
	for _, m := range r.Moments {
		known = known || m.Level >= 0
	}
	pause, ok := r.quiet(func(m Moment) bool { return m.Level <= 0 })
	return pause, ok && known
}

// Drained returns the time from the end of the load until no request waited in an engine.
func (r *Run) Drained() (time.Duration, bool) {
	return r.quiet(func(m Moment) bool { return m.Waiting == 0 })
}

// quiet returns the time after the load from which ok held to the end of the watch.
func (r *Run) quiet(ok func(Moment) bool) (time.Duration, bool) {
	for i := len(r.Moments) - 1; i >= 0; i-- {
		if m := r.Moments[i]; !ok(m) {
			return max(m.Elapsed+watching-r.Window.Length, 0), i < len(r.Moments)-1
		}
	}
	return 0, len(r.Moments) > 0
}
