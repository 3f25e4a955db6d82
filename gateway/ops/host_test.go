package ops

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// TestOpsIndex: who opens the ops listener learns what it has, and who takes it for the
// callers' learns where that is.
func TestOpsIndex(t *testing.T) {
	h := (&Server{Hosts: func() []string { return nil }}).Handler(nil)
	if w := ask(h, "GET", "/"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "\n/status\n") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, path := range []string{"/v1/models", "/statuss", "/status/"} {
		if w := ask(h, "GET", path); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "server.listen") || !strings.Contains(w.Body.String(), "\n/status\n") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := ask(h, "POST", "/status"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /status: %d", w.Code)
	}
}

// TestOpsHosts: the ops listener answers as itself, and not as a name that a page in a
// browser may have pointed at it.
func TestOpsHosts(t *testing.T) {
	machine, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	hosts := []string{"tidegate-ops.example.com"}
	h := (&Server{
		Hosts:  func() []string { return hosts },
		Probes: map[string]http.HandlerFunc{"/healthz": func(http.ResponseWriter, *http.Request) {}},
	}).Handler(nil)
	for host, own := range map[string]bool{
		"127.0.0.1:9090": true, "127.0.0.1": true, "[::1]:9090": true, "[fd00::7]": true, "10.0.0.5:9090": true, "localhost:9090": true, "LOCALHOST": true,
		"gateway-1:9090": true, "tidegate.prod.svc:9090": true, "tidegate.prod.svc.cluster.local:9090": true, "gpu-a.internal": true, "ops.home.arpa:1": true,
		machine: true, "": true, "tidegate-ops.example.com:9090": true, "Tidegate-Ops.Example.Com.": true,
		"attacker.example.com": false, "attacker.example.com:9090": false, "127.0.0.1.attacker.com:9090": false, "localhost.attacker.com": false,
		"x.tidegate-ops.example.com": false, "localinternal.com": false, "7f000001.rbndr.us:9090": false,
	} {
		for _, path := range []string{"/healthz", "/status", "/metrics", "/debug/pprof/cmdline"} {
			if own && path != "/healthz" {
				continue // this server has no parts to show
			}
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = host
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if refused := w.Code == http.StatusMisdirectedRequest; refused == own || refused && !strings.Contains(w.Body.String(), "server.ops_hosts") {
				t.Errorf("%q, %s: %d %.100s", host, path, w.Code, w.Body.String())
			}
		}
	}
	hosts = []string{"*"}
	r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
	r.Host = "attacker.example.com"
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != http.StatusOK {
		t.Errorf("any name: %d", w.Code)
	}
}

// ask asks a handler for a page by the address of the listener.
func ask(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, "http://127.0.0.1:9090"+path, nil))
	return w
}
