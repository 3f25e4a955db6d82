package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
)

// reply is what came of one request.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// complete sends a chat of ada's, or of key's, and reads the answer to its end.
func (f *front) complete(t *testing.T, key, body string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	return f.do(t, req)
}

// look asks one of the GET routes.
func (f *front) look(t *testing.T, key, path string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	return f.do(t, req)
}

func (f *front) do(t *testing.T, req *http.Request) reply {
	t.Helper()
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, body}
}

// code is the code of an error body.
func (a reply) code() string {
	var body struct{ Error struct{ Code string } }
	_ = json.Unmarshal(a.body, &body)
	return body.Error.Code
}

// chat is a request whose answer has so many tokens.
func chat(model string, tokens int, more string) string {
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"enable_thinking":false,"sim":{"tokens":%d}%s}`, model, tokens, more)
}

// TestRateLimit: what is over a rate is refused with the rule, a time to wait, and
// headers that every answer has, streams and errors included.
func TestRateLimit(t *testing.T) {
	f := startGateway(t, startServers(t, nil), plan{more: "limits:\n  - {name: few, per: user, requests: 3/1h}\n  - {name: some, per: user, tokens: 1000000/1h}\n"})
	for i, stream := range []string{"", `,"stream":true`, ""} {
		a := f.complete(t, adaKey, chat(largeModel, 5, stream))
		if a.status != 200 || a.header.Get("X-Ratelimit-Limit-Requests") != "3" || a.header.Get("X-Ratelimit-Remaining-Requests") != strconv.Itoa(2-i) {
			t.Fatalf("%d, %v\n%s", a.status, a.header, a.body)
		}
		if reset, err := time.ParseDuration(a.header.Get("X-Ratelimit-Reset-Requests")); err != nil || reset <= 0 || reset > time.Hour+6*time.Minute {
			t.Errorf("reset %v, %v", reset, err)
		}
		if left, err := strconv.Atoi(a.header.Get("X-Ratelimit-Remaining-Tokens")); err != nil || left >= 1_000_000 {
			t.Errorf("%d tokens left, %v", left, err)
		}
	}
	a := f.complete(t, adaKey, chat(largeModel, 5, `,"stream":true`))
	if a.status != 429 || a.code() != "rate_limit_exceeded" || !bytes.Contains(a.body, []byte("few")) || a.header.Get("X-Ratelimit-Remaining-Requests") != "0" {
		t.Errorf("%d, %v\n%s", a.status, a.header, a.body)
	}
	seconds, _ := strconv.Atoi(a.header.Get("Retry-After"))
	ms, _ := strconv.Atoi(a.header.Get("Retry-After-Ms"))
	if seconds < 3000 || ms > seconds*1000 || ms <= (seconds-1)*1000 || a.header.Get("X-Should-Retry") != "false" {
		t.Errorf("retry after %d s, %d ms, %q", seconds, ms, a.header.Get("X-Should-Retry"))
	}
	if a := f.complete(t, bobKey, chat(smallModel, 5, "")); a.status != 200 {
		t.Errorf("another user: %d %s", a.status, a.body)
	}
	if n := f.metric(t, `tidegate_limit_decisions_total{decision="allow",rule="few",store="local"}`); n != 4 {
		t.Errorf("%v allowed", n)
	}
}

// metric reads one series.
func (f *front) metric(t *testing.T, series string) float64 {
	t.Helper()
	resp, err := f.client.Get(f.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// TestRefusals: each kind of refusal has the status and the word of the table.
func TestRefusals(t *testing.T) {
	f := startGateway(t, startServers(t, nil), plan{more: `limits:
  - {name: small, per: key, tokens: 200/1h, reserve: max}
  - {name: seen, per: user, requests: 1/1h, shadow: true}
quotas:
  - {name: daily, per: user, units: 150, every: day, zone: Asia/Shanghai}
