package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// raw sends bytes over a socket of its own and returns the answer; the request
// must end in a way that lets the gateway answer.
func (f *front) raw(t *testing.T, text string) *http.Response {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(f.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(stack.Patience)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(nc, text) }() // a refused body is not read to its end
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatalf("no answer to %.80q: %v", text, err)
	}
	return resp
}

func head(method, path string, headers ...string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", method, path, strings.Join(headers, "\r\n"))
}

// TestBadInput sends what no client should, over a raw socket.
func TestBadInput(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{})
	chat := func(body string) string {
		return head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey,
			fmt.Sprint("Content-Length: ", len(body))) + body
	}
	hello := `"messages":[{"role":"user","content":"hi"}]`
	for _, c := range []struct {
		name, request string
		status        int
		code, param   string
	}{
		{"broken JSON", chat(`{"model":"Qwen3-1.7B",`), 400, "invalid_request", ""},
		{"not an object", chat(`[1,2]`), 400, "invalid_request", ""},
		{"empty body", chat(``), 400, "invalid_request", ""},
		{"invalid UTF-8", chat("{\"model\":\"\xff\"," + hello + "}"), 400, "invalid_request", ""},
		{"9 MiB, announced", head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey,
			"Content-Length: 9437184"), 413, "request_too_large", ""},
		{"9 MiB, in chunks", head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey,
			"Transfer-Encoding: chunked") + "900000\r\n" + strings.Repeat("x", 0x900000) + "\r\n0\r\n\r\n", 413, "request_too_large", ""},
		{"model twice", chat(`{"model":"Qwen3-1.7B","model":"Qwen3-0.6B",` + hello + `}`), 400, "invalid_request", "model"},
		{"max_tokens twice, escaped", chat(`{"model":"Qwen3-1.7B","max_tokens":1,"max\u005ftokens":9,` + hello + `}`), 400, "invalid_request", "max_tokens"},
		{"no model", chat(`{` + hello + `}`), 400, "invalid_request", "model"},
		{"unknown model", chat(`{"model":"gpt-4",` + hello + `}`), 404, "model_not_found", "model"},
		{"no messages", chat(`{"model":"Qwen3-1.7B"}`), 400, "invalid_request", "messages"},
		{"a message of another kind", chat(`{"model":"Qwen3-1.7B","messages":[7]}`), 400, "invalid_request", "messages"},
		{"over the context", chat(`{"model":"Qwen3-1.7B","messages":[{"role":"user","content":"` + strings.Repeat("word ", 41000) + `"}]}`), 400, "context_length_exceeded", "messages"},
		{"max_tokens over the context", chat(`{"model":"Qwen3-1.7B","max_tokens":40961,` + hello + `}`), 400, "context_length_exceeded", "max_tokens"},
		{"a completion over the context", strings.Replace(chat(`{"model":"Qwen3-1.7B","max_tokens":40961,"prompt":"hi"}        `), "/chat", "", 1), 400, "context_length_exceeded", "max_tokens"},
		{"max_tokens of another kind", chat(`{"model":"Qwen3-1.7B","max_tokens":"many",` + hello + `}`), 400, "invalid_request", "max_tokens"},
		{"n over its cap", chat(`{"model":"Qwen3-1.7B","n":9,` + hello + `}`), 400, "invalid_request", "n"},
		{"stream of another kind", chat(`{"model":"Qwen3-1.7B","stream":"maybe",` + hello + `}`), 400, "invalid_request", "stream"},
		{"deep nesting", chat(`{"model":"Qwen3-1.7B","x":` + strings.Repeat("[", 100000) + `}`), 400, "invalid_request", ""},
		{"wrong content type", head("POST", "/v1/chat/completions", "Content-Type: text/plain", "Authorization: Bearer "+stack.AdaKey, "Content-Length: 2") + "{}", 400, "invalid_request", ""},
		{"no key", head("POST", "/v1/chat/completions", "Content-Type: application/json", "Content-Length: 2") + "{}", 401, "invalid_api_key", ""},
		{"unknown key", head("GET", "/v1/models", "Authorization: Bearer nobody"), 401, "invalid_api_key", ""},
		{"key of 60 kB", head("GET", "/v1/models", "Authorization: Bearer "+strings.Repeat("k", 60000)), 401, "invalid_api_key", ""},
		{"key of 1 MB", head("GET", "/v1/models", "Authorization: Bearer "+strings.Repeat("k", 1<<20)), 431, "", ""},
		{"a model of others", strings.ReplaceAll(chat(`{"model":"Qwen3-1.7B",`+hello+`}`), stack.AdaKey, stack.BobKey), 403, "model_not_allowed", "model"},
		{"unknown route", head("GET", "/v1/nothing"), 404, "unknown_url", ""},
		{"a server's own route", head("POST", "/sleep?level=1", "Content-Length: 0"), 404, "unknown_url", ""},
		{"wrong method", head("GET", "/v1/chat/completions"), 405, "method_not_allowed", ""},
		{"no backend", chat(`{"model":"Qwen3-gone",` + hello + `}`), 503, "no_backend", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.refuses(t, f.raw(t, c.request), c.status, c.code, c.param)
		})
	}
	if n := s[0].Stats().Requests + s[1].Stats().Requests + s[2].Stats().Requests; n != 0 {
		t.Errorf("%d bad requests reached a server", n)
	}
	f.Idle(t)
}

