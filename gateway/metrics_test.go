package gateway

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"

	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// gathered is every series of our own, as NAME{LABELS}, with its value or count.
func gathered(tb testing.TB, reg prometheus.Gatherer) map[string]float64 {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if h := m.GetHistogram(); h != nil {
				v = float64(h.GetSampleCount())
			}
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return out
}

func modelOf(name string, urls ...string) backend.ModelConfig {
	m := backend.DefaultModel()
	m.Name = name
	for _, u := range urls {
		m.Backends = append(m.Backends, backend.Config{URL: u})
	}
	return m
}

// TestSeriesFollowTheConfiguration: the series of models, backends and rules begin at
// zero with them, end with them, and do not come back by a request that was under way.
func TestSeriesFollowTheConfiguration(t *testing.T) {
	g, reg := bare(t, nil)
	g.Fleet.Apply([]backend.ModelConfig{modelOf("m", "http://a:1", "http://b:1"), modelOf("n", "http://c:1")})
	g.metrics.keepRules(map[string]bool{"few": false, "daily": true})
	of := func(text string) (n int) {
		for s := range gathered(t, reg) {
			if strings.Contains(s, text) {
				n++
			}
		}
		return n
	}
	all := gathered(t, reg)
	for _, want := range []string{
		"tidegate_requests_total{level=L0,model=n,route=/v1/chat/completions,served=n,status=200,stream=true}",
		"tidegate_tokens_total{direction=reasoning,model=n}", "tidegate_request_tokens{direction=input,model=n}",
		"tidegate_rejected_total{model=n,reason=overloaded,rule=}", "tidegate_rejected_total{model=n,reason=rate_limit_exceeded,rule=few}",
		"tidegate_rejected_total{model=n,reason=request_too_large_for_limit,rule=few}", "tidegate_rejected_total{model=n,reason=request_too_large_for_limit,rule=daily}",
		"tidegate_rejected_total{model=other,reason=insufficient_quota,rule=daily}", "tidegate_rejected_total{model=other,reason=invalid_api_key,rule=}",
		"tidegate_degraded_requests_total{level=L4,model=n,reason=gpu_temperature}", "tidegate_backend_attempts_total{backend=c:1,model=n,outcome=broken}",
		"tidegate_request_duration_seconds{level=L0,model=n}", "tidegate_time_to_first_token_seconds{model=n}", "tidegate_inter_token_seconds{model=n}",
		"tidegate_queue_wait_seconds{model=n}", "tidegate_overhead_seconds{model=n}", "tidegate_level{model=n}", "tidegate_backend_up{backend=c:1,model=n}",
	} {
		if v, ok := all[want]; !ok || v != 0 {
			t.Errorf("%s: %v, there %t; expected 0", want, v, ok)
		}
	}
	n, _ := g.Fleet.Model("n")
	m, _ := g.Fleet.Model("m")
	count := func(asked, served *backend.Model) {
		c := &call{request: request{model: asked}, plan: plan{model: served, served: served.Name, choices: 1}, route: "/x", began: time.Now()}
		c.outcome = outcome{status: 200, backend: "c:1", usage: openai.Usage{Output: 5}, firstToken: time.Now()}
		g.metrics.finished(c, time.Second)
		g.metrics.used(c.plan.served, "", c.outcome.usage)
		g.metrics.attempted(asked.Name, "c:1", nil)
		g.metrics.refused(asked.Name, &refusal.Refusal{Code: "rate_limit_exceeded", Rule: "few"})
	}
	count(n, n)
	count(m, n)
	if got := gathered(t, reg)["tidegate_tokens_total{direction=output,model=n}"]; got != 10 {
		t.Errorf("%v tokens", got)
	}
	g.Fleet.Apply([]backend.ModelConfig{modelOf("m", "http://a:1")})
	g.metrics.keepRules(map[string]bool{"daily": true})
	for range 2 {
		for _, gone := range []string{"model=n", "served=n", "backend=c:1", "backend=b:1", "rule=few"} {
			if k := of(gone); k != 0 {
				t.Errorf("%d series of %s are left", k, gone)
			}
		}
		count(n, n)
		count(m, n)
	}
	if of("backend=a:1,model=m") == 0 || of("rule=daily") == 0 {
		t.Error("the series of what stays are gone")
	}
	before := gathered(t, reg)
	count(n, n)
	if after := gathered(t, reg); len(before) != len(after) || after["tidegate_tokens_total{direction=output,model=other}"] != before["tidegate_tokens_total{direction=output,model=other}"]+5 {
		t.Error("a request of a model that is gone does not count for other")
	}
}

