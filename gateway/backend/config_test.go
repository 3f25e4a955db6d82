package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
)

func validModel() ModelConfig {
	m := DefaultModel()
	m.Name, m.Backends = "qwen3", []Config{{URL: "http://gpu-a:8000"}}
	return m
}

func TestModelFaults(t *testing.T) {
	m := validModel()
	m.Aliases = []string{"Qwen/Qwen3-1.7B", strings.Repeat("x", 200)}
	m.Backends = append(m.Backends, Config{URL: "https://[::1]:8443/a/b", Weight: weighing(3), APIKeyEnv: "K"}, Config{URL: "http://gpu-a:8000/v2", APIKeyFile: "f"})
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*ModelConfig)
		want   []string // how the faults begin
	}{
		{"no name", func(m *ModelConfig) { m.Name = "" }, []string{"name: "}},
		{"that of metrics", func(m *ModelConfig) { m.Name = "other" }, []string{"name: other"}},
		{"a space", func(m *ModelConfig) { m.Name = "a b" }, []string{"name: "}},
		{"a quote", func(m *ModelConfig) { m.Name = `a"b` }, []string{"name: "}},
		{"a backslash", func(m *ModelConfig) { m.Name = `a\b` }, []string{"name: "}},
		{"no ASCII", func(m *ModelConfig) { m.Name = "é" }, []string{"name: "}},
		{"control", func(m *ModelConfig) { m.Name = "a\x7f" }, []string{"name: "}},
		{"too long", func(m *ModelConfig) { m.Name = strings.Repeat("x", 201) }, []string{"name: "}},
		{"aliases", func(m *ModelConfig) { m.Aliases = []string{"ok", "", "a b"} }, []string{"aliases[1]: ", "aliases[2]: "}},
		{"reasoning", func(m *ModelConfig) { m.Reasoning = "none" }, []string{`reasoning: must be both, reasoning or reasoning_content, not "none"`}},
		{"timeouts", func(m *ModelConfig) { m.Timeouts = exchange.Timeouts{}; m.Probe = -1 }, []string{"timeouts.connect: ", "timeouts.first_token: ", "timeouts.first_byte: ", "timeouts.idle: ", "timeouts.total: ", "probe: "}},
		{"no backends", func(m *ModelConfig) { m.Backends = nil }, []string{"backends: is empty"}},
		{"no url", func(m *ModelConfig) { m.Backends[0].URL = "" }, []string{"backends[0].url: is missing"}},
		{"no scheme", func(m *ModelConfig) { m.Backends[0].URL = "gpu-a:8000" }, []string{"backends[0].url: "}},
		{"another scheme", func(m *ModelConfig) { m.Backends[0].URL = "ftp://gpu-a" }, []string{"backends[0].url: "}},
		{"no host", func(m *ModelConfig) { m.Backends[0].URL = "http:///v1" }, []string{"backends[0].url: "}},
		{"a bad url", func(m *ModelConfig) { m.Backends[0].URL = "http://a b/" }, []string{"backends[0].url: "}},
		{"a line break", func(m *ModelConfig) { m.Backends[0].URL = "http://a\r\nX: y" }, []string{"backends[0].url: "}},
		{"a query", func(m *ModelConfig) { m.Backends[0].URL = "http://a?x=y" }, []string{"backends[0].url: may hold"}},
		{"a password", func(m *ModelConfig) { m.Backends[0].URL = "http://u:p@a" }, []string{"backends[0].url: may hold"}},
		{"scrape", func(m *ModelConfig) { m.Scrape = 49 * time.Millisecond }, []string{"scrape: must be from 50ms to 2s"}},
		{"scrape seldom", func(m *ModelConfig) { m.Scrape = 2*time.Second + 1 }, []string{"scrape: must be from 50ms to 2s"}},
		{"a GPU twice", func(m *ModelConfig) { m.Backends[0].GPUs = []string{"a/0", "b/0", "a/0"} }, []string{`backends[0].gpus[2]: "a/0" is named twice`}},
		{"weight", func(m *ModelConfig) { m.Backends[0].Weight = weighing(-1) }, []string{"backends[0].weight: must be from 0 to 1000, not -1"}},
		{"weight", func(m *ModelConfig) { m.Backends[0].Weight = weighing(1001) }, []string{"backends[0].weight: "}},
		{"two keys", func(m *ModelConfig) { m.Backends[0].APIKeyEnv, m.Backends[0].APIKeyFile = "a", "b" }, []string{"backends[0].api_key_env: "}},
		{"twice", func(m *ModelConfig) { m.Backends = append(m.Backends, m.Backends[0]) }, []string{"backends[1].url: is that of backends[0]"}},
		{"twice, with a route", func(m *ModelConfig) { m.Backends = append(m.Backends, Config{URL: m.Backends[0].URL + "/v1/"}) }, []string{"backends[1].url: is that of backends[0]"}},
		{"twice, with a slash", func(m *ModelConfig) { m.Backends = append(m.Backends, Config{URL: m.Backends[0].URL + "/"}) }, []string{"backends[1].url: is that of backends[0]"}},
		{"all at once", func(m *ModelConfig) { *m = ModelConfig{} }, []string{"name: ", "reasoning: ", "timeouts.connect: ", "timeouts.first_token: ", "timeouts.first_byte: ", "timeouts.idle: ", "timeouts.total: ", "probe: ", "scrape: ", "pace: ", "retry.attempts: ", "breaker.failures: ", "breaker.open: ", "backends: "}},
		{"bounds", func(m *ModelConfig) { m.Backends[0].MaxInFlight = -1 }, []string{"backends[0].max_in_flight: "}},
		{"waiting", func(m *ModelConfig) { m.Backends[0].MaxWaiting = -1 }, []string{"backends[0].max_waiting: "}},
		{"memory", func(m *ModelConfig) { m.Backends[0].Memory = "all" }, []string{"backends[0].memory: must be preallocated or absolute"}},
		{"retries", func(m *ModelConfig) { m.Retry = Retry{6, math.NaN()} }, []string{"retry.attempts: ", "retry.budget: "}},
		{"pace", func(m *ModelConfig) { m.Pace = maxPace + 1 }, []string{"pace: must be from 1 to 10000 tokens per second"}},
		{"objective", func(m *ModelConfig) { m.Objectives.TTFT = -1 }, []string{"objectives.ttft_p90: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := validModel()
			c.change(&m)
			err := m.Validate()
			if err == nil {
				t.Fatal("no fault")
			}
			faults := strings.Split(err.Error(), "\n")
			if !slices.EqualFunc(faults, c.want, strings.HasPrefix) {
				t.Errorf("%q", faults)
			}
		})
	}
}

