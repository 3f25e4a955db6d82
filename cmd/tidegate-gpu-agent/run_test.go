package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/nvml"
	"tidegate/nvml/device"
	"tidegate/nvml/device/devicetest"
)

// inside runs the command in this process over a driver in Go. It returns where it
// listens, and stop, which ends it and returns the exit code.
func inside(t *testing.T, fake *devicetest.Fake, env map[string]string, args ...string) (where string, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	code := make(chan int, 1)
	open := func(string) device.Library { return fake }
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	logs := &bytes.Buffer{}
	go func() {
		code <- run(ctx, args, lookup, open, in, logs)
		in.Close()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		cancel()
		t.Fatalf("exit code %d: %s", <-code, logs)
	}
	return strings.TrimSpace(strings.TrimPrefix(line, "listening on ")), func() int {
		cancel()
		return <-code
	}
}

func request(t *testing.T, client *http.Client, url, authorization string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServes(t *testing.T) {
	defer goleak.VerifyNone(t)
	fake := devicetest.New(2)
	where, stop := inside(t, fake, nil, "--listen", "127.0.0.1:0")
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	var first, second nvml.Report
	for _, r := range []*nvml.Report{&first, &second} {
		status, body := request(t, client, where+"/v1/readings", "")
		if err := json.Unmarshal([]byte(body), r); err != nil || status != 200 {
			t.Fatal(status, body)
		}
	}
	host, _ := os.Hostname()
	if first.Node != host || second.Seq <= first.Seq || first.BootID != second.BootID {
		t.Errorf("%+v %+v", first, second)
	}
	for path, want := range map[string]int{"/healthz": 200, "/metrics": 200, "/": 404, "/v1/readings/": 404} {
		if status, _ := request(t, client, where+path, ""); status != want {
			t.Error(path, status)
		}
	}
	client.CloseIdleConnections()
	if code := stop(); code != exitOK {
		t.Error(code)
	}
	if misuse, up := fake.Misuse(); len(misuse) > 0 || up {
		t.Error(misuse, up)
	}
}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"env": {"--token-env", "TOKEN"}, "file": {"--token-file", file}} {
		t.Run(name, func(t *testing.T) {
			where, stop := inside(t, devicetest.New(1), map[string]string{"TOKEN": "secret"}, append(args, "--listen", "127.0.0.1:0")...)
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for _, c := range []struct {
				path, authorization string
				want                int
			}{
				{"/healthz", "", 200},
				{"/v1/readings", "Bearer secret", 200}, {"/v1/readings", "bearer secret", 200}, {"/metrics", "Bearer secret", 200},
				{"/v1/readings", "", 401}, {"/metrics", "", 401}, {"/v1/readings", "Bearer", 401}, {"/v1/readings", "Bearer secret2", 401},
				{"/v1/readings", "Basic secret", 401}, {"/v1/readings", "Bearer secre", 401}, {"/v1/readings", "secret", 401},
			} {
				status, body := request(t, client, where+c.path, c.authorization)
				if status != c.want || strings.Contains(body, "secret") {
					t.Error(c, status, body)
				}
			}
			stop()
		})
	}
}

func TestTLS(t *testing.T) {
	// The certificate that httptest has for its own servers.
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	defer pair.Close()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, pair.TLS.Certificates[0], cert, key)
	where, stop := inside(t, devicetest.New(1), nil, "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	defer stop()
	if !strings.HasPrefix(where, "https://127.0.0.1:") {
		t.Fatal(where)
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	if status, body := request(t, client, where+"/v1/readings", ""); status != 200 || !strings.Contains(body, "GPU-0") {
		t.Error(status, body)
	}
	old := &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11} //nolint:gosec // that it is refused is the test
	if c, err := tls.Dial("tcp", strings.TrimPrefix(where, "https://"), old); err == nil {
		c.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

func writePair(t *testing.T, pair tls.Certificate, cert, key string) {
	t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	// What a dead process left is taken over.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	where, stop := inside(t, devicetest.New(1), nil, "--socket", path)
	if where != "unix:"+path {
		t.Error(where)
	}
	if at, err := os.Stat(path); err != nil || at.Mode().Perm() != 0o600 {
		t.Error(at, err)
	}
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"--socket", path}, nil, func(string) device.Library { return devicetest.New(0) }, io.Discard, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "another process listens") {
		t.Error(code, stderr.String())
	}
	if code := stop(); code != exitOK {
		t.Error(code)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("the socket was left")
	}
	// A file that is no socket is not taken over.
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr.Reset()
	if code := run(t.Context(), []string{"--socket", path}, nil, func(string) device.Library { return devicetest.New(0) }, io.Discard, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "is no socket") {
		t.Error(code, stderr.String())
	}
	if raw, _ := os.ReadFile(path); string(raw) != "precious" {
		t.Error("the file is gone")
	}
}

