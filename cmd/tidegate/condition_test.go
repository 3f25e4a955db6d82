package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit"
	"tidegate/degrade"
	"tidegate/gateway/gatewaytest/stack"
	"tidegate/gateway/ledger"
	"tidegate/gateway/ops"
	"tidegate/nvml"
)

// TestConditionWarns: each state of the process that needs somebody is a warning, and
// none is where all is well.
func TestConditionWarns(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		state condition
		want  []string // parts of each warning
	}{
		{"well", condition{Redis: &redislimit.State{Replicas: 2, PerMille: 500}, Certificates: []expiry{{"server.tls.cert_file", now.Add(60 * 24 * time.Hour)}}}, nil},
		{"failed reload", condition{Reload: "tidegate.yaml:3:1: no such key"}, []string{"the last reload failed, and the configuration before it stays in force: tidegate.yaml:3:1"}},
		{"restart", condition{RestartOnly: []string{"redis", "store"}}, []string{"only a restart applies it: redis, store"}},
		{"journal", condition{Ledger: ledger.Status{Journal: "no space left on device", Buffer: 4096, Lost: 3}},
			[]string{"the journal of usage cannot be written, and records wait in memory (4096 bytes of 33554432): no space left", "3 usage records were lost"}},
		{"database", condition{Ledger: ledger.Status{Failure: "connection refused", Pending: 12}}, []string{"usage does not reach the database, and 12 records wait in the journal: connection refused"}},
		{"backlog", condition{Ledger: ledger.Status{Pending: 10_001}}, []string{"10001 usage records wait"}},
		{"Redis down", condition{Redis: &redislimit.State{Alone: true, ChangedAt: now.Add(-90 * time.Second), Error: "i/o timeout", Replicas: 2, PerMille: 500}},
			[]string{"Redis has not answered for 1m30s: this gateway enforces 50 % (1 of 2 gateways) of each limit alone, or what on_store_failure says: i/o timeout"}},
		{"Redis emptied", condition{Redis: &redislimit.State{Recounted: true, Action: "Redis lost its counters"}}, []string{"Redis lost its counters"}},
		{"Redis back", condition{Redis: &redislimit.State{Waiting: 7, Dropped: 2}}, []string{"7 settlements", "2 settlements were dropped"}},
		{"damage in Redis", condition{Damage: &damage{now.Add(-time.Minute), []string{"tg:{a}:x"}}}, []string{"read 1m0s ago that no gateway wrote, and count as not there: see who else writes to this Redis: tg:{a}:x"}},
		{"damage long ago", condition{Damage: &damage{time: now.Add(-2 * time.Hour)}}, nil},
		{"certificates", condition{Certificates: []expiry{{"server.tls.cert_file", now.Add(-time.Hour)}, {"of backend a:1", now.Add(30 * time.Hour)}, {"x", now.Add(13 * 24 * time.Hour)}}},
			[]string{"the certificate server.tls.cert_file expired on 2026-11-30 11:00:00 UTC: put a new one", "the certificate of backend a:1 expires in 30h0m0s", "the certificate x expires in 13 days"}},
	} {
		got := c.state.warnings(now)
		if len(got) != len(c.want) {
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

// TestCertificateEnds: the status and the metrics say when the certificate in use ends,
// and a warning is in both.
func TestCertificateEnds(t *testing.T) {
	dir := t.TempDir()
	cert, key := stack.Certificate(t, dir, "server") // which lasts an hour
	f := startGateway(t, startServers(t, nil), stack.Config{Server: []string{fmt.Sprintf("tls: {cert_file: %s, key_file: %s, client_ca_file: %s}", cert, key, cert)}})
	s := f.told(t)
	for _, name := range []string{"server.tls.cert_file", "server.tls.client_ca_file"} {
		if !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.HasPrefix(w, "the certificate "+name+" expires in ") }) {
			t.Errorf("no warning of %s: %q", name, s.Warnings)
		}
		if ends := f.Metric(t, `tidegate_certificate_expiry_timestamp_seconds{certificate="`+name+`"}`); ends < float64(time.Now().Unix()) || ends > float64(time.Now().Add(time.Hour).Unix()) {
			t.Errorf("%s ends at %v", name, ends)
		}
	}
}

// TestReadCertificates: of a chain the first end counts, of authorities the last, and what
// is no certificate is passed over.
func TestReadCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key := stack.Certificate(t, dir, "a")
	var both []byte
	for _, file := range []string{key, cert, cert} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, raw...)
	}
	file := filepath.Join(dir, "both.pem")
	if err := os.WriteFile(file, append(both, "rest"...), 0o600); err != nil {
		t.Fatal(err)
	}
	certs := readCertificates(file)
	if len(certs) != 2 {
		t.Fatalf("%d certificates", len(certs))
	}
	certs[1].NotAfter = certs[0].NotAfter.Add(time.Hour)
	if !soonest(certs).Equal(certs[0].NotAfter) || !latest(certs).Equal(certs[1].NotAfter) {
		t.Errorf("%v, %v", soonest(certs), latest(certs))
	}
	if none := readCertificates(key); len(none) > 0 || len(readCertificates(filepath.Join(dir, "gone"))) > 0 {
		t.Error("certificates where there are none")
	}
}

// TestStatusOfManyBackends: of 200 backends and 500 GPUs the status prints what needs
// somebody, says how much it leaves out, and prints all when asked.
func TestStatusOfManyBackends(t *testing.T) {
	s := &ops.Status{Version: "x", Ready: true, Store: "up", Models: []ops.ModelStatus{{Model: "m"}}, Ladder: degrade.Status{Models: []degrade.ModelStatus{{Model: "m", Level: "L0", WouldBe: "L0"}}}}
	for i := range 200 {
		b := ops.BackendStatus{Backend: fmt.Sprintf("b%d:1", i), InRotation: i != 150, Reason: "connection refused", Engine: &ops.EngineStatus{Freshness: "fresh"}}
		s.Models[0].Backends = append(s.Models[0].Backends, b)
		s.Ladder.Models[0].Backends = append(s.Ladder.Models[0].Backends, degrade.BackendStatus{Backend: b.Backend, Level: "L0"})
	}
	margin := 40
	for i := range 500 {
		g := nvml.GPUStatus{GPU: fmt.Sprintf("g/%d", i), Freshness: "fresh", Reading: nvml.Reading{State: nvml.StateOK, Margin: &margin}}
		if i%5 == 0 {
			g.Freshness = "dropped"
			s.Warnings = append(s.Warnings, fmt.Sprintf("model m, backend b%d:1: the readings of its GPU are not used", i))
		}
		s.GPUs = append(s.GPUs, g)
	}
	s.Warnings = append(s.Warnings, "model m, backend b150:1: out of rotation: connection refused")
	print := func(all bool) string {
		var out bytes.Buffer
		if err := writeStatus(&out, s, all); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	short := print(false)
	for _, want := range []string{
		"b150:1   out: connection refused", "... and 180 more, 0 of which need somebody", "... and 465 more, 70 of which need somebody", "warning: model m, backend b150:1: out of rotation",
		"warning: model m, backend b0:1; model m, backend b5:1 and 98 more: the readings of its GPU are not used",
	} {
		if !strings.Contains(short, want) {
			t.Errorf("there is no %q", want)
		}
	}
	if lines := strings.Count(short, "\n"); lines > 80 {
		t.Errorf("%d lines", lines)
	}
	if t.Failed() {
		t.Log(short)
	}
	if whole := print(true); strings.Contains(whole, "more") || strings.Count(whole, "\n") < 800 {
		t.Errorf("--all prints %d lines", strings.Count(whole, "\n"))
	}
}