// TestModelDefaults: a model says only what differs.
func TestModelDefaults(t *testing.T) {
	var m ModelConfig
	err := m.UnmarshalYAML(func(v any) error {
		if d := fmt.Sprintf("%+v", v); !strings.Contains(d, "Reasoning:both") {
			t.Errorf("decoded over %s", d)
		}
		return nil
	})
	if err != nil || m.Timeouts != DefaultModel().Timeouts || m.Probe != 2*time.Second {
		t.Errorf("%+v, %v", m, err)
	}
	broken := errors.New("broken")
	if err := m.UnmarshalYAML(func(any) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct{ url, name, addr, base, prefix, host string }{
		{"http://gpu-a:8000", "gpu-a:8000", "gpu-a:8000", "http://gpu-a:8000", "", "gpu-a:8000"},
		{"http://gpu-a", "gpu-a", "gpu-a:80", "http://gpu-a", "", "gpu-a"},
		{"https://gpu-a/", "gpu-a", "gpu-a:443", "https://gpu-a", "", "gpu-a"},
		{"https://[::1]:8443/a/b/", "[::1]:8443/a/b", "[::1]:8443", "https://[::1]:8443/a/b", "/a/b", "[::1]:8443"},
	} {
		b := New(Config{URL: c.url, Serves: "x"}, "agent")
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		e := b.config.exchange(u, "agent")
		if b.Name != c.name || e.Address != c.addr || b.base != c.base || e.Prefix != c.prefix || !strings.HasPrefix(e.Header, "Host: "+c.host+"\r\n") {
			t.Errorf("%s: %q %q %+v", c.url, b.Name, b.base, e)
		}
		if secure := strings.HasPrefix(c.url, "https"); (e.TLS != nil) != secure {
			t.Errorf("%s: TLS %v", c.url, e.TLS)
		}
		if b.Seat.InRotation() || b.OutReason() != "not probed yet" || b.Facts().Serves != "x" {
			t.Errorf("%s: in rotation %v, %q", c.url, b.Seat.InRotation(), b.OutReason())
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err     error
		retry   bool
		outcome string
	}{
		{nil, false, "ok"},
		{exchange.ErrLeft, false, "client_closed"},
		{context.Canceled, false, "client_closed"},
		{&exchange.TimeoutError{Phase: exchange.Connect}, true, "timeout_connect"},
		{&exchange.TimeoutError{Phase: exchange.FirstToken}, false, "timeout_first_token"},
		{&exchange.TimeoutError{Phase: exchange.Idle}, false, "timeout_idle"},
		{&exchange.TimeoutError{Phase: exchange.Total}, false, "timeout_total"},
		{&StatusError{Status: 400}, false, "refused"},
		{&StatusError{Status: 404}, false, "refused"},
		{&StatusError{Status: 429}, false, "refused"},
		{&StatusError{Status: 413, Body: []byte("<html>")}, false, "refused"},
		{&StatusError{Status: 422}, false, "refused"},
		{&StatusError{Status: 500}, true, "status_5xx"},
		{&StatusError{Status: 501}, false, "status_5xx"},
		{&StatusError{Status: 502}, true, "status_5xx"},
		{&StatusError{Status: 503}, true, "status_5xx"},
		{&StatusError{Status: 504}, true, "status_5xx"},
		{&exchange.BrokenError{Action: "stream", Err: io.EOF}, true, "broken"},
		{&openai.StreamError{Status: 400}, false, "refused"},
		{&openai.StreamError{Status: 500}, true, "status_5xx"},
		{&openai.StreamError{Status: 503}, true, "status_5xx"},
		{openai.ErrNoAnswer, true, "bad_answer"},
		{openai.ErrGarbage, true, "bad_answer"},
		{openai.ErrNoEvents, true, "bad_answer"},
		{openai.ErrUnfinished, true, "bad_answer"},
		{&exchange.BrokenError{Action: "stream", Err: openai.ErrUnfinished}, true, "broken"},
		{errors.New("x"), false, "bad_answer"},
	} {
		for _, err := range []error{c.err, fmt.Errorf("wrapped: %w", c.err)} {
			if c.err == nil {
				err = nil
			}
			if Retryable(err) != c.retry || Outcome(err) != c.outcome {
				t.Errorf("%v: %v, %s", err, Retryable(err), Outcome(err))
			}
		}
	}
	for err, want := range map[error]string{
		&exchange.TimeoutError{Phase: exchange.FirstToken}: "timeout: first_token", &StatusError{Status: 503}: "status 503", &exchange.BrokenError{Action: "connect", Err: syscall.ECONNREFUSED}: "connect: connection refused",
	} {
		if err.Error() != want {
			t.Error(err)
		}
	}
}

// TestDoubtful: which failures may be the request's own, and so speak against a backend
// only once another has answered; all others count at once or never.
func TestDoubtful(t *testing.T) {
	for _, c := range []struct {
		err               error
		doubtful, counted bool
	}{
		{&StatusError{Status: 400}, false, false},
		{&StatusError{Status: 413, Body: []byte("<html>")}, false, false},
		{&StatusError{Status: 422}, false, false},
		{&StatusError{Status: 500}, true, false},
		{&StatusError{Status: 501}, false, false},
		{&StatusError{Status: 502}, false, true},
		{&StatusError{Status: 503}, false, false},
		{&StatusError{Status: 504}, false, true},
		{&openai.StreamError{Status: 500}, true, false},
		{&openai.StreamError{Status: 503}, false, false},
		{openai.ErrNoAnswer, true, false},
		{&exchange.BrokenError{Action: "stream", Err: openai.ErrUnfinished}, false, true},
		{&exchange.TimeoutError{Phase: exchange.FirstToken}, false, true},
		{&exchange.TimeoutError{Phase: exchange.Total}, false, false},
		{exchange.ErrLeft, false, false},
	} {
		b := New(Config{URL: "http://gpu-a:8000", breaker: Breaker{Failures: 1, Open: time.Hour}}, "agent")
		b.Seat.SetRotation(true)
		if err := b.Guard(func() error { return c.err }); !errors.Is(err, c.err) {
			t.Error(err)
		}
		if Doubtful(c.err) != c.doubtful || b.BreakerOpen() != c.counted {
			t.Errorf("%v: doubtful %v, counted %v", c.err, Doubtful(c.err), b.BreakerOpen())
		}
		if probes := len(b.probeRequests); c.doubtful && probes != 1 {
			t.Errorf("%v: %d probes are asked for", c.err, probes)
		}
		if b.Blame(c.err, b); !b.BreakerOpen() || b.Seat.InRotation() {
			t.Errorf("%v: blamed, and still in rotation", c.err)
		}
	}
}

// TestBlame: only the answer of a server of the same release speaks against another one.
func TestBlame(t *testing.T) {
	for _, c := range []struct {
		version, other string
		counted        bool
	}{
		{"0.23.0", "0.23.0", true},
		{"0.17.1", "0.23.0", false},
		{"0.23.0", "0.17.1", false},
		{"", "0.23.0", false},
		{"", "", true}, // no vLLM, as far as is known
	} {
		running := func(version string) *Backend {
			b := New(Config{URL: "http://gpu-a:8000", breaker: Breaker{Failures: 1, Open: time.Hour}}, "agent")
			b.facts.Store(&Facts{Version: version})
			return b
		}
		b, other := running(c.version), running(c.other)
		if b.Blame(&StatusError{Status: 500}, other); b.BreakerOpen() != c.counted || other.BreakerOpen() {
			t.Errorf("%q fails and %q answers: breakers open %v and %v", c.version, c.other, b.BreakerOpen(), other.BreakerOpen())
		}
	}
}

// TestPastedURLs: an address that ends in /v1 or in a route of the API means the server.
func TestPastedURLs(t *testing.T) {
	for url, want := range map[string]string{
		"http://h:8000":                          "http://h:8000",
		"http://h:8000/":                         "http://h:8000",
		"http://h:8000/v1":                       "http://h:8000",
		"http://h:8000/v1/":                      "http://h:8000",
		"http://h:8000/v1/chat/completions":      "http://h:8000",
		"http://h:8000/v1/completions/":          "http://h:8000",
		"http://h:8000/v1/models":                "http://h:8000",
		"https://h/qwen%2F3/v1":                  "https://h/qwen%2F3",
		"http://v1":                              "http://v1",
		"http://h/av1":                           "http://h/av1",
		"http://h:8000/v1/embeddings-of-another": "http://h:8000/v1/embeddings-of-another",
	} {
		b := New(Config{URL: url}, "test")
		if b.base != want || "http://"+b.Name != strings.Replace(strings.Replace(want, "https:", "http:", 1), "%2F", "/", 1) {
			t.Errorf("%s: asked at %s, named %s, want %s", url, b.base, b.Name, want)
		}
	}
}

func weighing(w int) *int { return &w }
