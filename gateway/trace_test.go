package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"tidegate/admission"
	"tidegate/gateway/backend"
)

// hooks are the places of the path that tell a trace, for a call that is answered at
// the first attempt.
func hooks(g *Gateway, c *call) {
	g.trace(c)
	c.tracing.admitted(c, time.Now(), nil, errPanic)
	c.tracing.send(c, nil)
	c.tracing.sent(c, nil)
	c.tracing.end(c)
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
	c := &call{r: httptest.NewRequest("POST", "/v1/chat/completions", nil), route: "/v1/chat/completions"}
	c.r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if n := testing.AllocsPerRun(100, func() { hooks(g, c) }); n != 0 || c.tracing != nil {
		t.Errorf("%v allocations, span %v", n, c.tracing)
	}
	spans := trace.NewTracerProvider()
	g.Tracer = spans.Tracer("test")
	defer spans.Shutdown(t.Context())
	if g.trace(c); c.tracing == nil || c.traceID != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("with a tracer it is not traced, or not in its caller's trace: %q", c.traceID)
	}
	g.Tracer, c.traceID = untraced(t), ""
	if g.trace(c); c.traceID != "" {
		t.Errorf("a trace that nobody keeps is named: %s", c.traceID)
	}
	if header := c.tracing.send(c, nil); !strings.HasPrefix(header, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-") || !strings.HasSuffix(header, "-00\r\n") {
		t.Errorf("the server of a request that is not traced is told %q", header)
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
		c := &call{asked: m, model: m, served: "m", route: "/x", status: status, answers: 1, began: time.Now(), permit: &admission.Permit{}}
		c.r, c.out = httptest.NewRequest(http.MethodPost, "/x", nil), &reply{c: c, lastWrite: c.began}
		g.trace(c)
		return c
	}
	panics := one(500) // there is no body
	if err := g.guarded(panics, func(c *call) error { return g.attempt(c, m.Backends[0], c.permit, 1) }); !errors.Is(err, errPanic) {
		t.Fatal(err)
	}
	if ended := attempts.Ended(); len(ended) != 1 || ended[0].Status().Code != codes.Error {
		t.Errorf("the span of an attempt that panics: %+v", ended)
	}
	gone := one(clientClosed)
	gone.backend, gone.usage.Output, gone.streamed, gone.firstToken = "a:1", 5, true, time.Now()
	gone.tracing.send(gone, m.Backends[0])
	gone.tracing.sent(gone, backend.ErrLeft)
	if s := attempts.Ended()[1]; s.Name() != "stream" || s.EndTime().Before(s.StartTime()) {
		t.Errorf("%s from %v to %v", s.Name(), s.StartTime(), s.EndTime())
	}
	g.metrics.finished(gone, time.Second)
	canned := one(200)
	canned.served = cannedModel
	g.metrics.finished(canned, time.Second)
	got := gathered(t, reg)
	for series, want := range map[string]float64{
		"tidegate_upstream_attempts_total{backend=a:1,model=m,outcome=ok}":         0,
		"tidegate_upstream_attempts_total{backend=a:1,model=m,outcome=bad_answer}": 1,
		"tidegate_time_to_first_token_seconds{model=m}":                            1,
		"tidegate_inter_token_seconds{model=m}":                                    0,
		"tidegate_queue_wait_seconds{model=m}":                                     1,
		"tidegate_request_duration_seconds{level=L0,model=m}":                      1,
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
