package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

const (
	cannedModel = "tidegate-canned"
	cannedText  = "The service is busy, please try again shortly."
)

// told is one answer, whichever way it came.
type told struct {
	header http.Header
	parts  []gjson.Result // the body, or the chunks without that of the usage
	usage  gjson.Result   // not there where it was not asked for
}

// tell asks and checks all that holds at every level: the schema of each part, one
// id, one model, one role of each choice, the end of the stream.
func (w *wire) tell(t *testing.T, path, body string, header ...string) (a told) {
	t.Helper()
	resp := w.ask(t, http.MethodPost, path, body, header...)
	a.header = resp.Header
	if resp.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(resp.Body)
		t.Fatalf("status %d: %s", resp.StatusCode, raw)
	}
	def := map[string]string{stack.ChatPath: "CreateChatCompletionResponse", stack.CompletionPath: "CreateCompletionResponse"}[path]
	if gjson.Get(body, "stream").Bool() {
		generated(t, a.header, "text/event-stream; charset=utf-8")
		e := readEvents(t, resp.Body)
		if !e.done || e.err != nil || e.failure.Exists() || len(e.chunks) == 0 {
			t.Fatalf("the stream is not whole: %d chunks, done %t, %v, %s", len(e.chunks), e.done, e.err, e.failure.Raw)
		}
		a.parts = e.chunks
		if path == stack.ChatPath {
			def = "CreateChatCompletionStreamResponse"
		}
	} else {
		generated(t, a.header, "application/json")
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		a.parts = []gjson.Result{gjson.ParseBytes(raw)}
		a.usage = a.parts[0].Get("usage")
	}
	roles := map[int64]int{}
	for _, part := range a.parts {
		if err := w.schemas.Check(def, []byte(part.Raw)); err != nil {
			t.Error(err)
		}
		if x, y := part.Get("id").Str+part.Get("model").Str, a.parts[0].Get("id").Str+a.parts[0].Get("model").Str; x != y {
			t.Errorf("%s and %s in one answer", x, y)
		}
		for _, c := range part.Get("choices").Array() {
			if c.Get("delta.role").Exists() {
				roles[c.Get("index").Int()]++
			}
		}
	}
	for index, n := range roles {
		if n != 1 {
			t.Errorf("choice %d is given a role %d times", index, n)
		}
	}
	if last := a.parts[len(a.parts)-1]; gjson.Get(body, "stream_options.include_usage").Bool() {
		a.usage, a.parts = last.Get("usage"), a.parts[:len(a.parts)-1]
		if !a.usage.Exists() || len(last.Get("choices").Array()) > 0 {
			t.Errorf("the last chunk is not that of the usage: %s", last.Raw)
		}
	}
	return a
}

// levelAsk is one kind of request that is asked at every level.
type levelAsk struct {
	name, path, body string
	prompts, n       int  // choices: prompts x n
	thinks           bool // at L0 and L1
	limit            int  // max_tokens that the caller names, 0: none
	tool, trip       bool // it must call a tool, or describe a trip
}

// sequences returns how many the limits count at a level: those that are sent.
func (a *levelAsk) sequences(level int) int {
	if level == 0 {
		return a.prompts * a.n
	}
	return a.prompts
}

// constrained reports whether no text can be the answer.
func (a *levelAsk) constrained() bool { return a.trip || a.name == "tools required" }

func levelAsks() []levelAsk {
	tools := `,"tools":[` + weatherTool + `,` + clockTool + `]`
	text := func(members string) string { return fmt.Sprintf(`{"model":%q,%s}`, stack.LargeAlias, members) }
	return []levelAsk{
		{name: "plain", path: stack.ChatPath, body: chatOf("Hello", ""), prompts: 1, n: 1, thinks: true},
		{name: "thinking asked for", path: stack.ChatPath, body: chatOf("Hello", `,"enable_thinking":true,"return_reasoning":true,"temperature":0.3`), prompts: 1, n: 1, thinks: true},
		{name: "kwargs and budget", path: stack.ChatPath, body: chatOf("Hello", `,"chat_template_kwargs":{"enable_thinking":true,"x":1},"thinking_budget":30,"max_tokens":9000`), prompts: 1, n: 1, thinks: true, limit: 9000},
		{name: "thinking off", path: stack.ChatPath, body: chatOf("Hello", off+`,"max_completion_tokens":20`), prompts: 1, n: 1, limit: 20},
		{name: "three choices", path: stack.ChatPath, body: chatOf("你好", `,"n":3`), prompts: 1, n: 3, thinks: true},
		{name: "tools auto", path: stack.ChatPath, body: chatOf(`Use get_weather for "Paris"`, tools), prompts: 1, n: 1, thinks: true, tool: true},
		{name: "tools required", path: stack.ChatPath, body: chatOf(`Weather in "Paris"?`, tools+`,"tool_choice":"required"`), prompts: 1, n: 1, thinks: true, tool: true},
		{name: "json_schema", path: stack.ChatPath, body: chatOf(`4 days in "Rome"`, `,"response_format":{"type":"json_schema","json_schema":{"name":"trip","strict":true,"schema":`+tripSchema+`}}`), prompts: 1, n: 1, thinks: true, trip: true},
		{name: "completion", path: stack.CompletionPath, body: text(`"prompt":"Once upon a time"`), prompts: 1, n: 1, limit: 16},
		{name: "several prompts", path: stack.CompletionPath, body: text(`"prompt":["One","Two words"],"n":3,"max_tokens":40`), prompts: 2, n: 3, limit: 40},
	}
}