// refuses checks an error; without a code it is net/http's own.
func (f *front) refuses(t *testing.T, resp *http.Response, status int, code, param string) {
	t.Helper()
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status {
		t.Fatalf("status %d, expected %d: %.300s", resp.StatusCode, status, body)
	}
	if code == "" {
		return
	}
	var e struct {
		Error struct {
			Message, Type string
			Param, Code   *string
		}
	}
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if e.Error.Code == nil || *e.Error.Code != code || e.Error.Message == "" || e.Error.Type == "" {
		t.Errorf("got %s", body)
	}
	if said := e.Error.Param; (said == nil) != (param == "") || said != nil && *said != param {
		t.Errorf("param is not %q: %s", param, body)
	}
	if resp.Header.Get("X-Request-Id") == "" {
		t.Error("no x-request-id")
	}
	if retry := resp.Header.Get("Retry-After"); (status == 503) != (retry != "") {
		t.Errorf("Retry-After: %q", retry)
	}
}

// TestSlowClients checks that a caller that sends its head or its body a byte a
// minute loses its connection.
func TestSlowClients(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Server: []string{"header_timeout: 100ms", "body_timeout: 100ms"}})
	for name, text := range map[string]string{
		"head": "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow:",
		"body": head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey, "Content-Length: 99") + `{"model"`,
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", strings.TrimPrefix(f.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := io.WriteString(nc, text); err != nil {
				t.Fatal(err)
			}
			if err := nc.SetReadDeadline(time.Now().Add(stack.Patience)); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(nc) // ends when the gateway hangs up
			if err != nil {
				t.Fatalf("the gateway did not hang up: %v", err)
			}
			if name == "body" && !strings.Contains(string(answer), "did not arrive whole") {
				t.Errorf("got %q", answer)
			}
		})
	}
	f.Idle(t)
}

// TestAbortReachesTheServer measures how long the server goes on after its caller
// has left.
func TestAbortReachesTheServer(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 10 * time.Millisecond })
	f := startGateway(t, s, stack.Config{})
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream %v", stream), func(t *testing.T) {
			tag := fmt.Sprintf("abort-%v", stream)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var answering sync.WaitGroup
			answering.Go(func() {
				resp, err := f.Post(ctx, "/v1/chat/completions", fmt.Sprintf(
					`{"model":%q,"stream":%v,"messages":[{"role":"user","content":%q}],"sim":{"tokens":3000}}`, stack.SmallModel, stream, tag))
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
			stack.Eventually(t, "the server to be at work", func() bool { return s[2].Stats().Running > 0 })
			left := time.Now()
			cancel()
			r := s.Record(t, tag)
			answering.Wait()
			if !r.Aborted {
				t.Errorf("the server was not told: %+v", r)
			}
			took := r.Ended.Sub(left)
			t.Logf("the server saw the abort after %v", took)
			if took > 2*time.Second { // the aim is 100 ms; benchmarks measure it on an idle machine
				t.Errorf("the server saw the abort only after %v", took)
			}
		})
	}
	f.Idle(t)
}

