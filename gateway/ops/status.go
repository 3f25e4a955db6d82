package ops

import (
	"fmt"
	"slices"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/alert"
	"tidegate/gateway/backend"
	"tidegate/nvml"
)

// Status is the answer of GET /status, beside what the process adds. Values that are
// not known are null or left out, never 0.
type Status struct {
	Version     string              `json:"version"`
	UptimeS     int                 `json:"uptime_s"`
	Ready       bool                `json:"ready"`
	WhyNotReady string              `json:"why_not_ready"`
	Store       string              `json:"store"` // up | down
	Models      []ModelStatus       `json:"models"`
	Ladder      degrade.Status      `json:"ladder"` // why each model and backend stands where it does
	GPUs        []nvml.GPUStatus    `json:"gpus"`
	Sources     []nvml.SourceStatus `json:"gpu_sources"`
	Alerts      []alert.Status      `json:"alerts"`   // by channel
	Warnings    []string            `json:"warnings"` // what works, but not as it was meant
}

// ModelStatus is one model.
type ModelStatus struct {
	Model    string          `json:"model"`
	Aliases  []string        `json:"aliases,omitempty"`
	Context  int             `json:"context_length,omitempty"`
	Fallback string          `json:"fallback,omitempty"`
	Queued   map[string]int  `json:"queued"` // requests that wait for a place, by tier
	Backends []BackendStatus `json:"backends"`
}

// BackendStatus is one backend of a model.
type BackendStatus struct {
	Backend      string               `json:"backend"`
	InRotation   bool                 `json:"up"`
	Reason       string               `json:"why_out,omitempty"`
	InFlight     int                  `json:"in_flight"`
	Unanswered   *UnansweredStatus    `json:"without_progress,omitempty"` // requests for which it shows no sign of work; left out: none
	TTFT         *float64             `json:"first_token_p90_s"`          // seconds; null: too few streams of late
	Speed        *float64             `json:"stream_tokens_per_second"`   // of one choice; null: no answer of late
	Made         float64              `json:"tokens_per_second"`          // of all its answers, in the last 10 to 15 seconds
	Serves       string               `json:"serves,omitempty"`
	MaxModelLen  int                  `json:"max_model_len,omitempty"`
	Version      string               `json:"version,omitempty"`
	NoThinking   bool                 `json:"no_thinking_by_default,omitempty"` // it switches thinking off where a chat says nothing of it
	Capabilities backend.Capabilities `json:"capabilities"`
	Engine       *EngineStatus        `json:"engine"`                 // null: it has never reported its load
	Blind        string               `json:"engine_error,omitempty"` // why it did not the last time
	GPUs         []BackendGPU         `json:"gpus,omitempty"`
}

// UnansweredStatus counts what a backend has under way while it shows no sign of work.
type UnansweredStatus struct {
	Requests  int       `json:"requests"`
	ChangedAt time.Time `json:"since"` // the last sign of work, or the first of these requests
}

// EngineStatus is the load that a backend reports.
type EngineStatus struct {
	Freshness   string   `json:"freshness"` // fresh | held | dropped
	AgeMs       int64    `json:"age_ms"`
	Engines     int      `json:"engines"`
	Running     *int     `json:"running"`
	Waiting     *int     `json:"waiting"`
	KV          *float64 `json:"kv_cache_usage"` // 0 to 1
	KVTokens    *int     `json:"kv_cache_tokens"`
	Preemptions *int     `json:"preemptions"`
	Preempted   *int     `json:"preempted_5s"`
	Sleep       string   `json:"sleep,omitempty"`
}

// BackendGPU is a GPU that a backend is configured to run on.
type BackendGPU struct {
	GPU       string `json:"gpu"`       // as the configuration names it
	Freshness string `json:"freshness"` // fresh | held | dropped | unknown
}

