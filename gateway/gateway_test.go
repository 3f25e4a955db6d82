package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
	"tidegate/gateway/qwen"
	"tidegate/nvml"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vocabulary is the tokenizer of all gateways here: loading it takes a while.
var vocabulary = sync.OnceValues(qwen.New)

// bare is a gateway without any backend, in open mode.
func bare(t testing.TB, edit func(*Config)) (*Gateway, prometheus.Gatherer) {
	t.Helper()
	tokenizer, err := vocabulary()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	c := Default()
	if edit != nil {
		edit(&c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	beside := prometheus.NewRegistry()
	gpus := nvml.New(log)
	ladder := degrade.New(degrade.DefaultConfig(), log, beside)
	fleet := backend.NewFleet(log, "test", gpus, ladder)
	m := backend.DefaultModel()
	m.Name = "m"
	fleet.Apply([]backend.ModelConfig{m})
	usage, err := ledger.Open(ledger.Parts{Dir: t.TempDir(), Log: log, Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { usage.Close() })
	g := New(Parts{
		Log: log, Fleet: fleet, GPUs: gpus, Ladder: ladder, Admission: admission.New(limit.New(&limit.Set{}, limit.Options{Store: limit.NewMemory(time.Now)}), admission.DefaultQueue()), Ledger: usage, Tokenizer: tokenizer,
		Counter: qwen.NewCounter(tokenizer, 16), Registry: registry, Version: "test",
		Gatherers: []prometheus.Gatherer{beside, gpus},
	}, c, account.New(account.Config{Mode: account.Open}, nil))
	return g, g.gatherers()
}

// TestPanics checks that a panic in a handler is an error of that request alone:
// a 500 before the answer has begun, a cut connection after.
func TestPanics(t *testing.T) {
	g, _ := bare(t, nil)
	begun := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.answer(w, r, "/x", func(c *call) error {
			if begun {
				c.writer.sendHead()
				_, _ = io.WriteString(c.writer.w, "half an ans")
			}
			panic("as planned")
		})
	}))
	defer server.Close()
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 500 || !strings.Contains(string(body), `"code":"internal_error"`) || strings.Contains(string(body), "as planned") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	begun = true
	if resp, err = server.Client().Get(server.URL); err == nil {
		if _, err = io.ReadAll(resp.Body); err == nil {
			t.Error("half an answer ended as if it were whole")
		}
		resp.Body.Close()
	}
}

func TestCallersAddress(t *testing.T) {
	g, _ := bare(t, func(c *Config) { c.TrustedProxies = []string{"10.0.0.0/8", "fd00::/8"} })
	for _, c := range []struct{ peer, forwarded, want string }{
		{"192.0.2.7:1", "", "192.0.2.7"},
		{"192.0.2.7:1", "198.51.100.1", "192.0.2.7"}, // no trusted proxy said so
		{"10.1.1.1:1", "198.51.100.1", "198.51.100.1"},
		{"10.1.1.1:1", "203.0.113.9, 198.51.100.1, 10.2.2.2", "198.51.100.1"}, // what a caller wrote stands further left
		{"10.1.1.1:1", "nonsense", "10.1.1.1"},
		{"10.1.1.1:1", "", "10.1.1.1"},
		{"[::ffff:192.0.2.7]:1", "", "192.0.2.7"},
		{"[fd00::1]:1", "2001:db8::5", "2001:db8::5"},
		{"10.1.1.1:1", "203.0.113.8:51234", "203.0.113.8"}, // as Azure's gateways write it
		{"10.1.1.1:1", "[2001:db8::9]:443", "2001:db8::9"},
		{"10.1.1.1:1", "[2001:db8::a]", "2001:db8::a"},
		{"10.1.1.1:1", `"[2001:db8::a]:443"`, "2001:db8::a"},
		{"10.1.1.1:1", "[::ffff:203.0.113.8]:443", "203.0.113.8"},
		{"10.1.1.1:1", "fe80::1%eth0", "fe80::1"},
		{"10.1.1.1:1", "198.51.100.9, 203.0.113.11:4000, 10.2.2.2:5000", "203.0.113.11"},
		{"10.1.1.1:1", "203.0.113.8:51234, ", "203.0.113.8"},
		{"10.1.1.1:1", "203.0.113.8:99999", "10.1.1.1"},
		{"10.1.1.1:1", "203.0.113.8:x", "10.1.1.1"},
		{"10.1.1.1:1", "[203.0.113.8]", "10.1.1.1"},
		{"10.1.1.1:1", "203.0.113.7, unknown", "10.1.1.1"}, // what stands before may be the caller's own
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.peer
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		call := g.newCall(httptest.NewRecorder(), r, "/")
		if got := call.clientAddr().String(); got != c.want {
			t.Errorf("%s forwarded for %q: %s, expected %s", c.peer, c.forwarded, got, c.want)
		}
	}
}

// TestJunkAddsNoSeries asks for a thousand models and paths that are not there.
func TestJunkAddsNoSeries(t *testing.T) {
	g, registry := bare(t, nil)
	server := httptest.NewServer(g.Handler())
	defer server.Close()
	ask := func(i int) {
		for _, q := range []struct{ path, body string }{
			{"/v1/completions", fmt.Sprintf(`{"model":"junk-%d","prompt":"x"}`, i)}, {fmt.Sprintf("/junk/%d", i), "{}"},
		} {
			resp, err := server.Client().Post(server.URL+q.path, "application/json", strings.NewReader(q.body))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 404 {
				t.Fatalf("status %d", resp.StatusCode)
			}
		}
	}
	series := func() (n int) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			n += len(f.GetMetric())
		}
		return n
	}
	ask(0)
	before := series()
	for i := range 1000 {
		ask(i + 1)
	}
	if after := series(); after != before {
		t.Errorf("%d series became %d", before, after)
	}
}

func TestValidate(t *testing.T) {
	c := Config{TrustedProxies: []string{"x"}}
	var joined interface{ Unwrap() []error }
	if !errors.As(c.Validate(), &joined) || len(joined.Unwrap()) != 10 {
		t.Errorf("got %v", c.Validate())
	}
}

func TestUsageQuery(t *testing.T) {
	g, _ := bare(t, nil)
	server := httptest.NewServer(g.Handler())
	defer server.Close()
	for _, query := range []string{"?group_by=user", "?zone=Mars", "?from=yesterday", "?from=2026-02-01&to=2026-01-01", "?to=2026-01-01T00:00"} {
		resp, err := server.Client().Get(server.URL + "/v1/usage" + query)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: status %d", query, resp.StatusCode)
		}
	}
}

func TestTokenize(t *testing.T) {
	g, _ := bare(t, nil)
	server := httptest.NewServer(g.Handler())
	defer server.Close()
	for body, want := range map[string]string{
		`{"prompt":"Hello"}`: `"count":1`, `{"messages":[{"role":"user","content":"Hello"}]}`: `"count":9`,
		`{"messages":[{"role":"user","content":"Hello"}],"enable_thinking":false}`: `"count":13`,
		`{"model":"m","prompt":""}`: `"count":0`, `{"model":"other","prompt":"x"}`: `model_not_found`, `{}`: `invalid_request`,
		`{"messages":[{"role":"developer","content":"Be brief"},{"role":"user","content":"Hi"}]}`: `"count":16`,
	} {
		resp, err := server.Client().Post(server.URL+"/tokenize", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(got), want) {
			t.Errorf("%s: %s, expected %s", body, got, want)
		}
	}
}