// A driver that cannot be initialised ends the command with its own code, since a
// supervisor is to start it again.
func TestGivesUp(t *testing.T) {
	fake := devicetest.New(1)
	fake.Change(func(s *devicetest.State) { s.Init = fmt.Errorf("version mismatch: %w", device.ErrDriver) })
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"--listen", "127.0.0.1:0", "--attempts", "3", "--retry", "1ms"}, nil, func(string) device.Library { return fake }, io.Discard, &stderr)
	if code != exitGivenUp || !strings.Contains(stderr.String(), "tidegate-gpu-agent: NVML cannot be initialised: 3 times in a row: version mismatch") {
		t.Error(code, stderr.String())
	}
}

func TestUsage(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"argument", exitUsage, "argument"},
		{"--no-such-flag", exitUsage, "no-such-flag"},
		{"--interval 1ms", exitUsage, "interval: 1ms: must be 50ms or more"},
		{"--attempts 0 --retry 0s", exitUsage, "attempts: 0"},
		{"--tls-cert x", exitUsage, "--tls-cert and --tls-key"},
		{"--socket s --tls-cert x --tls-key y", exitUsage, "--socket has no TLS"},
		{"--token-env NONE", exitUsage, "NONE is not set"},
		{"--token-env NONE --token-file x", exitUsage, "exclude each other"},
		{"--token-file " + missing, exitUsage, "no such file"},
		{"--token-file " + os.DevNull, exitUsage, "is empty"},
		{"--listen nowhere:x", exitFailed, "unknown port"},
		{"--tls-cert " + missing + " --tls-key " + missing, exitFailed, "TLS: "},
		{"--record " + missing + "/trace", exitFailed, "--record: "},
		{"--record run.go", exitFailed, "run.go exists and is no trace"},
	} {
		var stderr bytes.Buffer
		none := func(string) (string, bool) { return "", false }
		code := run(t.Context(), strings.Fields(c.args), none, func(string) device.Library { return devicetest.New(0) }, io.Discard, &stderr)
		if code != c.code || !strings.HasPrefix(stderr.String(), "tidegate-gpu-agent: ") || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: %d %s", c.args, code, stderr.String())
		}
	}
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, nil, nil, &stdout, io.Discard); code != exitOK || !strings.Contains(stdout.String(), "--token-env TOKEN") || !strings.Contains(stdout.String(), "Exit codes") {
		t.Error(code, stdout.String())
	}
}

// A trace goes on where it ended, in time too, also behind a line that was torn.
func TestRecordResumes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.jsonl")
	log := slog.New(slog.DiscardHandler)
	margin, used, power := 35, uint64(5<<20+1), uint64(627_400)
	reading := nvml.Reading{UUID: "GPU-0", Margin: &margin, Memory: nvml.Memory{MemoryUsed: &used}, Power: &power, Reasons: []string{"sw_thermal"}}
	for range 2 {
		r, err := newRecorder(path, log)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		r.start = at.Add(-5 * time.Second)
		r.observe(device.Sample{Time: at, Readings: []nvml.Reading{reading, {UUID: "MIG"}}, Calls: []device.Call{{Name: "a", Took: time.Microsecond}, {Name: "a", Took: time.Millisecond}}})
		if err := r.close(); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = file.WriteString(`{"t_ms":9999999,"uu`)
	file.Close()
	r, err := newRecorder(path, log)
	if err != nil {
		t.Fatal(err)
	}
	if at := time.Since(r.start); at < 6*time.Second || at > time.Minute {
		t.Error("goes on at", at)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	raw, _ := os.ReadFile(path)
	line := `{"t_ms":5000,"uuid":"GPU-0","margin":35,"used":5,"reasons":32,"power":627,"calls_us":{"a":1000}}` + "\n" + `{"t_ms":5000,"uuid":"MIG"}` + "\n"
	if got := string(raw); got != line+line {
		t.Error(got)
	}
}

// A disk that fails ends the trace, not the readings.
func TestRecordFails(t *testing.T) {
	var logs bytes.Buffer
	r, err := newRecorder(filepath.Join(t.TempDir(), "trace"), slog.New(slog.NewTextHandler(&logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.file.Close()
	for range 1000 {
		r.observe(device.Sample{Readings: []nvml.Reading{{UUID: "GPU-0"}}})
	}
	if err := r.close(); err == nil || strings.Count(logs.String(), "recording ends") != 1 {
		t.Error(err, logs.String())
	}
}

func FuzzResume(f *testing.F) {
	for _, s := range []string{"", "\n", "{}", `{"t_ms":1}`, `{"t_ms":-5}` + "\n", `{"t_ms":9223372036854775807,"uuid":"a"}` + "\n", "null\n", `{"t_ms":1,"uuid":"a"}` + "\n" + `{"t_ms":2`, "root:x:0", `{"t_ms":1,"uuid":"a"}` + "\n{"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "trace")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(path, os.O_APPEND|os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		last, fault := resume(file)
		after, err := os.ReadFile(path)
		switch {
		case err != nil || last < 0:
			t.Fatal(last, err)
		case fault != nil && !bytes.Equal(after, content):
			t.Fatalf("%q is no trace and became %q", content, after)
		case !bytes.HasPrefix(content, after) || fault == nil && len(after) > 0 && after[len(after)-1] != '\n':
			t.Fatalf("%q became %q", content, after)
		}
	})
}
