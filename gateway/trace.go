package gateway

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"tidegate/admission"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
)

// Names of attributes: OpenTelemetry's conventions for HTTP, and those for generative
// AI, which are still in development (https://opentelemetry.io/docs/specs/semconv/gen-ai/),
// so that they stand in this file alone. What they do not know is ours.
const (
	attrMethod    = attribute.Key("http.request.method")
	attrRoute     = attribute.Key("http.route")
	attrStatus    = attribute.Key("http.response.status_code")
	attrError     = attribute.Key("error.type")
	attrServer    = attribute.Key("server.address")
	attrOperation = attribute.Key("gen_ai.operation.name")
	attrProvider  = attribute.Key("gen_ai.provider.name")
	attrAsked     = attribute.Key("gen_ai.request.model")
	attrMaxTokens = attribute.Key("gen_ai.request.max_tokens")
	attrServed    = attribute.Key("gen_ai.response.model")
	attrInput     = attribute.Key("gen_ai.usage.input_tokens")
	attrCached    = attribute.Key("gen_ai.usage.cache_read.input_tokens")
	attrOutput    = attribute.Key("gen_ai.usage.output_tokens")
	attrReasoning = attribute.Key("gen_ai.usage.reasoning.output_tokens")

	attrRequest = attribute.Key("tidegate.request_id")
	attrUser    = attribute.Key("tidegate.user")
	attrKey     = attribute.Key("tidegate.key") // its name
	attrLevel   = attribute.Key("tidegate.level")
	attrReason  = attribute.Key("tidegate.reason")
	attrAttempt = attribute.Key("tidegate.attempt") // its X-Request-Id at the server
	attrOutcome = attribute.Key("tidegate.outcome")
)

const provider = "vllm"

// Tracer begins spans and sends them.
type Tracer = trace.Tracer

// tracing is a request's part in a distributed trace: a span of its own, and below it
// admission, with queue, and each attempt, with stream. A nil one does nothing, so
// that a gateway without a tracer pays nothing. One goroutine may use it.
type tracing struct {
	tracer  Tracer
	request span
	attempt span // of the one under way
}

type span struct {
	trace.Span
	ctx context.Context //nolint:containedctx // it is what OpenTelemetry calls a parent, and ends with the request
}

// startTrace begins the span of a request: in its caller's trace, where it names one and its
// network is trusted to. Of any other caller the trace is a new one, which only links to
// the caller's: it decides neither whether the request is kept nor what the server is
// told of it (https://www.w3.org/TR/trace-context/#security-considerations).
//
// trusted says that the caller's own trace is continued.
func startTrace(tracer Tracer, r *http.Request, route, id string, began time.Time, trusted bool) *tracing {
	if tracer == nil || route == routeOther { // scanners
		return nil
	}
	t := &tracing{tracer: tracer}
	options := [3]trace.SpanStartOption{trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindServer)}
	parent := context.Background()
	named := propagation.TraceContext{}.Extract(parent, propagation.HeaderCarrier(r.Header))
	kept := 2
	if theirs := trace.SpanContextFromContext(named); theirs.IsValid() {
		if trusted {
			parent = named
		} else {
			ids := trace.NewSpanContext(trace.SpanContextConfig{TraceID: theirs.TraceID(), SpanID: theirs.SpanID(), Remote: true})
			options[kept] = trace.WithLinks(trace.Link{SpanContext: ids})
			kept++
		}
	}
	t.request.ctx, t.request.Span = tracer.Start(parent, r.Method+" "+route, options[:kept]...)
	if t.kept() {
		t.request.SetAttributes(attrMethod.String(r.Method), attrRoute.String(route), attrRequest.String(id))
	}
	return t
}

// traceID returns the id of the request's trace in hexadecimal; empty where none is kept.
func (t *tracing) traceID() string {
	if t == nil {
		return ""
	}
	if span := t.request.SpanContext(); span.IsSampled() {
		return span.TraceID().String()
	}
	return ""
}

// kept reports whether anything is kept of the request's spans. Where the sampler says
// no, the server is told of the request's span and no others are begun.
func (t *tracing) kept() bool { return t != nil && t.request.IsRecording() }