// quiet is a connection whose answer nobody reads.
type quiet struct{ header http.Header }

func (q *quiet) Header() http.Header              { return q.header }
func (q *quiet) Write(b []byte) (int, error)      { return len(b), nil }
func (q *quiet) WriteHeader(int)                  {}
func (q *quiet) SetReadDeadline(time.Time) error  { return nil }
func (q *quiet) SetWriteDeadline(time.Time) error { return nil }

// TestFlood: whatever callers write makes no series.
func TestFlood(t *testing.T) {
	n := 100_000
	if testing.Short() || raced {
		n = 2000
	}
	g, reg := bare(t, func(c *Config) { c.PerUser = 3 })
	h := g.Handler()
	send := func(path, key, body string) {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		h.ServeHTTP(&quiet{http.Header{}}, r)
	}
	flood := func(i int) {
		send("/v1/chat/completions", "k", fmt.Sprintf(`{"model":"junk-%d","messages":[{"role":"user","content":"x"}]}`, i))
		if i%10 > 0 {
			return
		}
		send("/v1/chat/completions", fmt.Sprint("key-", i), fmt.Sprintf(`{"model":"m","user":"user-%d","messages":[]}`, i))
		send(fmt.Sprintf("/v1/junk-%d", i), "k", "{}")
		g.settings.Load().accounts = account.New(account.Config{Mode: account.Keys}, nil)
		send("/v1/chat/completions", fmt.Sprint("key-", i), "{}")
		g.settings.Load().accounts = account.New(account.Config{Mode: account.Open}, nil)
		for _, user := range []string{fmt.Sprint("10.0.", i/256%256, ".", i%256), fmt.Sprint("user-", i)} { // who has no key is an address
			g.metrics.used("", user, openai.Usage{Output: 1})
		}
	}
	for i := range 3 {
		flood(10 * i)
	}
	before := gathered(t, reg)
	for i := 3; i < n; i++ {
		flood(30 + i)
	}
	after := gathered(t, reg)
	for s := range after {
		if _, was := before[s]; !was && !strings.HasPrefix(s, "tidegate_user_tokens_total{") {
			t.Errorf("a new series: %s", s)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d series, and before there were %d", len(after), len(before))
	}
	asked := "tidegate_rejected_total{model=other,reason=model_not_found,rule=}"
	if after[asked] != float64(n) {
		t.Errorf("%v requests were counted, expected %d", after[asked], n)
	}
	if len(g.metrics.users.recent) > (1+candidates)*3 {
		t.Errorf("%d users are remembered", len(g.metrics.users.recent))
	}
}

// TestExemplars: a trace is found by a slow request's bucket; without one nothing is
// paid for it.
func TestExemplars(t *testing.T) {
	g, reg := bare(t, nil)
	m, _ := g.Fleet.Model("m")
	c := &call{request: request{model: m}, plan: plan{model: m, served: "m", choices: 1}, route: "/x", began: time.Now(), tracing: sampledTrace()}
	c.outcome = outcome{status: 200, backend: "b", firstToken: time.Now(), lastWrite: time.Now()}
	g.metrics.finished(c, time.Second)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			for _, b := range metric.GetHistogram().GetBucket() {
				if e := b.GetExemplar(); e != nil && slices.ContainsFunc(e.GetLabel(), func(l *dto.LabelPair) bool {
					return l.GetName() == "trace_id" && l.GetValue() == c.tracing.traceID()
				}) {
					found[f.GetName()] = true
				}
			}
		}
	}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []string{"tidegate_overhead_seconds", "tidegate_request_duration_seconds", "tidegate_time_to_first_token_seconds"}) {
		t.Error(got)
	}
	h := g.metrics.overhead.WithLabelValues("m")
	if n := testing.AllocsPerRun(1000, func() { observe(h, time.Millisecond, "") }); n != 0 {
		t.Errorf("%v allocations without a trace", n)
	}
}

