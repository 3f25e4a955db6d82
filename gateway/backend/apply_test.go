package backend

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
	"tidegate/nvml"
)

// models for a fleet over a world; each URL's host is its name.
func modelOf(name string, urls ...string) ModelConfig {
	m := DefaultModel()
	m.Name = name
	for _, u := range urls {
		m.Backends = append(m.Backends, Config{URL: "http://" + u})
	}
	return m
}

func fleetOver(w *world) *Fleet {
	registry := prometheus.NewRegistry()
	f := NewFleet(quiet(), "agent", nvml.New(quiet()), degrade.New(degrade.DefaultConfig(), quiet(), registry))
	f.client = &http.Client{Transport: w}
	return f
}

// running is a fleet whose Run goes on until stop.
func running(t *testing.T, w *world) (f *Fleet, stop func()) {
	f = fleetOver(w)
	return f, start(t, f)
}

func start(t *testing.T, f *Fleet) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func model(t *testing.T, f *Fleet, name string) *Model {
	t.Helper()
	m, ok := f.Model(name)
	if !ok {
		t.Fatalf("no model %s", name)
	}
	return m
}

func TestApplyKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f := fleetOver(w)
		if f.Ready() || len(f.Models()) != 0 {
			t.Error("ready without a model")
		}
		f.Apply([]ModelConfig{modelOf("Qwen3-1.7B", "a", "b")})
		if f.Ready() {
			t.Error("ready before a probe")
		}
		stop := start(t, f)
		synctest.Wait()
		m := model(t, f, "Qwen3-1.7B")
		a, b := m.Backends[0], m.Backends[1]
		if !f.Ready() || !a.Seat.InRotation() || !b.Seat.InRotation() || m.Context() != 40960 {
			t.Fatalf("%s, %s, context %d", a.OutReason(), b.OutReason(), m.Context())
		}
		permit, err := admission.New(limit.New(&limit.Set{}, limit.Options{Store: limit.NewMemory(time.Now)}), admission.DefaultQueue()).Admit(t.Context(), &admission.Demand{Pool: m.Pool})
		if err != nil {
			t.Fatal(err)
		}
		held := m.BackendOf(permit.Seat())
		changed := modelOf("Qwen3-1.7B", "a", "b", "c")
		changed.Timeouts.Total = time.Hour
		changed.Reasoning = "reasoning"
		f.Apply([]ModelConfig{changed})
		m2 := model(t, f, "Qwen3-1.7B")
		if m2 == m || m2.Backends[0] != a || m2.Backends[1] != b || m2.Timeouts.Total != time.Hour || m2.Reasoning != openai.OnlyReasoning {
			t.Error("what did not change is not kept, or what did is not changed")
		}
		if !a.Seat.InRotation() || !b.Seat.InRotation() || held.Seat.InFlight() != 1 || a.Closed() {
			t.Error("a kept backend lost its place, its count or its connections")
		}
		if err := permit.Settle(limit.Usage{}, ""); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if held.Seat.InFlight() != 0 || !m2.Backends[2].Seat.InRotation() {
			t.Error("the new backend is not probed")
		}
		stop()
	})
}

func TestApplyRemoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, stop := running(t, w)
		first := modelOf("Qwen3-1.7B", "a", "b")
		f.Apply([]ModelConfig{first})
		synctest.Wait()
		m := model(t, f, "Qwen3-1.7B")
		a, b := m.Backends[0], m.Backends[1]
		second := modelOf("Qwen3-1.7B", "b")
		second.Backends[0].APIKey = "k" // another key is another backend
		f.Apply([]ModelConfig{second})
		synctest.Wait()
		for _, old := range []*Backend{a, b} {
			if old.Seat.InRotation() || old.OutReason() != "removed from the configuration" {
				t.Errorf("%s: %v, %q", old.Name, old.Seat.InRotation(), old.OutReason())
			}
		}
		if !a.Closed() {
			t.Error("connections are left open")
		}
		w.count("a/health")
		time.Sleep(time.Minute)
		if n := w.count("a/health"); n != 0 {
			t.Errorf("a removed backend is probed %d times", n)
		}
		if now := model(t, f, "Qwen3-1.7B").Backends; len(now) != 1 || now[0] == b || !now[0].Seat.InRotation() {
			t.Error("its successor is not in rotation")
		}
		f.Apply(nil)
		synctest.Wait()
		if _, ok := f.Model("Qwen3-1.7B"); ok || f.Ready() {
			t.Error("a removed model is left")
		}
		stop()
	})
}

