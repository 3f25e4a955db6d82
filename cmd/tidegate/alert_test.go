package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/gatewaytest/stack"
)

// sink is a receiver of the generic webhook.
type sink struct {
	*httptest.Server
	key string // file of the secret

	mu      sync.Mutex
	broken  bool           // it answers 500
	refused int            // while it was
	arrived map[string]int // by who and percent
	ids     map[string]int
}

func startSink(t *testing.T) *sink {
	t.Helper()
	const secret = "a secret of the sink's own"
	s := &sink{key: filepath.Join(t.TempDir(), "key"), arrived: map[string]int{}, ids: map[string]int{}}
	if err := os.WriteFile(s.key, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%s.%s", r.Header.Get("X-Tidegate-Timestamp"), body)
		if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); err != nil || r.Header.Get("X-Tidegate-Signature") != want {
			t.Errorf("signed %q, want %q, %v", r.Header.Get("X-Tidegate-Signature"), want, err)
		}
		var a struct {
			ID, Who string
			Percent int
		}
		if err := json.Unmarshal(body, &a); err != nil || a.ID != r.Header.Get("X-Tidegate-Delivery") {
			t.Errorf("%s: %v", body, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.broken {
			s.refused++
			http.Error(w, "not today", http.StatusInternalServerError)
			return
		}
		s.arrived[fmt.Sprintf("%s %d", a.Who, a.Percent)]++
		s.ids[a.ID]++
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *sink) channel(name string) string {
	return fmt.Sprintf("{name: %s, type: webhook, url: '%s', secret_file: '%s', allow_private: true}", name, s.URL, s.key)
}

func (s *sink) set(broken bool) {
	s.mu.Lock()
	s.broken, s.refused = broken, 0
	s.mu.Unlock()
}

func (s *sink) seen() (arrived map[string]int, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.arrived), s.refused
}

// await waits until all these have arrived, each once and no other.
func (s *sink) await(t *testing.T, want ...string) {
	t.Helper()
	all := map[string]int{}
	for _, w := range want {
		all[w] = 1
	}
	stack.Eventually(t, fmt.Sprint("the alerts ", want), func() bool {
		got, _ := s.seen()
		for w := range all {
			if got[w] == 0 {
				return false
			}
		}
		return true
	})
	if got, _ := s.seen(); !maps.Equal(got, all) {
		t.Fatalf("arrived %v, want each of %v once", got, want)
	}
}

// alertStatus is a channel in /status.
type alertStatus struct {
	Channel, Type         string
	Pending, Sent, Failed int
	LastError             string `json:"last_error"`
	LastSuccess           string `json:"last_success"`
}

func (f *front) alerts(t *testing.T) []alertStatus {
	t.Helper()
	resp, err := f.Client.Get(f.Ops + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s struct{ Alerts []alertStatus }
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s.Alerts
}

// spend asks by one gateway after the other until so many tokens are used; each
// request takes little.
func spend(t *testing.T, key, model string, until int64, fronts ...*front) {
	t.Helper()
	for i := range 200 {
		var now struct{ Used int64 }
		if err := json.Unmarshal(fronts[0].Get(t, key, "/quota/status").Body, &now); err != nil {
			t.Fatal(err)
		}
		left := until - now.Used
		if left <= 0 {
			return
		}
		tokens := int(min(max(left-20, 4), 100))
		if a := fronts[i%len(fronts)].Complete(t, key, stack.Chat(model, tokens, fmt.Sprintf(`,"max_tokens":%d`, tokens))); a.Status != http.StatusOK {
			t.Fatalf("at %d: %d %s", now.Used, a.Status, a.Body)
		}
	}
	t.Fatalf("200 requests have not used %d tokens", until)
}

// refused asks with a prompt that is longer than what is left.
func (f *front) refused(t *testing.T, key, model string) {
	t.Helper()
	prompt := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, model, strings.Repeat("again ", 300))
	if a := f.Complete(t, key, prompt); a.Status != http.StatusForbidden || a.Code() != "insufficient_quota" {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
}

const alertQuota = "quotas:\n  - {name: monthly, per: user, tokens: 1000, every: month}\n"

// TestAlerts has two gateways over one Redis, with one database or with one each: each
// threshold that real requests cross is told once, also when a gateway is killed
// between crossing and sending.
func TestAlerts(t *testing.T) {
	t.Parallel()
	for name, shared := range map[string]bool{"OneDatabase": true, "TwoDatabases": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Single(t)
			s, k := startServers(t, nil), startSink(t)
			p := stack.Config{Extra: fmt.Sprintf("redis: {addrs: ['%s'], timeout: 2s}\n%salerts: [%s]\n", redis.Addr, alertQuota, k.channel("ops"))}
			if shared {
				p.DSN = "sqlite://" + filepath.Join(t.TempDir(), "shared.db")
			}
			client := stack.NewClient(t)
			a := startReplica(t, s, p, client)
			b := startReplica(t, s, p, client)
			spend(t, stack.AdaKey, stack.LargeModel, 780, a.front, b.front)
			k.await(t)
			k.set(true)
			spend(t, stack.AdaKey, stack.LargeModel, 810, a.front)
			// A try that a kill cuts is repeated when its lease has run out; this one has ended.
			// Either may be the first to look.
			var first *replica
			stack.Eventually(t, "one to have noted it and to be refused", func() bool {
				for _, r := range []*replica{a, b} {
					if slices.ContainsFunc(r.front.alerts(t), func(s alertStatus) bool { return s.Pending == 1 && strings.Contains(s.LastError, "500") }) {
						first = r
						return true
					}
				}
				return false
			})
			first.Kill()
			k.set(false)
			first.Start(t)
			k.await(t, "ada 80")
			// Killed at once: it has at most the usage in its journal.
			spend(t, stack.AdaKey, stack.LargeModel, 960, a.front)
			a.Kill()
			a.Start(t)
			k.await(t, "ada 80", "ada 95")
			a.front.refused(t, stack.AdaKey, stack.LargeModel)
			b.front.refused(t, stack.AdaKey, stack.LargeModel)
			k.await(t, "ada 80", "ada 95", "ada 100")
			// Everything again, and somebody else, by whom it is seen that they have looked.
			a.front.refused(t, stack.AdaKey, stack.LargeModel)
			b.front.refused(t, stack.AdaKey, stack.LargeModel)
			spend(t, stack.BobKey, stack.SmallModel, 810, a.front, b.front)
			k.await(t, "ada 80", "ada 95", "ada 100", "bob 80")
			for id, n := range k.ids {
				if n != 1 {
					t.Errorf("%s arrived %d times", id, n)
				}
			}
		})
	}
}

