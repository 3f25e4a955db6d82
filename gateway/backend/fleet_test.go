package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/gateway/backend/exchange/exchangetest"
)

// world is what all servers answer to probes; by host, else under "".
type world struct {
	mu      sync.Mutex
	answers map[string]string // "host/route": a status, or a body
	asked   []string
}

func (w *world) set(at, answer string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[at] = answer
}

// count is how often a route was asked for since the last call.
func (w *world) count(route string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := w.asked[:0]
	for _, a := range w.asked {
		if strings.HasSuffix(a, route) {
			n++
		} else {
			rest = append(rest, a)
		}
	}
	w.asked = rest
	return n
}

// What a world answers beside a body.
const (
	refusing = "refused"
	silent   = "silent"
)

func (w *world) RoundTrip(q *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked = append(w.asked, q.URL.Host+q.URL.Path)
	answer, ok := w.answers[q.URL.Host+q.URL.Path]
	if !ok {
		answer = w.answers[q.URL.Path]
	}
	w.mu.Unlock()
	status := http.StatusOK
	switch answer {
	case refusing:
		return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	case silent:
		<-q.Context().Done()
		return nil, q.Context().Err()
	}
	if _, err := fmt.Sscanf(answer, "status %d", &status); err == nil {
		answer = ""
	}
	if q.Header.Get("Authorization") != "" {
		answer = strings.ReplaceAll(answer, "KEY", q.Header.Get("Authorization"))
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(answer)), Request: q}, nil
}

func newWorld() *world {
	return &world{answers: map[string]string{
		"/health": "", "/version": `{"version":"0.23.0"}`, "/v1/models": `{"data":[{"id":"Qwen/Qwen3-1.7B","max_model_len":40960}]}`,
	}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func proberOf(w *world, c Config, names ...string) *prober {
	if c.URL == "" {
		c.URL = "http://gpu-a:8000"
	}
	return &prober{b: New(c, "agent"), client: &http.Client{Transport: w}, log: quiet(), names: names, every: 2 * time.Second}
}

// TestProbe gives one server a row of healths and looks at its place after each.
func TestProbe(t *testing.T) {
	const up, bad = "", "status 503"
	for _, c := range []struct {
		name   string
		health []string
		up     []bool
		why    string
	}{
		{"healthy", []string{up, up}, []bool{true, true}, ""},
		{"never up", []string{bad, bad}, []bool{false, false}, "GET /health: status 503"},
		{"one failure is forgiven", []string{up, bad, up, bad, up}, []bool{true, true, true, true, true}, ""},
		{"two in a row are not", []string{up, bad, bad, bad}, []bool{true, true, false, false}, "GET /health: status 503"},
		{"back at once", []string{up, bad, bad, up, bad}, []bool{true, true, false, true, true}, ""},
		{"nobody listens", []string{up, refusing, refusing, up}, []bool{true, false, false, true}, ""},
		{"nobody listens, why", []string{up, refusing}, []bool{true, false}, "GET /health: dial: connection refused"},
		{"no answer", []string{up, silent, silent}, []bool{true, true, false}, "GET /health: no answer within 2s"},
		{"not found", []string{"status 404"}, []bool{false}, "GET /health: status 404"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				p := proberOf(w, Config{}, "qwen3-1.7b")
				for i, h := range c.health {
					w.set("/health", h)
					p.probe(t.Context())
					if p.b.Seat.InRotation() != c.up[i] {
						t.Fatalf("after probe %d (%q): in rotation %v (%s)", i, h, p.b.Seat.InRotation(), p.b.OutReason())
					}
				}
				if p.b.OutReason() != c.why {
					t.Errorf("why: %q", p.b.OutReason())
				}
			})
		})
	}
}