// TestApplyAliases: names by which a model may be known decide what its servers
// may serve, so the prober begins anew with them.
func TestApplyAliases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, stop := running(t, w)
		c := modelOf("chat", "a")
		f.Apply([]ModelConfig{c, modelOf("Qwen3-1.7B", "a")})
		synctest.Wait()
		b := model(t, f, "chat").Backends[0]
		if b.Seat.InRotation() || b.OutReason() != "it serves Qwen/Qwen3-1.7B, none of which is chat: set serves on the backend to the name it uses" {
			t.Errorf("%v, %q", b.Seat.InRotation(), b.OutReason())
		}
		if other := model(t, f, "Qwen3-1.7B").Backends[0]; other == b || !other.Seat.InRotation() {
			t.Error("a server of two models is two backends")
		}
		c.Aliases = []string{"fast", "Qwen/Qwen3-1.7B"}
		f.Apply([]ModelConfig{c})
		synctest.Wait()
		if m := model(t, f, "fast"); m != model(t, f, "chat") || m.Backends[0] != b || !b.Seat.InRotation() {
			t.Errorf("%q", b.OutReason())
		}
		w.count("/health")
		c.Probe = 500 * time.Millisecond
		f.Apply([]ModelConfig{c})
		synctest.Wait()
		time.Sleep(10*time.Second + time.Millisecond)
		if n := w.count("/health"); n != 21 {
			t.Errorf("%d probes in 10 s at 500 ms", n)
		}
		stop()
	})
}

func TestContextIsTheLeast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set("b/v1/models", `{"data":[{"id":"m","max_model_len":100}]}`)
		w.set("c/v1/models", `{"data":[{"id":"m","max_model_len":50}]}`)
		w.set("d/v1/models", `{"data":[{"id":"m"}]}`)
		w.set("/v1/models", `{"data":[{"id":"m","max_model_len":200}]}`)
		f := fleetOver(w)
		f.Apply([]ModelConfig{modelOf("m", "a", "b", "c", "d")})
		m := model(t, f, "m")
		if n := m.Context(); n != 0 {
			t.Errorf("%d before anything is known", n)
		}
		stop := start(t, f)
		synctest.Wait()
		if n := m.Context(); n != 50 {
			t.Errorf("%d", n)
		}
		w.set("c/health", refusing)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := m.Context(); n != 100 {
			t.Errorf("%d without the least", n)
		}
		stop()
	})
}

// TestRunEnds: a fleet that ends leaves no goroutine and no connection.
func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set("b/health", silent)
		f, stop := running(t, w)
		f.Apply([]ModelConfig{modelOf("Qwen3-1.7B", "a", "b")})
		synctest.Wait()
		a := model(t, f, "Qwen3-1.7B").Backends[0]
		stop()
		if !a.Closed() {
			t.Error("a connection is left open")
		}
		if !a.Seat.InRotation() {
			t.Error("the end of probing takes backends out: streams may still be retried")
		}
	})
}

func TestProbeClient(t *testing.T) {
	transport := ProbeClient().Transport.(*http.Transport)
	if transport.IdleConnTimeout != exchange.IdleLife || !transport.DisableCompression {
		t.Errorf("%+v", transport)
	}
}

// TestApplyWeight: another weight keeps the backend and what it has; weight 0 says so.
func TestApplyWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := running(t, newWorld())
		defer stop()
		c := modelOf("Qwen3-1.7B", "a", "b")
		f.Apply([]ModelConfig{c})
		synctest.Wait()
		before := model(t, f, "Qwen3-1.7B").Backends[0]
		for _, step := range []struct {
			weight *int
			why    string
		}{
			{weighing(0), "weight 0: it gets no new requests, and what it has goes on"}, {weighing(5), ""}, {nil, ""},
		} {
			c.Backends[0].Weight = step.weight
			f.Apply([]ModelConfig{c})
			synctest.Wait()
			b := model(t, f, "Qwen3-1.7B").Backends[0]
			if b != before || b.OutReason() != step.why || b.Seat.Drained() != (step.why != "") || !b.Seat.Usable() || (observer{b}).Unavailable() {
				t.Errorf("the same backend: %v, drained %v, %q", b == before, b.Seat.Drained(), b.OutReason())
			}
		}
	})
}