// TestFailover breaks one of two servers in each way that a caller need not
// notice, and in those that it must.
func TestFailover(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{Model: []string{"retry: {budget: 1}", "breaker: {failures: 1000}"}})
	for _, c := range []struct {
		fault  gatewaytest.FaultKind
		served bool
	}{
		{"refuse", true}, {"503", true}, {"die_before", true}, {"500", true}, {"garbage", true},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stream %v", c.fault, stream), func(t *testing.T) {
				if err := s[0].SetFault(gatewaytest.Fault{Kind: c.fault}); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := s[0].ClearFaults(); err != nil {
						t.Error(err)
					}
					stack.Eventually(t, "the server to be back", func() bool { return f.InRotation(t) == len(s) })
				}()
				for range 6 {
					resp, err := f.Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(
						`{"model":%q,"stream":%v,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":8}}`, stack.LargeModel, stream))
					if err != nil {
						t.Fatal(err)
					}
					body, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					switch {
					case c.served && resp.StatusCode != 200:
						t.Errorf("a caller noticed: %d %s", resp.StatusCode, body)
					case !c.served && resp.StatusCode != 200 && resp.StatusCode != 502:
						t.Errorf("status %d: %s", resp.StatusCode, body)
					}
				}
			})
		}
	}
	f.Idle(t)
}

// TestCutStream checks that a stream whose server dies is not taken for whole:
// an error event, and then the connection is cut.
func TestCutStream(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{})
	s.Fault(t, gatewaytest.Fault{Kind: "die_mid", AfterTokens: 5})
	resp, err := f.Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(
		`{"model":%q,"stream":true,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":50}}`, stack.LargeModel))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		t.Error("the connection ended as if the answer were whole")
	}
	if text := string(body); !strings.Contains(text, `"code":"upstream_error"`) || strings.Contains(text, "[DONE]") || !strings.HasSuffix(text, "\n\n") {
		t.Errorf("got %s", text)
	}
	stack.Eventually(t, "the cut stream to be counted", func() bool { return f.Usage(t).Requests == 1 })
	if u := f.Usage(t); u.Output != 5 {
		t.Errorf("counted %+v, expected the 5 tokens that came", u)
	}
	f.Idle(t)
}

// TestReload changes the file under load: no request fails, an invalid file
// changes nothing and is said, a valid one takes effect.
func TestReload(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 5 * time.Millisecond })
	f := startGateway(t, s, stack.Config{})
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil && f.streamWhole(t, 20) {
			}
		})
	}
	good := stack.Config{}.YAML(s, filepath.Dir(f.File))
	f.Rewrite(t, good+"nonsense: true\n")
	stack.Eventually(t, "the bad file to be refused", func() bool { return strings.Contains(f.StatusPage(t), "unknown key") })
	// The YAML library cannot stand a tag where a list belongs.
	f.Rewrite(t, good+"quotas: !include q.yaml\n")
	stack.Eventually(t, "the file with a tag to be refused", func() bool { return strings.Contains(f.StatusPage(t), "the tag !include does not fit here") })
	f.Rewrite(t, strings.Replace(good, "["+stack.LargeAlias+"]", "[large]", 1))
	stack.Eventually(t, "the new alias", func() bool {
		resp, err := f.Post(t.Context(), "/v1/chat/completions", `{"model":"large","messages":[{"role":"user","content":"hi"}],"sim":{"tokens":8}}`)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	stop()
	load.Wait()
	if text := f.StatusPage(t); strings.Contains(text, "unknown key") || !strings.Contains(text, `"config_reload_ok": true`) {
		t.Errorf("the status still complains: %s", text)
	}
	f.Idle(t)
}

// TestPageStreams reads a stream, an error of the engine and one of the gateway as a page
// of another origin does.
func TestPageStreams(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Server: []string{"cors: {origins: [https://chat.example.org]}"}})
	for name, c := range map[string]struct {
		key, more string
		status    int
	}{
		"stream":              {stack.AdaKey, `,"stream":true`, 200},
		"whole":               {stack.AdaKey, "", 200},
		"the engine's error":  {stack.AdaKey, `,"temperature":-1`, 400},
		"the gateway's error": {"nobody", "", 401},
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"model":"Qwen3-1.7B","max_tokens":4,"messages":[{"role":"user","content":"hi"}]` + c.more + "}"
			resp := f.raw(t, head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+c.key,
				"Origin: https://chat.example.org", fmt.Sprint("Content-Length: ", len(body)))+body)
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || resp.Header.Get("Access-Control-Allow-Origin") != "https://chat.example.org" || resp.Header.Get("Vary") != "Origin" {
				t.Errorf("%d %v %s", resp.StatusCode, resp.Header, text)
			}
		})
	}
	f.Idle(t)
}