// TestOutIsLogged: why a backend is out of rotation is logged once, also of one that never
// was in, and another reason after a minute.
func TestOutIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := newWorld()
		p := proberOf(w, Config{}, "qwen3-1.7b")
		p.log = slog.New(slog.NewTextHandler(&log, nil))
		for i, step := range []struct{ health, logged string }{
			{"status 404", `reason="GET /health: status 404"`}, {"status 404", ""}, {refusing, ""},
			{"pause", ""}, {refusing, "connection refused"}, {refusing, ""},
			{"", "in rotation"}, {refusing, "connection refused"}, {refusing, ""},
		} {
			if step.health == "pause" {
				time.Sleep(logEvery)
				continue
			}
			w.set("/health", step.health)
			log.Reset()
			p.probe(t.Context())
			if (step.logged == "") != (log.Len() == 0) || !strings.Contains(log.String(), step.logged) {
				t.Errorf("step %d (%q) logged %q, want %q", i, step.health, log.String(), step.logged)
			}
		}
		// A request that is refused takes it out before a probe does: that is logged, too.
		w.set("/health", "")
		p.probe(t.Context())
		p.b.suspect(syscall.ECONNREFUSED)
		w.set("/health", refusing)
		log.Reset()
		if p.probe(t.Context()); !strings.Contains(log.String(), "backend out of rotation") {
			t.Errorf("a backend that a request found dead: %q", log.String())
		}
	})
}

func TestProbeLearns(t *testing.T) {
	for _, c := range []struct {
		name, models, version, serves string
		want                          Facts
		why                           string
	}{
		{"all", `{"data":[{"id":"Qwen/Qwen3-1.7B","max_model_len":40960}]}`, `{"version":"0.23.0"}`, "", Facts{Serves: "Qwen/Qwen3-1.7B", MaxModelLen: 40960, Version: "0.23.0", Capabilities: capabilitiesOf("0.23.0")}, ""},
		{"no version", `{"data":[{"id":"qwen3-1.7b","max_model_len":100}]}`, `status 404`, "", Facts{Serves: "qwen3-1.7b", MaxModelLen: 100}, ""},
		{"odd version", `{"data":[{"id":"qwen3-1.7b","max_model_len":7}]}`, `nightly`, "", Facts{Serves: "qwen3-1.7b", MaxModelLen: 7}, ""},
		{"an adapter beside it", `{"data":[{"id":"lora","max_model_len":null},{"id":"Qwen3-1.7B","max_model_len":7}]}`, ``, "", Facts{Serves: "Qwen3-1.7B", MaxModelLen: 7}, ""},
		{"configured", `{"data":[{"id":"qwen3-1.7b","max_model_len":9},{"id":"main","max_model_len":7}]}`, ``, "main", Facts{Serves: "main", MaxModelLen: 7}, ""},
		{"another model", `{"data":[{"id":"Llama"},{"id":"b"}]}`, ``, "", Facts{}, "it serves Llama, b, none of which is qwen3-1.7b: set serves on the backend to the name it uses"},
		{"not the configured", `{"data":[{"id":"qwen3-1.7b"}]}`, ``, "main", Facts{Serves: "main"}, "it serves qwen3-1.7b, none of which is main: set serves on the backend to the name it uses"},
		{"no models", `{"data":[]}`, ``, "", Facts{}, "GET /v1/models: lists no model"},
		{"not JSON", `<html>`, ``, "", Facts{}, "GET /v1/models: invalid character '<' looking for beginning of value"},
		{"many models", `{"data":[{"id":"m0"},{"id":"m1"},{"id":"m2"},{"id":"m3"},{"id":"m4"},{"id":"m5"},{"id":"m6"},{"id":"m7"},{"id":"m8"},{"id":"m9"}]}`, ``, "", Facts{}, "it serves m0, m1, m2, m3, m4, m5, m6, m7 and 2 more, none of which is qwen3-1.7b: set serves on the backend to the name it uses"},
		{"names that do not print", `{"data":[{"id":"\u001b[2J"},{"id":"a\u202eb"},{"id":""},{"id":"` + strings.Repeat("x", maxName+1) + `"}]}`, ``, "", Facts{}, "GET /v1/models: lists no model"},
		{"another name that does not print", `{"data":[{"id":"\u001b[2J"},{"id":"qwen3-1.7b","max_model_len":7}]}`, ``, "", Facts{Serves: "qwen3-1.7b", MaxModelLen: 7}, ""},
		{"a version that does not print", `{"data":[{"id":"qwen3-1.7b","max_model_len":7}]}`, `{"version":"\u001b]0;x\u0007` + strings.Repeat("9", 100) + `"}`, "", Facts{Serves: "qwen3-1.7b", MaxModelLen: 7, Version: "?]0;x?" + strings.Repeat("9", 58) + "..."}, ""},
		{"a refusal", `status 401`, ``, "", Facts{}, "GET /v1/models: status 401"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.set("/v1/models", c.models)
			w.set("/version", c.version)
			p := proberOf(w, Config{Serves: c.serves}, "qwen3-1.7b")
			p.probe(t.Context())
			f := p.b.Facts()
			f.Names = nil
			if fmt.Sprintf("%+v", f) != fmt.Sprintf("%+v", c.want) || p.b.OutReason() != c.why || p.b.Seat.InRotation() != (c.why == "") {
				t.Errorf("%+v, %q", f, p.b.OutReason())
			}
		})
	}
}

