package gateway_test

import (
	"bytes"
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
	"tidegate/gateway/gatewaytest/stack"
)

// TestRateLimit: what is over a rate is refused with the rule, a time to wait, and
// headers that every answer has, streams and errors included.
func TestRateLimit(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Extra: "limits:\n  - {name: few, per: user, requests: 3/1h}\n  - {name: some, per: user, tokens: 1000000/1h}\n"})
	for i, stream := range []string{"", `,"stream":true`, ""} {
		a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, stream))
		if a.Status != 200 || a.Header.Get("X-Ratelimit-Limit-Requests") != "3" || a.Header.Get("X-Ratelimit-Remaining-Requests") != strconv.Itoa(2-i) {
			t.Fatalf("%d, %v\n%s", a.Status, a.Header, a.Body)
		}
		if reset, err := time.ParseDuration(a.Header.Get("X-Ratelimit-Reset-Requests")); err != nil || reset <= 0 || reset > time.Hour+6*time.Minute {
			t.Errorf("reset %v, %v", reset, err)
		}
		if left, err := strconv.Atoi(a.Header.Get("X-Ratelimit-Remaining-Tokens")); err != nil || left >= 1_000_000 {
			t.Errorf("%d tokens left, %v", left, err)
		}
	}
	a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, `,"stream":true`))
	if a.Status != 429 || a.Code() != "rate_limit_exceeded" || !bytes.Contains(a.Body, []byte("few")) || a.Header.Get("X-Ratelimit-Remaining-Requests") != "0" {
		t.Errorf("%d, %v\n%s", a.Status, a.Header, a.Body)
	}
	seconds, _ := strconv.Atoi(a.Header.Get("Retry-After"))
	ms, _ := strconv.Atoi(a.Header.Get("Retry-After-Ms"))
	if seconds < 3000 || ms > seconds*1000 || ms <= (seconds-1)*1000 || a.Header.Get("X-Should-Retry") != "false" {
		t.Errorf("retry after %d s, %d ms, %q", seconds, ms, a.Header.Get("X-Should-Retry"))
	}
	if a := f.Complete(t, stack.BobKey, stack.Chat(stack.SmallModel, 5, "")); a.Status != 200 {
		t.Errorf("another user: %d %s", a.Status, a.Body)
	}
	if n := f.Metric(t, `tidegate_limit_decisions_total{decision="allow",rule="few",store="local"}`); n != 4 {
		t.Errorf("%v allowed", n)
	}
}

// TestRefusals: each kind of refusal has the status and the word of the table.
func TestRefusals(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Extra: `limits:
  - {name: small, per: key, tokens: 200/1h, reserve: max}
  - {name: seen, per: user, requests: 1/1h, shadow: true}
quotas:
  - {name: daily, per: user, units: 150, every: day, zone: Asia/Shanghai}
`})
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, `,"max_tokens":300`)); a.Status != 400 || a.Code() != "request_too_large_for_limit" || a.Header.Get("Retry-After") != "" {
		t.Errorf("never: %d %s", a.Status, a.Body)
	}
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.GoneModel, 5, `,"max_tokens":50`)); a.Status != 503 || a.Code() != "no_backend" {
		t.Errorf("no backend: %d %s", a.Status, a.Body)
	}
	// Neither of the two has used anything.
	var before stack.LimitStatus
	f.Limits(t, stack.AdaKey, "/quota/status", &before)
	if len(before.Quotas) != 1 || before.Quotas[0].Used != 0 || before.Rates[0].Remaining != 200 || *before.Remaining != 150 {
		t.Errorf("%+v", before)
	}
	for range 2 { // the shadow rule refuses nobody
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 60, `,"max_tokens":60`)); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 60, `,"max_tokens":60`))
	if a.Status != 403 || a.Code() != "insufficient_quota" || a.Header.Get("X-Should-Retry") != "false" || !bytes.Contains(a.Body, []byte("daily")) {
		t.Errorf("quota: %d %v %s", a.Status, a.Header, a.Body)
	}
	var after stack.LimitStatus
	f.Limits(t, stack.AdaKey, "/quota/status?model="+stack.LargeModel, &after)
	if q := after.Quotas[0]; q.Used < 120 || q.Used > 150 || q.Remaining != 150-q.Used || q.Unit != "units" || len(q.AlertsCrossed) == 0 || *after.Used != q.Used || !after.ResetsAt.After(time.Now()) {
		t.Errorf("%+v", after)
	}
	if until := after.ResetsAt.UTC().Format(time.RFC3339); !bytes.Contains(a.Body, []byte(fmt.Sprintf("the quota daily of 150 units per user has %d left until %s, and this request needs 13 at least", after.Quotas[0].Remaining, until))) {
		t.Errorf("want %d and %s in %s", after.Quotas[0].Remaining, until, a.Body)
	}
	if n := f.Metric(t, `tidegate_limit_decisions_total{decision="shadow_deny",rule="seen",store="local"}`); n == 0 {
		t.Error("the shadow rule is not counted")
	}
	if n := f.Metric(t, `tidegate_rejected_total{model="`+stack.LargeModel+`",reason="insufficient_quota",rule="daily"}`); n != 1 {
		t.Errorf("%v refused by quota", n)
	}
}

