package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidegate/gateway/account"
)

// logged is a gateway with a key, and the lines that it writes.
func logged(t *testing.T) (ask func(method, path, key, body string) *httptest.ResponseRecorder, lines func() []map[string]any) {
	t.Helper()
	g, _ := bare(t, nil)
	var log bytes.Buffer
	g.Log = slog.New(slog.NewJSONHandler(&log, nil))
	g.Reload(Default(), account.New(account.Config{Mode: account.Keys, Keys: []account.KeyConfig{
		{Name: "laptop", KeyEnv: "A", Key: "ada's own key, which the file names", User: "ada", Models: []string{"other-than-m"}}, {Name: "all", KeyEnv: "B", Key: "bob's own key, which the file names", User: "bob"},
	}}, nil))
	front := g.Handler()
	ask = func(method, path, key, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.RemoteAddr = "192.0.2.7:1234"
		r.Header.Set("Content-Type", "application/json")
		if key != "" {
			r.Header.Set("Authorization", "Bearer "+key)
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(deadlines{w}, r)
		return w
	}
	lines = func() (all []map[string]any) {
		for line := range strings.SplitSeq(strings.TrimSpace(log.String()), "\n") {
			if line == "" {
				continue
			}
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			all = append(all, fields)
		}
		log.Reset()
		return all
	}
	return ask, lines
}

// TestLogSaysWhy: the line of a refused request says from where it came, who asked, what
// for, which parameter was wrong and why.
func TestLogSaysWhy(t *testing.T) {
	ask, lines := logged(t)
	const chat, bob = "/v1/chat/completions", "bob's own key, which the file names"
	for _, c := range []struct {
		name, method, path, key, body string
		want                          map[string]any
	}{
		{"unknown model", "POST", chat, bob, `{"model":"Qwen3-9B","messages":[{"role":"user","content":"hi"}]}`,
			map[string]any{"status": 404., "from": "192.0.2.7", "user": "bob", "key": "all", "asked": "Qwen3-9B", "param": "model", "code": "model_not_found", "error": "there is no model …"}},
		{"model not allowed", "POST", chat, "ada's own key, which the file names", `{"model":"m","messages":[{"role":"user","content":"hi"}]}`,
			map[string]any{"status": 403., "user": "ada", "key": "laptop", "asked": "m", "param": "model", "code": "model_not_allowed"}},
		{"a bad value", "POST", chat, bob, `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":"many"}`,
			map[string]any{"status": 400., "param": "max_tokens", "code": "invalid_request", "error": "max_tokens must be a whole number of at least 1"}},
		{"a key for a model", "POST", chat, bob, `{"model":"tg-00000000000000000000000000000000000000000000","messages":[{"role":"user","content":"hi"}]}`,
			map[string]any{"status": 404., "asked": "(47 bytes that are no model's name)"}},
		{"an unknown path", "GET", "/chat/completions?key=secret", bob, "",
			map[string]any{"status": 404., "from": "192.0.2.7", "route": "other", "method": "GET", "path": "/chat/completions", "unlogged": 0., "code": "unknown_url"}},
		{"a wrong method", "DELETE", chat, bob, "",
			map[string]any{"status": 405., "method": "DELETE", "path": chat, "code": "method_not_allowed"}},
		{"a bad query", "GET", "/v1/usage?group_by=x", bob, "", map[string]any{"status": 400., "param": "group_by", "error": "group_by must be some of month, day, hour, model and key, with commas between"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer := ask(c.method, c.path, c.key, c.body)
			all := lines()
			if len(all) != 1 {
				t.Fatalf("%d lines for %d %s", len(all), answer.Code, answer.Body)
			}
			for field, want := range c.want {
				if got := all[0][field]; got != want {
					t.Errorf("%s is %v, expected %v, in %v", field, got, want, all[0])
				}
			}
		})
	}
}

// TestLogQuotesNothing: whatever a caller sends, and wherever it stands, no line has it.
func TestLogQuotesNothing(t *testing.T) {
	ask, lines := logged(t)
	const word = `zebra crossing`
	for _, body := range []string{
		`{"model":"WORD","messages":[{"role":"user","content":"hi"}]}`, `{"model":"m","messages":"WORD"}`, `{"model":"m","messages":[{"role":"WORD","content":"x"}]}`,
		`{"model":"m","messages":[{"role":"user","content":[{"type":"WORD"}]}]}`, `{"model":"m","messages":[{"role":"user","content":[{"type":"a\"b` + "`" + `WORD"}]}]}`,
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":"WORD"}`, `{"model":"m","WORD":1,"WORD":2,"messages":[{"role":"user","content":"hi"}]}`, `{"WORD`, `WORD`, `{"model":"m","messages":[{"role":"user","content":"hi"}]} WORD`,
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"stop":{"WORD":1}}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"tool_choice":"WORD"}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"WORD"}]}`,
		`{"model":"m","prompt":["WORD",1]}`, `{"model":"m","prompt":[1,"WORD"]}`, `{"model":"m","prompt":[[1,"WORD"]]}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"logit_bias":{"WORD":1}}`,
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"reasoning_effort":"WORD"}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"chat_template_kwargs":{"WORD":1}}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"chat_template":"WORD"}`,
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"response_format":{"type":"WORD"}}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"` + strings.Repeat("WORD", 100) + `":1}`,
	} {
		body = strings.ReplaceAll(body, "WORD", word)
		for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/tokenize"} {
			ask(http.MethodPost, path, "bob's own key, which the file names", body)
			ask(http.MethodPost, path, word, body)
			for _, line := range lines() {
				if text, _ := json.Marshal(line); strings.Contains(string(text), word[:5]) {
					t.Errorf("%s %s: %s", path, body, text)
				}
			}
		}
	}
}

