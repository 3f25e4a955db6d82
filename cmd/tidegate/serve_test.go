package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestProtocols streams over every protocol that the listener speaks.
func TestProtocols(t *testing.T) {
	dir := t.TempDir()
	cert, key := stack.Certificate(t, dir, "server")
	clientCert, clientKey := stack.Certificate(t, dir, "client")
	roots := x509.NewCertPool()
	pemBytes, err := os.ReadFile(cert)
	if err != nil || !roots.AppendCertsFromPEM(pemBytes) {
		t.Fatal("no certificate")
	}
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	s := startServers(t, nil)
	clear := startGateway(t, s, stack.Config{})
	secure := startGateway(t, s, stack.Config{Server: []string{fmt.Sprintf("tls: {cert_file: %s, key_file: %s}", cert, key)}})
	mutual := startGateway(t, s, stack.Config{Server: []string{fmt.Sprintf("tls: {cert_file: %s, key_file: %s, client_ca_file: %s}", cert, key, clientCert)}})
	protocols := func(h1, h2, h2c bool) *http.Protocols {
		p := new(http.Protocols)
		p.SetHTTP1(h1)
		p.SetHTTP2(h2)
		p.SetUnencryptedHTTP2(h2c)
		return p
	}
	for _, c := range []struct {
		name   string
		to     *front
		scheme string
		with   *http.Transport
		proto  string // empty: refused
	}{
		{"HTTP/1.1", clear, "http", &http.Transport{Protocols: protocols(true, false, false)}, "HTTP/1.1"},
		{"h2c", clear, "http", &http.Transport{Protocols: protocols(false, false, true)}, "HTTP/2.0"},
		{"HTTP/1.1 over TLS", secure, "https", &http.Transport{Protocols: protocols(true, false, false), TLSClientConfig: &tls.Config{RootCAs: roots}}, "HTTP/1.1"},
		{"h2 over TLS", secure, "https", &http.Transport{Protocols: protocols(false, true, false), TLSClientConfig: &tls.Config{RootCAs: roots}}, "HTTP/2.0"},
		{"mTLS", mutual, "https", &http.Transport{Protocols: protocols(false, true, false), TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}, "HTTP/2.0"},
		{"mTLS without a certificate", mutual, "https", &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer c.with.CloseIdleConnections()
			f := *c.to.Gateway
			f.URL = c.scheme + strings.TrimPrefix(f.URL, "http")
			f.Client = &http.Client{Transport: c.with}
			body := fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":20}}`, stack.LargeModel)
			resp, err := f.Post(t.Context(), "/v1/chat/completions", body)
			if c.proto == "" {
				if err == nil {
					t.Error("it was let in")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.Proto != c.proto || !strings.HasSuffix(string(text), "data: [DONE]\n\n") {
				t.Errorf("%s %v: %.300s", resp.Proto, err, text)
			}
			// A caller that leaves over this protocol is noticed, too.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tag := "leaving over " + c.name
			if resp, err = f.Post(ctx, "/v1/chat/completions", fmt.Sprintf(
				`{"model":%q,"stream":true,"messages":[{"role":"user","content":%q}],"sim":{"tokens":3000}}`, stack.LargeModel, tag)); err != nil {
				t.Fatal(err)
			}
			cancel()
			resp.Body.Close()
			if r := s.Record(t, tag); !r.Aborted {
				t.Errorf("the server was not told: %+v", r)
			}
		})
	}
}

// TestExpectContinue sends a body of 2 MiB as curl does, which waits for leave.
func TestExpectContinue(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{})
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":8},"padding":%q}`, stack.LargeModel, strings.Repeat("x", 2<<20))
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Authorization", "Bearer "+stack.AdaKey)
	q.Header.Set("Expect", "100-continue")
	f.Client.Transport.(*http.Transport).ExpectContinueTimeout = stack.Patience
	resp, err := f.Client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// stoppable starts a gateway with a grace of its own, which the test itself stops.
func stoppable(t *testing.T, s stack.Servers, grace string) (f *front, stop context.CancelFunc, ended chan int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tidegate.yaml")
	text := strings.Replace(stack.Config{Open: true}.YAML(s, t.TempDir()), "shutdown_grace: 2s", "shutdown_grace: "+grace, 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	j := stack.NewLog()
	ended = make(chan int, 1)
	go func() { ended <- run(ctx, []string{"serve", "--config", file}, noEnv, j, j) }()
	f = &front{&stack.Gateway{Servers: s, Log: j, Client: &http.Client{Transport: &http.Transport{}}}}
	t.Cleanup(f.Client.CloseIdleConnections)
	f.URL, f.Ops = "http://"+j.Address(t, "listening", ended), "http://"+j.Address(t, "listening for operators", ended)
	stack.Eventually(t, "all servers in rotation", func() bool { return f.InRotation(t) == len(s) })
	return f, stop, ended
}

// TestDrain stops a gateway in the middle of a stream: it says that it is not
// ready, finishes the stream, and ends with code 0.
func TestDrain(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 5 * time.Millisecond })
	f, stop, ended := stoppable(t, s, "60s")
	resp, err := f.Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(
		`{"model":%q,"stream":true,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":100}}`, stack.LargeModel))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop()
	f.Log.Address(t, "draining", ended)
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
		t.Errorf("the stream was not finished: %v %.200s", err, body)
	}
	if _, err := f.Client.Get(f.URL + "/healthz"); err == nil {
		t.Error("a new connection was taken while draining")
	}
	if code := <-ended; code != exitOK {
		t.Errorf("code %d: %s", code, f.Log)
	}
}