// TestSettled: limits are charged what the engine counted, whether the answer is
// whole, streamed, left by its caller or failed.
func TestSettled(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{Extra: "limits:\n  - {name: all, per: user, tokens: 1000000/1h, requests: 1000/1h, concurrency: 5}\n"})
	want := int64(0)
	for i, stream := range []string{"", `,"stream":true`, `,"n":2`} {
		tag := fmt.Sprintf("settled-%d", i)
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 20+i, stream+`,"user":"`+tag+`"`)); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		r := s.Record(t, tag)
		want += int64(r.Prompt + r.Output)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.URL+"/v1/chat/completions",
		strings.NewReader(stack.Chat(stack.LargeModel, 5000, `,"stream":true,"user":"settled-left"`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+stack.AdaKey)
	resp, err := f.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r := s.Record(t, "settled-left")
	want += int64(r.Prompt)
	stack.Eventually(t, "the left stream is settled", func() bool {
		var now stack.LimitStatus
		f.Limits(t, stack.AdaKey, "/quota/status", &now)
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
	s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
	before := f.charged(t, "tokens")
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 502 {
		t.Fatalf("%d %s", a.Status, a.Body)
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
	var now stack.LimitStatus
	f.Limits(t, stack.AdaKey, "/quota/status", &now)
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
	p := stack.Config{Extra: "limits:\n  - {name: few, per: user, requests: 2/1h}\n"}
	f := startGateway(t, s, p)
	for range 2 {
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 429 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	p.Extra = "limits:\n  - {name: few, per: user, requests: 4/1h}\n"
	if err := os.WriteFile(f.File, []byte(p.YAML(s, filepath.Dir(f.File))), 0o600); err != nil {
		t.Fatal(err)
	}
	stack.Eventually(t, "the new limit", func() bool {
		var now stack.LimitStatus
		f.Limits(t, stack.AdaKey, "/quota/status", &now)
		return now.Rates[0].Limit == 4
	})
	if n := f.charged(t, "requests"); n != 2 {
		t.Errorf("%d requests are remembered", n)
	}
	stack.Eventually(t, "room under the new limit", func() bool { return f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")).Status == 200 })
}

// TestOverrideHolds: an administrator's override holds at once, and only where a
// rule can take it; usage reports are for administrators.
func TestOverrideHolds(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{Extra: "limits:\n  - {name: few, per: user, requests: 1/1h}\n", Env: map[string]string{"TIDEGATE_ADMIN_KEY": stack.AdminKey}})
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 429 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	f.Expect(t, stack.AdminKey, "PUT", "/admin/v1/overrides", `{"rule":"few","of":"user","name":"ada","requests":"3/1h"}`, 200, "3/1h")
	f.Expect(t, stack.AdminKey, "PUT", "/admin/v1/overrides", `{"rule":"gone","of":"user","name":"ada","requests":"3/1h"}`, 400, "no such rule")
	f.Expect(t, stack.AdminKey, "PUT", "/admin/v1/overrides", `{"rule":"few","of":"user","name":"ada","tokens":"3/1h"}`, 400, "does not limit")
	stack.Eventually(t, "the override", func() bool {
		var now stack.LimitStatus
		f.Limits(t, stack.AdaKey, "/quota/status", &now)
		return now.Rates[0].Limit == 3 && now.Rates[0].Remaining == 2
	})
	stack.Eventually(t, "room under it", func() bool { return f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")).Status == 200 })
	f.Expect(t, stack.AdaKey, "GET", "/admin/v1/usage", "", 403, "access_denied")
	f.Expect(t, stack.AdminKey, "GET", "/admin/v1/usage?group_by=user,model&user=ada", "", 200, `"user":"ada"`)
	f.Expect(t, stack.AdminKey, "GET", "/admin/v1/usage?group_by=user&format=csv", "", 200, "user,requests,failed_requests")
	f.Expect(t, stack.AdminKey, "GET", "/admin/v1/usage?group_by=colour", "", 400, "group_by")
}

// TestQuotaSurvives: a quota of a gateway that counts alone is what the ledger says
// after a restart.
func TestQuotaSurvives(t *testing.T) {
	s := startServers(t, nil)
	dir := t.TempDir()
	p := stack.Config{DSN: "sqlite://" + filepath.Join(dir, "t.db"), Extra: "quotas:\n  - {name: monthly, per: user, units: 100000, every: month, zone: Asia/Shanghai}\n  - {name: all, per: global, tokens: 100000, every: month}\n"}
	var before stack.LimitStatus
	t.Run("first", func(t *testing.T) {
		f := startGateway(t, s, p)
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 40, "")); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		f.Limits(t, stack.AdaKey, "/quota/status", &before)
	})
	f := startGateway(t, s, p)
	var after stack.LimitStatus
	f.Limits(t, stack.AdaKey, "/quota/status", &after)
	for i := range before.Quotas {
		if before.Quotas[i].Used < 40 || after.Quotas[i].Used != before.Quotas[i].Used {
			t.Errorf("%s: used %d before and %d after", before.Quotas[i].Name, before.Quotas[i].Used, after.Quotas[i].Used)
		}
	}
}

// TestHammering: a refusal of the last second refuses before the body is read, tells
// nobody another's numbers, and every answer of a generation says its level.
func TestHammering(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Extra: "limits:\n  - {name: together, per: global, requests: 2/1h}\n  - {name: own, per: user, tokens: 1000000/1h}\n"})
	for range 2 {
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 429 || a.Header.Get("X-Ratelimit-Remaining-Tokens") == "" || a.Header.Get("X-Tidegate-Level") != "L0" {
		t.Fatalf("%d %v", a.Status, a.Header)
	}
	// Nobody has looked at this body.
	resp := f.raw(t, head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+stack.BobKey, "Content-Length: 2")+"{]")
	resp.Body.Close()
	if resp.StatusCode != 429 || resp.Header.Get("X-Ratelimit-Remaining-Requests") != "0" || resp.Header.Get("X-Ratelimit-Remaining-Tokens") != "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if n := f.Metric(t, `tidegate_rejected_total{model="other",reason="rate_limit_exceeded",rule="together"}`); n != 1 {
		t.Errorf("%v refused before the model was known", n)
	}
}

// TestAuxRequests: what generates nothing is counted by a rule of its own, for each key.
func TestAuxRequests(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{DefaultServer: true, Server: []string{"aux_requests: 4/1h"}, Extra: "limits:\n  - {name: few, per: user, requests: 1/1h}\n"})
	ask := func(key, method, path, body string) stack.Reply {
		q, err := http.NewRequestWithContext(t.Context(), method, f.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+key)
		q.Header.Set("Content-Type", "application/json")
		return f.Do(t, q)
	}
	routes := []struct{ method, path, body string }{
		{"GET", "/v1/models", ""}, {"POST", "/tokenize", `{"prompt":"hi"}`}, {"GET", "/v1/usage", ""}, {"GET", "/quota/status", ""},
	}
	for _, r := range routes {
		if a := ask(stack.AdaKey, r.method, r.path, r.body); a.Status != 200 {
			t.Errorf("%s: %d %s", r.path, a.Status, a.Body)
		}
	}
	for _, r := range append(routes, struct{ method, path, body string }{"GET", "/v1/models/" + stack.LargeModel, ""}) {
		a := ask(stack.AdaKey, r.method, r.path, r.body)
		if a.Status != 429 || a.Code() != "rate_limit_exceeded" || !bytes.Contains(a.Body, []byte("aux_requests allows 4 requests in 1h per key")) || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v %s", r.path, a.Status, a.Header, a.Body)
		}
	}
	if a := ask(stack.BobKey, "GET", "/v1/models", ""); a.Status != 200 {
		t.Errorf("another key: %d %s", a.Status, a.Body)
	}
	// Neither kind of request takes anything from the other.
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 5, "")); a.Status != 200 {
		t.Errorf("a generation: %d %s", a.Status, a.Body)
	}
	if n := f.Metric(t, `tidegate_limit_decisions_total{decision="allow",rule="aux_requests",store="local"}`); n != 5 {
		t.Errorf("%v allowed", n)
	}
}
