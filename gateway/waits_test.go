package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// refusing is a server in front of another one that refuses generations with a status
// and these headers.
func refusing(t *testing.T, to string, status int, header http.Header) string {
	t.Helper()
	return stack.Intercept(t, to, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for name, values := range header {
			w.Header()[name] = values
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"error":{"message":"queue full"}}`)
	})
}

// TestServersRetryAfter: who is refused by a server is told to wait as long as the
// server asks, of all that were tried the longest, and never less than without that.
func TestServersRetryAfter(t *testing.T) {
	for _, one := range []struct {
		status        int
		first, second string
		want          string // status, Retry-After, x-should-retry
	}{
		{429, "30", "30", "503 30 "},
		{503, "30", "", "503 30 "},
		{503, "", "30", "503 30 "},
		{503, "", "", "503 1 "},
		{503, "900", "2", "503 900 false"},
		{502, "45", "", "502 45 "},
	} {
		t.Run(fmt.Sprintf("%d, %q, %q", one.status, one.first, one.second), func(t *testing.T) {
			s := startServers(t, nil)
			for i, after := range []string{one.first, one.second} {
				header := http.Header{}
				if after != "" {
					header.Set("Retry-After", after)
				}
				behind := *s[i]
				behind.URL = refusing(t, s[i].URL, one.status, header)
				s[i] = &behind
			}
			f := startGateway(t, s, stack.Config{Model: []string{"retry: {attempts: 2, budget: 1}"}})
			got := f.Complete(t, stack.AdaKey, `{"model":"`+stack.LargeModel+`","messages":[{"role":"user","content":"hi"}]}`)
			h := got.Header
			if line := fmt.Sprintf("%d %s %s", got.Status, h.Get("Retry-After"), h.Get("X-Should-Retry")); line != one.want {
				t.Errorf("%q, want %q: %s", line, one.want, got.Body)
			}
		})
	}
}

// TestWaitsForAPlace: who is over its concurrency waits for a place and is answered,
// streamed or not; with wait: 0s it is refused, and told how many run.
func TestWaitsForAPlace(t *testing.T) {
	body := `{"model":"` + stack.LargeModel + `","messages":[{"role":"user","content":"hi"}],"max_tokens":40%s}`
	for _, one := range []struct {
		name, wait string
		refused    bool
	}{{"default", "", false}, {"20s", ", wait: 20s", false}, {"0s", ", wait: 0s", true}} {
		t.Run(one.name, func(t *testing.T) {
			refused := one.refused
			f := startGateway(t, startServers(t, nil), stack.Config{Extra: "limits:\n  - {name: places, per: user, concurrency: 3" + one.wait + "}\n"})
			var all sync.WaitGroup
			replies := make([]stack.Reply, 6)
			for i := range replies {
				all.Go(func() {
					replies[i] = f.Complete(t, stack.AdaKey, fmt.Sprintf(body, map[bool]string{true: `,"stream":true`}[i%2 == 0]))
				})
			}
			all.Wait()
			for _, r := range replies {
				switch {
				case r.Status == http.StatusOK:
				case !refused || r.Status != http.StatusTooManyRequests:
					t.Errorf("%d %s", r.Status, r.Body)
				case !strings.Contains(string(r.Body), "the limit places allows 3 requests at a time per user; running now: 3: try again in"):
					t.Errorf("%s", r.Body)
				}
			}
			if waited := f.Metric(t, `tidegate_limit_decisions_total{decision="wait",rule="places",store="local"}`); refused == (waited > 0) {
				t.Errorf("%v have waited", waited)
			}
		})
	}
}

// TestShrunkLimitsSaySo: a limit that pressure has shrunk says so in the refusal's text
// and headers, in those of answers, and in /quota/status.
func TestShrunkLimitsSaySo(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Env: map[string]string{"TIDEGATE_ADMIN_KEY": stack.AdminKey}, Extra: "limits:\n  - {name: rate, per: user, requests: 4/1h, under_pressure: {L2: 0.5}}\n" +
		"  - {name: wide, per: user, requests: 1000/1h}\n"})
	f.Pin(t, stack.LargeModel, "L2")
	body := `{"model":"` + stack.LargeModel + `","messages":[{"role":"user","content":"hi"}],"max_tokens":4}`
	for range 2 {
		if got := f.Complete(t, stack.AdaKey, body); got.Status != http.StatusOK || got.Header.Get("X-Tidegate-Limit-Factor") != "0.5" || got.Header.Get("X-Ratelimit-Limit-Requests") != "2" {
			t.Fatalf("%d %v %s", got.Status, got.Header, got.Body)
		}
	}
	got := f.Complete(t, stack.AdaKey, body)
	h := got.Header
	if line := fmt.Sprint(got.Status, h["X-Tidegate-Level"], h["X-Tidegate-Reason"], h["X-Tidegate-Limit-Factor"]); line != "429 [L2] [pin] [0.5]" ||
		!strings.Contains(string(got.Body), "the limit rate allows 2 requests in 1h per user, 0.5 of its 4, since "+stack.LargeModel+" stands at level L2 (pin): try again in") {
		t.Errorf("%s: %s", line, got.Body)
	}
	for path, want := range map[string]string{
		"/quota/status": `"pressure":{"model":"` + stack.LargeModel + `","level":"L2","reason":"pin"}`,
		"/quota/status?model=" + stack.LargeModel: `{"name":"rate","per":"user","metric":"requests","limit":2,"remaining":0,`,
		"/quota/status?model=" + stack.SmallModel: `{"name":"rate","per":"user","metric":"requests","limit":4,"remaining":2,`,
	} {
		status := string(f.Get(t, stack.AdaKey, path).Body)
		if small := strings.Contains(path, stack.SmallModel); !strings.Contains(status, want) || strings.Contains(status, `"level":"L2","factor":0.5,"full_limit":4}`) == small || strings.Contains(status, `"pressure"`) == small {
			t.Errorf("%s: %s", path, status)
		}
	}
}

// TestWaitsForAPlaceElsewhere: of two gateways over one Redis, requests at either wait for
// places that the other one gives back, and all are answered.
func TestWaitsForAPlaceElsewhere(t *testing.T) {
	redis := redistest.Single(t)
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 2 * time.Millisecond })
	p := stack.Config{Extra: "redis: {addrs: ['" + redis.Addr + "'], timeout: 2s}\nlimits:\n  - {name: places, per: user, concurrency: 2, wait: 60s}\n"}
	fronts := []*front{startGateway(t, s, p), startGateway(t, s, p)}
	var all sync.WaitGroup
	replies := make([]stack.Reply, 12)
	for i := range replies {
		all.Go(func() {
			replies[i] = fronts[i%2].Complete(t, stack.AdaKey, `{"model":"`+stack.LargeModel+`","messages":[{"role":"user","content":"hi"}],"max_tokens":40}`)
		})
	}
	all.Wait()
	for _, r := range replies {
		if r.Status != http.StatusOK {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	}
}
