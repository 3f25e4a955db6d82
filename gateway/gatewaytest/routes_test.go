package gatewaytest

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/nvml/poll"

	"github.com/tidwall/gjson"
)

func (b *bench) fetch(method, path, body string) (int, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.URL+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func (b *bench) get(path string) int {
	status, _ := b.fetch(http.MethodGet, path, "")
	return status
}

// metric sums all samples of a name.
func metric(b *bench, name string) float64 {
	_, text := b.fetch(http.MethodGet, "/metrics", "")
	sum := 0.0
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+"{"); ok {
			_, value, _ := strings.Cut(rest, "} ")
			x, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				b.t.Error(line)
			}
			sum += x
		}
	}
	return sum
}

func TestPlainRoutes(t *testing.T) {
	b := start(t, func(o *Options) { o.Aliases = []string{"alias"} })
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/health", "", 200, ""},
		{"GET", "/ping", "", 200, ""},
		{"GET", "/version", "", 200, `{"version":"0.23.0"}`},
		{"GET", "/load", "", 200, `{"server_load":0}`},
		{"GET", "/nowhere", "", 404, `{"detail":"Not Found"}`},
		{"GET", "/v1/chat/completions", "", 405, `{"detail":"Method Not Allowed"}`},
		{"POST", "/tokenize", `{"prompt":"Hello world"}`, 200, `{"count":2,"max_model_len":40960,"tokens":[9707,1879],"token_strs":null}`},
		{"POST", "/detokenize", `{"tokens":[9707,1879]}`, 200, `{"prompt":"Hello world"}`},
		{"GET", "/is_sleeping", "", 200, `{"is_sleeping":false}`},
	} {
		status, body := b.fetch(c.method, c.path, c.body)
		if status != c.status || body != c.want {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
	}
	_, models := b.fetch("GET", "/v1/models", "")
	check(t, "ListModelsResponse", []byte(models))
	if gjson.Get(models, "data.0.max_model_len").Int() != 40960 || gjson.Get(models, "data.0.owned_by").String() != "vllm" || gjson.Get(models, "data.1.id").String() != "alias" {
		t.Error(models)
	}
	for body, want := range map[string]int64{
		`{"messages":[{"role":"user","content":"Hello"}]}`:                                                                                      9,
		`{"messages":[{"role":"user","content":"Hello"}],"chat_template_kwargs":{"enable_thinking":false}}`:                                     13,
		`{"messages":[{"role":"user","content":"Hello"}],"add_generation_prompt":false}`:                                                        6,
		`{"messages":[{"role":"user","content":"Hello"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}`: 0,
	} {
		_, got := b.fetch("POST", "/tokenize", body)
		if n := gjson.Get(got, "count").Int(); n != want && want > 0 || n < 5 {
			t.Errorf("%s: %d", body, n)
		}
	}
}

func TestSleep(t *testing.T) {
	b := start(t, nil)
	b.fetch("POST", "/sleep?level=2", "")
	if _, got := b.fetch("GET", "/is_sleeping", ""); got != `{"is_sleeping":true}` {
		t.Error(got)
	}
	if _, text := b.fetch("GET", "/metrics", ""); !strings.Contains(text, `sleep_state="discard_all"} 1.0`) {
		t.Error("sleep state")
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		b.post(chatPath, chat("Hello", ""))
	}()
	poll.Await(t, "waiting", func() bool { return b.Stats().Waiting == 1 })
	b.fetch("POST", "/wake_up", "")
	<-answered
}

func TestAPIKey(t *testing.T) {
	b := start(t, func(o *Options) { o.APIKey = "secret" })
	if status, body := b.fetch("GET", "/v1/models", ""); status != 401 || body != `{"error":"Unauthorized"}` {
		t.Error(status, body)
	}
	if status, _ := b.post(chatPath, chat("Hello", ""), "Authorization", "Bearer secret"); status != 200 {
		t.Error(status)
	}
	if status := b.get("/metrics"); status != 200 {
		t.Error("/metrics needs no key:", status)
	}
}