// TestGraceEnds cuts what outlives the grace, and settles it.
func TestGraceEnds(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 20 * time.Millisecond })
	f, stop, ended := stoppable(t, s, "50ms")
	resp, err := f.Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(
		`{"model":%q,"stream":true,"messages":[{"role":"user","content":"outlives"}],"sim":{"tokens":5000}}`, stack.LargeModel))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended as if it were whole")
	}
	if code := <-ended; code != exitOK {
		t.Errorf("code %d: %s", code, f.Log)
	}
	if r := s.Record(t, "outlives"); !r.Aborted {
		t.Error("the server was not told")
	}
}

// TestWithoutFile starts the gateway with nothing but a server's address, and
// before that server is there.
func TestWithoutFile(t *testing.T) {
	t.Chdir(t.TempDir())
	o := gatewaytest.Default()
	o.Model, o.TTFT, o.ITL = "Qwen/Qwen3-1.7B", 0, 0
	sim := gatewaytest.Start(t, o)
	if err := sim.SetFault(gatewaytest.Fault{Kind: "refuse"}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	j := stack.NewLog()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "--backend", sim.URL, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log", "json"}, noEnv, j, j)
	}()
	defer func() {
		stop()
		if code := <-ended; code != exitOK {
			t.Errorf("code %d: %s", code, j)
		}
	}()
	f := &front{&stack.Gateway{Client: &http.Client{Transport: &http.Transport{}}}}
	defer f.Client.CloseIdleConnections()
	f.URL, f.Ops = "http://"+j.Address(t, "listening", ended), "http://"+j.Address(t, "listening for operators", ended)
	if status := f.StatusPage(t); !strings.Contains(status, `"ready": false`) {
		t.Errorf("it is ready for nothing: %s", status)
	}
	if err := sim.ClearFaults(); err != nil {
		t.Fatal(err)
	}
	for _, model := range []string{"Qwen/Qwen3-1.7B", "Qwen3-1.7B"} {
		stack.Eventually(t, "an answer of "+model, func() bool {
			resp, err := f.Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":8}}`, model))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.StatusCode == 200
		})
	}
}

// TestDemo runs the demo and pastes what it prints.
func TestDemo(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, log := stack.NewLog(), &bytes.Buffer{}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"demo", "--listen", "127.0.0.1:0"}, noEnv, out, log) }()
	var text string
	stack.Eventually(t, "the invitation", func() bool {
		text = out.Text()
		return strings.Contains(text, "Ctrl-C")
	})
	line := regexp.MustCompile(`(?m)^  (curl -N .*)$`).FindStringSubmatch(text)
	if line == nil {
		t.Fatalf("no curl line in %s", text)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("SKIPPED-PART: demo's curl line: there is no curl on this machine")
	}
	stack.Eventually(t, "the pasted line to answer", func() bool {
		answer, err := exec.CommandContext(ctx, "sh", "-c", line[1]).Output()
		return err == nil && strings.Contains(string(answer), "data: [DONE]")
	})
	ops := regexp.MustCompile(`(?m)^  .* status --ops (\S+)$`).FindStringSubmatch(text)
	if ops == nil {
		t.Fatalf("no way to the status in %s", text)
	}
	stack.Eventually(t, "the simulated GPUs in the status", func() bool {
		var table, complaints bytes.Buffer
		code := run(ctx, []string{"status", "--ops", ops[1]}, noEnv, &table, &complaints)
		return code == exitOK && strings.Count(table.String(), "Simulated H200") == 3
	})
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("code %d: %s", code, log)
	}
}