// admitted adds the spans of admission and of the wait for a place in it.
func (t *tracing) admitted(asked string, start time.Time, p *admission.Permit, err error) {
	if !t.kept() {
		return
	}
	now := time.Now()
	ctx, admitting := t.tracer.Start(t.request.ctx, "admission", trace.WithTimestamp(start))
	if err != nil {
		admitting.SetStatus(codes.Error, loggable(err))
	} else {
		admitting.SetAttributes(attrLevel.String(p.Level.String()), attrReason.String(p.Reason), attrAsked.String(asked))
		if p.Pool() != nil {
			_, queue := t.tracer.Start(ctx, "queue", trace.WithTimestamp(now.Add(-p.Wait)))
			queue.End(trace.WithTimestamp(now))
		}
	}
	admitting.End(trace.WithTimestamp(now))
}

// sendAttempt begins the span of an attempt and returns the lines of a request's head that
// name it to the backend. id is the attempt's X-Request-Id.
func (t *tracing) sendAttempt(operation, model, backendName, id string) (header string) {
	if t == nil {
		return ""
	}
	if !t.kept() {
		return headerOf(t.request.ctx)
	}
	t.attempt.ctx, t.attempt.Span = t.tracer.Start(t.request.ctx, operation+" "+model, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attrOperation.String(operation), attrProvider.String(provider), attrAsked.String(model),
			attrServer.String(backendName), attrAttempt.String(id)))
	return headerOf(t.attempt.ctx)
}

// headerOf is the lines of a request's head that name the span of ctx.
func headerOf(ctx context.Context) (header string) {
	lines := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, lines)
	for name, value := range lines {
		header += name + ": " + value + "\r\n"
	}
	return header
}

// attemptEnded ends the span of an attempt, and adds one for its stream.
func (t *tracing) attemptEnded(out *outcome, streamed bool, err error) {
	if !t.kept() {
		return
	}
	if streamed && !out.firstToken.IsZero() {
		_, stream := t.tracer.Start(t.attempt.ctx, "stream", trace.WithTimestamp(out.firstToken))
		stream.SetAttributes(attrOutput.Int(out.usage.Output))
		stream.End(trace.WithTimestamp(out.firstToken.Add(out.flow())))
	}
	word := backend.Outcome(err)
	t.attempt.SetAttributes(attrOutcome.String(word))
	if err == nil {
		t.attempt.SetAttributes(usageAttributes(out.usage)...)
	} else {
		t.attempt.SetAttributes(attrError.String(word))
		t.attempt.SetStatus(codes.Error, word)
	}
	t.attempt.End()
}

// spanEnd holds the attributes of a request's span that are known at its end.
type spanEnd struct {
	outcome       *outcome
	user, key     string // names; empty where the key was not good
	operation     string // of the door; empty where the route generates nothing
	asked, served string // models; empty where none was found
	maxTokens     int    // tokens that a choice may have
}

// end ends the span of a request.
func (t *tracing) end(e spanEnd) {
	if !t.kept() {
		return
	}
	span, out := t.request, e.outcome
	span.SetAttributes(attrStatus.Int(out.status))
	if e.user != "" {
		span.SetAttributes(attrUser.String(e.user), attrKey.String(e.key))
	}
	if e.asked != "" {
		if e.operation != "" {
			span.SetAttributes(attrOperation.String(e.operation))
		}
		span.SetAttributes(attrProvider.String(provider), attrAsked.String(e.asked), attrServed.String(e.served),
			attrMaxTokens.Int(e.maxTokens), attrLevel.String(out.level.String()), attrReason.String(out.reason))
		span.SetAttributes(usageAttributes(out.usage)...)
	}
	if out.status >= http.StatusInternalServerError {
		span.SetAttributes(attrError.String(strconv.Itoa(out.status)))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// usageAttributes returns the attributes of tokens.
func usageAttributes(u openai.Usage) []attribute.KeyValue {
	return []attribute.KeyValue{attrInput.Int(u.Input), attrCached.Int(u.Cached), attrOutput.Int(u.Output), attrReasoning.Int(u.Reasoning)}
}
