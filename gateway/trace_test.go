package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"tidegate/admission"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/door"
)

// hooks are the places of the path that tell a trace, for a call that is answered at
// the first attempt.
func hooks(g *Gateway, c *call) {
	c.tracing = g.startTrace(c)
	c.tracing.admitted("m", time.Now(), nil, errPanic)
	c.tracing.sendAttempt("chat", "m", "b", "id")
	c.tracing.attemptEnded(&c.outcome, true, nil)
	c.tracing.end(c.spanEnd())
}

// untraced is a tracer that keeps nothing.
func untraced(t *testing.T) Tracer {
	spans := trace.NewTracerProvider(trace.WithSampler(trace.NeverSample()))
	t.Cleanup(func() {
		if err := spans.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return spans.Tracer("test")
}

// TestTracingOff holds that a request that is not traced allocates nothing for it.
func TestTracingOff(t *testing.T) {
	g, _ := bare(t, nil)
	g.Reload(Config{TraceCallers: []string{"192.0.2.0/24"}}, account.New(account.Config{Mode: account.Open}, nil)) // httptest's callers
	c := &call{r: httptest.NewRequest("POST", "/v1/chat/completions", nil), route: "/v1/chat/completions", settings: g.settings.Load()}
	c.r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if n := testing.AllocsPerRun(100, func() { hooks(g, c) }); n != 0 || c.tracing != nil {
		t.Errorf("%v allocations, span %v", n, c.tracing)
	}
	spans := trace.NewTracerProvider()
	g.Tracer = spans.Tracer("test")
	defer spans.Shutdown(t.Context())
	if c.tracing = g.startTrace(c); c.tracing == nil || c.tracing.traceID() != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("with a tracer it is not traced, or not in its caller's trace: %q", c.tracing.traceID())
	}
	g.Tracer = untraced(t)
	if c.tracing = g.startTrace(c); c.tracing.traceID() != "" {
		t.Errorf("a trace that nobody keeps is named: %s", c.tracing.traceID())
	}
	if header := c.tracing.sendAttempt("chat", "m", "b", "id"); !strings.HasPrefix(header, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-") || !strings.HasSuffix(header, "-00\r\n") {
		t.Errorf("the server of a request that is not traced is told %q", header)
	}
}

// TestStrangersTraces: only callers of a trusted network say which trace a request
// belongs to, whether it is kept, and what of it the server is told.
func TestStrangersTraces(t *testing.T) {
	const theirs, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for name, test := range map[string]struct {
		networks []string
		proxies  []string
		head     []string
		flags    string
		joined   bool
		kept     bool
	}{
		"nobody is trusted":              {flags: "01"},
		"another network":                {networks: []string{"10.0.0.0/8"}, flags: "01"},
		"its network":                    {networks: []string{"192.0.2.0/24"}, flags: "01", joined: true, kept: true},
		"its network, and not sampled":   {networks: []string{"192.0.2.0/24"}, flags: "00", joined: true},
		"behind a proxy":                 {networks: []string{"203.0.113.0/24"}, proxies: []string{"192.0.2.0/24"}, head: []string{"X-Forwarded-For", "203.0.113.7"}, flags: "01", joined: true, kept: true},
		"a stranger behind a proxy":      {networks: []string{"203.0.113.0/24", "192.0.2.0/24"}, proxies: []string{"192.0.2.0/24"}, head: []string{"X-Forwarded-For", "198.51.100.9"}, flags: "01"},
		"a forged address, and no proxy": {networks: []string{"203.0.113.0/24"}, head: []string{"X-Forwarded-For", "203.0.113.7"}, flags: "01"},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := bare(t, nil)
			g.Reload(Config{TraceCallers: test.networks, TrustedProxies: test.proxies}, account.New(account.Config{Mode: account.Open}, nil))
			spans := tracetest.NewSpanRecorder()
			// Nothing is kept but what a parent that may decide says is.
			g.Tracer = trace.NewTracerProvider(trace.WithSpanProcessor(spans), trace.WithSampler(trace.ParentBased(trace.NeverSample()))).Tracer("test")
			c := &call{r: httptest.NewRequest(http.MethodPost, "/x", nil), route: "/x", settings: g.settings.Load()}
			c.r.Header.Set("Traceparent", "00-"+theirs+"-"+span+"-"+test.flags)
			c.r.Header.Set("Tracestate", "vendor=smuggled")
			for i := 0; i < len(test.head); i += 2 {
				c.r.Header.Set(test.head[i], test.head[i+1])
			}
			c.tracing = g.startTrace(c)
			header := headerOf(c.tracing.request.ctx)
			if strings.Contains(header, theirs) != test.joined || strings.Contains(header, "smuggled") != test.joined {
				t.Errorf("the server is told %q", header)
			}
			if c.tracing.kept() != test.kept {
				t.Errorf("kept: %v", c.tracing.kept())
			}
		})
	}
	// A trace of its own links to the caller's, without its state.
	g, _ := bare(t, nil)
	spans := tracetest.NewSpanRecorder()
	g.Tracer = trace.NewTracerProvider(trace.WithSpanProcessor(spans)).Tracer("test")
	c := &call{r: httptest.NewRequest(http.MethodPost, "/x", nil), route: "/x", settings: g.settings.Load()}
	c.r.Header.Set("Traceparent", "00-"+theirs+"-"+span+"-01")
	c.r.Header.Set("Tracestate", "vendor=smuggled")
	c.tracing = g.startTrace(c)
	c.tracing.end(c.spanEnd())
	links := spans.Ended()[0].Links()
	if len(links) != 1 || links[0].SpanContext.TraceID().String() != theirs || links[0].SpanContext.SpanID().String() != span || links[0].SpanContext.TraceState().Len() != 0 {
		t.Errorf("%+v", links)
	}
}

