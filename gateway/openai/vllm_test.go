package openai

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/schematest"
)

// vllm is a stand-in of one version, and what is asked of it.
type vllm struct {
	*gatewaytest.Running
	schemas *schematest.Schemas
}

func (v vllm) ask(t *testing.T, q *Request) []byte {
	t.Helper()
	path := "/v1/chat/completions"
	if q.Route == Completions {
		path = "/v1/completions"
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(v.URL+path, "application/json", bytes.NewReader(q.Bytes())) //nolint:noctx // the test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v: %s\nwas asked %s", resp.StatusCode, err, body, q.Bytes())
	}
	return body
}

// TestLevelsAgainstServers sends requests of all kinds to stand-ins of several
// versions as a stream and, with the edits of level 1, in one piece. Made into a
// stream, the answer in one piece must say what the server's own stream says. The
// edits of level 2 must stop the thinking whatever the server's parser, and make
// the prompt as much longer as was said.
func TestLevelsAgainstServers(t *testing.T) {
	const hello = `"messages":[{"role":"user","content":"Weather in Paris? Use get_weather 用中文 🌊"}]`
	const tools = `,"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]`
	bodies := map[string]Route{
		hello:                              Chat,
		hello + `,"enable_thinking":false`: Chat,
		hello + `,"max_completion_tokens":7,"n":3`:                                Chat,
		hello + `,"thinking_budget":5,"reasoning_effort":"high","max_tokens":300`: Chat,
		hello + `,"chat_template_kwargs":{"enable_thinking":"false","x":1}`:       Chat,
		hello + `,"logprobs":true,"top_logprobs":3`:                               Chat,
		hello + `,"response_format":{"type":"json_object"}`:                       Chat,
		hello + tools: Chat,
		hello + tools + `,"tool_choice":"required","sim":{"tool_calls":2}`: Chat,
		`"prompt":"Once","max_tokens":20`:                                  Completions,
		`"prompt":["One","Two"],"n":2,"logprobs":2,"echo":true`:            Completions,
	}
	schemas := newSchemas(t)
	for version, parser := range map[string]string{"0.10.2": "deepseek_r1", "0.15.1": "qwen3", "0.23.0": "deepseek_r1", "0.30.0": "qwen3"} {
		o := gatewaytest.Default()
		o.Version, o.ReasoningParser, o.Tokens = version, parser, 90
		server := vllm{gatewaytest.Start(t, o), schemas}
		for body, route := range bodies {
			if strings.Contains(body, `:7,`) && version < "0.17" {
				continue // that parser calls a thought without its end an answer, but only where it is not streamed
			}
			t.Run(fmt.Sprintf("%s %s %.90s", version, parser, strings.TrimPrefix(body, hello)), func(t *testing.T) {
				server.levels(t, route, `{"model":"Qwen3-1.7B","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},`+body+`}`)
			})
		}
	}
}

func (v vllm) levels(t *testing.T, route Route, body string) {
	request := func() (*Request, Wish) {
		q := parse(t, route, body)
		wish, fault := q.Translate(8)
		if fault != nil {
			t.Fatal(fault)
		}
		return q, wish
	}
	first, wish := request()
	view := View{Model: "qwen", IncludeUsage: true, ThinkingOff: wish.NoThinking}
	if _, ok := first.Raw("n"); ok {
		first.Set("n", []byte("1")) // as level 1 does, so that both can be compared
	}
	streams, u := v.tapped(t, first, view)
	second, _ := request()
	if limit := second.MakeUnary(2048); limit > 2048 {
		t.Errorf("a limit of %d tokens", limit)
	}
	whole, wholeUsage := v.made(t, second, view)
	if a, b := mustJSON(t, gathered(t, streams...)), mustJSON(t, gathered(t, whole...)); bare(a) != bare(b) {
		t.Errorf("streamed it says\n%.900s\nin one piece\n%.900s", a, b)
	}
	if u.Input != wholeUsage.Input || u.Output != wholeUsage.Output {
		t.Errorf("streamed %+v, in one piece %+v", u, wholeUsage)
	}
	third, _ := request()
	grown := third.StopThinking()
	third.MakeUnary(2048)
	view.ThinkingOff = true
	calm, after := v.made(t, third, view)
	for i, c := range gathered(t, calm...) {
		if route == Chat && (c.Reasoning != "" || c.Other != "" || c.Content == "" && len(c.Calls) == 0) {
			t.Errorf("choice %d, level 2: %+.300v", i, c)
		}
	}
	if after.Input != u.Input+grown || route == Chat && after.Reasoning > 0 || grown != map[bool]int{true: 4}[route == Chat && !wish.NoThinking] {
		t.Errorf("the prompt grew from %d to %d tokens, %d were said; reasoning %d", u.Input, after.Input, grown, after.Reasoning)
	}
}

// bare leaves out what is made anew for each request: the ids of tool calls.
func bare(s string) string {
	parts := strings.Split(s, `"ID":"`)
	for i, p := range parts[1:] {
		parts[i+1] = p[strings.IndexByte(p, '"'):]
	}
	return strings.Join(parts, "")
}

// tapped is the server's own stream as its caller sees it.
func (v vllm) tapped(t *testing.T, q *Request, view View) ([]string, Usage) {
	t.Helper()
	tap := Tap{View: view, Route: q.Route}
	var shown []byte
	events := NewScanner(bytes.NewReader(v.ask(t, q)), new(Buffers))
	for {
		data, err := events.Next()
		if err != nil {
			break
		}
		if shown, err = tap.Event(shown, data); err != nil {
			t.Fatal(err)
		}
	}
	u, _ := tap.Usage()
	if !tap.Done() {
		t.Fatal("the stream is not whole")
	}
	chunks := framed(t, shown)
	return chunks[:len(chunks)-1], u
}

// made is the stream that is made of an answer in one piece.
func (v vllm) made(t *testing.T, q *Request, view View) ([]string, Usage) {
	t.Helper()
	a, err := ReadAnswer(q.Route, view, v.ask(t, q), Bounds{}, newWords)
	if err != nil || a.Faults != 0 {
		t.Fatal(a.Faults.Names(), err)
	}
	shown, u := a.Body, a.Usage
	if err := v.schemas.Check(wholeSchema(q.Route), shown); err != nil {
		t.Error(err)
	}
	out, err := view.Stream(nil, q.Route, shown, "")
	if err != nil {
		t.Fatal(err)
	}
	chunks := framed(t, out)
	for _, c := range chunks[:len(chunks)-1] {
		if err := v.schemas.Check(streamSchema(q.Route), []byte(c)); err != nil {
			t.Error(err)
		}
	}
	return chunks[:len(chunks)-1], u
}
