// Package ops serves the listener for operators: metrics, status with its warnings, who
// uses what now, profiles and the probes. It only reads.
package ops

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/activity"
	"tidegate/gateway/alert"
	"tidegate/gateway/backend"
	"tidegate/nvml"
)

// Server holds the parts of the gateway that the pages show. It is safe for concurrent
// use. Its functions are called at each request, so that a reload is seen.
type Server struct {
	Log      *slog.Logger
	Fleet    *backend.Fleet
	GPUs     *nvml.Monitor
	Ladder   *degrade.Ladder
	Alerts   *alert.Alerts // nil where nobody is notified of quotas
	Activity *activity.Tracker
	Version  string
	Began    time.Time // start of the process

	Accounts  func() *account.Directory
	Hosts     func() []string             // names under which the listener answers, beside its own
	NotReady  func() string               // why the gateway is not ready; empty where it is
	Gatherers func() prometheus.Gatherers // series of the page of metrics
	Probes    map[string]http.HandlerFunc // probes by path, as callers reach them too
}

// Handler returns the handler of the listener. extra, which may be nil, adds to the status
// what only the process knows.
func (s *Server) Handler(extra func() Extra) http.Handler {
	mux := http.NewServeMux()
	for path, probe := range s.Probes {
		mux.HandleFunc("GET "+path, probe)
	}
	mux.HandleFunc("GET /metrics", s.scrape)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		body, err := s.statusJSON(extra)
		s.write(w, body, err)
	})
	mux.HandleFunc("GET /top", func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.MarshalIndent(s.Activity.Top(time.Now()), "", "  ")
		s.write(w, append(body, '\n'), err)
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol) // go tool pprof asks so
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /", index)
	return s.ownHosts(mux)
}

// write answers with a page of JSON, or with the error that kept it from being made.
func (s *Server) write(w http.ResponseWriter, body []byte, err error) {
	if err != nil {
		s.Log.Error("a page for operators could not be written", "error", err.Error())
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // an operator who left needs no error
}

// index lists the pages at /, and names them on an unknown path.
func index(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.URL.Path != "/" {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintln(w, "There is nothing here. This listener is for operators (server.ops_listen); callers have another address (server.listen).")
	}
	fmt.Fprint(w, "Tidegate, for operators:\n\n/status\n/top\n/metrics\n/healthz\n/readyz\n/debug/pprof/\n")
}

// Extra holds what only the process knows of itself.
type Extra struct {
	Members  map[string]any // of the status, beside those of Status
	Warnings []string       // before those of the status
}

// statusJSON writes the status with what extra adds to it.
func (s *Server) statusJSON(extra func() Extra) ([]byte, error) {
	status, added := s.status(), Extra{}
	if extra != nil {
		added = extra()
	}
	status.Warnings = append(added.Warnings, status.Warnings...)
	body, err := json.Marshal(status)
	members := map[string]any{}
	if err == nil {
		raw := map[string]json.RawMessage{}
		err = json.Unmarshal(body, &raw)
		for k, v := range raw {
			members[k] = v
		}
	}
	if err != nil {
		return nil, err
	}
	maps.Copy(members, added.Members)
	body, err = json.MarshalIndent(members, "", "  ")
	return append(body, '\n'), err
}
