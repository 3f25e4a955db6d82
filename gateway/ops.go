package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// OpsHandler is what operators reach, on a listener of its own: metrics, status,
// profiles and the two probes. extra, which may be nil, adds to the status what
// only the process knows.
func (g *Gateway) OpsHandler(extra func() map[string]any) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.Registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", g.healthz)
	mux.HandleFunc("GET /readyz", g.readyz)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		status := g.status()
		if extra != nil {
			for k, v := range extra() {
				status[k] = v
			}
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		// An operator who left needs no error.
		_ = enc.Encode(status)
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// status is what the gateway knows of itself and its backends.
func (g *Gateway) status() map[string]any {
	type backendStatus struct {
		Backend     string `json:"backend"`
		Up          bool   `json:"up"`
		Why         string `json:"why_out,omitempty"`
		InFlight    int    `json:"in_flight"`
		Serves      string `json:"serves,omitempty"`
		MaxModelLen int    `json:"max_model_len,omitempty"`
		Version     string `json:"version,omitempty"`
	}
	type modelStatus struct {
		Model    string          `json:"model"`
		Aliases  []string        `json:"aliases,omitempty"`
		Context  int             `json:"context_length,omitempty"`
		Backends []backendStatus `json:"backends"`
	}
	models := []modelStatus{}
	for _, m := range g.Fleet.Models() {
		s := modelStatus{Model: m.Name, Aliases: m.Aliases, Context: m.Context()}
		for _, b := range m.Backends {
			f := b.Facts()
			s.Backends = append(s.Backends, backendStatus{b.Name, b.Seat.Up(), b.Why(), b.Seat.InFlight(), f.Serves, f.MaxModelLen, f.Version})
		}
		models = append(models, s)
	}
	why := g.ready()
	store := "up"
	if !g.settings.Load().accounts.Store().Up() {
		store = "down"
	}
	return map[string]any{
		"store":   store,
		"version": g.Version, "uptime_s": int(time.Since(g.began).Seconds()), "ready": why == "", "why_not_ready": why, "models": models,
	}
}