`})
	if a := f.complete(t, adaKey, chat(largeModel, 5, `,"max_tokens":300`)); a.status != 400 || a.code() != "request_too_large_for_limit" || a.header.Get("Retry-After") != "" {
		t.Errorf("never: %d %s", a.status, a.body)
	}
	if a := f.complete(t, adaKey, chat(goneModel, 5, `,"max_tokens":50`)); a.status != 503 || a.code() != "no_backend" {
		t.Errorf("no backend: %d %s", a.status, a.body)
	}
	// Neither of the two has used anything.
	var before limitStatus
	f.limits(t, adaKey, "/quota/status", &before)
	if len(before.Quotas) != 1 || before.Quotas[0].Used != 0 || before.Rates[0].Remaining != 200 || *before.Remaining != 150 {
		t.Errorf("%+v", before)
	}
	for range 2 { // the shadow rule refuses nobody
		if a := f.complete(t, adaKey, chat(largeModel, 60, `,"max_tokens":60`)); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a := f.complete(t, adaKey, chat(largeModel, 60, `,"max_tokens":60`))
	if a.status != 403 || a.code() != "insufficient_quota" || a.header.Get("X-Should-Retry") != "false" || !bytes.Contains(a.body, []byte("daily")) {
		t.Errorf("quota: %d %v %s", a.status, a.header, a.body)
	}
	var after limitStatus
	f.limits(t, adaKey, "/quota/status?model="+largeModel, &after)
	if q := after.Quotas[0]; q.Used < 120 || q.Used > 150 || q.Remaining != 150-q.Used || q.Unit != "units" || len(q.AlertsCrossed) == 0 || *after.Used != q.Used || !after.ResetsAt.After(time.Now()) {
		t.Errorf("%+v", after)
	}
	if until := after.ResetsAt.UTC().Format(time.RFC3339); !bytes.Contains(a.body, []byte(fmt.Sprintf("the quota daily of 150 units per user has %d left until %s, and this request needs 13 at least", after.Quotas[0].Remaining, until))) {
		t.Errorf("want %d and %s in %s", after.Quotas[0].Remaining, until, a.body)
	}
	if n := f.metric(t, `tidegate_limit_decisions_total{decision="shadow_deny",rule="seen",store="local"}`); n == 0 {
		t.Error("the shadow rule is not counted")
	}
	if n := f.metric(t, `tidegate_rejected_total{model="`+largeModel+`",reason="insufficient_quota",rule="daily"}`); n != 1 {
		t.Errorf("%v refused by quota", n)
	}
}

// limitStatus is what GET /quota/status says.
type limitStatus struct {
	Used, Limit, Remaining *int64
	ResetsAt               *time.Time `json:"resets_at"`
	Quotas                 []struct {
		Name, Per, Unit string
		Used, Remaining int64
		AlertsCrossed   []int `json:"alerts_crossed"`
	}
	Rates []struct {
		Name, Metric     string
		Limit, Remaining int64
		ResetMs          int64 `json:"reset_ms"`
	}
}

func (f *front) limits(t *testing.T, key, path string, into *limitStatus) {
	t.Helper()
	a := f.look(t, key, path)
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatal(err)
	}
}

// TestSettled: limits are charged what the engine counted, whether the answer is
// whole, streamed, left by its caller or failed.
func TestSettled(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, plan{more: "limits:\n  - {name: all, per: user, tokens: 1000000/1h, requests: 1000/1h, concurrency: 5}\n"})
	want := int64(0)
	for i, stream := range []string{"", `,"stream":true`, `,"n":2`} {
		tag := fmt.Sprintf("settled-%d", i)
		if a := f.complete(t, adaKey, chat(largeModel, 20+i, stream+`,"user":"`+tag+`"`)); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		r := s.record(t, tag)
		want += int64(r.Prompt + r.Output)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/v1/chat/completions",
		strings.NewReader(chat(largeModel, 5000, `,"stream":true,"user":"settled-left"`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+adaKey)
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r := s.record(t, "settled-left")
	want += int64(r.Prompt)
	eventually(t, "the left stream is settled", func() bool {
		var now limitStatus
		f.limits(t, adaKey, "/quota/status", &now)
		used, free := int64(0), false
		for _, rate := range now.Rates {
			switch rate.Metric {
			case "tokens":
				used = rate.Limit - rate.Remaining
			case "concurrency":
				free = rate.Remaining == 5
			}
		}
		return free && used > want && used <= want+int64(r.Output)
	})
	s.fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
	before := f.charged(t, "tokens")
	if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 502 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if after := f.charged(t, "tokens"); after != before {
		t.Errorf("a request that failed before its first token is charged %d tokens", after-before)
	}
	if n := f.charged(t, "requests"); n != 6 { // one of the five had two choices
		t.Errorf("%d requests are charged", n)
	}
}

// charged is what ada has used of a metric of her one rule.
func (f *front) charged(t *testing.T, metric string) int64 {
	t.Helper()
	var now limitStatus
	f.limits(t, adaKey, "/quota/status", &now)
	for _, rate := range now.Rates {
		if rate.Metric == metric {
			return rate.Limit - rate.Remaining
		}
	}
	t.Fatalf("no %s in %+v", metric, now)
	return 0
}

// TestLimitsReload: edited limits hold at once for the usage that is there.
func TestLimitsReload(t *testing.T) {
	s := startServers(t, nil)
	p := plan{more: "limits:\n  - {name: few, per: user, requests: 2/1h}\n"}
	f := startGateway(t, s, p)
	for range 2 {
		if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 429 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	p.more = "limits:\n  - {name: few, per: user, requests: 4/1h}\n"
	if err := os.WriteFile(f.file, []byte(p.yaml(s, filepath.Dir(f.file))), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new limit", func() bool {
		var now limitStatus
		f.limits(t, adaKey, "/quota/status", &now)
		return now.Rates[0].Limit == 4
	})
	if n := f.charged(t, "requests"); n != 2 {
		t.Errorf("%d requests are remembered", n)
	}
	eventually(t, "room under the new limit", func() bool { return f.complete(t, adaKey, chat(largeModel, 5, "")).status == 200 })
}

// TestOverrideHolds: an administrator's override holds at once, and only where a
// rule can take it; usage reports are for administrators.
func TestOverrideHolds(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, plan{more: "limits:\n  - {name: few, per: user, requests: 1/1h}\n", env: map[string]string{"TIDEGATE_ADMIN_KEY": adminKey}})
	if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 429 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	f.expect(t, adminKey, "PUT", "/admin/v1/overrides", `{"rule":"few","of":"user","name":"ada","requests":"3/1h"}`, 200, "3/1h")
	f.expect(t, adminKey, "PUT", "/admin/v1/overrides", `{"rule":"gone","of":"user","name":"ada","requests":"3/1h"}`, 400, "no such rule")
	f.expect(t, adminKey, "PUT", "/admin/v1/overrides", `{"rule":"few","of":"user","name":"ada","tokens":"3/1h"}`, 400, "does not limit")
	eventually(t, "the override", func() bool {
		var now limitStatus
		f.limits(t, adaKey, "/quota/status", &now)
		return now.Rates[0].Limit == 3 && now.Rates[0].Remaining == 2
	})
	eventually(t, "room under it", func() bool { return f.complete(t, adaKey, chat(largeModel, 5, "")).status == 200 })
	f.expect(t, adaKey, "GET", "/admin/v1/usage", "", 403, "access_denied")
	f.expect(t, adminKey, "GET", "/admin/v1/usage?group_by=user,model&user=ada", "", 200, `"user":"ada"`)
	f.expect(t, adminKey, "GET", "/admin/v1/usage?group_by=user&format=csv", "", 200, "user,requests,failed_requests")
	f.expect(t, adminKey, "GET", "/admin/v1/usage?group_by=colour", "", 400, "group_by")
}

const adminKey = "an-administrators-key-of-the-tests"

// TestQuotaSurvives: a quota of a gateway that counts alone is what the ledger says
// after a restart.
func TestQuotaSurvives(t *testing.T) {
	s := startServers(t, nil)
	dir := t.TempDir()
	p := plan{dsn: "sqlite://" + filepath.Join(dir, "t.db"), more: "quotas:\n  - {name: monthly, per: user, units: 100000, every: month, zone: Asia/Shanghai}\n  - {name: all, per: global, tokens: 100000, every: month}\n"}
	var before limitStatus
	t.Run("first", func(t *testing.T) {
		f := startGateway(t, s, p)
		if a := f.complete(t, adaKey, chat(largeModel, 40, "")); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		f.limits(t, adaKey, "/quota/status", &before)
	})
	f := startGateway(t, s, p)
	var after limitStatus
	f.limits(t, adaKey, "/quota/status", &after)
	for i := range before.Quotas {
		if before.Quotas[i].Used < 40 || after.Quotas[i].Used != before.Quotas[i].Used {
			t.Errorf("%s: used %d before and %d after", before.Quotas[i].Name, before.Quotas[i].Used, after.Quotas[i].Used)
		}
	}
}

// TestHammering: a refusal of the last second refuses before the body is read, tells
// nobody another's numbers, and every answer of a generation says its level.
func TestHammering(t *testing.T) {
	f := startGateway(t, startServers(t, nil), plan{more: "limits:\n  - {name: together, per: global, requests: 2/1h}\n  - {name: own, per: user, tokens: 1000000/1h}\n"})
	for range 2 {
		if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 429 || a.header.Get("X-Ratelimit-Remaining-Tokens") == "" || a.header.Get("X-Tidegate-Level") != "L0" {
		t.Fatalf("%d %v", a.status, a.header)
	}
	// Nobody has looked at this body.
	resp := f.raw(t, head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+bobKey, "Content-Length: 2")+"{]")
	resp.Body.Close()
	if resp.StatusCode != 429 || resp.Header.Get("X-Ratelimit-Remaining-Requests") != "0" || resp.Header.Get("X-Ratelimit-Remaining-Tokens") != "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if n := f.metric(t, `tidegate_rejected_total{model="other",reason="rate_limit_exceeded",rule="together"}`); n != 1 {
		t.Errorf("%v refused before the model was known", n)
	}
}

// TestAuxRequests: what generates nothing is counted by a rule of its own, for each key.
func TestAuxRequests(t *testing.T) {
	f := startGateway(t, startServers(t, nil), plan{usual: true, server: []string{"aux_requests: 4/1h"}, more: "limits:\n  - {name: few, per: user, requests: 1/1h}\n"})
	ask := func(key, method, path, body string) reply {
		q, err := http.NewRequestWithContext(t.Context(), method, f.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+key)
		q.Header.Set("Content-Type", "application/json")
		return f.do(t, q)
	}
	routes := []struct{ method, path, body string }{
		{"GET", "/v1/models", ""}, {"POST", "/tokenize", `{"prompt":"hi"}`}, {"GET", "/v1/usage", ""}, {"GET", "/quota/status", ""},
	}
	for _, r := range routes {
		if a := ask(adaKey, r.method, r.path, r.body); a.status != 200 {
			t.Errorf("%s: %d %s", r.path, a.status, a.body)
		}
	}
	for _, r := range append(routes, struct{ method, path, body string }{"GET", "/v1/models/" + largeModel, ""}) {
		a := ask(adaKey, r.method, r.path, r.body)
		if a.status != 429 || a.code() != "rate_limit_exceeded" || !bytes.Contains(a.body, []byte("aux_requests allows 4 requests in 1h per key")) || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v %s", r.path, a.status, a.header, a.body)
		}
	}
	if a := ask(bobKey, "GET", "/v1/models", ""); a.status != 200 {
		t.Errorf("another key: %d %s", a.status, a.body)
	}
	// Neither kind of request takes anything from the other.
	if a := f.complete(t, adaKey, chat(largeModel, 5, "")); a.status != 200 {
		t.Errorf("a generation: %d %s", a.status, a.body)
	}
	if n := f.metric(t, `tidegate_limit_decisions_total{decision="allow",rule="aux_requests",store="local"}`); n != 5 {
		t.Errorf("%v allowed", n)
	}
}
