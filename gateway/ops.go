package gateway

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// OpsHandler is what operators reach, on a listener of its own: metrics, status,
// profiles and the two probes. extra, which may be nil, adds to the status what
// only the process knows.
func (g *Gateway) OpsHandler(extra func() map[string]any) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", zipped(promhttp.HandlerFor(g.Registry, promhttp.HandlerOpts{EnableOpenMetrics: true, DisableCompression: true})))
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
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// zipped compresses what h answers to those who take gzip, at the level that costs
// least: a page of metrics of a large fleet has megabytes, and the usual level would
// take more time than all the rest of a scrape.
func zipped(h http.Handler) http.Handler {
	writers := sync.Pool{New: func() any {
		w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is good
		return w
	}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept-Encoding")
		if !takesGzip(r.Header.Get("Accept-Encoding")) {
			h.ServeHTTP(w, r)
			return
		}
		z, _ := writers.Get().(*gzip.Writer)
		defer writers.Put(z)
		z.Reset(w)
		w.Header().Set("Content-Encoding", "gzip")
		h.ServeHTTP(&zipWriter{w, z}, r)
		_ = z.Close() // a reader who left needs no rest
	})
}

type zipWriter struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (w *zipWriter) Write(b []byte) (int, error) { return w.zip.Write(b) }

// takesGzip reads the header Accept-Encoding.
func takesGzip(accepted string) bool {
	for one := range strings.SplitSeq(accepted, ",") {
		name, params, _ := strings.Cut(one, ";")
		quality, given := strings.CutPrefix(strings.TrimSpace(params), "q=")
		q, err := strconv.ParseFloat(quality, 64)
		if strings.TrimSpace(name) == "gzip" && (!given || err == nil && q > 0) {
			return true
		}
	}
	return false
}

// statusJSON is the status with what extra adds to it.
func (g *Gateway) statusJSON(extra func() map[string]any) ([]byte, error) {
	body, err := json.Marshal(g.status())
	all := map[string]any{}
	if err == nil {
		raw := map[string]json.RawMessage{}
		err = json.Unmarshal(body, &raw)
		for k, v := range raw {
			all[k] = v
		}
	}
	if err != nil {
		return nil, err
	}
	if extra != nil {
		maps.Copy(all, extra())
	}
	body, err = json.MarshalIndent(all, "", "  ")
	return append(body, '\n'), err
}
