package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"tidegate/gateway/gatewaytest/stack"
	"tidegate/gateway/ops"
)

// nodeConfig returns the section gpus with a node and a recording.
func nodeConfig(n *stack.Node) string {
	return fmt.Sprintf("gpus:\n  - {name: gpu-a, agent: '%s', every: 100ms}\n  - {name: rec, replay: ../../nvml/testdata/heat.jsonl}\n", n.URL)
}

// told returns the status of the gateway.
func (f *front) told(t *testing.T) (s ops.Status) {
	t.Helper()
	resp, err := f.Client.Get(f.Ops + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStatus: what backends and GPUs are doing stands in /status and in the table
// of the command, and a request's GPU time in its record.
func TestStatus(t *testing.T) {
	n := stack.StartNode(t)
	f := startGateway(t, startServers(t, nil), stack.Config{GPUs: "gpu-a/0, GPU-a, rec/0, gpu-a/7", Extra: nodeConfig(n)})
	stack.Eventually(t, "all readings", func() bool {
		s := f.told(t)
		return len(s.GPUs) == 2 && s.Models[0].Backends[0].Engine != nil
	})
	for range 2 { // in turn, so that one is on the GPUs
		resp, err := f.Post(t.Context(), stack.ChatPath, `{"model":"qwen3","stream":true,"max_tokens":200,"messages":[{"role":"user","content":"Hello"}]}`)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	s := f.told(t)
	b := s.Models[0].Backends[0]
	if !s.Ready || !b.InRotation || b.Version != "0.23.0" || !b.Capabilities.Known || b.Engine.Freshness != "fresh" || *b.Engine.Waiting != 0 || *b.Engine.KVTokens != 16384*16 || b.Engine.Sleep != "awake" || b.Blind != "" {
		t.Errorf("%+v, %+v", b, b.Engine)
	}
	if got := fmt.Sprint(b.GPUs); got != "[{gpu-a/0 fresh} {GPU-a fresh} {rec/0 fresh} {gpu-a/7 unknown}]" {
		t.Error(got)
	}
	if len(s.Warnings) != 3 || s.Warnings[0] != "model Qwen3-gone: none of its 1 backends is in rotation: its requests are refused with 503 (no_backend)" ||
		!strings.HasPrefix(s.Warnings[1], "model Qwen3-gone, backend 127.0.0.1:1: out of rotation: GET /health: dial tcp") || !strings.HasSuffix(s.Warnings[2], "no source reports its GPU gpu-a/7") {
		t.Errorf("%q", s.Warnings)
	}
	if g := s.GPUs[0]; g.GPU != "gpu-a/0" || g.Freshness != "fresh" || *g.Margin != 35 || g.Temperature != nil || !s.Sources[0].OK || s.Sources[0].Node != "gpu-a" {
		t.Errorf("%+v, %+v", g, s.Sources)
	}
	for _, want := range []string{"tidegate_gpu_margin_celsius{gpu=\"gpu-a/0\",name=\"NVIDIA H200\",uuid=\"GPU-a\"}", "tidegate_gpu_source_up{source=\"rec\"}"} {
		if f.Metric(t, want) == 0 {
			t.Errorf("no %s", want)
		}
	}
	stack.Eventually(t, "the request's GPU time", func() bool {
		_, body := f.Call(t, stack.AdaKey, http.MethodGet, "/v1/usage", "")
		var usage struct {
			Data []struct {
				GPU int64 `json:"gpu_ms"`
			}
		}
		return json.Unmarshal([]byte(body), &usage) == nil && len(usage.Data) == 1 && usage.Data[0].GPU > 0
	})
	var out, complaints bytes.Buffer
	if code := run(t.Context(), []string{"status", "--ops", f.Ops}, noEnv, &out, &complaints); code != exitOK {
		t.Fatal(complaints.String())
	}
	for _, want := range []string{"ready\n", "MODEL", "LEVEL", "FALLBACK", "Qwen3-gone", "0.23.0", "gpu-a/7 (unknown)", "NVIDIA H200", "35 C", "129.2 of 140.4 GiB", "sw_power_cap", "rec/0", "SOURCE", "replay", "warning: model Qwen3-1.7B, backend "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
	out.Reset()
	if code := run(t.Context(), []string{"status", "--json", "--ops", f.Ops + "/"}, noEnv, &out, &complaints); code != exitOK || json.Unmarshal(out.Bytes(), &s) != nil {
		t.Errorf("%s%s", &out, &complaints)
	}
}

func TestStatusOfNobody(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }))
	defer other.Close()
	strict := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "use its address, \x1b[31mor add the name\nmore", http.StatusMisdirectedRequest)
	}))
	defer strict.Close()
	callers := httptest.NewServer(http.NotFoundHandler())
	defer callers.Close()
	for _, c := range []struct {
		ops  string
		code int
		want string
	}{
		{"localhost:9090", exitUsage, "expected a URL"},
		{"http://127.0.0.1:1", exitFailed, "no gateway answers at http://127.0.0.1:1"},
		{other.URL, exitFailed, "the answer is no gateway's"},
		{strict.URL, exitFailed, "/status: status 421: use its address, "},
		{other.URL + "/a b", exitFailed, "no gateway's"},
		{callers.URL, exitFailed, "server.ops_listen says where it is"},
	} {
		var out, complaints bytes.Buffer
		if code := run(t.Context(), []string{"status", "--ops", c.ops}, noEnv, &out, &complaints); code != c.code || !strings.Contains(complaints.String(), c.want) || strings.Contains(complaints.String(), "\x1b") {
			t.Errorf("%s: code %d, %s", c.ops, code, &complaints)
		}
	}
}

// TestZeroGPUs: an exporter that says 0 for everything makes no answer smaller, and
// the status says that there are no readings.
func TestZeroGPUs(t *testing.T) {
	var pages atomic.Int64
	exporter := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		pages.Add(1)
		for _, field := range []string{"GPU_TEMP", "MEMORY_TEMP", "POWER_USAGE", "FB_FREE", "FB_USED", "GPU_TEMP_LIMIT", "GPU_UTIL", "TOTAL_ENERGY_CONSUMPTION"} {
			fmt.Fprintf(w, "DCGM_FI_DEV_%s{gpu=\"0\",UUID=\"GPU-a\",modelName=\"NVIDIA H200\"} 0\n", field)
		}
	}))
	t.Cleanup(exporter.Close)
	f := startGateway(t, startServers(t, nil), stack.Config{GPUs: "z/0", Extra: fmt.Sprintf("gpus: [{name: z, dcgm: '%s', every: 100ms}]\n", exporter.URL)})
	stack.Eventually(t, "twenty pages", func() bool { return pages.Load() >= 20 })
	s := f.told(t)
	if len(s.GPUs) != 0 || !s.Sources[0].OK || len(s.Warnings) != 4 || !strings.Contains(s.Warnings[2], "these GPUs have none: GPU-a") || !strings.Contains(s.Warnings[3], "no source reports its GPU z/0") {
		t.Errorf("%+v, %+v, %q", s.GPUs, s.Sources, s.Warnings)
	}
	for _, m := range s.Ladder.Models {
		if m.Level != "L0" {
			t.Errorf("%s stands at %s because of %s", m.Model, m.Level, m.Reason)
		}
	}
	if n := strings.Count(f.Log.Text(), "these GPUs have none: GPU-a"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}
