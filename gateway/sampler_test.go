package gateway

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/account"
)

func TestSampler(t *testing.T) {
	var s sampler
	now := time.Unix(1_800_000_000, 0)
	said := 0
	for range 100 {
		if _, ok := s.take(now); ok {
			said++
		}
	}
	if said != sampleBurst {
		t.Errorf("%d were said at once", said)
	}
	if skipped, ok := s.take(now.Add(time.Second)); !ok || skipped != 90 {
		t.Errorf("a second later: %v, %d skipped", ok, skipped)
	}
	if _, ok := s.take(now.Add(time.Second)); ok {
		t.Error("two were said in that second")
	}
}

// TestGuessesAreSampled: a storm of unknown keys writes few lines, with the address, and
// is told to wait and cut; who sends no key is told so.
func TestGuessesAreSampled(t *testing.T) {
	g, _ := bare(t, nil)
	var log bytes.Buffer
	g.Log = slog.New(slog.NewTextHandler(&log, nil))
	g.Reload(Default(), account.New(account.Config{Mode: account.Keys, FailedKeys: 20}, nil))
	front := g.Handler()
	ask := func(key string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
		r.RemoteAddr = "[2001:db8::7%eth0]:1234"
		if key != "" {
			r.Header.Set("Authorization", "Bearer "+key)
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		return w
	}
	for i := range 200 {
		w := ask("nobody's key")
		if i < 20 && w.Code != 401 || i > 25 && (w.Code != 429 || w.Header().Get("Retry-After") == "" || w.Header().Get("Connection") != "close") {
			t.Fatalf("request %d: %d %v %s", i, w.Code, w.Header(), w.Body)
		}
	}
	if w := ask(""); w.Code != 401 {
		t.Errorf("no key: %d %s", w.Code, w.Body)
	}
	if lines := strings.Count(log.String(), "\n"); lines < sampleBurst || lines > 2*sampleBurst+60 { // one more each second that the test takes
		t.Errorf("%d lines:\n%s", lines, log.String())
	}
	if !strings.Contains(log.String(), "from=2001:db8::7 ") {
		t.Errorf("the address is not said:\n%s", log.String())
	}
}

// TestNamed: callers without a key are no users of metrics, whatever their address.
func TestNamed(t *testing.T) {
	for user, want := range map[string]bool{"ada": true, "team/ada": true, "192.0.2.7": false, "2001:db8::/64": false, "": false, labelOther: false} {
		if named(user) != want {
			t.Errorf("%q", user)
		}
	}
}