// TestAlertReload changes channels and quotas of a gateway that runs, looks at status,
// metrics and commands, and raises a quota.
func TestAlertReload(t *testing.T) {
	t.Parallel()
	old, fresh := startSink(t), startSink(t)
	s := startServers(t, nil)
	with := func(channels ...string) stack.Config {
		return stack.Config{
			Extra: "quotas:\n  - {name: monthly, per: user, tokens: 1000, every: month, alert_at: [10, 30, 50]}\nalerts: [" + strings.Join(channels, ", ") + "]\n",
			Env:   map[string]string{"TIDEGATE_ADMIN_KEY": stack.AdminKey},
		}
	}
	first := with(old.channel("old"), old.channel("blocked")[:len(old.channel("blocked"))-1]+", min: severe}")
	f := startGateway(t, s, first)
	old.set(true)
	spend(t, stack.AdaKey, stack.LargeModel, 110, f)
	stack.Eventually(t, "it to be refused", func() bool { _, n := old.seen(); return n > 0 })
	stack.Eventually(t, "the failure in the status", func() bool {
		all := f.alerts(t)
		return len(all) == 2 && all[0].Pending == 1 && strings.Contains(all[0].LastError, "500") && all[0].Type == "webhook" && all[1].Pending == 0
	})
	if n := f.Metric(t, `tidegate_alerts_total{channel="old",outcome="retried",severity="warning"}`); n < 1 {
		t.Errorf("%v retries", n)
	}
	if n := f.Metric(t, `tidegate_alerts_pending{channel="old"}`); n != 1 {
		t.Errorf("%v pending", n)
	}
	status, list := printed(t, "status", "--ops", f.Ops), printed(t, "alert", "list", "--config", f.File)
	if !strings.Contains(status, "ALERTS TO") || !strings.Contains(status, "500") {
		t.Errorf("status:\n%s", status)
	}
	if !strings.Contains(list, "pending") || !strings.Contains(list, "ada") {
		t.Errorf("list:\n%s", list)
	}
	// The channel goes, and what was on its way with it; the new one hears of what is
	// crossed from now on.
	if err := os.WriteFile(f.File, []byte(with(fresh.channel("new")).YAML(s, filepath.Dir(f.File))), 0o600); err != nil {
		t.Fatal(err)
	}
	stack.Eventually(t, "the new channel", func() bool {
		all := f.alerts(t)
		return len(all) == 1 && all[0].Channel == "new"
	})
	stack.Eventually(t, "the old one's to be dropped", func() bool { return strings.Contains(printed(t, "alert", "list", "--config", f.File), "dropped") })
	old.set(false)
	spend(t, stack.AdaKey, stack.LargeModel, 310, f)
	fresh.await(t, "ada 30")
	// A raise: 310 of 2000 are less than 30 %; what was told is not told
	// again, and the rest at the new amount.
	f.Expect(t, stack.AdminKey, "PUT", "/admin/v1/overrides", `{"rule":"monthly","of":"user","name":"ada","tokens":2000}`, http.StatusOK, `"tokens":"2000"`)
	stack.Eventually(t, "the raise", func() bool {
		return bytes.Contains(f.Get(t, stack.AdaKey, "/quota/status").Body, []byte(`"limit":2000`))
	})
	spend(t, stack.AdaKey, stack.LargeModel, 620, f)
	fresh.await(t, "ada 30")
	spend(t, stack.AdaKey, stack.LargeModel, 1010, f)
	fresh.await(t, "ada 30", "ada 50")
	if got, _ := old.seen(); len(got) > 0 {
		t.Errorf("the old channel got %v", got)
	}
}

