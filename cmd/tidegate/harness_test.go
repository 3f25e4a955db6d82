package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/qwen"
)

// TestMain runs the tests, or, in a process that a test starts, the command itself
// with the arguments of a variable, one a line.
func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv("TIDEGATE_TEST_MAIN"); ok {
		os.Args = append(os.Args[:1], strings.Split(args, "\n")...)
		main()
	}
	goleak.VerifyTestMain(m)
}

// The models of the tests, and the keys of those who call them.
const (
	largeModel = "Qwen3-1.7B"
	largeAlias = "qwen3"
	smallModel = "Qwen3-0.6B"
	goneModel  = "Qwen3-gone" // its only server is not there

	adaKey = "tg-test-key-of-ada-who-may-use-all"
	bobKey = "tg-test-key-of-bob-who-may-use-the-small-one"
)

// vocabulary is the tokenizer of all simulated servers: loading it takes a while.
var vocabulary = sync.OnceValues(qwen.New)

// patience bounds every wait of these tests; it is for loaded machines.
const patience = time.Minute

// servers are the simulated vLLM servers behind a gateway: two of the large
// model, one of the small.
type servers []*gatewaytest.Running

// startServers starts them, fast ones unless edit says otherwise.
func startServers(t *testing.T, edit func(*gatewaytest.Options)) servers {
	t.Helper()
	tokenizer, err := vocabulary()
	if err != nil {
		t.Fatal(err)
	}
	var all servers
	for _, model := range []string{largeModel, largeModel, smallModel} {
		o := gatewaytest.Default()
		o.Model, o.Tokenizer = model, tokenizer
		o.TTFT, o.ITL = 5*time.Millisecond, time.Millisecond/4
		if edit != nil {
			edit(&o)
		}
		all = append(all, gatewaytest.Start(t, o))
	}
	return all
}

// record waits for the record of the ended request whose body holds tag.
func (s servers) record(t *testing.T, tag string) (found gatewaytest.Record) {
	t.Helper()
	eventually(t, "the record of "+tag, func() bool {
		for _, server := range s {
			for _, r := range server.Requests() {
				if bytes.Contains(r.Body, []byte(tag)) {
					found = r
					return true
				}
			}
		}
		return false
	})
	return found
}

// fault makes every server fail in a way until heal or the end of the test.
func (s servers) fault(t *testing.T, f gatewaytest.Fault) {
	t.Helper()
	for _, server := range s {
		if err := server.SetFault(f); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { s.heal(t) })
}

func (s servers) heal(t *testing.T) {
	t.Helper()
	for _, server := range s {
		if err := server.ClearFaults(); err != nil {
			t.Error(err)
		}
	}
}

// controls serves the control surface of each server, for tests in other
// processes, and returns their URLs, separated by commas.
func (s servers) controls(t *testing.T) string {
	t.Helper()
	var urls []string
	for _, server := range s {
		c := httptest.NewServer(server.Control())
		t.Cleanup(c.Close)
		urls = append(urls, c.URL)
	}
	return strings.Join(urls, ",")
}

// plan is how a gateway of a test differs from the usual one.
type plan struct {
	open    bool     // auth.mode: open
	usual   bool     // the section server is as by default, but for the lines of server
	dsn     string   // of the store; empty: a file of the test's own
	journal string   // its directory; empty: one of the test's own
	server  []string // lines of the section server
	model   []string // lines of every model
	large   []string // lines of the large model alone
	each    string   // members of every backend, each with a comma before
	gpus    string   // that the first backend is said to run on
	more    string   // other sections
	env     map[string]string
}

