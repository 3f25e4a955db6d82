package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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
	"tidegate/gateway/refusal"
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

// TestAdminDeadline lets the store hang under an administrator's request: it ends
// by itself, and a caller who leaves before is not told anything.
func TestAdminDeadline(t *testing.T) {
	const key = "an-administrators-key"
	for _, c := range []struct {
		name           string
		patience, took time.Duration
		status         int
	}{
		{"patient", time.Hour, adminTimeout, http.StatusServiceUnavailable},
		{"leaves", time.Second, time.Second, clientClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := bare(t, nil)
			g.Reload(Default(), account.New(account.Config{AdminKey: key}, nil))
			synctest.Test(t, func(t *testing.T) {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				defer time.AfterFunc(c.patience, leave).Stop()
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/admin/v1/keys", nil)
				r.Header.Set("Authorization", "Bearer "+key)
				w := httptest.NewRecorder()
				asked := g.newCall(w, r, "/admin/v1/keys")
				began := time.Now()
				err := admin(func(c *call) error {
					<-c.r.Context().Done()
					return fmt.Errorf("read the accounts: %w", c.r.Context().Err())
				})(asked)
				g.fail(asked, err)
				if took := time.Since(began); took != c.took || asked.outcome.status != c.status || strings.Contains(w.Body.String(), string(refusal.StoreUnavailable)) != (c.status == http.StatusServiceUnavailable) {
					t.Errorf("%v after %v: %d %s", err, took, asked.outcome.status, w.Body)
				}
			})
		})
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

// TestUsageDays: the days of a report are whole ones of its zone, also where a change of
// the clock takes their midnight away (Santiago, Beirut) or brings it twice (Havana).
func TestUsageDays(t *testing.T) {
	now := time.Date(2024, 9, 8, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ zone, query, begin, end string }{
		{"America/Santiago", "from=2024-09-08&to=2024-09-08", "2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00"},
		{"America/Santiago", "from=2024-09-07&to=2024-09-07", "2024-09-07T00:00:00-04:00", "2024-09-08T01:00:00-03:00"},
		{"America/Santiago", "from=2024-09-08T12:00:00Z", "2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00"},
		{"America/Santiago", "", "2024-08-10T00:00:00-04:00", "2024-09-09T00:00:00-03:00"},
		{"Asia/Beirut", "from=2024-03-31&to=2024-03-31", "2024-03-31T01:00:00+03:00", "2024-04-01T00:00:00+03:00"},
		{"America/Havana", "from=2024-11-03&to=2024-11-03", "2024-11-03T00:00:00-04:00", "2024-11-04T00:00:00-05:00"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		begin, end, err := days(q, zone, now)
		if err != nil || begin.Format(time.RFC3339) != c.begin || end.Format(time.RFC3339) != c.end {
			t.Errorf("%s, %s: from %v to %v, %v; want %s to %s", c.zone, c.query, begin, end, err, c.begin, c.end)
		}
		asked := ledger.Query{From: begin, To: end, Zone: zone}
		if first, last := asked.Days(); q.Has("to") && (first != q.Get("from") || last != q.Get("to")) {
			t.Errorf("%s, %s: said to be from %s to %s", c.zone, c.query, first, last)
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