// printed is what a command prints that must succeed.
func printed(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(t.Context(), args, noEnv, &out, &out); code != exitOK {
		t.Fatalf("%v: exit code %d:\n%s", args, code, &out)
	}
	return out.String()
}

// TestClaims: a claim is one owner's until it ends, and is never made shorter.
func TestClaims(t *testing.T) {
	client := redistest.Single(t).Client()
	c := claims{client}
	claim := func(owner string, ttl time.Duration) bool {
		t.Helper()
		mine, err := c.Claim(t.Context(), "x", owner, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return mine
	}
	if !claim("a", time.Hour) || claim("b", time.Minute) || !claim("a", time.Minute) {
		t.Error("the first owner is to have it")
	}
	if left := client.PTTL(t.Context(), "tg:alert:x").Val(); left < 50*time.Minute || left > time.Hour {
		t.Errorf("it lasts %v", left)
	}
	if !claim("a", 2*time.Hour) || client.PTTL(t.Context(), "tg:alert:x").Val() < time.Hour {
		t.Error("it was not made longer")
	}
	if err := client.Del(t.Context(), "tg:alert:x").Err(); err != nil {
		t.Fatal(err)
	}
	if !claim("b", time.Minute) || claim("a", time.Minute) {
		t.Error("what has ended is free")
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if mine, err := c.Claim(gone, "x", "b", time.Minute); mine || err == nil {
		t.Errorf("without an answer: %v, %v", mine, err)
	}
}

func TestAlertTest(t *testing.T) {
	k := startSink(t)
	file := filepath.Join(t.TempDir(), "tidegate.yaml")
	// Another channel's secrets, and the rest of the configuration, are of no concern.
	text := "alerts:\n  - " + k.channel("ops") + "\n  - {type: slack, url_env: NOT_HERE}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	try := func(name string) (int, string) {
		var out bytes.Buffer
		return run(t.Context(), []string{"alert", "test", name, "--config", file}, noEnv, &out, &out), out.String()
	}
	if code, out := try("ops"); code != exitOK || !strings.Contains(out, "ops: ok") {
		t.Errorf("%d %s", code, out)
	}
	k.set(true)
	if code, out := try("ops"); code != exitFailed || !strings.Contains(out, "ops: failed: ") || !strings.Contains(out, "500") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := try("nobody"); code != exitUsage || !strings.Contains(out, "it has ops, slack") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := try("slack"); code != exitUsage || !strings.Contains(out, "NOT_HERE") {
		t.Errorf("%d %s", code, out)
	}
	if got, _ := k.seen(); len(got) != 1 || !slices.Equal(slices.Collect(maps.Values(got)), []int{1}) {
		t.Errorf("arrived %v", got)
	}
}
