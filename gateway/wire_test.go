package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/schematest"
	"tidegate/gateway/gatewaytest/stack"
)

const (
	maxLine = 16 << 10 // bytes; some clients refuse longer lines
)

// wire reads what the gateway sends byte by byte and holds it against OpenAI's
// schemas.
type wire struct {
	*front
	t       *testing.T
	schemas *schematest.Schemas
}

func newWire(t *testing.T, f *front) *wire {
	t.Helper()
	s, err := schematest.NewSchemas()
	if err != nil {
		t.Fatal(err)
	}
	return &wire{f, t, s}
}

// ask sends one request as curl would.
func (w *wire) ask(t *testing.T, method, path, body string, header ...string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stack.Patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, w.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+stack.AdaKey)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.Header.Get("X-Request-Id") == "" {
		t.Error("no x-request-id")
	}
	return resp
}

// generated checks the headers that every generation has.
func generated(t *testing.T, h http.Header, contentType string) {
	t.Helper()
	if got := h.Get("Content-Type"); got != contentType {
		t.Errorf("content-type %q, not %q", got, contentType)
	}
	for _, name := range []string{"X-Tidegate-Level", "X-Tidegate-Reason"} {
		if h.Get(name) == "" {
			t.Errorf("no %s", name)
		}
	}
}

// whole asks without streaming and checks the answer.
func (w *wire) whole(t *testing.T, path, body string) gjson.Result {
	t.Helper()
	resp := w.ask(t, http.MethodPost, path, body)
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d: %s", resp.StatusCode, raw)
	}
	generated(t, resp.Header, "application/json")
	def := "CreateChatCompletionResponse"
	if path == stack.CompletionPath {
		def = "CreateCompletionResponse"
	}
	if err := w.schemas.Check(def, raw); err != nil {
		t.Error(err)
	}
	r := gjson.ParseBytes(raw)
	if got := r.Get("model").Str; got != stack.LargeModel {
		t.Errorf("the answer names %q", got)
	}
	u := r.Get("usage")
	if u.Get("prompt_tokens").Int() == 0 || u.Get("total_tokens").Int() != u.Get("prompt_tokens").Int()+u.Get("completion_tokens").Int() {
		t.Errorf("usage: %s", u.Raw)
	}
	return r
}

// events is a stream, read to its end.
type events struct {
	chunks  []gjson.Result // without what is below
	pings   int            // comments
	failure gjson.Result   // the error event
	done    bool           // [DONE] came, and nothing after it
	err     error          // how the connection ended
}

// readEvents reads a stream in exactly the form that all clients read right:
// one line "data: {json}", LF, and an empty line.
func readEvents(t *testing.T, in io.Reader) (e events) {
	t.Helper()
	raw, err := io.ReadAll(in)
	e.err = err
	for len(raw) > 0 {
		event, rest, ended := bytes.Cut(raw, []byte("\n\n"))
		raw = rest
		data, isData := bytes.CutPrefix(event, []byte("data: "))
		switch {
		case !ended, e.done, bytes.ContainsAny(event, "\r\n"), len(event) > maxLine:
			t.Errorf("malformed event %.200q (ended %t, after [DONE] %t)", event, ended, e.done)
		case bytes.HasPrefix(event, []byte(": ")):
			e.pings++
		case string(data) == "[DONE]":
			e.done = true
		case !isData || !gjson.ValidBytes(data):
			t.Errorf("malformed event %.200q", event)
		case gjson.GetBytes(data, "error").Exists():
			e.failure = gjson.ParseBytes(data)
		default:
			e.chunks = append(e.chunks, gjson.ParseBytes(data))
		}
	}
	return e
}

