package gateway

import (
	"net/http"
	"strings"
	"testing"

	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
)

// TestContextRefusals checks what callers are told when a server's context is shorter
// than the gateway knew: the one code, a message that LangChain knows, and the parameter
// that is too large.
func TestContextRefusals(t *testing.T) {
	g, _ := bare(t, nil)
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
		x := &call{kind: c.kind, model: &backend.Model{}, id: "id"}
		r := g.explain(x, &openai.StreamError{Status: c.status, Err: openai.Error{Message: c.message, Param: c.param}})
		if r.status != http.StatusBadRequest || r.told.Code != string(codeContextLength) || r.told.Param != c.wantParam ||
			!strings.HasPrefix(r.told.Message, c.message) || strings.HasPrefix(r.told.Message, " ") || !strings.Contains(r.told.Message, "context_length_exceeded") {
			t.Errorf("%q: %d %+v", c.message, r.status, r.told)
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
	g, _ := bare(f, nil)
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 300 || status > 599 {
			return
		}
		r := g.explain(&call{model: &backend.Model{}, asked: &backend.Model{}, id: "id"}, &backend.StatusError{Status: status, Body: []byte(body)})
		if r.status < 400 || r.told.Code == "" || r.told.Type == "" || strings.TrimSpace(r.told.Message) == "" {
			t.Errorf("%d %q: %d %+v", status, body, r.status, r.told)
		}
		if strings.HasPrefix(body, "<") && strings.Contains(r.told.Message, "<") {
			t.Errorf("%d: %q", status, r.told.Message)
		}
	})
}
