package gateway

import (
	"fmt"
	"net/http"
)

// notReady returns why the gateway is not ready; empty where it is.
func (g *Gateway) notReady() string {
	switch {
	case g.draining.Load():
		return "draining"
	case !g.Fleet.Ready():
		return "no backend of any model is in rotation"
	}
	return ""
}

// probes returns the probes by their paths.
func (g *Gateway) probes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"/health": g.health, "/healthz": g.healthz, "/readyz": g.readyz}
}

// healthz answers as long as the process lives.
func (g *Gateway) healthz(w http.ResponseWriter, r *http.Request) {
	g.plain(w, r, http.StatusOK, "ok")
}

// health answers as vLLM's route of this name does, which needs no key: 200 without a
// body, or 503 (vllm/entrypoints/serve/instrumentator/health.py). It is readyz in another
// form: tools such as GuideLLM ask it before they begin.
func (g *Gateway) health(w http.ResponseWriter, r *http.Request) {
	if g.notReady() == "" {
		g.plain(w, r, http.StatusOK, "")
		return
	}
	g.readyz(w, r)
}

// readyz answers whether requests should be sent here.
func (g *Gateway) readyz(w http.ResponseWriter, r *http.Request) {
	if reason := g.notReady(); reason != "" {
		g.plain(w, r, http.StatusServiceUnavailable, reason)
		return
	}
	g.plain(w, r, http.StatusOK, "ready")
}

// plain answers a probe, who needs no key.
func (g *Gateway) plain(w http.ResponseWriter, r *http.Request, status int, text string) {
	dropped := g.unread.write(w, r, func() {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		if text != "" {
			// The caller's going away is no concern of a probe.
			_, _ = fmt.Fprintln(w, text)
		}
	})
	if dropped {
		panic(http.ErrAbortHandler)
	}
}