// TestLevels asks the same at every level, streamed with and without usage and
// whole, in front of several vLLMs. Each answer must be legal, and its headers, its
// model, its usage and what the server was sent must be those of the level.
func TestLevels(t *testing.T) {
	for version, parser := range map[string]string{"0.10.2": "qwen3", "0.15.1": "deepseek_r1", "0.23.0": "qwen3", "0.30.0": "deepseek_r1"} {
		t.Run(version+" "+parser, func(t *testing.T) {
			s := startServers(t, func(o *gatewaytest.Options) {
				o.Version, o.ReasoningParser, o.TTFT, o.ITL = version, parser, 0, 0
			})
			w := newWire(t, startGateway(t, s, stack.Laddered("limits: [{name: some, per: user, requests: 100000/1h, tokens: 100000000/1h}]\n")))
			prompts := map[string]int64{} // as counted at L0
			for level := range 5 {
				w.Pin(t, stack.LargeModel, fmt.Sprint("L", level))
				before := w.counted(t)
				n, sequences := 0, 0
				for _, ask := range levelAsks() {
					for i, options := range []string{"", `,"stream":true`, `,"stream":true,"stream_options":{"include_usage":true}`} {
						n++
						sequences += ask.sequences(level)
						t.Run(fmt.Sprintf("L%d/%s/%d", level, ask.name, i), func(t *testing.T) {
							w.askAt(t, level, ask, options, prompts)
						})
					}
				}
				w.books(t, level, n, sequences, before)
			}
		})
	}
}

// askAt asks once and checks the answer, and what the server says of it.
func (w *wire) askAt(t *testing.T, level int, ask levelAsk, options string, prompts map[string]int64) {
	tag := strings.ReplaceAll(t.Name(), " ", "_")
	body := strings.TrimSuffix(ask.body, "}") + `,"user":"` + tag + `"` + options + "}"
	seen := requests(w.Servers)
	if level == 4 && ask.constrained() {
		w.busy(t, ask.path, body)
		if n := requests(w.Servers); n != seen {
			t.Errorf("the servers were sent %d requests", n-seen)
		}
		return
	}
	a := w.tell(t, ask.path, body)
	_, name, _ := levelOf(level)
	reason := "pin"
	if level == 0 {
		reason = "none"
	}
	a.notices(t, level, name)
	if l, r, m := a.header.Get("X-Tidegate-Level"), a.header.Get("X-Tidegate-Reason"), a.parts[0].Get("model").Str; l != fmt.Sprint("L", level) || r != reason || m != name {
		t.Errorf("level %s, reason %s, model %s; expected L%d, %s, %s", l, r, m, level, reason, name)
	}
	if want := !strings.Contains(options, "stream") || strings.Contains(options, "usage"); a.usage.Exists() != want {
		t.Errorf("usage: %s", a.usage.Raw)
	}
	choices := ask.prompts
	if level == 0 {
		choices *= ask.n
	}
	said := gather(t, a.parts...)
	if len(said.Finish) != choices {
		t.Errorf("%d choices, expected %d", len(said.Finish), choices)
	}
	for i, finish := range said.Finish {
		if !slices.Contains([]string{"stop", "length", "tool_calls"}, finish) {
			t.Errorf("choice %d ends with %q", i, finish)
		}
		if thinks := ask.thinks && level < 2; thinks != (said.Reasoning[i] != "") {
			t.Errorf("choice %d: reasoning %q", i, said.Reasoning[i])
		}
		w.saidAt(t, level, ask, said, i)
	}
	if level > 0 && options != "" {
		oneChunk(t, a.parts)
	}
	if level == 4 {
		if n := requests(w.Servers); n != seen {
			t.Errorf("the servers were sent %d requests", n-seen)
		}
		if a.usage.Exists() && a.usage.Get("total_tokens").Int()+a.usage.Get("prompt_tokens").Int() != 0 {
			t.Errorf("usage: %s", a.usage.Raw)
		}
		return
	}
	r := w.Servers.Record(t, tag)
	sentAt(t, level, ask, options, r.Body)
	if a.usage.Exists() && (a.usage.Get("prompt_tokens").Int() != int64(r.Prompt) || a.usage.Get("completion_tokens").Int() != int64(r.Output)) {
		t.Errorf("usage %s; the server says %d and %d", a.usage.Raw, r.Prompt, r.Output)
	}
	want := prompts[ask.name] + int64(map[bool]int{true: 4}[level >= 2 && ask.thinks])
	if level == 0 {
		prompts[ask.name] = int64(r.Prompt)
	} else if int64(r.Prompt) != want {
		t.Errorf("the prompt has %d tokens, expected %d", r.Prompt, want)
	}
}

