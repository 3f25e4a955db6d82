package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidegate/gateway/backend"
)

// ask sends a request without a body to a handler.
func ask(t testing.TB, h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	r.Host = "gateway-1"
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(deadlines{w}, r)
	return w
}

// TestWrongPaths asks for paths that are wrong in the ways of real clients.
func TestWrongPaths(t *testing.T) {
	g, _ := bare(t, nil)
	h := g.Handler()
	for _, c := range []struct{ method, path, want string }{
		{"POST", "/chat/completions", "did you mean POST /v1/chat/completions?"},
		{"POST", "/v1/v1/chat/completions", "did you mean POST /v1/chat/completions? The base URL of a client ends in /v1, once"},
		{"POST", "//v1/chat/completions", "did you mean POST /v1/chat/completions?"},
		{"POST", "/v1//chat/completions", "did you mean POST /v1/chat/completions?"},
		{"POST", "/V1/Chat/Completions", "did you mean POST /v1/chat/completions?"},
		{"POST", "/openai/deployments/gpt-4o/chat/completions", "did you mean POST /v1/chat/completions?"},
		{"POST", "/v1/chat/completion", "did you mean POST /v1/chat/completions?"},
		{"POST", "/v1/chat/completions/", "Content-Type"},
		{"GET", "/chat/completions", "did you mean POST /v1/chat/completions?"},
		{"POST", "/completions", "did you mean POST /v1/completions?"},
		{"POST", "/v1/tokenize", "did you mean POST /tokenize?"},
		{"GET", "/models", "did you mean GET /v1/models?"},
		{"GET", "/api/v1/models/Qwen3-1.7B", "did you mean GET /v1/models/{id}?"},
		{"GET", "/v1/model", "did you mean GET /v1/models?"},
		{"GET", "/usage", "did you mean GET /v1/usage?"},
		{"GET", "/v1/healthz", "did you mean GET /healthz?"},
		{"GET", "/admin/keys", "did you mean GET /admin/v1/keys?"},
		{"POST", "/admin/keys", "did you mean POST /admin/v1/keys?"},
		{"POST", "/v1/responses", "the Responses API is not served yet: use POST /v1/chat/completions"},
		{"GET", "/v1/responses/resp_1", "the Responses API is not served yet"},
		{"POST", "/responses", "the Responses API is not served yet"},
		{"POST", "/v1/messages", "Anthropic's API is not served yet: use POST /v1/chat/completions"},
		{"POST", "/anthropic/v1/messages/count_tokens", "use POST /tokenize"},
		{"POST", "/v1/embeddings", "embeddings are not served yet"},
		{"POST", "/v2/rerank", "not served yet"},
		{"POST", "/v1/threads/t/messages", "text alone"},
		{"POST", "/api/chat", "not Ollama's"},
		{"GET", "/metrics", "server.ops_listen"},
		{"GET", "/", "the API begins with /v1"},
		{"GET", "//", "the API begins with /v1"},
		{"GET", "/favicon.ico", "the API begins with /v1"},
		{"POST", "/sleep", "the API begins with /v1"},
		{"GET", "/" + strings.Repeat("v1/", 20000), "the API begins with /v1"},
		{"GET", "/" + strings.Repeat("x/", 99), "the API begins with /v1"},
	} {
		w := ask(t, h, c.method, c.path)
		if !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %.60s: %d %s, expected %s", c.method, c.path, w.Code, w.Body, c.want)
		}
		if w.Code != 404 && !strings.HasSuffix(c.path, "completions/") {
			t.Errorf("%s %.60s: status %d", c.method, c.path, w.Code)
		}
	}
}

