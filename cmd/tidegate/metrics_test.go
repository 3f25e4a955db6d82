package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
	"tidegate/nvml"
)

// tellingNode is a node whose GPU tells everything.
func tellingNode(t *testing.T) *stack.Node {
	t.Helper()
	node := stack.StartNode(t)
	number, mem := 40, uint64(1<<30)
	node.Answer(func(w http.ResponseWriter, r *nvml.Report) {
		g := &r.GPUs[0]
		g.Temperature, g.HBM, g.Power, g.Utilisation, g.MemoryFree = &number, &number, &mem, &number, &mem
		g.ThrottleNs = map[string]uint64{"sw_thermal": 1}
		json.NewEncoder(w).Encode(r)
	})
	return node
}

// everyMetric is a configuration of which all has metrics.
func everyMetric(more string) stack.Config {
	p := stack.Laddered("  baseline: 1s\n" + more + `limits:
  - {name: few, per: key, requests: 6/1h}
  - {name: plenty, per: user, tokens: 1000000/1h}
  - {name: seen, per: user, requests: 1/1h, shadow: true}
quotas:
  - {name: daily, per: user, units: 100000, every: day}
  - {name: monthly, per: model, units: 100000000, every: month}
alerts:
  - {type: slack, url_env: SLACK_URL}
telemetry: {per_user: 5}
`)
	p.Env["SLACK_URL"] = "https://hooks.slack.com/services/none"
	return p
}

// TestMetricNames starts a gateway with everything there is to be configured, gives it
// some of each kind of traffic, and compares what it exports with docs/metrics.md, both
// ways, types and labels too.
func TestMetricNames(t *testing.T) {
	node := tellingNode(t)
	redis, docs := "", stack.DocumentedMetrics(t, "../..")
	if _, err := exec.LookPath("redis-server"); err == nil {
		redis = "redis: {addrs: ['" + redistest.Single(t).Addr + "'], timeout: 1s}\n"
	} else {
		delete(docs, "tidegate_store_call_seconds")
		delete(docs, "tidegate_store_breaker_state")
	}
	authority, _ := stack.Certificate(t, t.TempDir(), "authority")
	p := everyMetric(nodeConfig(node) + "  - {name: secure, agent: 'https://127.0.0.1:1', ca_file: " + authority + "}\n" + redis)
	p.GPUs = "gpu-a/0"
	f := startGateway(t, startServers(t, nil), p)
	stack.Eventually(t, "a reading", func() bool { return f.Metric(t, `tidegate_gpu_source_up{source="gpu-a"}`) == 1 })
	for _, stream := range []string{"", `,"stream":true`} {
		f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, stream))
		f.Metric(t, `tidegate_ladder_observe`) // who has used something has a series from now on
	}
	for range 5 { // which say within what time the first token comes, and how fast the others do
		f.Complete(t, stack.BobKey, stack.Chat(stack.SmallModel, 5, `,"stream":true`))
	}
	f.Pin(t, stack.LargeModel, "L2")
	f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, ""))
	f.Complete(t, "junk", stack.Chat(stack.LargeModel, 5, ""))
	f.Servers.Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500, Count: 1})
	f.Complete(t, stack.BobKey, stack.Chat(stack.SmallModel, 5, ""))
	for _, model := range []string{"junk", stack.SmallModel, stack.SmallModel, stack.SmallModel, stack.SmallModel, stack.SmallModel} {
		f.Complete(t, stack.AdaKey, stack.Chat(model, 5, ""))
	}
	var page string
	get := func(accept string) string {
		q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, f.Ops+"/metrics", nil)
		q.Header.Set("Accept", accept)
		return string(f.Do(t, q).Body)
	}
	var missing []string
	defer func() {
		if len(missing) > 0 {
			t.Errorf("documented, and not exported: %v", missing)
		}
	}()
	stack.Eventually(t, "every documented metric", func() bool {
		page = get("text/plain")
		missing = nil
		has := exportedMetrics(page)
		for name, d := range docs {
			if _, ok := has[name]; !ok && d.Gateway {
				missing = append(missing, name)
			}
		}
		return len(missing) == 0
	})
	for name, got := range exportedMetrics(page) {
		d, ok := docs[name]
		if !ok || !d.Gateway {
			t.Errorf("%s is exported, and docs/metrics.md does not know it", name)
			continue
		}
		if got.Type != d.Type || !slices.Equal(got.Labels, d.Labels) {
			t.Errorf("%s is a %s with labels %v; docs/metrics.md says %s, %v", name, got.Type, got.Labels, d.Type, d.Labels)
		}
	}
	for _, series := range []string{
		`tidegate_requests_total{level="L0",model="` + stack.LargeModel + `",route="/v1/chat/completions",served="` + stack.LargeModel + `",status="200",stream="true"}`,
		`tidegate_request_tokens_count{direction="output",model="` + stack.LargeModel + `"}`, `tidegate_inter_token_seconds_count{model="` + stack.LargeModel + `"}`,
		`tidegate_overhead_seconds_count{model="` + stack.LargeModel + `"}`, `tidegate_reservation_error_ratio_count{model="` + stack.LargeModel + `"}`,
		`tidegate_rejected_total{model="other",reason="model_not_found",rule=""}`, `tidegate_rejected_total{model="other",reason="invalid_api_key",rule=""}`,
		`tidegate_backend_attempts_total{backend="` + strings.TrimPrefix(f.Servers[2].URL, "http://") + `",model="` + stack.SmallModel + `",outcome="status_5xx"}`,
		`tidegate_degraded_requests_total{level="L2",model="` + stack.LargeModel + `",reason="pin"}`, `tidegate_user_tokens_total{direction="output",user="ada"}`,
	} {
		if f.Metric(t, series) == 0 {
			t.Errorf("%s is 0 or not there", series)
		}
	}
	if open := get("application/openmetrics-text;version=1.0.0"); !strings.HasSuffix(open, "\n# EOF\n") || strings.Contains(strings.ReplaceAll(open, stack.AdaKey, ""), stack.AdaKey) {
		t.Errorf("no page of OpenMetrics: %.100s", open)
	}
}