// busy checks that a request which demands a tool call or a format gets an error where no
// model answers.
func (w *wire) busy(t *testing.T, path, body string) {
	t.Helper()
	resp := w.ask(t, "POST", path, body)
	raw, _ := io.ReadAll(resp.Body)
	e := gjson.GetBytes(raw, "error")
	if resp.StatusCode != 503 || e.Get("code").Str != "overloaded" || resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Tidegate-Level") != "L4" ||
		!strings.HasPrefix(e.Get("message").Str, cannedText) || !strings.Contains(e.Get("message").Str, "at level L4, pin: no model answers") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, raw)
	}
}

// notices checks that a degraded answer says so in its body and in its usage, and no other.
func (a *told) notices(t *testing.T, level int, served string) {
	t.Helper()
	want := ""
	if level > 0 {
		want = fmt.Sprintf(`{"level":"L%d","reason":"pin","served":%q}`, level, served)
	}
	for _, part := range a.parts {
		if got := part.Get("tidegate").Raw; got != want {
			t.Errorf("tidegate: %s, expected %s", got, want)
		}
	}
	if got := a.usage.Get("tidegate").Raw; a.usage.Exists() && got != want {
		t.Errorf("usage.tidegate: %s, expected %s", got, want)
	}
}

// saidAt checks what one choice says.
func (w *wire) saidAt(t *testing.T, level int, ask levelAsk, said answer, i int64) {
	t.Helper()
	calls := said.Calls[i]
	switch {
	case level == 4:
		if said.Text[i] != cannedText && ask.name != "three choices" {
			t.Errorf("%q", said.Text[i])
		}
	case ask.tool:
		if len(calls) != 1 || calls[0].Name != "get_weather" || gjson.Get(calls[0].Arguments, "city").Str != "Paris" {
			t.Errorf("calls: %+v", calls)
		}
	case ask.trip:
		if gjson.Get(said.Text[i], "city").Str != "Rome" || gjson.Get(said.Text[i], "days").Int() != 4 {
			t.Errorf("%q is no trip", said.Text[i])
		}
	case said.Text[i] == "":
		t.Errorf("choice %d says nothing", i)
	}
}

// oneChunk checks that each choice comes in one chunk behind its role's.
func oneChunk(t *testing.T, chunks []gjson.Result) {
	t.Helper()
	texts := map[int64]int{}
	for _, c := range chunks {
		choice := c.Get("choices.0")
		if choice.Get("delta.content").String()+choice.Get("delta.refusal").String()+choice.Get("text").String() != "" || choice.Get("delta.tool_calls").Exists() {
			texts[choice.Get("index").Int()]++
		}
	}
	for i, n := range texts {
		if n != 1 {
			t.Errorf("choice %d comes in %d chunks", i, n)
		}
	}
	if len(texts) == 0 {
		t.Error("no chunk says anything")
	}
}

