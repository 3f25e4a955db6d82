package gateway

import (
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
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
	none := trace.NewTracerProvider(trace.WithSampler(trace.NeverSample()))
	defer none.Shutdown(t.Context())
	g.Tracer, c.traceID = none.Tracer("test"), ""
	if g.trace(c); c.traceID != "" {
		t.Errorf("a trace that nobody keeps is named: %s", c.traceID)
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