func TestProbeSendsTheKey(t *testing.T) {
	w := newWorld()
	w.set("/v1/models", `{"data":[{"id":"KEY"}]}`)
	p := proberOf(w, Config{APIKey: "secret"}, "Bearer secret")
	if p.probe(t.Context()); !p.b.Seat.InRotation() {
		t.Error(p.b.OutReason())
	}
}

// pruneCounter counts how often old connections are closed.
type pruneCounter struct {
	client
	calls atomic.Int64
}

func (c *pruneCounter) Prune(now time.Time) {
	c.calls.Add(1)
	c.client.Prune(now)
}

// TestProbeRhythm: health at every tick and when asked for, facts seldom, and
// again after a failure; connections that grow old are closed meanwhile.
func TestProbeRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := proberOf(w, Config{}, "Qwen3-1.7B")
		connections := &pruneCounter{client: p.b.client}
		p.b.client = connections
		ctx, cancel := context.WithCancel(t.Context())
		go p.run(ctx)
		want := func(when string, health, models int) {
			t.Helper()
			synctest.Wait()
			if h, m := w.count("/health"), w.count("/v1/models"); h != health || m != models {
				t.Errorf("%s: health asked %d times, models %d", when, h, m)
			}
		}
		want("at the start", 1, 1)
		time.Sleep(20 * time.Second) // of the bubble's clock
		want("after 20 s", 10, 0)
		time.Sleep(20 * time.Second)
		want("after 40 s", 10, 1)
		p.b.suspect(io.EOF)
		want("when suspected", 1, 0)
		if !p.b.Seat.InRotation() {
			t.Error("suspicion alone takes it out")
		}
		p.b.suspect(fmt.Errorf("x: %w", syscall.ECONNREFUSED))
		if p.b.Seat.InRotation() || p.b.OutReason() != "connection refused" {
			t.Error("refused, and yet in rotation")
		}
		want("when refused", 1, 0)
		if !p.b.Seat.InRotation() {
			t.Error("a healthy probe does not bring it back")
		}
		w.set("/health", "status 503")
		time.Sleep(2 * time.Second)
		want("a failure", 1, 0)
		w.set("/health", "")
		time.Sleep(2 * time.Second)
		want("after a failure", 1, 1)
		before := connections.calls.Load()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if n := connections.calls.Load() - before; n < 3 {
			t.Errorf("old connections were closed %d times in 6 s", n)
		}
		cancel()
		synctest.Wait()
	})
}

func TestProbeStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set("/health", silent)
		p := proberOf(w, Config{}, "x")
		p.b.Seat.SetRotation(true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { p.run(ctx); close(done) }()
		synctest.Wait()
		cancel()
		<-done
		if !p.b.Seat.InRotation() || p.failed != 0 {
			t.Error("a probe that was stopped counts as a failure")
		}
	})
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		served, names []string
		want          string
	}{
		{[]string{"a"}, []string{"a"}, "a"},
		{[]string{"b", "a"}, []string{"x", "a"}, "a"},
		{[]string{"Qwen/Qwen3-1.7B"}, []string{"qwen3-1.7b"}, "Qwen/Qwen3-1.7B"},
		{[]string{"qwen3-1.7b"}, []string{"Qwen/Qwen3-1.7B"}, "qwen3-1.7b"},
		{[]string{"/models/Qwen3-1.7B"}, []string{"Qwen/Qwen3-1.7B"}, "/models/Qwen3-1.7B"},
		{[]string{"other/a", "a"}, []string{"a"}, "a"}, // exact before alike
		{[]string{"A"}, []string{"a"}, "A"},
		{[]string{"qwen3-1.7b-fp8"}, []string{"qwen3-1.7b"}, ""},
		{[]string{"Qwen/other"}, []string{"Qwen/Qwen3-1.7B"}, ""},
		{nil, []string{"a"}, ""},
		{[]string{"a"}, nil, ""},
	} {
		if got := match(c.served, c.names); got != c.want {
			t.Errorf("%v, %v: %q; want %q", c.served, c.names, got, c.want)
		}
	}
}