// stream asks for a stream and checks each chunk of it.
func (w *wire) stream(t *testing.T, path, body string) events {
	t.Helper()
	resp := w.ask(t, http.MethodPost, path, body)
	if resp.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(resp.Body)
		t.Fatalf("status %d: %s", resp.StatusCode, raw)
	}
	generated(t, resp.Header, "text/event-stream; charset=utf-8")
	e := readEvents(t, resp.Body)
	def := "CreateChatCompletionStreamResponse"
	if path == stack.CompletionPath {
		def = "CreateCompletionResponse"
	}
	for _, c := range e.chunks {
		if err := w.schemas.Check(def, []byte(c.Raw)); err != nil {
			t.Error(err)
		}
		if got := c.Get("model").Str; got != stack.LargeModel && got != stack.SmallModel {
			t.Errorf("a chunk names %q", got)
		}
	}
	if e.failure.Exists() {
		if err := w.schemas.Strict("ErrorResponse", []byte(e.failure.Raw)); err != nil {
			t.Error(err)
		}
	}
	return e
}

// answer is what all choices said, whichever way it came.
type answer struct {
	Text, Reasoning, Finish map[int64]string
	Calls                   map[int64][]toolCall
	Logprobs                map[int64]int // tokens that have one
}

type toolCall struct{ ID, Name, Arguments string }

// gather puts an answer together from bodies or chunks.
func gather(t *testing.T, parts ...gjson.Result) answer {
	t.Helper()
	a := answer{map[int64]string{}, map[int64]string{}, map[int64]string{}, map[int64][]toolCall{}, map[int64]int{}}
	for _, part := range parts {
		for _, c := range part.Get("choices").Array() {
			i := c.Get("index").Int()
			said := c.Get("message")
			if !said.Exists() {
				said = c.Get("delta")
			}
			a.Text[i] += said.Get("content").String() + c.Get("text").String()
			if said.Get("reasoning").String() != said.Get("reasoning_content").String() {
				t.Errorf("reasoning must be there under both names: %s", said.Raw)
			}
			a.Reasoning[i] += said.Get("reasoning_content").String()
			a.Finish[i] += c.Get("finish_reason").String()
			a.Logprobs[i] += len(c.Get("logprobs.content").Array()) + len(c.Get("logprobs.tokens").Array())
			for n, call := range said.Get("tool_calls").Array() {
				if at := call.Get("index"); at.Exists() {
					n = int(at.Int())
				}
				for len(a.Calls[i]) <= n {
					a.Calls[i] = append(a.Calls[i], toolCall{})
				}
				a.Calls[i][n].Name += call.Get("function.name").String()
				a.Calls[i][n].Arguments += call.Get("function.arguments").String()
			}
		}
	}
	return a
}

