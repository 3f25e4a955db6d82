package ops

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidegate/degrade"
	"tidegate/gateway/alert"
	"tidegate/nvml"
)

// hot is a card so far below its slowdown, with what holds its clocks down.
func hot(ref, freshness string, margin int, reasons ...string) nvml.GPUStatus {
	return nvml.GPUStatus{GPU: ref, Freshness: freshness, Reading: nvml.Reading{Margin: &margin, Reasons: reasons}}
}

// TestStatusWarns: each state that needs somebody is a warning, and none is where all is
// well.
func TestStatusWarns(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	since, until := now.Add(-time.Hour), now.Add(30*time.Minute)
	for _, c := range []struct {
		name   string
		status Status
		want   []string // parts of each warning
	}{
		{"well", Status{Ready: true, Store: "up", Models: []ModelStatus{{Model: "m", Backends: []BackendStatus{{InRotation: true}}}}, Sources: []nvml.SourceStatus{{OK: true}},
			Ladder: degrade.Status{Models: []degrade.ModelStatus{{Model: "m", Level: "L2"}}}, Alerts: []alert.Status{{Channel: "ops", LastError: "x", LastErrorAt: &since, LastSuccess: &now}}}, nil},
		{"drains", Status{WhyNotReady: "draining", Store: "up"}, []string{"not ready, so that balancers send nothing here: draining"}},
		{"database", Status{Ready: true, Store: "down"}, []string{"the database of accounts does not answer"}},
		{"a backend is out", Status{Ready: true, Models: []ModelStatus{{Model: "m", Backends: []BackendStatus{{Backend: "a:1", Reason: "connection refused"}, {InRotation: true}}}}},
			[]string{"model m, backend a:1: out of rotation: connection refused"}},
		{"all are out", Status{Ready: true, Models: []ModelStatus{{Model: "m", Fallback: "s", Backends: []BackendStatus{{Backend: "a:1"}}}}},
			[]string{"model m: none of its 1 backends is in rotation: its fallback s answers", "model m, backend a:1: out"}},
		{"levels", Status{Ready: true, Ladder: degrade.Status{Models: []degrade.ModelStatus{
			{Model: "m", Level: "L3", Reason: "gpu_temperature", Backend: "a:1", ChangedAt: &since}, {Model: "p", Level: "L1", Pin: &degrade.PinStatus{Level: "L1", Author: "ann", Reason: "incident 42", Expires: &until}},
		}}}, []string{"model m: at L3 since 1h0m0s ago, because of gpu_temperature on backend a:1", "model p: pinned at L1 by ann, until 2026-11-30 12:30:00 UTC: incident 42"}},
		{"sources", Status{Ready: true, Sources: []nvml.SourceStatus{{Name: "n", Error: "refused"}, {Name: "d", OK: true, Warning: "frozen"}}}, []string{"source n of GPU readings does not answer: refused", "source d: frozen"}},
		{"a GPU", Status{Ready: true, GPUs: []nvml.GPUStatus{{GPU: "g/0", Reading: nvml.Reading{XIDs: []nvml.XID{{Code: 79, Fatal: true}, {Code: 13}}}}}}, []string{"GPU g/0 had XID 79"}},
		{"hot GPUs", Status{Ready: true, GPUs: []nvml.GPUStatus{hot("a/0", "fresh", 5), hot("b/0", "fresh", 6, "sw_power_cap"), hot("c/0", "fresh", 9, "hw_thermal", "hw_power_brake"), hot("d/0", "dropped", 1)}},
			[]string{`GPU a/0 is hot: 5 degrees are left to its slowdown; see docs/operating.md, "A GPU is hot or throttled"`, "GPU c/0 has its clocks held down by hw_thermal, hw_power_brake; see"}},
		{"alerts", Status{Ready: true, Alerts: []alert.Status{{Channel: "ops", LastError: "403", Pending: 2}}}, []string{"quota alerts by ops do not get out, 2 are pending: 403"}},
	} {
		got := c.status.warnings([]string{"a detail"}, now)
		if len(got) != len(c.want)+1 || got[len(c.want)] != "a detail" {
			t.Errorf("%s: %q", c.name, got)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: %q lacks %q", c.name, got[i], want)
			}
		}
	}
}

// TestSlowBackends: who makes half of its peers' tokens, or takes three times as long to
// the first one, is named; who is out of rotation is no peer.
func TestSlowBackends(t *testing.T) {
	of := func(up bool, speed, ttft float64) BackendStatus {
		b := BackendStatus{Backend: fmt.Sprintf("%v:%v", speed, ttft), InRotation: up}
		if speed > 0 {
			b.Speed = &speed
		}
		if ttft > 0 {
			b.TTFT = &ttft
		}
		return b
	}
	for _, c := range []struct {
		backends []BackendStatus
		want     []string
	}{
		{[]BackendStatus{of(true, 40, 1), of(true, 30, 2), of(true, 0, 0)}, nil},
		{[]BackendStatus{of(true, 40, 1), of(true, 10, 1), of(true, 41, 1)}, []string{"backend 10:1: slower than its peers: a stream of it has 10 tokens a second"}},
		{[]BackendStatus{of(true, 40, 1), of(true, 40, 9), of(true, 41, 1)}, []string{"backend 40:9: slower than its peers: nine in ten wait up to 9 s"}},
		{[]BackendStatus{of(true, 40, .01), of(true, 40, .3)}, nil}, // nobody feels that
		{[]BackendStatus{of(true, 40, 1), of(false, 10, 9)}, nil},
		{[]BackendStatus{of(false, 40, 1), of(true, 10, 9)}, nil},
	} {
		got := slowWarnings(&ModelStatus{Model: "m", Backends: c.backends})
		if len(got) != len(c.want) || len(got) > 0 && !strings.Contains(got[0], c.want[0]) {
			t.Errorf("%q, expected %q", got, c.want)
		}
	}
}