// status returns the state of the gateway, its backends and their GPUs.
func (s *Server) status() (status Status) {
	now := time.Now()
	accounts := s.Accounts().Store()
	status = Status{Version: s.Version, UptimeS: int(now.Sub(s.Began).Seconds()), Store: "up", Models: []ModelStatus{}, Alerts: s.Alerts.Status(), Warnings: []string{}}
	if !accounts.Healthy() {
		status.Store = "down"
	}
	status.Sources, status.GPUs = s.GPUs.Status()
	status.Ladder = s.Ladder.Status()
	var details []string
	for _, m := range s.Fleet.Models() {
		ms := ModelStatus{Model: m.Name, Aliases: m.Aliases, Context: m.Context(), Queued: map[string]int{}, Backends: []BackendStatus{}}
		if m.Fallback != nil {
			ms.Fallback = m.Fallback.Name
		}
		for i, n := range m.Pool.Queued() {
			ms.Queued[limit.Tiers()[i]] = n
		}
		for _, b := range m.Backends {
			bs, warnings := backendStatus(b, now)
			ms.Backends = append(ms.Backends, bs)
			for _, w := range warnings {
				details = append(details, "model "+m.Name+", backend "+b.Name+": "+w)
			}
		}
		details = append(details, slowWarnings(&ms)...)
		status.Models = append(status.Models, ms)
	}
	// Last, so that a backend that comes into rotation meanwhile is not shown as up in
	// a gateway that is not ready.
	status.WhyNotReady = s.NotReady()
	status.Ready = status.WhyNotReady == ""
	if w := clockWarning(now.Round(0).Sub(s.Began.Round(0)), now.Sub(s.Began)); w != "" {
		status.Warnings = append(status.Warnings, w)
	}
	details = append(details, expiryWarnings(accounts.Expiring())...)
	status.Warnings = append(status.Warnings, status.warnings(details, now)...)
	return status
}

func backendStatus(b *backend.Backend, now time.Time) (s BackendStatus, warnings []string) {
	f := b.Facts()
	s = BackendStatus{
		Backend: b.Name, InRotation: b.Seat.Usable() && !b.Seat.Drained(), Reason: b.OutReason(), InFlight: b.Seat.InFlight(), Serves: f.Serves, MaxModelLen: f.MaxModelLen,
		Version: f.Version, NoThinking: f.NoThinking, Capabilities: f.Capabilities, Blind: b.LoadError(), Made: b.Output.PerSecond(now),
	}
	if ttft := b.Pace.TTFT(now); ttft > 0 {
		s.TTFT = known(ttft.Seconds())
	}
	if speed := b.Pace.Speed(now); speed > 0 {
		s.Speed = &speed
	}
	if e := b.Engine(); e != nil {
		s.Engine = &EngineStatus{
			Freshness: e.Freshness(now).String(), AgeMs: e.Age(now).Milliseconds(), Engines: e.Engines, Running: known(e.Running), Waiting: known(e.Waiting),
			KV: known(e.KV), KVTokens: known(e.KVTokens), Preemptions: known(e.Preemptions), Sleep: e.Sleep,
		}
		if e.Preemptions >= 0 {
			s.Engine.Preempted = &e.Preempted
		}
	}
	warnings = slices.Clone(f.Warnings)
	if s.InRotation && s.Blind != "" {
		warnings = append(warnings, "the load of its engine is not known: "+s.Blind)
	}
	if n, doubtedAt := b.Unanswered(now); n > 0 {
		s.Unanswered = &UnansweredStatus{n, doubtedAt}
		warnings = append(warnings, fmt.Sprintf("it has %d requests under way and has made nothing for %v, for any of them: it may hang; see docs/operating.md, \"A backend hangs\"", n, now.Sub(doubtedAt).Round(time.Second)))
	}
	if w := b.Doubts.Warning(now); w != "" {
		warnings = append(warnings, w)
	}
	for _, view := range b.GPUs() {
		g := view.Load()
		if g == nil {
			warnings = append(warnings, "no source reports its GPU "+view.Ref)
			s.GPUs = append(s.GPUs, BackendGPU{view.Ref, "unknown"})
			continue
		}
		if g.State != nvml.StateOK {
			warnings = append(warnings, "its GPU "+view.Ref+" is "+g.State)
		} else if g.Freshness(now) == nvml.Dropped {
			warnings = append(warnings, fmt.Sprintf("the readings of its GPU %s are not used: they are older than %v", view.Ref, nvml.DroppedAfter))
		}
		s.GPUs = append(s.GPUs, BackendGPU{view.Ref, g.Freshness(now).String()})
	}
	return s, warnings
}

// known is nil for a negative number, which says that it is not known.
func known[N int | float64](n N) *N {
	if n < 0 {
		return nil
	}
	return &n
}