// chatOf makes the body of a chat; more begins with a comma or is empty.
func chatOf(text, more string) string {
	quoted, _ := json.Marshal(text) // a string cannot fail
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%s}]%s}`, stack.LargeAlias, quoted, more)
}

const (
	weatherTool = `{"type":"function","function":{"name":"get_weather","description":"Current weather of a city","parameters":{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city","days"]}}}`
	clockTool   = `{"type":"function","function":{"name":"get_time","description":"Local time of a city","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}`
	tripSchema  = `{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city","days"],"additionalProperties":false}`
	off         = `,"chat_template_kwargs":{"enable_thinking":false}`
)

// asks are the kinds of requests of the mix, by name. {S} marks where the
// members that switch streaming on are put.
func asks() map[string][2]string {
	chat := func(text, more string) [2]string { return [2]string{stack.ChatPath, chatOf(text, more)} }
	completion := func(members string) [2]string {
		return [2]string{stack.CompletionPath, fmt.Sprintf(`{"model":%q,%s}`, stack.LargeAlias, members)}
	}
	tools := `,"tools":[` + weatherTool + `,` + clockTool + `]`
	return map[string][2]string{
		"plain":             chat("Hello", ""),
		"chinese and emoji": chat("用中文回答：什么是潮汐门？🌊👩‍💻", ""),
		"thinking off":      chat("Hello", `,"enable_thinking":false`),
		"thinking on":       chat("Hello", `,"enable_thinking":true,"return_reasoning":true`),
		"reasoning hidden":  chat("Hello", `,"return_reasoning":false`),
		"budget":            chat("Hello", `,"thinking_budget":8`),
		"effort none":       chat("Hello", `,"reasoning_effort":"none"`),
		"extra_body nested": chat("Hello", `,"extra_body":{"enable_thinking":false}`),
		"cut at the limit":  chat("Hello", off+`,"max_completion_tokens":7`),
		"cut in thought":    chat("Hello", `,"max_completion_tokens":7`),
		"stop":              chat("Hello", off+`,"stop":["."," and"]`),
		"two choices":       chat("Hello", `,"n":2`),
		"logprobs":          chat("Hello", off+`,"logprobs":true,"top_logprobs":2,"max_tokens":9`),
		"developer":         {stack.ChatPath, `{"model":"qwen3","messages":[{"role":"developer","content":"Be short."},{"role":"user","content":"Hello","name":"ada"}],"seed":1,"temperature":0,"user":"x"}`},
		"tools auto":        chat("What is the weather in \"Paris\"? Use get_weather", tools),
		"tools not needed":  chat("Hello", tools),
		"tools required":    chat("Hello", tools+`,"tool_choice":"required"`),
		"tool named":        chat("Hello", off+tools+`,"tool_choice":{"type":"function","function":{"name":"get_time"}}`),
		"two calls":         chat("Call both", tools+`,"sim":{"tool_calls":2}`),
		"tool result":       {stack.ChatPath, `{"model":"qwen3","messages":[{"role":"user","content":"Weather?"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"get_weather","arguments":"{\"city\":\"Rome\",\"days\":1}"}}]},{"role":"tool","tool_call_id":"c1","content":"sunny"}]` + tools + `}`},
		"json_schema":       chat("4 days in \"Rome\"", `,"response_format":{"type":"json_schema","json_schema":{"name":"trip","strict":true,"schema":`+tripSchema+`}}`),
		"json_object":       chat("JSON with \"city\"", off+`,"response_format":{"type":"json_object"}`),
		"guided_choice":     chat("Is it red?", off+`,"guided_choice":["red","green"]`),
		"guided_json":       chat("4 days in \"Rome\"", off+`,"guided_json":`+tripSchema),
		"structured regex":  chat("Which?", off+`,"structured_outputs":{"regex":"[a-c]{3}"}`),
		"completion":        completion(`"prompt":"Once upon a time"`),
		"two prompts":       completion(`"prompt":["One","Two"],"max_tokens":5,"n":2`),
		"token prompt":      completion(`"prompt":[9707,11,1879],"max_tokens":5`),
		"completion extras": completion(`"prompt":"Once","max_tokens":5,"logprobs":2,"echo":true,"stop":["zzz"]`),
	}
}

// TestWire sends a broad mix of requests through gateways in front of several
// versions of vLLM, each streamed and not. Every body and every chunk must fit
// OpenAI's schemas, and both ways must say the same.
func TestWire(t *testing.T) {
	for _, version := range []string{"0.10.2", "0.15.1", "0.23.0", "0.30.0"} {
		t.Run(version, func(t *testing.T) {
			s := startServers(t, func(o *gatewaytest.Options) {
				o.Version, o.TTFT, o.ITL = version, 0, 0
			})
			w := newWire(t, startGateway(t, s, stack.Config{}))
			for name, ask := range asks() {
				if name == "cut in thought" && version < "0.17" {
					continue // that parser calls a thought without its end an answer, but only where it is not streamed
				}
				t.Run(name, func(t *testing.T) { w.bothWays(t, ask[0], ask[1]) })
			}
		})
	}
}

// bothWays asks the same three times: whole, streamed, and streamed with usage.
func (w *wire) bothWays(t *testing.T, path, body string) {
	whole := w.whole(t, path, body)
	want := gather(t, whole)
	for _, options := range []string{"", `,"stream_options":{"include_usage":true}`} {
		e := w.stream(t, path, strings.TrimSuffix(body, "}")+`,"stream":true`+options+"}")
		if !e.done || e.err != nil || e.failure.Exists() {
			t.Fatalf("the stream is not whole: done %t, %v, %s", e.done, e.err, e.failure.Raw)
		}
		chunks := e.chunks
		usage := 0
		for _, c := range chunks {
			if u := c.Get("usage"); u.Exists() && u.Type != gjson.Null {
				usage++
			}
		}
		if last := chunks[len(chunks)-1]; options == "" && usage > 0 || options != "" && (usage != 1 || len(last.Get("choices").Array()) > 0) {
			t.Errorf("%d chunks have usage; the last is %s", usage, last.Raw)
		} else if options != "" {
			chunks = chunks[:len(chunks)-1]
			if got, want := last.Get("usage.total_tokens").Int(), whole.Get("usage.total_tokens").Int(); got != want {
				t.Errorf("streamed it took %d tokens, whole %d", got, want)
			}
		}
		if i := slices.IndexFunc(chunks, func(c gjson.Result) bool { return len(c.Get("choices").Array()) == 0 }); i >= 0 {
			t.Errorf("chunk %d has no choices: %s", i, chunks[i].Raw)
		}
		if got := gather(t, chunks...); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("streamed it says\n%+v, whole\n%+v", got, want)
		}
	}
}

// TestWireErrors provokes every refusal that one request alone can provoke; each
// body must be OpenAI's error to the letter.
func TestWireErrors(t *testing.T) {
	s := startServers(t, nil)
	w := newWire(t, startGateway(t, s, stack.Config{Server: []string{"max_body: 64KiB"}}))
	hello := chatOf("Hello", "")
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		code, param              string
	}{
		{"no key", "POST", stack.ChatPath, hello, []string{"Authorization", ""}, 401, "invalid_api_key", ""},
		{"unknown key", "POST", stack.ChatPath, hello, []string{"Authorization", "Bearer EMPTY"}, 401, "invalid_api_key", ""},
		{"unknown key, list", "GET", "/v1/models", "", []string{"Authorization", "Bearer EMPTY"}, 401, "invalid_api_key", ""},
		{"model not allowed", "POST", stack.ChatPath, hello, []string{"Authorization", "Bearer " + stack.BobKey}, 403, "model_not_allowed", "model"},
		{"no such model", "POST", stack.ChatPath, `{"model":"gpt-4o","messages":[{"role":"user","content":"x"}]}`, nil, 404, "model_not_found", "model"},
		{"no such card", "GET", "/v1/models/gpt-4o", "", nil, 404, "model_not_found", "model"},
		{"no such route", "POST", "/v1/audio/speech", "{}", nil, 404, "unknown_url", ""},
		{"operational route", "POST", "/sleep", "{}", nil, 404, "unknown_url", ""},
		{"wrong method", "GET", stack.ChatPath, "", nil, 405, "method_not_allowed", ""},
		{"no JSON", "POST", stack.ChatPath, "{", nil, 400, "invalid_request", ""},
		{"not JSON's type", "POST", stack.ChatPath, hello, []string{"Content-Type", "text/plain"}, 400, "invalid_request", ""},
		{"no model", "POST", stack.ChatPath, `{"messages":[{"role":"user","content":"x"}]}`, nil, 400, "invalid_request", "model"},
		{"no messages", "POST", stack.ChatPath, `{"model":"qwen3"}`, nil, 400, "invalid_request", "messages"},
		{"empty messages", "POST", stack.ChatPath, `{"model":"qwen3","messages":[]}`, nil, 400, "invalid_request", "messages"},
		{"too many choices", "POST", stack.ChatPath, chatOf("x", `,"n":100`), nil, 400, "invalid_request", "n"},
		{"wrong type", "POST", stack.ChatPath, chatOf("x", `,"stream":"maybe"`), nil, 400, "invalid_request", "stream"},
		{"the server's own refusal", "POST", stack.ChatPath, chatOf("x", `,"temperature":-1`), nil, 400, "invalid_request", "temperature"},
		{"the same, streamed", "POST", stack.ChatPath, chatOf("x", `,"temperature":-1,"stream":true`), nil, 400, "invalid_request", "temperature"},
		{"unknown tool", "POST", stack.ChatPath, chatOf("x", `,"tool_choice":"required"`), nil, 400, "invalid_request", "tool_choice"},
		{"max_tokens over the context", "POST", stack.ChatPath, chatOf("x", `,"max_tokens":40961`), nil, 400, "context_length_exceeded", "max_tokens"},
		{"body too large", "POST", stack.ChatPath, chatOf(strings.Repeat("x", 70<<10), ""), nil, 413, "request_too_large", ""},
		{"no server", "POST", stack.ChatPath, fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"x"}]}`, stack.GoneModel), nil, 503, "no_backend", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := w.ask(t, c.method, c.path, c.body, c.header...)
			w.refused(t, resp, c.status, c.code, c.param)
		})
	}
}

// refused checks an error body.
func (w *wire) refused(t *testing.T, resp *http.Response, status int, code, param string) {
	t.Helper()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.schemas.Strict("ErrorResponse", raw); err != nil {
		t.Error(err)
	}
	e := gjson.GetBytes(raw, "error")
	if resp.StatusCode != status || e.Get("code").Str != code || e.Get("param").String() != param || e.Get("message").Str == "" || e.Get("type").Str == "" {
		t.Errorf("status %d, %s; expected %d %s %q", resp.StatusCode, raw, status, code, param)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content-type %q", got)
	}
	retry := resp.Header.Get("Retry-After") != "" && resp.Header.Get("Retry-After-Ms") != ""
	if (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) != retry {
		t.Errorf("status %d with Retry-After %q", status, resp.Header.Get("Retry-After"))
	}
}

// TestWireFailures lets the servers fail, before an answer and in the middle.
func TestWireFailures(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.Tokens = 60 })
	w := newWire(t, startGateway(t, s, stack.Config{Model: []string{"timeouts: {first_token: 500ms, idle: 500ms, total: 1s}", "breaker: {failures: 1000}"}}))
	for _, c := range []struct {
		kind   gatewaytest.FaultKind
		status int
		code   string
	}{
		{gatewaytest.Fault503, 503, "overloaded"},
		{gatewaytest.Fault500, 502, "upstream_error"},
		{gatewaytest.FaultGarbage, 502, "upstream_error"},
		{gatewaytest.FaultDieBefore, 502, "upstream_error"},
		{gatewaytest.FaultHang, 504, "timeout"},
	} {
		for _, more := range []string{"", `,"stream":true`} {
			t.Run(string(c.kind)+more, func(t *testing.T) {
				s.Fault(t, gatewaytest.Fault{Kind: c.kind})
				w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf("Hello", more)), c.status, c.code, "")
			})
		}
	}
	for kind, code := range map[gatewaytest.FaultKind]string{
		gatewaytest.FaultError: "upstream_error", gatewaytest.FaultDieMid: "upstream_error",
		gatewaytest.FaultTruncate: "upstream_error", gatewaytest.FaultHangMid: "timeout",
	} {
		for _, path := range []string{stack.ChatPath, stack.CompletionPath} {
			t.Run(string(kind)+path, func(t *testing.T) {
				s.Fault(t, gatewaytest.Fault{Kind: kind, AfterTokens: 5})
				body := chatOf("Hello", `,"stream":true`)
				if path == stack.CompletionPath {
					body = fmt.Sprintf(`{"model":%q,"prompt":"Once","max_tokens":50,"stream":true}`, stack.LargeAlias)
				}
				e := w.stream(t, path, body)
				if got := e.failure.Get("error.code").Str; got != code || e.done || e.err == nil || len(e.chunks) == 0 {
					t.Errorf("%d chunks, then %q (expected %q), done %t, connection %v", len(e.chunks), got, code, e.done, e.err)
				}
			})
		}
	}
}

// TestWireKeepAlive has slow servers and an impatient gateway.
func TestWireKeepAlive(t *testing.T) {
	// Forty are due where three are asked for: a busy machine sends some of them late.
	s := startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.Tokens = 400*time.Millisecond, 30 })
	chunks := newWire(t, startGateway(t, s, stack.Config{
		Server: []string{"keepalive: {after: 10ms, every: 10ms}"}, Model: []string{"timeouts: {first_token: 1500ms, idle: 1500ms}"},
	}))
	comments := newWire(t, startGateway(t, s, stack.Config{Server: []string{"keepalive: {after: 10ms, every: 10ms, form: comment}"}}))
	chat := chatOf("Hello", `,"stream":true`)
	completion := fmt.Sprintf(`{"model":%q,"prompt":"Once","stream":true}`, stack.LargeAlias)
	silent := func(e events) (n int) {
		for _, c := range e.chunks {
			if c.Get("choices.0.delta.content").String()+c.Get("choices.0.delta.reasoning").String()+c.Get("choices.0.text").String() != "" {
				break
			}
			n++
		}
		return n
	}
	t.Run("chunk", func(t *testing.T) {
		e := chunks.stream(t, stack.ChatPath, chat)
		n := silent(e)
		if n < 3 || !e.done {
			t.Fatalf("%d keep-alives, done %t", n, e.done)
		}
		for i, c := range e.chunks[:n-1] { // the last is the server's role chunk
			if err := chunks.schemas.Strict("CreateChatCompletionStreamResponse", []byte(c.Raw)); err != nil {
				t.Error(err)
			}
			if hasRole := c.Get("choices.0.delta.role").Str == "assistant"; hasRole != (i == 0) {
				t.Errorf("keep-alive %d: %s", i, c.Raw)
			}
		}
		for _, c := range e.chunks {
			if a, b := c.Get("id").Str, e.chunks[0].Get("id").Str; a != b {
				t.Errorf("ids %s and %s in one stream", a, b)
			}
		}
	})
	t.Run("chunk of a completion", func(t *testing.T) {
		if e := chunks.stream(t, stack.CompletionPath, completion); silent(e) < 3 || !e.done {
			t.Errorf("%d keep-alives, done %t", silent(e), e.done)
		}
	})
	t.Run("comment", func(t *testing.T) {
		for path, body := range map[string]string{stack.ChatPath: chat, stack.CompletionPath: completion} {
			if e := comments.stream(t, path, body); e.pings < 3 || !e.done {
				t.Errorf("%s: %d comments, done %t", path, e.pings, e.done)
			}
		}
	})
	t.Run("in the middle", func(t *testing.T) {
		s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHangMid, AfterTokens: 5})
		e := chunks.stream(t, stack.ChatPath, chat)
		tail := e.chunks[max(0, len(e.chunks)-3):]
		for _, c := range tail {
			if d := c.Get("choices.0.delta"); d.Raw != `{"content":""}` {
				t.Errorf("expected a keep-alive: %s", c.Raw)
			}
		}
		if e.failure.Get("error.code").Str != "timeout" || e.done {
			t.Errorf("ended with %s, done %t", e.failure.Raw, e.done)
		}
	})
	t.Run("a failure after the first keep-alive", func(t *testing.T) {
		s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHang})
		e := chunks.stream(t, stack.ChatPath, chat)
		if e.failure.Get("error.code").Str != "timeout" || e.done || e.err == nil || len(e.chunks) < 3 {
			t.Errorf("%d chunks, then %s, done %t, %v", len(e.chunks), e.failure.Raw, e.done, e.err)
		}
	})
}

// TestWireModels checks the list of models and its cards.
func TestWireModels(t *testing.T) {
	w := newWire(t, startGateway(t, startServers(t, nil), stack.Config{}))
	for path, def := range map[string]string{"/v1/models": "ListModelsResponse", "/v1/models/" + stack.LargeAlias: "Model"} {
		raw, err := io.ReadAll(w.ask(t, "GET", path, "").Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.schemas.Strict(def, raw); err != nil {
			t.Error(err)
		}
	}
}
