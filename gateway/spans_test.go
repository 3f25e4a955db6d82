package gateway_test

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// collected is what a collector of traces was sent.
type collected struct {
	url   string
	mu    sync.Mutex
	spans []*otlp.Span
	of    map[string]string // attributes of who sent them
}

// startCollector takes OTLP over HTTP, as a collector does.
func startCollector(t *testing.T) *collected {
	t.Helper()
	c := &collected{of: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if in, err = gzip.NewReader(in); err != nil {
				t.Error(err)
			}
		}
		raw, err := io.ReadAll(in)
		var sent collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(raw, &sent)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, from := range sent.GetResourceSpans() {
			for _, a := range from.GetResource().GetAttributes() {
				c.of[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for _, scope := range from.GetScopeSpans() {
				c.spans = append(c.spans, scope.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// ended waits for the span of a request, whose id its answer gave, and returns it and
// all others of its trace.
func (c *collected) ended(t *testing.T, id string) (request *otlp.Span, trace []*otlp.Span) {
	t.Helper()
	stack.Eventually(t, "the span of request "+id, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.spans {
			if said(s, "tidegate.request_id") == id {
				request = s
			}
		}
		return request != nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if string(s.GetTraceId()) == string(request.GetTraceId()) {
			trace = append(trace, s)
		}
	}
	return request, trace
}

// said is an attribute of a span as text; empty: it has none of that name.
func said(s *otlp.Span, name string) string {
	for _, a := range s.GetAttributes() {
		if v := a.GetValue(); a.GetKey() == name {
			if text := v.GetStringValue(); text != "" {
				return text
			}
			return fmt.Sprint(v.GetIntValue())
		}
	}
	return ""
}

// below are the spans of a trace under another, by name.
func below(trace []*otlp.Span, parent *otlp.Span) map[string][]*otlp.Span {
	out := map[string][]*otlp.Span{}
	for _, s := range trace {
		if string(s.GetParentSpanId()) == string(parent.GetSpanId()) {
			out[s.GetName()] = append(out[s.GetName()], s)
		}
	}
	return out
}

// only is the one span of that name.
func only(t *testing.T, spans map[string][]*otlp.Span, name string) *otlp.Span {
	t.Helper()
	if len(spans[name]) != 1 {
		t.Fatalf("%d spans %s in %v", len(spans[name]), name, spans)
	}
	return spans[name][0]
}

func lasted(s *otlp.Span) time.Duration {
	return time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano()) //nolint:gosec // a request's time
}

// traced is a gateway that sends its spans to a collector.
type traced struct {
	*collected
	front *front
}

// send asks for 40 tokens and returns the span of the request, and all of its trace.
func (c *traced) send(t *testing.T, model, more string, head ...string) (request *otlp.Span, trace []*otlp.Span) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.front.URL+stack.ChatPath,
		strings.NewReader(fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":40}%s}`, model, more)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+stack.AdaKey)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(head); i += 2 {
		req.Header.Set(head[i], head[i+1])
	}
	resp, err := c.front.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return c.ended(t, resp.Header.Get("X-Request-Id"))
}

// TestTraces sends requests through a gateway that is traced: each is one trace.
func TestTraces(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20") // ms between two batches of spans
	c := &traced{collected: startCollector(t)}
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 5 * time.Millisecond })
	c.front = startGateway(t, s, stack.Config{
		Backend: ", max_in_flight: 1", Large: []string{"retry: {budget: 1}"}, Extra: "telemetry: {otlp_endpoint: '" + c.url + "/', trace_callers: [127.0.0.0/8]}\n",
	})
	t.Run("a stream in its caller's trace", c.stream)
	t.Run("a wait", func(t *testing.T) {
		var both sync.WaitGroup
		waits := make(chan time.Duration, 2)
		for range 2 {
			both.Go(func() {
				request, all := c.send(t, stack.SmallModel, "")
				top := below(all, request)
				waits <- lasted(only(t, below(all, only(t, top, "admission")), "queue"))
				if len(below(all, only(t, top, "chat "+stack.SmallModel))) != 0 {
					t.Error("an answer in one piece has a stream")
				}
			})
		}
		both.Wait()
		if longer := max(<-waits, <-waits); longer < 100*time.Millisecond { // the other takes 200 ms
			t.Errorf("the longer wait lasted %v", longer)
		}
	})
	t.Run("two attempts", func(t *testing.T) {
		if err := s[0].SetFault(gatewaytest.Fault{Kind: gatewaytest.Fault503, Count: 1}); err != nil {
			t.Fatal(err)
		}
		defer s.Heal(t)
		for range 2 { // the first or the second meets it
			request, all := c.send(t, stack.LargeModel, "")
			attempts := below(all, request)["chat "+stack.LargeModel]
			if len(attempts) == 2 {
				if said(attempts[0], "error.type") == "" || attempts[0].GetStatus().GetCode() != otlp.Status_STATUS_CODE_ERROR {
					t.Errorf("the failed attempt does not say so: %v", attempts[0])
				}
				return
			}
		}
		t.Error("no request has two attempts")
	})
	t.Run("a refusal", func(t *testing.T) {
		request, all := c.send(t, "nobody", "", "Traceparent", "00-junk")
		if len(all) != 1 || said(request, "http.response.status_code") != "404" || said(request, "gen_ai.request.model") != "" {
			t.Errorf("%v", all)
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of["service.name"] != "tidegate" || c.of["service.version"] == "" || c.of["deployment.environment.name"] != "test" {
		t.Errorf("who sends the spans: %v", c.of)
	}
}

// stream checks the trace of a streamed answer: it is its caller's, with admission,
// queue, attempt and stream, and the server is told of its attempt.
func (c *traced) stream(t *testing.T) {
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	request, all := c.send(t, stack.SmallModel, `,"stream":true`, "Traceparent", "00-"+trace+"-"+parent+"-01", "Tracestate", "vendor=x")
	if hex.EncodeToString(request.GetTraceId()) != trace || hex.EncodeToString(request.GetParentSpanId()) != parent {
		t.Errorf("the request's span is not in its caller's trace: %v", request)
	}
	for name, want := range map[string]string{
		"gen_ai.operation.name": "chat", "gen_ai.request.model": stack.SmallModel, "gen_ai.response.model": stack.SmallModel, "gen_ai.usage.output_tokens": "40",
		"http.route": stack.ChatPath, "http.response.status_code": "200", "tidegate.user": "ada", "tidegate.level": "L0",
	} {
		if got := said(request, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	top := below(all, request)
	queue := only(t, below(all, only(t, top, "admission")), "queue")
	attempt := only(t, top, "chat "+stack.SmallModel)
	stream := only(t, below(all, attempt), "stream")
	if len(all) != 5 {
		t.Errorf("%d spans, not 5: %v", len(all), all)
	}
	if lasted(queue) > lasted(request) || lasted(stream) < 39*5*time.Millisecond*9/10 || lasted(stream) > lasted(attempt) {
		t.Errorf("queue %v, stream %v, attempt %v of %v", lasted(queue), lasted(stream), lasted(attempt), lasted(request))
	}
	var told http.Header
	for _, r := range c.front.Servers[2].Requests() {
		if r.ID == said(attempt, "tidegate.attempt") {
			told = r.Header
		}
	}
	if got, want := told.Get("Traceparent"), "00-"+trace+"-"+hex.EncodeToString(attempt.GetSpanId())+"-01"; got != want {
		t.Errorf("the server was told %q, not %q", got, want)
	}
	if told.Get("Tracestate") != "vendor=x" {
		t.Errorf("tracestate %q", told.Get("Tracestate"))
	}
}

// TestTracesNobodyTakes checks that a collector that hangs costs no request anything,
// and the end of the gateway no more than it may.
func TestTracesNobodyTakes(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "100")
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
	hung := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(hung) })
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	f := startGateway(t, startServers(t, nil), stack.Config{Env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL}})
	for range 50 {
		if status, body := f.Ask(t, stack.AdaKey); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
	}
	stack.Eventually(t, "a word of it in the log", func() bool {
		return strings.Contains(f.Log.Text(), "cannot send traces")
	})
}