// TestKnownKeysAreSeen: a storm of guesses hides no line of a key that has expired.
func TestKnownKeysAreSeen(t *testing.T) {
	g, _ := bare(t, nil)
	stranger := &call{outcome: outcome{status: http.StatusUnauthorized}}
	for range 200 {
		g.sampled(stranger, account.ErrUnknownKey)
	}
	if _, _, ok := g.sampled(stranger, account.ErrUnknownKey); ok {
		t.Error("guesses are not sampled")
	}
	expired := fmt.Errorf("identify: %w", &account.KeyError{State: account.KeyExpired})
	if _, sampled, ok := g.sampled(stranger, expired); !ok || !sampled {
		t.Error("the line of an expired key is left out")
	}
	for range 200 {
		g.sampled(stranger, expired)
	}
	if _, _, ok := g.sampled(stranger, expired); ok {
		t.Error("lines of an expired key are not sampled")
	}
}

// TestUncheckedKeysAreSampled: also while no key can be looked at, strangers write few
// lines; a caller who is known has each of its own.
func TestUncheckedKeysAreSampled(t *testing.T) {
	g, _ := bare(t, nil)
	written := 0
	for range 200 {
		for _, status := range []int{http.StatusServiceUnavailable, clientClosed} {
			if _, sampled, ok := g.sampled(&call{route: "/v1/models", outcome: outcome{status: status}}, account.ErrUnavailable); ok || !sampled {
				written++
			}
		}
	}
	if written < sampleBurst || written > 2*sampleBurst+60 { // one more each second that the test takes
		t.Errorf("%d lines of 400 requests", written)
	}
	if _, sampled, ok := g.sampled(&call{route: "/v1/models", outcome: outcome{status: 503}, caller: account.Identity{User: "ada"}}, account.ErrUnavailable); sampled || !ok {
		t.Error("the line of a caller who is known is sampled")
	}
}

// TestLongMethod: neither the answer nor the line of the log quotes more of a method than
// of a path.
func TestLongMethod(t *testing.T) {
	ask, lines := logged(t)
	for _, path := range []string{"/nowhere", "/v1/models"} {
		w := ask(strings.Repeat("M", 100_000), path, "", "")
		all := lines()
		text, err := json.Marshal(all)
		if err != nil || len(all) != 1 || len(text) > 2000 || w.Body.Len() > 2000 {
			t.Errorf("%s: %d lines of %d bytes, an answer of %d; %v", path, len(all), len(text), w.Body.Len(), err)
		}
	}
}

// TestLostPathsAreSampled: a scanner writes few lines, and hides no guesses of keys.
func TestLostPathsAreSampled(t *testing.T) {
	ask, lines := logged(t)
	for range 200 {
		ask(http.MethodGet, "/wp-login.php", "", "")
	}
	ask(http.MethodGet, "/v1/models", "nobody's key", "")
	all := lines()
	if len(all) < sampleBurst+1 || len(all) > 2*sampleBurst+60 { // one more each second that the test takes
		t.Errorf("%d lines", len(all))
	}
	if last := all[len(all)-1]; last["status"] != 401. || last["from"] != "192.0.2.7" {
		t.Errorf("the guess is not said: %v", last)
	}
}