// TestTopUsers: each series begins at 0 and only grows while it is there; nothing is
// counted twice, and nothing lost but with a series that ends; there are never more
// users than asked for; who uses most is among them.
func TestTopUsers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 4).Draw(t, "most")
		u, now := newUserTokens(), time.Unix(1e9, 0)
		u.keep(most)
		total, ended := int64(0), int64(0)
		held := func() map[string]int64 {
			out := map[string]int64{labelOther: u.overflow[2]}
			for name, own := range u.shown {
				out[name] = own[2]
			}
			return out
		}
		step := func(by string, n int64, do func()) {
			before := held()
			do()
			after, sum := held(), int64(0)
			for name, v := range after {
				sum += v
				was, there := before[name]
				if !there && v != 0 || v < was || v > was && name != by && name != labelOther {
					t.Fatalf("%s went from %d to %d", name, was, v)
				}
			}
			for name, v := range before {
				if _, stays := after[name]; !stays {
					ended += v
				}
			}
			if total += n; sum+ended != total {
				t.Fatalf("%d in series and %d in those that ended, of %d", sum, ended, total)
			}
			if len(after) > most+1 || len(u.recent) > (1+candidates)*most {
				t.Fatalf("%d series, %d remembered", len(after), len(u.recent))
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 60, 3000}).Draw(t, "minutes")) * time.Minute)
			step("", 0, func() { u.gather(now) })
			user := fmt.Sprint("u", rapid.IntRange(0, 30).Draw(t, "user"))
			n := rapid.IntRange(0, 1000).Draw(t, "tokens")
			step(user, int64(n), func() { u.add(user, [4]int{0, 0, n, 0}, now) })
		}
		for _, name := range []string{"whale", labelOther, "10.1.2.3", ""} {
			u.add(name, [4]int{0, 0, 1 << 40, 0}, now)
		}
		u.gather(now)
		if u.shown["whale"] == nil || u.shown[labelOther] != nil || u.shown["10.1.2.3"] != nil || u.shown[""] != nil {
			t.Fatalf("%v are shown", u.shown)
		}
		if n := len(u.gather(now)); n != 4*(len(u.shown)+1) {
			t.Fatalf("%d series", n)
		}
		u.keep(0)
		if len(u.gather(now)) != 0 || len(u.recent) != 0 {
			t.Fatal("off, and there is something")
		}
	})
}

// TestZipped: a page is compressed for those who take that, and for nobody else.
func TestZipped(t *testing.T) {
	g, _ := bare(t, nil)
	h := g.OpsHandler(nil)
	page := func(accept string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9090/metrics", nil)
		r.Header.Set("Accept-Encoding", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for accept, want := range map[string]bool{"": false, "gzip": true, "deflate, gzip;q=0.5": true, "gzip;q=0": false, "br": false, "gzip;q=x": false} {
		w := page(accept)
		if is := w.Header().Get("Content-Encoding") == "gzip"; is != want {
			t.Errorf("%q: compressed %t", accept, is)
		}
		body := w.Body.Bytes()
		if want {
			if gunzipped(t, body) < 10_000 {
				t.Errorf("%q: a short page", accept)
			}
		} else if !bytes.Contains(body, []byte("\ntidegate_requests_total{")) {
			t.Errorf("%q: %.200s", accept, body)
		}
	}
}
