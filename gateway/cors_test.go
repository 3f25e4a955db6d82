package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const chatPage = "https://chat.example.org"

// preflightOf asks as a browser does before a page may call.
func preflightOf(t testing.TB, h http.Handler, origin, path string) *httptest.ResponseRecorder {
	return ask(t, h, http.MethodOptions, path, "Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang")
}

// TestPreflightSaysHow checks that without server.cors a page is told how to get it.
func TestPreflightSaysHow(t *testing.T) {
	g, _ := bare(t, nil)
	h := g.Handler()
	w := preflightOf(t, h, chatPage, "/v1/chat/completions")
	if w.Code != 403 || !strings.Contains(w.Body.String(), "server.cors.origins") || !strings.Contains(w.Body.String(), chatPage) || !strings.Contains(w.Body.String(), `"code":"access_denied"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(t, h, "GET", "/v1/models", "Origin", chatPage); w.Code != 200 || w.Header().Get("Access-Control-Allow-Origin") != "" || w.Header().Get("Vary") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if w := ask(t, h, http.MethodOptions, "/v1/models", "Origin", chatPage); w.Code != 405 {
		t.Errorf("OPTIONS that is no preflight: %d %s", w.Code, w.Body)
	}
}

// TestPages checks what pages may read with server.cors, answers and errors alike.
func TestPages(t *testing.T) {
	for _, c := range []struct {
		origins      []string
		origin, want string // want: of Access-Control-Allow-Origin
		vary         bool
	}{
		{[]string{chatPage}, chatPage, chatPage, true},
		{[]string{"tauri://localhost", chatPage}, chatPage, chatPage, true},
		{[]string{chatPage}, "https://evil.example.org", "", true},
		{[]string{chatPage}, "null", "", true},
		{[]string{chatPage}, "http://chat.example.org", "", true},
		{[]string{"*"}, chatPage, "*", false},
		{[]string{"*"}, "null", "*", false},
	} {
		g, _ := bare(t, func(f *Config) { f.CORS.Origins = c.origins })
		h := g.Handler()
		w := preflightOf(t, h, c.origin, "/v1/chat/completions")
		if got := w.Header().Get("Access-Control-Allow-Origin"); got != c.want || (w.Code == 204) != (c.want != "") {
			t.Errorf("%v, %s: preflight %d %q", c.origins, c.origin, w.Code, got)
		}
		if c.want == "" {
			if w.Code != 403 || !strings.Contains(w.Body.String(), "server.cors.origins") {
				t.Errorf("%v, %s: %d %s", c.origins, c.origin, w.Code, w.Body)
			}
		} else if head := w.Header(); head.Get("Access-Control-Allow-Headers") != "authorization,content-type,x-stainless-lang" || head.Get("Access-Control-Max-Age") != "600" || head.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%v, %s: preflight %v", c.origins, c.origin, head)
		}
		for path, status := range map[string]int{"/v1/models": 200, "/v1/models/nobody": 404, "/nothing": 404, "/v1/chat/completions": 405, "/healthz": 200} {
			w := ask(t, h, "GET", path, "Origin", c.origin)
			varies := strings.Contains(strings.Join(w.Header().Values("Vary"), ","), "Origin")
			if got := w.Header().Get("Access-Control-Allow-Origin"); w.Code != status || got != c.want || varies != c.vary {
				t.Errorf("%v, %s: GET %s: %d %q, varies %v", c.origins, c.origin, path, w.Code, got, varies)
			}
			if exposed := w.Header().Get("Access-Control-Expose-Headers"); (exposed != "") != (c.want != "") {
				t.Errorf("%v, %s: GET %s exposes %q", c.origins, c.origin, path, exposed)
			}
		}
		for _, path := range []string{"/admin/v1/keys", "/admin/v1/nothing"} {
			w := preflightOf(t, h, c.origin, path)
			if w.Code != 403 || w.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%v, %s: %s may be called: %d", c.origins, c.origin, path, w.Code)
			}
			if w := ask(t, h, "GET", path, "Origin", c.origin); w.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%v, %s: %s may be read", c.origins, c.origin, path)
			}
		}
	}
}

// TestPreflightHeaders checks that nothing but names of headers is given back.
func TestPreflightHeaders(t *testing.T) {
	g, _ := bare(t, func(f *Config) { f.CORS.Origins = []string{"*"} })
	h := g.Handler()
	for asked, want := range map[string]string{"authorization, X-Api-Key": "authorization, X-Api-Key", "x<script>": "", "": "", strings.Repeat("a,", 4000): ""} {
		w := ask(t, h, http.MethodOptions, "/v1/models", "Origin", chatPage, "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", asked)
		if got := w.Header().Get("Access-Control-Allow-Headers"); w.Code != 204 || got != want {
			t.Errorf("%.40q: %d %q", asked, w.Code, got)
		}
	}
}

func TestValidateCORS(t *testing.T) {
	for origin, good := range map[string]bool{
		"*": true, chatPage: true, "http://localhost:3000": true, "tauri://localhost": true, "chrome-extension://abc": true, "http://[::1]:3000": true,
		"": false, "null": false, "chat.example.org": false, chatPage + "/": false, chatPage + "/chat": false, "HTTPS://chat.example.org": false, "https://*.example.org": false, "https://a@b": false, "://x": false,
	} {
		c := Default()
		c.CORS.Origins = []string{origin}
		err := c.Validate()
		if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "cors.origins[0]") {
			t.Errorf("%q: %v", origin, err)
		}
	}
}