func TestDiscover(t *testing.T) {
	w := newWorld()
	f, err := Discover(t.Context(), Config{URL: "http://gpu-a:8000"}, &http.Client{Transport: w})
	if err != nil || len(f.Names) != 1 || f.Names[0] != "Qwen/Qwen3-1.7B" || f.MaxModelLen != 40960 {
		t.Errorf("%+v, %v", f, err)
	}
	w.set("/v1/models", refusing)
	if _, err := Discover(t.Context(), Config{URL: "http://gpu-a:8000"}, &http.Client{Transport: w}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// TestProbeFollowsNoRedirect: a server that redirects a probe is told of, and the host
// it names is not asked, with the backend's key or without.
func TestProbeFollowsNoRedirect(t *testing.T) {
	var asked atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	s := httptest.NewServer(http.RedirectHandler(elsewhere.URL+"/"+strings.Repeat("x", 2*maxText), http.StatusTemporaryRedirect))
	defer s.Close()
	client := ProbeClient()
	defer client.CloseIdleConnections()
	p := &prober{b: New(Config{URL: s.URL, APIKey: "k"}, "agent"), client: client, log: quiet(), names: []string{"m"}}
	p.probe(t.Context())
	why := p.b.OutReason()
	if n := asked.Load(); n > 0 || p.b.Seat.InRotation() {
		t.Errorf("the other host was asked %d times", n)
	}
	if !strings.HasPrefix(why, "GET /health: status 307, a redirect to "+elsewhere.URL) || !strings.HasSuffix(why, "is not followed: set url on the backend to where the server itself answers") ||
		len(why) > 2*maxText || strings.Contains(why, "\x1b") {
		t.Errorf("why: %q", why)
	}
	if _, err := Discover(t.Context(), p.b.config, client); err == nil || asked.Load() > 0 {
		t.Error("discovery follows it:", err)
	}
}

// TestProbeQuotesLittle: what a server says that is no HTTP is quoted in short and in
// printable letters.
func TestProbeQuotesLittle(t *testing.T) {
	for _, answer := range []string{"\x1b[2J" + strings.Repeat("A", 2000) + "\r\n\r\n", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"} {
		s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
			p.Request()
			p.Say(answer)
		})
		client := ProbeClient()
		p := &prober{b: New(Config{URL: "http://" + s.Addr}, "agent"), client: client, log: quiet()}
		p.probe(t.Context())
		if why := p.b.OutReason(); len(why) > 2*maxText || strings.Contains(why, "\x1b") || !strings.HasPrefix(why, "GET /health: ") {
			t.Errorf("%d bytes: %q", len(why), why)
		}
		client.CloseIdleConnections()
	}
}

// TestProbeAfterAFailedRequest: a request that failed is the first of the two failures
// that take a backend out; a probe that succeeds forgives it.
func TestProbeAfterAFailedRequest(t *testing.T) {
	w := newWorld()
	p := proberOf(w, Config{}, "qwen3-1.7b")
	step := func(health string, fails, up bool) {
		t.Helper()
		w.set("/health", health)
		if fails {
			p.b.suspect(io.EOF)
		}
		if p.probe(t.Context()); p.b.Seat.InRotation() != up {
			t.Errorf("in rotation: %v (%s)", p.b.Seat.InRotation(), p.b.OutReason())
		}
	}
	step("", false, true)
	step("", true, true)
	step("status 503", false, true)
	step("", false, true)
	step("status 503", true, false)
}