// Canaries: what must never be seen in a log.
const (
	promptCanary = "canary-of-the-prompt"
	answerCanary = "canary-of-the-answer"
	keyCanary    = "tg-canary-of-a-key"
)

// echoing is a server in front of another one that fails as its prompt says, and
// tells the prompt in all it says.
func echoing(t *testing.T, to string) string {
	t.Helper()
	return stack.Intercept(t, to, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		body, _ := io.ReadAll(r.Body)
		said := string(body) + answerCanary
		failure, _ := json.Marshal(map[string]any{"error": map[string]any{"message": "bad: " + said, "type": "BadRequestError", "param": promptCanary, "code": 400}})
		raw := func(format string, args ...any) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				fmt.Fprintf(c, format, args...)
				c.Close()
			}
		}
		switch fault := promptCanary + "-"; {
		case strings.Contains(said, fault+"400"), strings.Contains(said, fault+"422"), strings.Contains(said, fault+"500"), strings.Contains(said, fault+"503"):
			_, code, _ := strings.Cut(said, fault)
			status := map[string]int{"400": 400, "422": 422, "500": 500, "503": 503}[code[:3]]
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			w.Write(failure)
		case strings.Contains(said, fault+"event"):
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "data: %s\n\ndata: [DONE]\n\n", failure)
		case strings.Contains(said, fault+"garbage"):
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "data: {%q\n\ndata: [DONE]\n\n", said)
		case strings.Contains(said, fault+"status"):
			raw("HTTP/1.1 %s\r\n\r\n", answerCanary)
		case strings.Contains(said, fault+"proto"):
			raw("%s\r\n\r\n", answerCanary)
		case strings.Contains(said, fault+"header"):
			raw("HTTP/1.1 200 OK\r\n%s\r\n\r\n", answerCanary)
		case strings.Contains(said, fault+"chunk"):
			raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n", answerCanary)
		default:
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			r.ContentLength = int64(len(body))
			pass.ServeHTTP(w, r)
		}
	})
}