// TestServedPaths asks for paths that look wrong and are served.
func TestServedPaths(t *testing.T) {
	g, _ := bare(t, nil)
	h := g.Handler()
	for path, want := range map[string]string{
		"/v1/models/": `"object":"list"`, "/v1/models//": `"object":"list"`, "/v1/models": `"object":"list"`, "/v1/models/m/": `"id":"m"`,
		"/v1/quota/status": `"quotas"`, "/quota/status/": `"quotas"`, "/healthz/": "ok",
	} {
		if w := ask(t, h, "GET", path); w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if a, b := ask(t, h, "GET", "/quota/status").Body.String(), ask(t, h, "GET", "/v1/quota/status").Body.String(); len(a) != len(b) {
		t.Errorf("%s\n%s", a, b)
	}
}

// TestHead asks with HEAD wherever GET is served, and on both listeners: the status and
// the headers are those of GET, and nothing follows.
func TestHead(t *testing.T) {
	g, _ := bare(t, nil)
	front, ops := httptest.NewServer(g.Handler()), httptest.NewServer(g.OpsHandler(nil))
	defer front.Close()
	defer ops.Close()
	for _, url := range []string{
		front.URL + "/healthz", front.URL + "/health", front.URL + "/readyz", front.URL + "/v1/models", front.URL + "/v1/models/m", front.URL + "/v1/models/nobody",
		front.URL + "/quota/status", front.URL + "/v1/quota/status", front.URL + "/v1/usage", front.URL + "/admin/v1/keys", front.URL + "/nothing", front.URL + "/v1/chat/completions",
		ops.URL + "/healthz", ops.URL + "/health", ops.URL + "/readyz", ops.URL + "/metrics",
	} {
		get, err := front.Client().Get(url)
		if err != nil {
			t.Fatal(err)
		}
		get.Body.Close()
		head, err := front.Client().Head(url)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(head.Body)
		head.Body.Close()
		if head.StatusCode != get.StatusCode || head.Header.Get("Content-Type") != get.Header.Get("Content-Type") || len(body) != 0 {
			t.Errorf("%s: GET %d, HEAD %d %q", url, get.StatusCode, head.StatusCode, body)
		}
	}
	if allowed := ask(t, g.Handler(), "POST", "/v1/models").Header().Get("Allow"); !strings.Contains(allowed, "HEAD") {
		t.Errorf("Allow: %s", allowed)
	}
}

// TestHealth asks as GuideLLM does before it begins, without a key: vLLM's answer has no
// body.
func TestHealth(t *testing.T) {
	good, _ := behind(t, func(http.ResponseWriter, *http.Request) {}, nil)
	for _, begin := range []func(){func() {}, good.Drain} {
		begin()
		for name, h := range map[string]http.Handler{"front": good.Handler(), "ops": good.OpsHandler(nil)} {
			w := ask(t, h, "GET", "/health")
			if draining := good.draining.Load(); draining != (w.Code == 503) || draining == (w.Code == 200) || draining != (w.Body.String() == "draining\n") {
				t.Errorf("%s, draining %v: %d %q", name, draining, w.Code, w.Body)
			}
		}
	}
}

// TestUnknownModels asks for models by names that are almost right.
func TestUnknownModels(t *testing.T) {
	g, _ := bare(t, nil)
	serve := func(names ...string) {
		var models []backend.ModelConfig
		for _, n := range names {
			m := backend.DefaultModel()
			m.Name = n
			models = append(models, m)
		}
		g.Fleet.Apply(models)
	}
	h := g.Handler()
	serve("Qwen3-1.7B", "Qwen3-0.6B", "coder", "team/chat-large", "gpt-4o")
	for asked, want := range map[string]string{
		"qwen3-1.7b":              "did you mean `Qwen3-1.7B` or `Qwen3-0.6B`?",
		"Qwen/Qwen3-1.7B":         "did you mean `Qwen3-1.7B`",
		"qwen3":                   "did you mean `Qwen3-1.7B` or `Qwen3-0.6B`?",
		"gpt-4":                   "did you mean `gpt-4o`?",
		"chat-large":              "did you mean `team/chat-large`?",
		"codre":                   "lists those that this key may use",
		"claude-3":                "here: GET /v1/models lists those that this key may use",
		strings.Repeat("q", 9000): "lists those that this key may use",
	} {
		w := ask(t, h, "GET", "/v1/models/"+asked)
		if w.Code != 404 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%.40s: %d %s, expected %s", asked, w.Code, w.Body, want)
		}
	}
	serve("Qwen3-1.7B", "coder")
	if w := ask(t, h, "GET", "/v1/models/claude-3"); !strings.Contains(w.Body.String(), "this key may use `Qwen3-1.7B` and `coder`") {
		t.Errorf("got %s", w.Body)
	}
}