// sentAt checks what the server was sent.
func sentAt(t *testing.T, level int, ask levelAsk, options string, body []byte) {
	t.Helper()
	sent := gjson.ParseBytes(body)
	limit := sent.Get("max_completion_tokens").Int()
	if limit == 0 {
		limit = sent.Get("max_tokens").Int()
	}
	want := ask.limit
	if level > 0 {
		want = min(want, stack.LevelCap)
		if want == 0 {
			want = stack.LevelCap
		}
	}
	if want > 0 && limit != int64(want) || limit == 0 {
		t.Errorf("at most %d tokens, expected %d", limit, want)
	}
	stream := level == 0 && options != ""
	if sent.Get("stream").Bool() != stream || sent.Get("stream_options").Exists() != stream {
		t.Errorf("stream: %s", body)
	}
	if n := sent.Get("n"); n.Exists() && (level == 0) != (n.Int() == int64(ask.n)) || level > 0 && n.Int() > 1 {
		t.Errorf("n is %s", n.Raw)
	}
	kwargs := sent.Get("chat_template_kwargs")
	quiet := kwargs.Get("enable_thinking").Raw == "false"
	if chat := ask.path == stack.ChatPath; chat && level >= 2 && !quiet || quiet && level < 2 && ask.thinks || !chat && kwargs.Exists() {
		t.Errorf("kwargs: %s", kwargs.Raw)
	}
	if gjson.GetBytes([]byte(ask.body), "chat_template_kwargs.x").Exists() && kwargs.Get("x").Int() != 1 {
		t.Errorf("kwargs: %s", kwargs.Raw)
	}
	if quiet && level >= 2 {
		temperature := 0.7
		if own := gjson.Get(ask.body, "temperature"); own.Exists() {
			temperature = own.Num
		}
		if sent.Get("thinking_token_budget").Exists() || sent.Get("temperature").Num != temperature || sent.Get("top_p").Num != 0.8 || sent.Get("top_k").Int() != 20 {
			t.Errorf("sampling: %s", body)
		}
	}
}

// requests is how many generations the servers were sent.
func requests(s stack.Servers) (n int64) {
	for _, server := range s {
		n += server.Stats().Requests
	}
	return n
}

// books is what the gateway has written down of ada.
type books struct {
	Requests, Tokens map[string]int64 // by the model that answered
	Left             map[string]int64 // of her limits, by metric
}

func (f *front) counted(t *testing.T) books {
	t.Helper()
	var report struct {
		Data []struct {
			Model    string
			Requests int64
			Tokens   int64 `json:"total_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(f.Expect(t, stack.AdminKey, "GET", "/admin/v1/usage?group_by=model&user=ada", "", 200, "")), &report); err != nil {
		t.Fatal(err)
	}
	b := books{map[string]int64{}, map[string]int64{}, map[string]int64{}}
	for _, line := range report.Data {
		b.Requests[line.Model], b.Tokens[line.Model] = line.Requests, line.Tokens
	}
	var status stack.LimitStatus
	f.Limits(t, stack.AdaKey, "/quota/status", &status)
	for _, r := range status.Rates {
		b.Left[r.Metric] = r.Remaining
	}
	return b
}

// books checks what was written down of n requests at a level, of which the limits
// count the sequences.
func (w *wire) books(t *testing.T, level, n, sequences int, before books) {
	t.Helper()
	_, name, _ := levelOf(level)
	var now books
	stack.Eventually(t, "the report", func() bool {
		now = w.counted(t)
		return now.Requests[name]-before.Requests[name] >= int64(n)
	})
	tokens := now.Tokens[name] - before.Tokens[name]
	if got := now.Requests[name] - before.Requests[name]; got != int64(n) || (tokens == 0) != (level == 4) {
		t.Errorf("L%d: the report has %d requests and %d tokens of %s", level, got, tokens, name)
	}
	if r, k := before.Left["requests"]-now.Left["requests"], before.Left["tokens"]-now.Left["tokens"]; r != int64(sequences) || k != tokens {
		t.Errorf("L%d: the limits were charged %d requests and %d tokens, expected %d and %d", level, r, k, sequences, tokens)
	}
	if level > 0 {
		series := fmt.Sprintf(`tidegate_degraded_requests_total{level="L%d",model=%q,reason="pin"}`, level, stack.LargeModel)
		if got := w.Metric(t, series); got != float64(n) {
			t.Errorf("%s is %v, expected %d", series, got, n)
		}
	}
}

// TestLevelsLong has an answer that does not fit a line.
func TestLevelsLong(t *testing.T) {
	p := stack.Laddered("")
	p.Extra = "degrade: {l1: {max_tokens: 30000}}\n"
	w := newWire(t, startGateway(t, startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.ITL = 0, 0 }), p))
	text := strings.Repeat(`水位 "上涨" \ 🌊 tide `, 2000)
	quoted, _ := json.Marshal(text)
	for _, level := range []string{"L1", "L2", "L3"} {
		w.Pin(t, stack.LargeModel, level)
		a := w.tell(t, stack.ChatPath, chatOf("Hello", off+`,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},"max_tokens":30000,"sim":{"text":`+string(quoted)+`}`))
		got := gather(t, a.parts...).Text[0]
		if got != text || len(a.parts) < 4 {
			t.Errorf("%s: %d chunks, %d bytes", level, len(a.parts), len(got))
		}
		for _, c := range a.parts {
			if u := c.Get("usage"); u.Get("completion_tokens").Int() != a.usage.Get("completion_tokens").Int() {
				t.Errorf("%s: usage %s in the middle, %s at the end", level, u.Raw, a.usage.Raw)
			}
		}
	}
}
