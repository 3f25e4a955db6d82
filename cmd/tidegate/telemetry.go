package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"tidegate/gateway"
)

// tracing sends the spans of requests to a collector. The zero value sends
// none.
type tracing struct{ provider *trace.TracerProvider }

// Bounds of what tracing may hold up.
const (
	flushGrace = 5 * time.Second // for the last spans, at the end
	sayEvery   = time.Minute     // that a collector does not answer
)

// newTracing reads OpenTelemetry's own variables
// (https://opentelemetry.io/docs/specs/otel/protocol/exporter/) beside
// telemetry.otlp_endpoint, which goes before them. Without an endpoint nothing is
// traced. A collector that is away costs spans, never a request.
func newTracing(ctx context.Context, endpoint string, p *process, log *slog.Logger) (tracing, error) {
	variable := func(name string) string { v, _ := p.env(name); return v }
	if endpoint == "" && variable("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" ||
		strings.EqualFold(variable("OTEL_SDK_DISABLED"), "true") || variable("OTEL_TRACES_EXPORTER") == "none" {
		return tracing{}, nil
	}
	var client otlptrace.Client
	switch protocol := cmp.Or(variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), variable("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf"); protocol {
	case "http/protobuf":
		var options []otlptracehttp.Option
		if endpoint != "" {
			options = append(options, otlptracehttp.WithEndpointURL(strings.TrimSuffix(endpoint, "/")+"/v1/traces"))
		}
		client = otlptracehttp.NewClient(options...)
	case "grpc":
		var options []otlptracegrpc.Option
		if endpoint != "" {
			options = append(options, otlptracegrpc.WithEndpointURL(endpoint))
		}
		client = otlptracegrpc.NewClient(options...)
	default:
		return tracing{}, usageError{fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q is not known; expected http/protobuf or grpc", protocol)}
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return tracing{}, fmt.Errorf("traces: %w", err)
	}
	identity, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "tidegate"), attribute.String("service.version", version()),
			attribute.String("service.instance.id", rand.Text())),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return tracing{}, fmt.Errorf("traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(sayOnce(log))
	return tracing{trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(identity))}, nil
}

// sayOnce logs what goes wrong with sending, once a minute.
func sayOnce(log *slog.Logger) otel.ErrorHandlerFunc {
	var logged atomic.Int64
	return func(err error) {
		now, last := time.Now().UnixNano(), logged.Load()
		if now-last >= int64(sayEvery) && logged.CompareAndSwap(last, now) {
			log.Warn("cannot send traces", "error", err.Error())
		}
	}
}

// tracer is nil where nothing is traced.
func (t tracing) tracer() gateway.Tracer {
	if t.provider == nil {
		return nil
	}
	return t.provider.Tracer("tidegate")
}

// close sends the last spans.
func (t tracing) close() {
	if t.provider == nil {
		return
	}
	end, cancel := context.WithTimeout(context.Background(), flushGrace)
	defer cancel()
	if err := t.provider.Shutdown(end); err != nil {
		otel.Handle(err) // no reason to fail: only spans are lost
	}
}

// httpURL reports whether text is a URL of a server.
func httpURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
}
