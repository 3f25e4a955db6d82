package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Gateway is a running gateway as callers and operators see it.
type Gateway struct {
	URL     string // of the callers' listener, without /v1
	Ops     string // URL of the operators' listener
	Servers Servers
	Log     *Log
	Client  *http.Client
	File    string // path of the configuration file
}

// Await waits until the process listens and all servers are in rotation.
func (g *Gateway) Await(t *testing.T, ended chan int) {
	t.Helper()
	g.URL = "http://" + g.Log.Address(t, "listening", ended)
	g.Ops = "http://" + g.Log.Address(t, "listening for operators", ended)
	Eventually(t, "all servers in rotation", func() bool { return g.InRotation(t) == len(g.Servers) })
}

// Reply is the answer to one request, read to its end.
type Reply struct {
	Status int
	Header http.Header
	Body   []byte
}

// Code returns the code of an error body.
func (r Reply) Code() string {
	var body struct{ Error struct{ Code string } }
	_ = json.Unmarshal(r.Body, &body)
	return body.Error.Code
}

// Do sends a request and reads the answer to its end.
func (g *Gateway) Do(t *testing.T, req *http.Request) Reply {
	t.Helper()
	resp, err := g.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return Reply{resp.StatusCode, resp.Header, body}
}

// send sends a request with a key; a body is JSON.
func (g *Gateway) send(t *testing.T, key, method, path, body string) Reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return g.Do(t, req)
}

// Complete sends a chat with a key.
func (g *Gateway) Complete(t *testing.T, key, body string) Reply {
	t.Helper()
	return g.send(t, key, http.MethodPost, ChatPath, body)
}

// Get asks for a path with a key.
func (g *Gateway) Get(t *testing.T, key, path string) Reply {
	t.Helper()
	return g.send(t, key, http.MethodGet, path, "")
}

// Call sends a request with a key and returns the status and the body.
func (g *Gateway) Call(t *testing.T, key, method, path, body string) (int, string) {
	t.Helper()
	r := g.send(t, key, method, path, body)
	return r.Status, string(r.Body)
}

// Ask sends a small generation with a key and returns the status and the body.
func (g *Gateway) Ask(t *testing.T, key string) (int, string) {
	t.Helper()
	return g.Call(t, key, http.MethodPost, ChatPath, fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":4}}`, SmallModel))
}

// Expect sends a request with a key and wants a status and a part of the body. It
// returns the body.
func (g *Gateway) Expect(t *testing.T, key, method, path, body string, status int, want string) string {
	t.Helper()
	code, text := g.Call(t, key, method, path, body)
	if code != status || !strings.Contains(text, want) {
		t.Errorf("%s %s %s: %d %s\nexpected %d %s", method, path, body, code, text, status, want)
	}
	return text
}

// Post sends a body as Ada. The caller closes the answer's body.
func (g *Gateway) Post(ctx context.Context, path, body string) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, g.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Authorization", "Bearer "+AdaKey)
	return g.Client.Do(q)
}

// Chat returns a request whose answer has so many tokens.
func Chat(model string, tokens int, members string) string {
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"enable_thinking":false,"sim":{"tokens":%d}%s}`, model, tokens, members)
}

// Rewrite replaces the configuration file in one step.
func (g *Gateway) Rewrite(t *testing.T, text string) {
	t.Helper()
	next := g.File + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, g.File); err != nil {
		t.Fatal(err)
	}
}

// operators asks for a path of the operators' listener.
func (g *Gateway) operators(t *testing.T, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.Ops+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g.Do(t, req).Body
}

// StatusPage returns the body of /status.
func (g *Gateway) StatusPage(t *testing.T) string {
	t.Helper()
	return string(g.operators(t, "/status"))
}

// InRotation returns the number of servers in rotation.
func (g *Gateway) InRotation(t *testing.T) (n int) {
	t.Helper()
	var status struct {
		Ready  bool `json:"ready"`
		Models []struct {
			Backends []struct {
				Healthy bool `json:"up"`
			} `json:"backends"`
		} `json:"models"`
	}
	if err := json.NewDecoder(bytes.NewReader(g.operators(t, "/status"))).Decode(&status); err != nil {
		t.Fatal(err)
	}
	for _, m := range status.Models {
		for _, b := range m.Backends {
			if b.Healthy {
				n++
			}
		}
	}
	if n > 0 && !status.Ready {
		t.Errorf("%d servers are in rotation, but the gateway is not ready", n)
	}
	return n
}

// Idle waits until no place on a backend is taken.
func (g *Gateway) Idle(t *testing.T) {
	t.Helper()
	Eventually(t, "all places to be given back", func() bool {
		page := g.StatusPage(t)
		return strings.Count(page, `"in_flight": `) == strings.Count(page, `"in_flight": 0`)
	})
}

// Metric returns the value of one series; 0 if it is not exported.
func (g *Gateway) Metric(t *testing.T, series string) float64 {
	t.Helper()
	for line := range strings.Lines(string(g.operators(t, "/metrics"))) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// Pin holds a model at a level for an hour.
func (g *Gateway) Pin(t *testing.T, model, level string) {
	t.Helper()
	g.Expect(t, AdminKey, "PUT", "/admin/v1/models/"+model+"/level", `{"level":"`+level+`","for":"1h"}`, 200, level)
}

// LimitStatus is the body of GET /quota/status.
type LimitStatus struct {
	Used, Limit, Remaining *int64
	ResetsAt               *time.Time `json:"resets_at"`
	Quotas                 []struct {
		Name, Unit      string
		Used, Remaining int64
		AlertsCrossed   []int `json:"alerts_crossed"`
	}
	Rates []struct {
		Name, Metric     string
		Limit, Remaining int64
		ResetMs          int64 `json:"reset_ms"`
	}
}

// Limits reads the limits of a key into status.
func (g *Gateway) Limits(t *testing.T, key, path string, status *LimitStatus) {
	t.Helper()
	a := g.Get(t, key, path)
	if a.Status != http.StatusOK {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if err := json.Unmarshal(a.Body, status); err != nil {
		t.Fatal(err)
	}
}

// Usage returns what Ada has used, none of it estimated.
func (g *Gateway) Usage(t *testing.T) (sum Tokens) {
	t.Helper()
	var report struct {
		Data []struct {
			Requests  int64 `json:"requests"`
			Input     int64 `json:"input_tokens"`
			Cached    int64 `json:"cached_tokens"`
			Output    int64 `json:"output_tokens"`
			Reasoning int64 `json:"reasoning_tokens"`
			Estimated int64 `json:"estimated_requests"`
		}
	}
	if err := json.Unmarshal(g.Get(t, AdaKey, "/v1/usage?group_by=model").Body, &report); err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Data {
		sum.Requests += r.Requests
		sum.Input += r.Input
		sum.Cached += r.Cached
		sum.Output += r.Output
		sum.Reasoning += r.Reasoning
		if r.Estimated > 0 {
			t.Errorf("%d requests were estimated", r.Estimated)
		}
	}
	return sum
}