func TestMetrics(t *testing.T) {
	b := start(t, func(o *Options) { o.Engines = 2 })
	for range 2 {
		b.post(chatPath, chat("Hello", `"sim":{"tokens":20}`))
	}
	b.post(chatPath, chat("Hello", `"max_tokens":5,"sim":{"tokens":20}`))
	for name, want := range map[string]float64{
		"vllm:prompt_tokens_total": 27, "vllm:generation_tokens_total": 45, "vllm:request_success_total": 3,
		"vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0, "vllm:kv_cache_usage_perc": 0,
		"vllm:time_to_first_token_seconds_count": 3, "vllm:inter_token_latency_seconds_count": 42,
		"vllm:e2e_request_latency_seconds_count": 3, "vllm:cache_config_info": 2,
	} {
		if got := metric(b, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	_, text := b.fetch("GET", "/metrics", "")
	for _, line := range []string{
		`vllm:num_requests_running{engine="1",model_name="Qwen3-1.7B"} 0.0`,
		`vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen3-1.7B",reason="capacity"} 0.0`,
		`finished_reason="length"} 1.0`,
	} {
		if !strings.Contains(text, line) {
			t.Error("missing:", line)
		}
	}
	one := start(t, nil)
	_, text = one.fetch("GET", "/metrics", "")
	samples := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			samples++
		}
	}
	if samples < 350 || samples > 550 {
		t.Error("samples of one engine:", samples)
	}
	if strings.Contains(text, "gpu_cache_usage_perc") || strings.Contains(text, "time_per_output_token_seconds_bucket{engine") && !strings.Contains(text, "request_time_per_output_token_seconds") {
		t.Error("old names")
	}
	old := start(t, func(o *Options) { o.Version = "0.11.0" })
	_, text = old.fetch("GET", "/metrics", "")
	for _, name := range []string{"vllm:gpu_cache_usage_perc{", "vllm:kv_cache_usage_perc{", "vllm:time_per_output_token_seconds_bucket{"} {
		if !strings.Contains(text, name) {
			t.Error("v0.11 lacks", name)
		}
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	b := start(t, func(o *Options) { o.KeepAlive = 30 * time.Millisecond })
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if raw, err := io.ReadAll(conn); err != nil || !bytes.Contains(raw, []byte("0.23.0")) {
		t.Error(err, string(raw))
	}
}

func TestControl(t *testing.T) {
	b := start(t, nil)
	control := httptest.NewServer(b.Control())
	defer control.Close()
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, control.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(raw)
	}
	call("POST", "/sim/faults", `[{"kind":"500","count":1},{"kind":"503","count":1}]`)
	var seen []int
	for range 3 {
		status, _ := b.post(chatPath, chat("Hello", ""))
		seen = append(seen, status)
	}
	if !slices.Equal(seen, []int{500, 503, 200}) {
		t.Error(seen)
	}
	if status, _ := call("POST", "/sim/faults", `{"kind":"what"}`); status != 400 {
		t.Error("unknown fault:", status)
	}
	if status, body := call("POST", "/sim/options", `{"ttft":"1ms","itl":"2ms","slots":3,"tokens":11}`); status != 200 || !strings.Contains(body, `"slots":3`) {
		t.Error(status, body)
	}
	if status, _ := call("POST", "/sim/options", `{"itl":"fast"}`); status != 400 {
		t.Error(status)
	}
	if _, v := b.post(chatPath, chat("Hello", "")); v.Get("usage.completion_tokens").Int() != 11 {
		t.Error(v.Get("usage"))
	}
	if _, body := call("GET", "/sim/stats", ""); gjson.Get(body, "finished").Int() != 2 {
		t.Error(body)
	}
	if _, body := call("GET", "/sim/requests?last=1", ""); gjson.Get(body, "#").Int() != 1 || gjson.Get(body, "0.Output").Int() != 11 {
		t.Error(body)
	}
	call("POST", "/sim/reset", "")
	if len(b.Requests()) != 0 {
		t.Error("reset")
	}
	call("DELETE", "/sim/faults", "")
}

func TestOptionsAreChecked(t *testing.T) {
	for name, edit := range map[string]func(*Options){
		"model": func(o *Options) { o.Model = "" }, "version": func(o *Options) { o.Version = "new" },
		"slots": func(o *Options) { o.Slots = 0 }, "kv-blocks": func(o *Options) { o.KVBlocks = 10 },
		"reasoning-parser": func(o *Options) { o.ReasoningParser = "x" }, "engines": func(o *Options) { o.Engines = 0 },
	} {
		o := Default()
		edit(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Error(name, err)
		}
	}
}