// TestOddRequests: what a panic, a caller who left before the first token could be
// written and a canned answer count for, and what not.
func TestOddRequests(t *testing.T) {
	g, reg := bare(t, nil)
	g.Fleet.Apply([]backend.ModelConfig{modelOf("m", "http://a:1")})
	m, _ := g.Fleet.Model("m")
	attempts := tracetest.NewSpanRecorder()
	g.Tracer = trace.NewTracerProvider(trace.WithSpanProcessor(attempts)).Tracer("test")
	one := func(status int) *call {
		c := newGeneration(g, httptest.NewRequest(http.MethodPost, "/x", nil), door.Chat())
		c.request.model, c.plan, c.permit = m, plan{model: m, served: "m", choices: 1}, &admission.Permit{}
		c.route, c.outcome.status = "/x", status
		c.tracing = g.startTrace(c)
		return c
	}
	panics := one(500) // there is no body
	if err := g.guarded(panics, func(c *call) error { return (&sender{g: g, c: c, backend: m.Backends[0], number: 1}).attempt() }); !errors.Is(err, errPanic) {
		t.Fatal(err)
	}
	if ended := attempts.Ended(); len(ended) != 1 || ended[0].Status().Code != codes.Error {
		t.Errorf("the span of an attempt that panics: %+v", ended)
	}
	gone := one(clientClosed)
	gone.outcome.backend, gone.outcome.usage.Output, gone.outcome.firstToken = "a:1", 5, time.Now()
	gone.tracing.sendAttempt("chat", "m", "a:1", "id")
	gone.tracing.attemptEnded(&gone.outcome, true, exchange.ErrLeft)
	if s := attempts.Ended()[1]; s.Name() != "stream" || s.EndTime().Before(s.StartTime()) {
		t.Errorf("%s from %v to %v", s.Name(), s.StartTime(), s.EndTime())
	}
	g.metrics.finished(gone, time.Second)
	canned := one(200)
	canned.plan = plan{served: cannedModel, choices: 1}
	g.metrics.finished(canned, time.Second)
	got := gathered(t, reg)
	for series, want := range map[string]float64{
		"tidegate_backend_attempts_total{backend=a:1,model=m,outcome=ok}":         0,
		"tidegate_backend_attempts_total{backend=a:1,model=m,outcome=bad_answer}": 1,
		"tidegate_time_to_first_token_seconds{model=m}":                           1,
		"tidegate_inter_token_seconds{model=m}":                                   0,
		"tidegate_queue_wait_seconds{model=m}":                                    1,
		"tidegate_request_duration_seconds{level=L0,model=m}":                     1,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, not %v", series, got[series], want)
		}
	}
}

// BenchmarkTracingOff is what the path pays where nothing is traced.
func BenchmarkTracingOff(b *testing.B) {
	g := &Gateway{}
	c := &call{}
	b.ReportAllocs()
	for b.Loop() {
		hooks(g, c)
	}
}

// sampledTrace returns the tracing of a request whose trace is
// 4bf92f3577b34da6a3ce929d0e0e4736.
func sampledTrace() *tracing {
	id := oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
		TraceID: oteltrace.TraceID{0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36}, SpanID: oteltrace.SpanID{1}, TraceFlags: oteltrace.FlagsSampled,
	})
	return &tracing{request: span{Span: oteltrace.SpanFromContext(oteltrace.ContextWithSpanContext(context.Background(), id))}}
}