// TestNothingPrivateIsLogged: no prompt, no answer and no key reaches the log or the
// metrics, whichever way a request fails; what the log is for does.
func TestNothingPrivateIsLogged(t *testing.T) {
	s := startServers(t, nil)
	for i, one := range s {
		behind := *one
		behind.URL = echoing(t, one.URL)
		s[i] = &behind
	}
	f := startGateway(t, s, stack.Config{Extra: "limits:\n  - {name: few, per: ip, requests: 1000/1h, shadow: true}\n"})
	statuses := map[int]int{}
	send := func(key, path, body string) {
		q, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, f.URL+path, strings.NewReader(body))
		q.Header.Set("Content-Type", "application/json")
		q.Header.Set("Authorization", "Bearer "+key)
		resp, err := f.Client.Do(q)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body) // it may be cut
		resp.Body.Close()
		statuses[resp.StatusCode]++
	}
	for _, stream := range []string{"", `,"stream":true`} {
		for _, fault := range []string{"none", "400", "422", "500", "503", "event", "garbage", "status", "proto", "header", "chunk"} {
			prompt := promptCanary + "-" + fault
			send(stack.AdaKey, stack.ChatPath, fmt.Sprintf(`{"model":%q,"max_tokens":8,"messages":[{"role":"user","content":%q}]%s}`, stack.LargeModel, prompt, stream))
			send(stack.AdaKey, stack.CompletionPath, fmt.Sprintf(`{"model":%q,"max_tokens":8,"prompt":%q%s}`, stack.SmallModel, prompt, stream))
		}
		for _, body := range []string{
			`{"model":"x","messages":"` + promptCanary, `{"model":"a ` + promptCanary + `","messages":[{"role":"user","content":"x"}]}`,
			`{"` + promptCanary + `":1,"` + promptCanary + `":2}`, `{"model":"qwen3","messages":[{"role":"` + promptCanary + `","content":"x"}]}`,
			`{"model":"qwen3","messages":[{"role":"user","content":[{"type":"` + promptCanary + `"}]}]}`, `{"model":"qwen3","messages":"` + promptCanary + `"}`,
			`{"model":"qwen3","max_tokens":"` + promptCanary + `","messages":[{"role":"user","content":"x"}]}`,
			`{"model":"qwen3","tool_choice":"` + promptCanary + `","messages":[{"role":"user","content":"x"}]}`,
			`{"model":"qwen3","max_tokens":99999999,"messages":[{"role":"user","content":"` + promptCanary + `"}]}`,
			`{"model":"qwen3","stop":"` + promptCanary + `","logit_bias":"` + promptCanary + `","messages":[{"role":"user","content":"` + promptCanary + `"}]` + stream + `}`, promptCanary,
		} {
			send(stack.AdaKey, stack.ChatPath, body)
			send(stack.AdaKey, stack.CompletionPath, strings.ReplaceAll(body, "messages", "prompt"))
		}
	}
	for _, path := range []string{stack.ChatPath, "/v1/" + keyCanary, "/v1/usage", "/quota/status", "/tokenize", "/admin/v1/keys", "/a%20" + promptCanary, "/v1/" + strings.Repeat("a", 40) + promptCanary} {
		send(keyCanary, path, `{"model":"qwen3","prompt":"`+promptCanary+`"}`)
		send(stack.AdaKey, path, `{"model":"`+keyCanary+`","prompt":"`+promptCanary+`","user":"`+promptCanary+`"}`)
	}
	q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+"/v1/models?key="+keyCanary, nil)
	q.Header.Set("X-Stainless-Retry-Count", promptCanary)
	q.Header.Set("X-Tidegate-Max-Level", promptCanary)
	f.Do(t, q)
	for _, status := range []int{200, 400, 401, 404, 502, 503} {
		if statuses[status] == 0 {
			t.Errorf("no request ended with %d: %v", status, statuses)
		}
	}
	resp, err := f.Client.Get(f.Ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	log := f.Log.Text()
	for _, secret := range []string{promptCanary, answerCanary, keyCanary, stack.AdaKey} {
		for what, text := range map[string]string{"log": log, "page of metrics": string(page)} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%q in the %s: %s", secret, what, text[max(0, i-600):min(len(text), i+200)])
			}
		}
	}
	saysAll(t, log)
}

// saysAll looks at the line of a stream that ended well.
func saysAll(t *testing.T, log string) {
	t.Helper()
	for line := range strings.Lines(log) {
		var e map[string]any
		if json.Unmarshal([]byte(line), &e) == nil && e["msg"] == "request" && e["status"] == 200.0 && e["route"] == stack.ChatPath && e["stream"] == true {
			for _, field := range []string{"id", "route", "took", "user", "key", "model", "served", "level", "reason", "backend", "input", "cached", "output", "reasoning", "ttft"} {
				if e[field] == nil || e[field] == "" {
					t.Errorf("the log has no %s: %s", field, line)
				}
			}
			return
		}
	}
	t.Errorf("no line of a stream that ended well:\n%.2000s", log)
}