// yaml is the configuration file for these servers; what is stored is in dir.
func (p plan) yaml(s servers, dir string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("server:\n  listen: 127.0.0.1:0\n  ops_listen: 127.0.0.1:0\n  shutdown_grace: 2s")
	if !p.usual {
		line("  aux_requests: 100000/1s") // tests ask again and again
	}
	for _, l := range p.server {
		line("  %s", l)
	}
	if p.open {
		line("auth: {mode: open}")
	} else {
		line("auth:\n  keys:\n    - {user: ada, key_env: KEY_OF_ADA}\n    - {user: bob, key_env: KEY_OF_BOB, models: [%s]}", smallModel)
	}
	dsn := p.dsn
	if dsn == "" {
		dsn = "sqlite://" + filepath.Join(dir, "tidegate.db")
	}
	line("store: {dsn: '%s', journal_dir: %s}", dsn, cmp.Or(p.journal, filepath.Join(dir, "journal")))
	line("models:")
	model := func(name string, more string, urls ...string) {
		line("  - name: %s\n    probe: 50ms%s", name, more)
		for _, l := range p.model {
			line("    %s", l)
		}
		line("    backends:")
		for _, u := range urls {
			gpus := ""
			if u == s[0].URL {
				gpus = p.gpus
			}
			line("      - {url: '%s', gpus: [%s]%s}", u, gpus, p.each)
		}
	}
	model(largeModel, "\n    aliases: ["+largeAlias+"]"+strings.Join(append([]string{""}, p.large...), "\n    "), s[0].URL, s[1].URL)
	model(smallModel, "", s[2].URL)
	model(goneModel, "", "http://127.0.0.1:1")
	b.WriteString(p.more)
	return b.String()
}

// front is a running gateway as callers see it.
type front struct {
	url     string // without /v1
	ops     string
	servers servers
	journal *journal
	client  *http.Client
	file    string // the configuration file
}

// startGateway runs the command `tidegate serve` in this process, in front of s,
// until the test ends, and returns when all servers are in rotation.
func startGateway(t *testing.T, s servers, p plan) *front {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tidegate.yaml")
	if err := os.WriteFile(file, []byte(p.yaml(s, filepath.Dir(file))), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(name string) (string, bool) {
		if value, ok := p.env[name]; ok {
			return value, true
		}
		key, ok := map[string]string{"KEY_OF_ADA": adaKey, "KEY_OF_BOB": bobKey}[name]
		return key, ok
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	j := &journal{heard: make(chan struct{}, 1)}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"serve", "--config", file}, env, j, j) }()
	t.Cleanup(func() {
		stop()
		select {
		case code := <-ended:
			if code != exitOK {
				t.Errorf("the gateway ended with code %d:\n%s", code, j)
			}
		case <-time.After(patience):
			t.Errorf("the gateway did not end:\n%s", j)
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", j)
		}
	})
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	f := &front{servers: s, journal: j, client: &http.Client{Transport: transport}, file: file}
	f.url = "http://" + j.address(t, "listening", ended)
	f.ops = "http://" + j.address(t, "listening for operators", ended)
	eventually(t, "all servers in rotation", func() bool { return f.up(t) == len(s) })
	return f
}

// up counts the servers in rotation.
func (f *front) up(t *testing.T) (n int) {
	t.Helper()
	resp, err := f.client.Get(f.ops + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var status struct {
		Ready  bool `json:"ready"`
		Models []struct {
			Backends []struct {
				Up bool `json:"up"`
			} `json:"backends"`
		} `json:"models"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	for _, m := range status.Models {
		for _, b := range m.Backends {
			if b.Up {
				n++
			}
		}
	}
	if n > 0 && !status.Ready {
		t.Errorf("%d servers are in rotation, but the gateway is not ready", n)
	}
	return n
}

// journal is what a process says of itself: it keeps all, and finds in it where
// the process listens.
type journal struct {
	mu    sync.Mutex
	text  []byte
	heard chan struct{} // something was written
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	j.text = append(j.text, p...)
	j.mu.Unlock()
	select {
	case j.heard <- struct{}{}:
	default:
	}
	return len(p), nil
}

// shownLog bounds what a failed test shows of the log, in bytes.
const shownLog = 4 << 10

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return string(j.text[max(0, len(j.text)-shownLog):])
}

// address waits for the log line msg and returns the address in it.
func (j *journal) address(t *testing.T, msg string, ended chan int) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		j.mu.Lock()
		lines := bytes.Split(j.text, []byte("\n"))
		j.mu.Unlock()
		for _, l := range lines {
			var entry struct{ Msg, Address string }
			if json.Unmarshal(l, &entry) == nil && entry.Msg == msg {
				return entry.Address
			}
		}
		select {
		case <-j.heard:
		case code := <-ended:
			ended <- code // for the cleanup
			t.Fatalf("the gateway ended with code %d before it listened:\n%s", code, j)
		case <-deadline:
			t.Fatalf("the gateway never said %q:\n%s", msg, j)
		}
	}
}

// eventually asks again and again until ok, and fails the test when that takes
// too long.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %v in vain for %s", patience, what)
		}
	}
}
