package main

import (
	"io"
	"strings"
	"testing"
)

// TestTracesSettings checks what of the standard variables turns tracing on, and that
// a protocol that is not there is said.
func TestTracesSettings(t *testing.T) {
	for name, test := range map[string]struct {
		endpoint string
		env      map[string]string
		on       bool
		fault    string
	}{
		"nothing":         {},
		"the file":        {endpoint: "http://127.0.0.1:1", on: true},
		"the variable":    {env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, on: true},
		"that of traces":  {env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, on: true},
		"disabled":        {endpoint: "http://127.0.0.1:1", env: map[string]string{"OTEL_SDK_DISABLED": "True"}},
		"no exporter":     {endpoint: "http://127.0.0.1:1", env: map[string]string{"OTEL_TRACES_EXPORTER": "none"}},
		"gRPC":            {endpoint: "http://127.0.0.1:1", env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, on: true},
		"another":         {endpoint: "http://127.0.0.1:1", env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, fault: `"http/json" is not known`},
		"that for traces": {endpoint: "http://127.0.0.1:1", env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, on: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := &process{env: func(name string) (string, bool) { v, ok := test.env[name]; return v, ok }}
			traces, err := newTracing(t.Context(), test.endpoint, p, newLog("text", &process{stderr: io.Discard}))
			if test.fault != "" {
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer traces.close()
			if on := traces.tracer() != nil; on != test.on {
				t.Errorf("on: %v", on)
			}
		})
	}
}
