package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/pprof"
	"time"
)

// OpsHandler returns the handler for operators, on a listener of its own: metrics, status,
// who uses what now, profiles and the two probes. extra, which may be nil, adds to the status what
// only the process knows.
func (g *Gateway) OpsHandler(extra func() Extra) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", g.scrape)
	mux.HandleFunc("GET /health", g.health)
	mux.HandleFunc("GET /healthz", g.healthz)
	mux.HandleFunc("GET /readyz", g.readyz)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		body, err := g.statusJSON(extra)
		if err != nil {
			g.Log.Error("the status could not be written", "error", err.Error())
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// An operator who left needs no error.
		_, _ = w.Write(body)
	})
	mux.HandleFunc("GET /top", g.topPage)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol) // go tool pprof asks so
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /", opsIndex)
	return withDeadlines(g.ownHosts(mux), g.writeTimeout)
}

// opsIndex lists the pages at /, and names them on an unknown path.
func opsIndex(w http.ResponseWriter, r *http.Request) {
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
func (g *Gateway) statusJSON(extra func() Extra) ([]byte, error) {
	s, added := g.status(), Extra{}
	if extra != nil {
		added = extra()
	}
	s.Warnings = append(added.Warnings, s.Warnings...)
	body, err := json.Marshal(s)
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

// topPage answers GET /top.
func (g *Gateway) topPage(w http.ResponseWriter, _ *http.Request) {
	body, err := json.MarshalIndent(g.activities.top(time.Now()), "", "  ")
	if err != nil {
		g.Log.Error("who uses what could not be written", "error", err.Error())
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // an operator who left needs no error
}
