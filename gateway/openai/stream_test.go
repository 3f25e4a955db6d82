package openai

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/gateway/gatewaytest/schematest"

	"tidegate/gateway/jsonwalk"
	"tidegate/gateway/jsonwalk/jsontest"
)

func newSchemas(t *testing.T) *schematest.Schemas {
	t.Helper()
	s, err := schematest.NewSchemas()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wholeSchema(route Route) string {
	if route == Completions {
		return "CreateCompletionResponse"
	}
	return "CreateChatCompletionResponse"
}

func streamSchema(route Route) string {
	if route == Completions {
		return "CreateCompletionResponse"
	}
	return "CreateChatCompletionStreamResponse"
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// framed splits a stream into the data of its events and checks its form: one line
// each, none too long, valid JSON, and [DONE] at the end.
func framed(t fataler, stream []byte) []string {
	t.Helper()
	whole, ended := strings.CutSuffix(string(stream), "\n\n")
	events := strings.Split(whole, "\n\n")
	for i, e := range events {
		data, ok := strings.CutPrefix(e, "data: ")
		if !ok || !ended || strings.ContainsAny(data, "\r\n") || len(e) > maxLine || (data == "[DONE]") != (i == len(events)-1) || data != "[DONE]" && !json.Valid([]byte(data)) {
			t.Fatalf("event %d of %d is malformed (%d bytes): %.300q", i, len(events), len(e), e)
		}
		events[i] = data
	}
	return events
}

// streamed is the stream of an answer as ReadAnswer shows it, by events.
func streamed(t fataler, v View, route Route, answer []byte, begun string) []string {
	t.Helper()
	a, err := ReadAnswer(route, v, answer, Bounds{}, newWords)
	if err != nil {
		t.Fatalf("%s: %v", answer, err)
	}
	out, err := v.Stream([]byte("before"), route, a.Body, begun)
	if err != nil {
		t.Fatalf("%s: %v", answer, err)
	}
	after, ok := strings.CutPrefix(string(out), "before")
	if !ok {
		t.Fatalf("what was there is gone: %.100s", out)
	}
	return framed(t, []byte(after))
}

const (
	wholeHead = `{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"Qwen/Qwen3-1.7B","choices":[`
	wholeTail = `],"service_tier":null,"system_fingerprint":"fp","usage":{"prompt_tokens":9,"total_tokens":29,"completion_tokens":20,"prompt_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}`
	nulls     = `"refusal":null,"annotations":null,"audio":null,"function_call":null`
)

// unaryAnswer returns a unary chat answer as vLLM writes it, with one choice per message.
func unaryAnswer(finish string, messages ...string) []byte {
	b := wholeHead
	for i, m := range messages {
		if i > 0 {
			b += ","
		}
		b += fmt.Sprintf(`{"index":%d,"message":%s,"logprobs":null,"finish_reason":%q,"stop_reason":null,"token_ids":null}`, i, m, finish)
	}
	return []byte(b + wholeTail)
}

// TestStreamGolden: answers and the very streams they become. {H} is how each
// chunk begins, {U} the usage chunk.
func TestStreamGolden(t *testing.T) {
	const role = `{H}{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`
	const used = `,"usage":{"prompt_tokens":9,"total_tokens":29,"completion_tokens":20}`
	chunk := func(i int, delta, rest string) string {
		return fmt.Sprintf(`{H}{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]}`, i, delta, rest)
	}
	const calls = `[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"c2","type":"function","function":{"arguments":"","name":"g"}}]`
	for _, c := range []struct {
		name   string
		view   View
		begun  string
		answer []byte
		want   []string
	}{
		{"plain", View{}, "", unaryAnswer("stop", `{"role":"assistant","content":"Hi \u0041\n","tool_calls":[],`+nulls+`}`),
			[]string{role, chunk(0, `{"content":"Hi \u0041\n"}`, `"stop"`)}},
		{"begun", View{}, "chatcmpl-0", unaryAnswer("stop", `{"role":"assistant","content":"Hi"}`),
			[]string{strings.Replace(chunk(0, `{"content":"Hi"}`, `"stop"`), "{H}", "{B}", 1)}},
		{"usage", View{IncludeUsage: true, Model: "qwen"}, "", unaryAnswer("length", `{"role":"assistant","content":"Hi"}`),
			[]string{role, chunk(0, `{"content":"Hi"}`, `"length"`), `{H}]` + used + `}`}},
		{"usage in every chunk", View{IncludeUsage: true, ContinuousUsage: true}, "", unaryAnswer("stop", `{"role":"assistant","content":"Hi"}`),
			[]string{strings.TrimSuffix(role, "}") + used + "}", strings.TrimSuffix(chunk(0, `{"content":"Hi"}`, `"stop"`), "}") + used + "}", `{H}]` + used + `}`}},
		{"reasoning", View{}, "", unaryAnswer("stop", `{"role":"assistant","content":"b","reasoning":"a"}`),
			[]string{role, chunk(0, `{"reasoning":"a","reasoning_content":"a","content":"b"}`, `"stop"`)}},
		{"one name", View{Reasoning: OnlyReasoningContent}, "", unaryAnswer("stop", `{"role":"assistant","content":null,"reasoning":"a"}`),
			[]string{role, chunk(0, `{"reasoning_content":"a"}`, `"stop"`)}},
		{"two reasonings that differ", View{}, "", unaryAnswer("stop", `{"role":"assistant","content":"","reasoning":"a","reasoning_content":"b"}`),
			[]string{role, chunk(0, `{"reasoning":"a","reasoning_content":"b"}`, `"stop"`)}},
		{"reasoning hidden", View{HideReasoning: true}, "", unaryAnswer("stop", `{"role":"assistant","content":null,"reasoning":"a"}`),
			[]string{role, chunk(0, `{"content":""}`, `"stop"`)}},
		{"repaired", View{ThinkingOff: true}, "", unaryAnswer("stop", `{"role":"assistant","content":null,"reasoning":"a"}`),
			[]string{role, chunk(0, `{"content":"a"}`, `"stop"`)}},
		{"repetition", View{}, "", unaryAnswer("repetition", `{"role":"assistant","content":"a"}`),
			[]string{role, chunk(0, `{"content":"a"}`, `"stop"`)}},
		{"tools", View{}, "", unaryAnswer("tool_calls", `{"role":"assistant","content":null,"tool_calls":`+calls+`}`),
			[]string{role, chunk(0, `{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"index":1,"id":"c2","type":"function","function":{"name":"g","arguments":""}}]}`, `"tool_calls"`)}},
		{"odd tools", View{}, "", unaryAnswer("tool_calls", `{"content":"a","tool_calls":[{"index":7,"id":"x","custom":{"b" : 1}},{"function":{}},{"function":{"name":"f","arguments":{"a":1}}}],"function_call":{"name":"f"}}`),
			[]string{role, chunk(0, `{"content":"a","tool_calls":[{"index":0,"id":"x","custom":{"b" : 1}},{"index":1,"function":{}},{"index":2,"function":{"name":"f","arguments":{"a":1}}}],"function_call":{"name":"f"}}`, `"tool_calls"`)}},
		{"refusal", View{}, "", unaryAnswer("stop", `{"role":"assistant","content":null,"refusal":"no"}`),
			[]string{role, chunk(0, `{"refusal":"no"}`, `"stop"`)}},
		{"two choices", View{}, "", unaryAnswer("stop", `{"content":"a"}`, `{"content":"b"}`),
			[]string{role, chunk(0, `{"content":"a"}`, `"stop"`), strings.Replace(role, `"index":0`, `"index":1`, 1), chunk(1, `{"content":"b"}`, `"stop"`)}},
		{"two choices, begun", View{}, "chatcmpl-0", unaryAnswer("stop", `{"content":"a"}`, `{"content":"b"}`),
			[]string{strings.Replace(chunk(0, `{"content":"a"}`, `"stop"`), "{H}", "{B}", 1), strings.Replace(strings.Replace(role, `"index":0`, `"index":1`, 1), "{H}", "{B}", 1), strings.Replace(chunk(1, `{"content":"b"}`, `"stop"`), "{H}", "{B}", 1)}},
		{"unknown members and white space", View{}, "", []byte(" {\"choices\":\r\n[ {\"later\":[1,\n2],\"message\":{\"content\":\"a\",\"more\":{\"b\":\r2}},\"finish_reason\":\"stop\",\"stop_reason\":151643,\"delta\":1,\"index\":0} ],\n\"created\" :7,\"model\":\"Qwen/Qwen3-1.7B\",\"id\":\"chatcmpl-1\",\"system_fingerprint\":\"fp\"}\n"),
			[]string{role, `{H}{"index":0,"delta":{"content":"a","more":{"b": 2}},"later":[1, 2],"stop_reason":151643,"logprobs":null,"finish_reason":"stop"}]}`}},
		{"log probabilities", View{}, "", []byte(`{"id":"chatcmpl-1","created":7,"model":"Qwen/Qwen3-1.7B","system_fingerprint":"fp","choices":[{"index":0,"message":{"content":"ab"},"logprobs":{"content":[{"token":"a"} , {"token":"b"}],"refusal":null},"finish_reason":"stop"}]}`),
			[]string{role, `{H}{"index":0,"delta":{"content":"ab"},"logprobs":{"content":[{"token":"a"} , {"token":"b"}],"refusal":null},"finish_reason":"stop"}]}`}},
		{"no log probabilities in them", View{}, "", []byte(`{"id":"chatcmpl-1","created":7,"model":"Qwen/Qwen3-1.7B","system_fingerprint":"fp","choices":[{"index":0,"message":{"content":"ab"},"logprobs":{},"finish_reason":"stop"}]}`),
			[]string{role, `{H}{"index":0,"delta":{"content":"ab"},"logprobs":{},"finish_reason":"stop"}]}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := streamed(t, c.view, Chat, c.answer, c.begun)
			model := "Qwen/Qwen3-1.7B"
			if c.view.Model != "" {
				model = c.view.Model
			}
			head := func(id string) string {
				return fmt.Sprintf(`{"id":%q,"object":"chat.completion.chunk","created":7,"model":%q,"system_fingerprint":"fp","choices":[`, id, model)
			}
			want := append(slices.Clone(c.want), "[DONE]")
			for i := range want {
				want[i] = strings.NewReplacer("{H}", head("chatcmpl-1"), "{B}", head("chatcmpl-0")).Replace(want[i])
			}
			if !slices.Equal(got, want) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
		})
	}
}

func TestStreamOfCompletions(t *testing.T) {
	const head = `{"id":"cmpl-1","object":"text_completion","created":7,"model":"m",`
	const used = `"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}`
	answer := []byte(head + `"choices":[{"index":0,"text":"a","logprobs":{"text_offset":[0],"token_logprobs":[-1],"tokens":["a"],"top_logprobs":[{"a":-1}]},"finish_reason":"length","stop_reason":null},{"index":1,"text":"","logprobs":null,"finish_reason":"stop"}],` + used + `}`)
	want := []string{
		head + `"choices":[{"index":0,"text":"a","logprobs":{"text_offset":[0],"token_logprobs":[-1],"tokens":["a"],"top_logprobs":[{"a":-1}]},"finish_reason":"length"}]}`,
		head + `"choices":[{"index":1,"text":"","logprobs":null,"finish_reason":"stop"}]}`,
		head + `"choices":[],` + used + `}`,
		"[DONE]",
	}
	for _, begun := range []string{"", "cmpl-1"} {
		got := streamed(t, View{IncludeUsage: true}, Completions, answer, begun)
		if !slices.Equal(got, want) {
			t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
		for _, e := range got[:len(got)-1] {
			if err := newSchemas(t).Strict("CreateCompletionResponse", []byte(e)); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestStreamRefuses(t *testing.T) {
	long := strings.Repeat("x", 2<<10)
	for in, want := range map[string]error{
		``:               ErrNoAnswer,
		`[]`:             ErrNoAnswer,
		`{}`:             ErrNoAnswer,
		`{"choices":5}`:  ErrNoAnswer,
		`{"choices":[]}`: ErrUnfinished,
		`{"choices":[` + strings.Repeat(`{"finish_reason":"stop"},`, MaxChoices) + `{"finish_reason":"stop"}]}`: ErrNoAnswer,
		`{"choices":[5]}`:  ErrNoAnswer,
		`{"choices":[{}]}`: ErrUnfinished,
		`{"choices":[{"finish_reason":null,"message":{"content":"a"}}]}`:                                                                       ErrUnfinished,
		`{"choices":[{"finish_reason":"stop","index":-1}]}`:                                                                                    ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop","index":100000}]}`:                                                                                ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop","index":"x"}]}`:                                                                                   ErrNoAnswer,
		`{"choices":[{"finish_reason":"` + long + `"}]}`:                                                                                       ErrNoAnswer,
		`{"choices":[{"finish_reason":"` + strings.Repeat(`\"`, 100) + `"}]}`:                                                                  ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop"}],"id":5}`:                                                                                        ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop"}],"id":"` + long + `"}`:                                                                           ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop"}],"model":null}`:                                                                                  ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop"}],"model":"` + long + `"}`:                                                                        ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop"}],"created":"x"}`:                                                                                 ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop"}],"usage":{"` + long + `":1}}`:                                                                    ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop","message":{"tool_calls":[5]}}]}`:                                                                  ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop","message":{"tool_calls":[{"function":5}]}}]}`:                                                     ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop","message":{"tool_calls":[{"function":{"name":"` + strings.Repeat(long, 9) + `"}}]}}]}`:            ErrNoAnswer,
		`{"choices":[{"finish_reason":"stop","message":{"tool_calls":[{"function":{"arguments":{"a":"` + strings.Repeat(long, 9) + `"}}}]}}]}`: ErrNoAnswer,
	} {
		if out, err := (View{}).Stream([]byte("before"), Chat, []byte(in), ""); !errors.Is(err, want) || string(out) != "before" {
			t.Errorf("%.100s: %v, %s", in, err, out)
		}
	}
	// A choice that says nothing at all is still an answer.
	if got := streamed(t, View{}, Chat, []byte(`{"choices":[{"finish_reason":"stop","message":null}]}`), "x"); len(got) != 2 || !strings.Contains(got[0], `"delta":{"content":""}`) {
		t.Errorf("%q", got)
	}
}

// said is what a choice says in all, whichever way it came.
type said struct {
	Content, Reasoning, Other, Refusal, Finish string
	Calls                                      []calledTool
	Columns                                    map[string][]string
	Roles                                      int
	Rest                                       map[string]string
}

type calledTool struct{ ID, Type, Name, Arguments string }

type wireMessage struct {
	Role, Content, Refusal, Reasoning string
	ReasoningContent                  string `json:"reasoning_content"`
	ToolCalls                         []struct {
		Index    *int
		ID, Type string
		Function struct{ Name, Arguments string }
	} `json:"tool_calls"`
}

type wireBody struct {
	ID, Object, Model string
	Created           int
	Choices           []struct {
		Index          int
		Message, Delta *wireMessage
		Text           *string
		Logprobs       map[string][]json.RawMessage
		FinishReason   *string         `json:"finish_reason"`
		StopReason     json.RawMessage `json:"stop_reason"`
		Later          json.RawMessage
	}
	Usage json.RawMessage
}

// gathered joins what bodies or chunks say, by choice.
func gathered(t fataler, bodies ...string) map[int]*said {
	t.Helper()
	all := map[int]*said{}
	for _, raw := range bodies {
		var body wireBody
		if err := json.Unmarshal([]byte(raw), &body); err != nil {
			t.Fatalf("%.200s: %v", raw, err)
		}
		for _, c := range body.Choices {
			s := all[c.Index]
			if s == nil {
				s = &said{Columns: map[string][]string{}, Rest: map[string]string{}}
				all[c.Index] = s
			}
			if s.Finish != "" {
				t.Fatalf("choice %d goes on after it has finished: %.200s", c.Index, raw)
			}
			if c.FinishReason != nil {
				s.Finish = *c.FinishReason
			}
			if c.Text != nil {
				s.Content += *c.Text
			}
			for name, rows := range c.Logprobs {
				for _, r := range rows {
					s.Columns[name] = append(s.Columns[name], compact(t, r))
				}
			}
			for name, raw := range map[string]json.RawMessage{"stop_reason": c.StopReason, "later": c.Later} {
				if raw != nil && string(raw) != "null" {
					s.Rest[name] += string(raw)
				}
			}
			m := c.Message
			if c.Delta != nil {
				m = c.Delta
			}
			if m != nil {
				s.gather(t, m)
			}
		}
	}
	return all
}

func compact(t fataler, raw []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatalf("%v", err)
	}
	return b.String()
}

func (s *said) gather(t fataler, m *wireMessage) {
	t.Helper()
	if m.Role != "" {
		s.Roles++
	}
	s.Content += m.Content
	s.Reasoning += m.Reasoning
	s.Other += m.ReasoningContent
	s.Refusal += m.Refusal
	for i, call := range m.ToolCalls {
		if call.Index != nil {
			i = *call.Index
		}
		if i == len(s.Calls) {
			s.Calls = append(s.Calls, calledTool{})
		}
		if i >= len(s.Calls) {
			t.Fatalf("call %d comes before those in front of it", i)
		}
		c := &s.Calls[i]
		c.ID, c.Type, c.Name = c.ID+call.ID, c.Type+call.Type, c.Name+call.Function.Name
		c.Arguments += call.Function.Arguments
	}
}

// drawLong draws a JSON string of up to 100 KiB, most often a short one.
func drawLong(t *rapid.T) string {
	inner := jsontest.String(t)
	inner = inner[1 : len(inner)-1]
	times := rapid.SampledFrom([]int{1, 1, 1, 1, 1, 1, 1, 200, 800, 2500}).Draw(t, "times")
	pad := strings.Repeat("a", rapid.IntRange(0, 17).Draw(t, "pad"))
	long := pad + strings.Repeat(inner, times)
	if len(long) > 100<<10 {
		long = pad + strings.Repeat(inner, (100<<10)/len(inner))
	}
	return `"` + long + `"`
}

// drawUnary draws a unary answer as a backend could send it.
func drawUnary(t *rapid.T, route Route) []byte {
	var choices []string
	for i := range rapid.IntRange(1, 3).Draw(t, "choices") {
		names, values := []string{`"index"`, `"finish_reason"`}, []string{fmt.Sprint(i), `"stop"`}
		add := func(name, value string) { names, values = append(names, `"`+name+`"`), append(values, value) }
		if route == Completions {
			add("text", drawLong(t))
		} else {
			add("message", drawMessage(t))
		}
		if rapid.Bool().Draw(t, "logprobs") {
			row := jsontest.Object(t, []string{`"token"`, `"bytes"`}, []string{jsontest.String(t), jsontest.Value(t, 1)})
			n := rapid.SampledFrom([]int{0, 1, 3, 900}).Draw(t, "rows")
			column := "[" + strings.TrimSuffix(strings.Repeat(row+jsontest.Space(t)+",", n), ",") + "]"
			add("logprobs", jsontest.Object(t, []string{`"content"`, `"refusal"`}, []string{column, rapid.SampledFrom([]string{"null", "[1,2]", column}).Draw(t, "refusal")}))
		}
		if rapid.Bool().Draw(t, "stop reason") {
			add("stop_reason", rapid.SampledFrom([]string{"null", "151643", `"END"`}).Draw(t, "stopped"))
		}
		if rapid.Bool().Draw(t, "later") {
			add("later", `"`+strings.Repeat("z", rapid.SampledFrom([]int{1, 9000}).Draw(t, "length"))+`"`)
		}
		names, values = shuffled(t, names, values)
		choices = append(choices, jsontest.Object(t, names, values))
	}
	names, values := shuffled(t, []string{`"id"`, `"created"`, `"model"`, `"usage"`, `"choices"`, `"prompt_token_ids"`},
		[]string{`"chatcmpl-9"`, "17", `"m"`, `{"prompt_tokens":31,"completion_tokens":41,"prompt_tokens_details":{"cached_tokens":16},"completion_tokens_details":{"reasoning_tokens":5}}`, "[" + strings.Join(choices, ",") + "]", rapid.SampledFrom([]string{"null", "[1,2,3]", "[" + strings.Repeat("1234,", 900) + "5]", "[" + strings.Repeat("1234,", 9000) + "5]"}).Draw(t, "ids")})
	return []byte(jsontest.Object(t, names, values))
}

func drawMessage(t *rapid.T) string {
	names, values := []string{`"role"`}, []string{`"assistant"`}
	for _, name := range []string{"content", "reasoning", "reasoning_content", "refusal"} {
		if rapid.Bool().Draw(t, name) {
			names, values = append(names, `"`+name+`"`), append(values, rapid.OneOf(rapid.Just("null"), rapid.Custom(drawLong)).Draw(t, "text"))
		}
	}
	if rapid.Bool().Draw(t, "tools") {
		var calls []string
		for i := range rapid.IntRange(0, 4).Draw(t, "calls") {
			calls = append(calls, fmt.Sprintf(`{"id":"call-%d","type":"function","function":{"name":%s,"arguments":%s}}`, i, jsontest.String(t), drawLong(t)))
		}
		names, values = append(names, `"tool_calls"`), append(values, "["+strings.Join(calls, jsontest.Space(t)+",")+"]")
	}
	names, values = shuffled(t, names, values)
	return jsontest.Object(t, names, values)
}

// TestStreamSaysTheSame: the chunks together say what the answer says, and a Tap
// that reads them counts the same.
func TestStreamSaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		route := Route(rapid.IntRange(0, 1).Draw(t, "route"))
		answer := drawUnary(t, route)
		v := drawView(t)
		v.ThinkingOff = rapid.Bool().Draw(t, "thinking off")
		begun := rapid.SampledFrom([]string{"", "chatcmpl-8"}).Draw(t, "begun")
		read, err := ReadAnswer(route, v, answer, Bounds{}, newWords)
		if err != nil {
			t.Fatal(err)
		}
		shown, usage := read.Body, read.Usage
		events := streamed(t, v, route, answer, begun)
		chunks := events[:len(events)-1]
		want, got := gathered(t, string(shown)), gathered(t, chunks...)
		for i, w := range want {
			w.Roles = 1
			if route == Completions || begun != "" && i == 0 {
				w.Roles = 0
			}
		}
		if a, b := mustJSON(t, want), mustJSON(t, got); a != b {
			t.Fatalf("whole it says\n%.2000s\nstreamed\n%.2000s", a, b)
		}
		heads(t, v, chunks, begun)
		tap := Tap{Route: route, View: View{IncludeUsage: true}}
		for _, e := range events {
			if _, err := tap.Event(nil, []byte(e)); err != nil {
				t.Fatalf("%.200s: %v", e, err)
			}
		}
		if u, estimated := tap.Usage(); !tap.Done() || !v.ContinuousUsage && (v.IncludeUsage == estimated || v.IncludeUsage && u != usage) { // else each chunk states what all choices took
			t.Fatalf("done %t; %+v (%t), whole %+v", tap.Done(), u, estimated, usage)
		}
	})
}

// heads checks what all chunks have in common, and their usage.
func heads(t fataler, v View, chunks []string, begun string) {
	t.Helper()
	for i, raw := range chunks {
		var body wireBody
		if err := json.Unmarshal([]byte(raw), &body); err != nil {
			t.Fatalf("%v", err)
		}
		id, model := "chatcmpl-9", "m"
		if begun != "" {
			id = begun
		}
		if v.Model != "" {
			model = v.Model
		}
		last := i == len(chunks)-1
		if body.ID != id || body.Model != model || body.Created != 17 || (body.Usage != nil) != (v.ContinuousUsage || v.IncludeUsage && last) || (len(body.Choices) == 0) != (v.IncludeUsage && last) {
			t.Fatalf("chunk %d of %d: %.300s", i, len(chunks), raw)
		}
	}
}

func mustJSON(t fataler, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return string(raw)
}

// TestStreamIsLegal holds streams, with and without keep-alives before, against
// OpenAI's schemas.
func TestStreamIsLegal(t *testing.T) {
	schemas := newSchemas(t)
	long := strings.Repeat(`{\"a\": \"\ud83d\ude00 日本\"}`, 2000)
	probability := `{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}`
	message := `{"role":"assistant","content":"` + long + `","reasoning":"` + long + `",` + nulls + `,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"` + long + `"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]}`
	chat := []byte(wholeHead + `{"index":0,"message":` + message + `,"logprobs":{"content":[` + strings.Repeat(probability+",", 999) + probability + `],"refusal":null},"finish_reason":"tool_calls","stop_reason":null}` + wholeTail)
	completion := []byte(`{"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"` + long + `","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`)
	for _, v := range []View{{}, {IncludeUsage: true}, {IncludeUsage: true, ContinuousUsage: true, Reasoning: OnlyReasoning}, {HideReasoning: true}} {
		for route, answer := range map[Route][]byte{Chat: chat, Completions: completion} {
			for _, begun := range []string{"", "chatcmpl-0"} {
				var before []string
				for i := range 2 {
					if begun != "" {
						alive := string(KeepAlive(route, begun, "Qwen/Qwen3-1.7B", time.Unix(7, 0), i == 0))
						before = append(before, strings.TrimSuffix(strings.TrimPrefix(alive, "data: "), "\n\n"))
					}
				}
				events := streamed(t, v, route, answer, begun)
				chunks := append(before, events[:len(events)-1]...)
				ids := map[string]bool{}
				for _, e := range chunks {
					if err := schemas.Check(streamSchema(route), []byte(e)); err != nil {
						t.Errorf("%.1000v", err)
					}
					var body wireBody
					_ = json.Unmarshal([]byte(e), &body)
					ids[body.ID] = true
				}
				if len(ids) != 1 {
					t.Errorf("%d ids in one stream", len(ids))
				}
				all := gathered(t, chunks...)
				if c := all[0]; len(all) != 1 || route == Chat && (c.Roles != 1 || len(c.Columns["content"]) != 1000 || len(c.Calls) != 2) {
					t.Errorf("%d choices, %d times a role, %d probabilities, %d calls", len(all), c.Roles, len(c.Columns["content"]), len(c.Calls))
				}
			}
		}
	}
}

// TestStreamKeepsWhatFits: rows and members that are too long for a line are left
// out, and those beside them stay.
func TestStreamKeepsWhatFits(t *testing.T) {
	huge := strings.Repeat("x", maxLine)
	answer := `{"id":"chatcmpl-9","created":17,"model":"m","small":1,"notable":"` + huge[:200] + `","big":"` + huge + `","middle":"` + huge[:5000] + `","choices":[{"index":0,"message":{"content":"a","also":"` + huge + `"},"logprobs":{"content":["` + huge + `","a","` + huge + `","b"],"other":"` + huge + `"},"later":"` + huge[:12000] + `","stop_reason":"` + huge + `","finish_reason":"stop"}]}`
	for _, begun := range []string{"", "chatcmpl-9"} {
		events := streamed(t, View{}, Chat, []byte(answer), begun)
		for name, chunks := range map[string]int{"small": len(events) - 1, "notable": 1, "middle": 1, "big": 0} {
			if n := strings.Count(strings.Join(events, ""), `"`+name+`":`); n != chunks || n > 0 && !strings.Contains(events[0], name) {
				t.Errorf("%s stands in %d chunks, expected %d from the first on", name, n, chunks)
			}
		}
		got := gathered(t, events[:len(events)-1]...)[0]
		if got.Content != "a" || fmt.Sprint(got.Columns["content"]) != `["a" "b"]` || len(got.Rest["later"]) != 12002 || got.Rest["stop_reason"] != "" || got.Finish != "stop" {
			t.Errorf("%+.300v", got)
		}
	}
}

// TestStreamKeepsRows: what does not fit beside a text gets a chunk of its own.
func TestStreamKeepsRows(t *testing.T) {
	row := `"` + strings.Repeat("r", 9000) + `"`
	answer := `{"choices":[{"index":0,"message":{"content":"` + strings.Repeat("x", 12000) + `"},"logprobs":{"content":[` + row + `,1,` + row + `]},"finish_reason":"stop"}]}`
	events := streamed(t, View{}, Chat, []byte(answer), "x")
	got := gathered(t, events[:len(events)-1]...)[0]
	if want := []string{row, "1", row}; !slices.Equal(got.Columns["content"], want) || len(events) != 4 {
		t.Errorf("%d events, %d rows", len(events), len(got.Columns["content"]))
	}
}

// TestCut: all places where a text may be cut, and no other.
func TestCut(t *testing.T) {
	const text = `ab\n\\\"é日\u0041\ud83d\ude00\ud800x\udc00\u005c😀`
	for _, c := range []struct{ most, want int }{
		{12, 10}, {13, 13}, {14, 13}, {18, 13}, {19, 19}, {30, 19}, {31, 31}, {36, 31}, {37, 37}, {38, 38}, {44, 44}, {50, 50}, {51, 50}, {53, 50}, {54, 54}, {99, 54},
	} {
		if got := jsonwalk.CutLen([]byte(text), c.most); got != c.want {
			t.Errorf("%d: %d (%s), want %d", c.most, got, text[:got], c.want)
		}
	}
	if got := jsonwalk.CutLen([]byte(strings.Repeat("\x80", 40)), 20); got < 16 {
		t.Errorf("no way to get on: %d", got)
	}
}

// FuzzStream: whatever a server says becomes an error or a stream in good form.
func FuzzStream(f *testing.F) {
	f.Add(unaryAnswer("stop", `{"content":"a","reasoning":"b","tool_calls":[{"id":"x","function":{"name":"f","arguments":"{}"}}]}`), byte(0))
	f.Add([]byte(`{"choices":[{"index":0,"text":"\ud83d\ude00","logprobs":{"tokens":["a",2],"top_logprobs":[{}]},"finish_reason":"stop","x":"\u0000"}],"usage":{"prompt_tokens":1}}`), byte(255))
	f.Fuzz(func(t *testing.T, answer []byte, how byte) {
		route := Route(how & 1)
		v := View{IncludeUsage: how&2 > 0, ContinuousUsage: how&4 > 0, HideReasoning: how&8 > 0, ThinkingOff: how&16 > 0}
		begun := ""
		if how&32 > 0 {
			begun = "chatcmpl-0"
		}
		// Repeated, short inputs become long enough to be cut.
		for _, body := range [][]byte{answer, []byte(strings.Replace(string(answer), "a", strings.Repeat("a\xc3\xa9", 8000), 3))} {
			read, err := ReadAnswer(route, v, body, Bounds{}, newWords)
			shown := read.Body
			if err != nil {
				shown = body
			}
			if out, err := v.Stream(nil, route, shown, begun); err == nil {
				framed(t, out)
			} else if len(out) > 0 {
				t.Fatalf("an error, and yet %q", out)
			}
		}
	})
}
