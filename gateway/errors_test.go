package gateway

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// TestContextRefusals checks what callers are told when a server's context is shorter
// than the gateway knew: the one code, a message that LangChain knows, and the parameter
// that is too large.
func TestContextRefusals(t *testing.T) {
	for _, c := range []struct {
		kind                      openai.Route
		status                    int
		message, param, wantParam string
	}{
		{openai.Chat, 400, "This model's maximum context length is 2048 tokens.", "", "messages"},
		{openai.Completions, 400, "This model's maximum context length is 2048 tokens.", "", "prompt"},
		{openai.Chat, 422, "The decoder prompt (length 9) is longer than the maximum model length of 8.", "", "messages"},
		{openai.Chat, 400, "max_tokens=5000 cannot be greater than max_model_len=2048.", "max_tokens", "max_tokens"},
		{openai.Chat, 400, "", "input_tokens", "messages"},
	} {
		param := map[openai.Route]string{openai.Chat: "messages", openai.Completions: "prompt"}[c.kind]
		r := explain(&openai.StreamError{Status: c.status, Err: openai.Error{Message: c.message, Param: c.param}}, &facts{id: "id", promptParam: param})
		if r.Status != http.StatusBadRequest || r.Code != refusal.ContextLength || r.Param != c.wantParam ||
			!strings.HasPrefix(r.Message, c.message) || strings.HasPrefix(r.Message, " ") || !strings.Contains(r.Message, "context_length_exceeded") {
			t.Errorf("%q: %d %+v", c.message, r.Status, r)
		}
	}
}

// TestShareRefusals checks what callers are told where not a limit refused them but the
// part of it that a gateway enforces alone: what is the matter, and to come again. Only
// a quota that is used up is not worth trying again.
func TestShareRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		denied       limit.Rejection
		status       int
		code         refusal.Code
		retry        time.Duration
		hopeless     bool
		said, unsaid string
	}{
		"rate":          {limit.Rejection{ExceededLimit: limit.ExceededLimit{Rule: "rate", Scope: "user", Metric: limit.Requests, Limit: 50, Window: time.Minute, Share: 25}, RetryAfter: 3 * time.Second}, 429, refusal.RateLimit, 3 * time.Second, false, "may give out 25 while the gateways cannot count together", "used up"},
		"quota":         {limit.Rejection{ExceededLimit: limit.ExceededLimit{Rule: "daily", Scope: "user", Metric: limit.Tokens, Limit: 1000, Quota: true, Share: 250}, RetryAfter: time.Second}, 503, refusal.StoreUnavailable, refusal.RetryStore, false, "is not used up", "until 20"},
		"quota used up": {limit.Rejection{ExceededLimit: limit.ExceededLimit{Rule: "daily", Scope: "user", Metric: limit.Tokens, Limit: 1000, Quota: true}, RetryAfter: time.Hour}, 403, refusal.InsufficientQuota, 0, true, "is used up until 20", "together"},
		"its own limit": {limit.Rejection{ExceededLimit: limit.ExceededLimit{Rule: "rate", Scope: "user", Metric: limit.Requests, Limit: 50, Window: time.Minute}, RetryAfter: 3 * time.Second}, 429, refusal.RateLimit, 3 * time.Second, false, "try again in 3s", "together"},
	} {
		r := explain(&c.denied, &facts{id: "id", now: time.Now()})
		if r.Status != c.status || r.Code != c.code || r.RetryAfter != c.retry || r.NoRetry != c.hopeless ||
			!strings.Contains(r.Message, c.said) || strings.Contains(r.Message, c.unsaid) {
			t.Errorf("%s: %d %+v, retry %v, hopeless %v", name, r.Status, r, r.RetryAfter, r.NoRetry)
		}
	}
}

// FuzzServerRefusal holds that whatever a server answers a refusal has a status of an
// error, a code and a message, and that a page of HTML is not among them.
func FuzzServerRefusal(f *testing.F) {
	for _, body := range []string{
		``, ` `, `null`, `{}`, `[]`, `""`, `{"error":""}`, `{"error":" \n"}`, `{"error":{"message":"","param":"input_tokens"}}`, `{"error":{"message":"\t"}}`,
		`{"error":{"message":{"a":1}}}`, `{"detail":""}`, `{"detail":[]}`, `{"detail":null}`, `{"message":""}`, `<html><h1>413</h1></html>`,
	} {
		for _, status := range []int{400, 401, 404, 413, 422, 429, 500, 501, 503} {
			f.Add(status, body)
		}
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 300 || status > 599 {
			return
		}
		r := explain(&backend.StatusError{Status: status, Body: []byte(body)}, &facts{id: "id", readError: openai.ReadError})
		if r.Status < 400 || r.Code == "" || r.Type == "" || strings.TrimSpace(r.Message) == "" {
			t.Errorf("%d %q: %d %+v", status, body, r.Status, r)
		}
		if strings.HasPrefix(body, "<") && strings.Contains(r.Message, "<") {
			t.Errorf("%d: %q", status, r.Message)
		}
	})
}
