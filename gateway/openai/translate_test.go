package openai

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"tidegate/gateway/jsonwalk/jsontest"
)

type translation struct {
	name  string
	route Route
	body  string
	want  string // the body sent on; empty: as it came
	wish  Wish
}

// chatWith is a chat with more members; its translation is the same with others.
func chatWith(members string) string {
	if members != "" {
		members = "," + members
	}
	return `{"model":"m","messages":[{"role":"user","content":"hi"}]` + members + `}`
}

func translations() []translation {
	plain, off := Wish{Model: "m", N: 1}, Wish{Model: "m", N: 1, NoThinking: true}
	chat := func(name, body, want string, wish Wish) translation {
		wish.ThinkingOpen = !wish.NoThinking && !strings.Contains(want, `"enable_thinking"`)
		return translation{name, Chat, chatWith(body), chatWith(want), wish}
	}
	return []translation{
		chat("nothing", ``, ``, plain),
		chat("unknown fields", `"top_k":20,"seed":7,"x":{"y":[1.0,1e5,12345678901234567890]}`, `"top_k":20,"seed":7,"x":{"y":[1.0,1e5,12345678901234567890]}`, plain),
		// The thinking switch.
		chat("enable_thinking false", `"enable_thinking":false`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("enable_thinking true", `"enable_thinking":true`, `"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("enable_thinking null", `"enable_thinking":null`, ``, plain),
		chat("kwargs stay", `"chat_template_kwargs":{"enable_thinking":false}`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("kwargs true", `"chat_template_kwargs":{"enable_thinking":true}`, `"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("kwargs as text do nothing", `"chat_template_kwargs":{"enable_thinking":"false"}`, `"chat_template_kwargs":{"enable_thinking":"false"}`, plain),
		chat("kwargs win", `"enable_thinking":true,"chat_template_kwargs":{"enable_thinking":false}`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("kwargs are kept", `"enable_thinking":false,"chat_template_kwargs":{ "a": 1 }`, `"chat_template_kwargs":{"enable_thinking":false,"a": 1 }`, off),
		chat("kwargs empty", `"enable_thinking":false,"chat_template_kwargs":{ }`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("kwargs null", `"enable_thinking":false,"chat_template_kwargs":null`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("nested", `"extra_body":{"enable_thinking":false,"return_reasoning":false}`, `"chat_template_kwargs":{"enable_thinking":false}`, Wish{Model: "m", N: 1, NoThinking: true, HideReasoning: true}),
		chat("nested kwargs", `"extra_body":{"chat_template_kwargs":{"enable_thinking":false}}`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("thinking disabled", `"thinking":{"type":"disabled"}`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("thinking enabled", `"thinking":{"type":"enabled","budget_tokens":5}`, `"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("thinking adaptive", `"thinking":{"type":"adaptive"}`, `"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("enable_thinking before thinking", `"thinking":{"type":"enabled"},"enable_thinking":false`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("effort none", `"reasoning_effort":"none"`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("effort in reasoning", `"reasoning":{"effort":"none"}`, `"reasoning":{"effort":"none"},"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("effort low", `"reasoning_effort":"low"`, `"reasoning_effort":"low","chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("effort in reasoning, high", `"reasoning":{"effort":"high"}`, `"reasoning":{"effort":"high"},"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("effort no text", `"reasoning_effort":5`, `"reasoning_effort":5`, plain),
		chat("enable_thinking before effort", `"reasoning_effort":"none","enable_thinking":true`, `"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("kwargs before effort", `"reasoning_effort":"none","chat_template_kwargs":{"enable_thinking":true}`, `"chat_template_kwargs":{"enable_thinking":true}`, plain),
		chat("kwargs null say nothing", `"chat_template_kwargs":{"enable_thinking":null,"a":1}`, `"chat_template_kwargs":{"a":1}`, plain),
		chat("kwargs auto say nothing", `"chat_template_kwargs":{"enable_thinking":"auto"},"reasoning_effort":"none"`, `"chat_template_kwargs":{"enable_thinking":false}`, off),
		chat("kwargs that no template reads", `"chat_template_kwargs":{"thinking":false,"preserve_thinking":null,"a":"`+strings.Repeat("x", 254)+`"}`, `"chat_template_kwargs":{"thinking":false,"preserve_thinking":null,"a":"`+strings.Repeat("x", 254)+`"}`, plain),
		chat("truncated", `"truncate_prompt_tokens":-1`, `"truncate_prompt_tokens":-1`, Wish{Model: "m", N: 1, Truncate: -1}),
		chat("continued", `"continue_final_message":true,"add_generation_prompt":false`, `"continue_final_message":true,"add_generation_prompt":false`, plain),
		chat("thinking_budget", `"thinking_budget":64`, `"thinking_token_budget":64`, plain),
		chat("thinking_budget yields", `"thinking_budget":64,"thinking_token_budget":-1`, `"thinking_token_budget":-1`, plain),
		// Reasoning in the answer.
		chat("return_reasoning false", `"return_reasoning":false`, ``, Wish{Model: "m", N: 1, HideReasoning: true}),
		chat("return_reasoning true", `"return_reasoning":true`, ``, plain),
		chat("include_reasoning false", `"include_reasoning":false`, ``, Wish{Model: "m", N: 1, HideReasoning: true}),
		chat("either hides", `"include_reasoning":true,"return_reasoning":false`, ``, Wish{Model: "m", N: 1, HideReasoning: true}),
		// Structured output.
		chat("guided_json", `"guided_json":{"type": "object"}`, `"structured_outputs":{"json":{"type": "object"}}`, plain),
		chat("guided_regex", `"guided_regex":"a\\d"`, `"structured_outputs":{"regex":"a\\d"}`, plain),
		chat("guided_choice", `"guided_choice":["a","b"]`, `"structured_outputs":{"choice":["a","b"]}`, plain),
		chat("guided_grammar", `"guided_grammar":"root ::= a","guided_json":null`, `"structured_outputs":{"grammar":"root ::= a"}`, plain),
		chat("structured_outputs", `"structured_outputs":{"regex":"a"}`, `"structured_outputs":{"regex":"a"}`, plain),
		// What callers may not say.
		chat("stripped", `"priority":-9,"kv_transfer_params":{"a":1},"request_id":"r","prompt_logprobs":1,"use_beam_search":true,"ignore_eos":true,"top_p":0.5`, `"top_p":0.5`, plain),
		chat("stripped, nested", `"extra_body":{"priority":-9,"ignore_eos":true}`, ``, plain),
		chat("stripped, escaped", `"\u0070riority":-9`, ``, plain),
		// Numbers and the stream.
		chat("n", `"n":8`, `"n":8`, Wish{Model: "m", N: 8}),
		chat("max_tokens", `"max_tokens":5`, `"max_tokens":5`, Wish{Model: "m", N: 1, MaxTokens: 5}),
		chat("max_completion_tokens wins", `"max_completion_tokens":7,"max_tokens":5`, `"max_completion_tokens":7,"max_tokens":5`, Wish{Model: "m", N: 1, MaxTokens: 7}),
		chat("max_tokens null", `"max_tokens":null,"n":null`, `"max_tokens":null,"n":null`, plain),
		chat("stream", `"stream":true`, `"stream":true`, Wish{Model: "m", N: 1, Stream: true}),
		chat("stream with usage", `"stream":true,"stream_options":{"include_usage":true}`, `"stream":true,"stream_options":{"include_usage":true}`, Wish{Model: "m", N: 1, Stream: true, IncludeUsage: true}),
		chat("stream with continuous usage", `"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`, `"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`, Wish{Model: "m", N: 1, Stream: true, IncludeUsage: true, ContinuousUsage: true}),
		chat("continuous needs include", `"stream":true,"stream_options":{"continuous_usage_stats":true}`, `"stream":true,"stream_options":{"continuous_usage_stats":true}`, Wish{Model: "m", N: 1, Stream: true}),
		chat("stream_options null", `"stream_options":null`, `"stream_options":null`, plain),
		// Completions.
		{"completion", Completions, `{"model":"m","prompt":"p"}`, ``, plain},
		{"completion keeps", Completions, `{"model":"m","prompt":[1,2],"max_tokens":3,"enable_thinking":false}`, ``, Wish{Model: "m", N: 1, MaxTokens: 3}},
		{"completion ignores max_completion_tokens", Completions, `{"model":"m","prompt":"p","max_completion_tokens":9}`, ``, plain},
		{"completion guided", Completions, `{"model":"m","prompt":"p","guided_regex":"a","priority":1}`, `{"model":"m","prompt":"p","structured_outputs":{"regex":"a"}}`, plain},
	}
}

func TestTranslate(t *testing.T) {
	for _, c := range translations() {
		t.Run(c.name, func(t *testing.T) {
			q := parse(t, c.route, c.body)
			wish, err := q.Translate(8)
			if err != nil {
				t.Fatal(err)
			}
			if wish != c.wish {
				t.Errorf("got  %+v\nwant %+v", wish, c.wish)
			}
			want := c.want
			if want == "" {
				want = c.body
			}
			// Members may move; their values may not change by a byte.
			got, wanted := jsontest.Pairs(t, q.Bytes()), jsontest.Pairs(t, []byte(want))
			byName := func(a, b jsontest.Pair) int { return strings.Compare(a.Name, b.Name) }
			slices.SortFunc(got, byName)
			slices.SortFunc(wanted, byName)
			if !slices.Equal(got, wanted) {
				t.Errorf("got  %s\nwant %s", q.Bytes(), want)
			}
			if c.route == Chat {
				if off, open, err := parse(t, Chat, c.body).ThinkingSwitch(); err != nil || off != c.wish.NoThinking || open != c.wish.ThinkingOpen {
					t.Errorf("ThinkingOff = %v, %v, %v", off, open, err)
				}
			}
		})
	}
}

func TestTranslateRefuses(t *testing.T) {
	for _, c := range []struct {
		name, body, param string
	}{
		{"model a number", `{"model":5,"messages":[{}]}`, "model"},
		{"model a list", `{"model":["m"],"messages":[{}]}`, "model"},
		{"no messages", `{"model":"m"}`, "messages"},
		{"messages null", `{"model":"m","messages":null}`, "messages"},
		{"messages empty", `{"model":"m","messages":[ ]}`, "messages"},
		{"messages a string", `{"model":"m","messages":"hi"}`, "messages"},
		{"messages an object", `{"model":"m","messages":{}}`, "messages"},
		{"n zero", chatWith(`"n":0`), "n"},
		{"n too large", chatWith(`"n":9`), "n"},
		{"n a fraction", chatWith(`"n":1.5`), "n"},
		{"n a word", chatWith(`"n":"one"`), "n"},
		{"max_tokens zero", chatWith(`"max_tokens":0`), "max_tokens"},
		{"max_tokens negative", chatWith(`"max_tokens":-5`), "max_tokens"},
		{"max_tokens a fraction as text", chatWith(`"max_tokens":"5.5"`), "max_tokens"},
		{"max_tokens zero, echo", chatWith(`"max_tokens":0,"echo":true`), "max_tokens"},
		{"max_tokens false", chatWith(`"max_tokens":false`), "max_tokens"},
		{"max_completion_tokens", chatWith(`"max_completion_tokens":[1]`), "max_completion_tokens"},
		{"stream", chatWith(`"stream":"maybe"`), "stream"},
		{"stream a number", chatWith(`"stream":2`), "stream"},
		{"stream_options", chatWith(`"stream":true,"stream_options":true`), "stream_options"},
		{"stream_options alone", chatWith(`"stream_options":{"include_usage":true}`), "stream_options"},
		{"stream_options without stream", chatWith(`"stream":false,"stream_options":{}`), "stream_options"},
		{"return_reasoning", chatWith(`"return_reasoning":"none"`), "return_reasoning"},
		{"include_reasoning", chatWith(`"include_reasoning":0.5`), "include_reasoning"},
		{"enable_thinking", chatWith(`"enable_thinking":"auto"`), "enable_thinking"},
		{"thinking a bool", chatWith(`"thinking":true`), "thinking"},
		{"thinking type", chatWith(`"thinking":{"type":"maybe"}`), "thinking"},
		{"thinking without type", chatWith(`"thinking":{}`), "thinking"},
		{"thinking_budget", chatWith(`"thinking_budget":-1`), "thinking_budget"},
		{"chat_template_kwargs", chatWith(`"chat_template_kwargs":[]`), "chat_template_kwargs"},
		{"kwargs tools", chatWith(`"chat_template_kwargs":{"tools":[]}`), "chat_template_kwargs"},
		{"kwargs tools, escaped", chatWith(`"chat_template_kwargs":{"enable_thinking":true,"t\u006fols":null}`), "chat_template_kwargs"},
		{"kwargs messages", chatWith(`"chat_template_kwargs":{"messages":[]}`), "chat_template_kwargs"},
		{"kwargs documents", chatWith(`"extra_body":{"chat_template_kwargs":{"documents":[]}}`), "chat_template_kwargs"},
		{"kwargs add_generation_prompt", chatWith(`"chat_template_kwargs":{"add_generation_prompt":false}`), "chat_template_kwargs"},
		{"kwargs continue_final_message", chatWith(`"chat_template_kwargs":{"continue_final_message":true}`), "chat_template_kwargs"},
		{"kwargs chat_template", chatWith(`"chat_template_kwargs":{"chat_template":"x"}`), "chat_template_kwargs"},
		{"kwargs tokenize", chatWith(`"chat_template_kwargs":{"tokenize":true}`), "chat_template_kwargs"},
		{"kwargs of the template's own", chatWith(`"chat_template_kwargs":{"namespace":1}`), "chat_template_kwargs"},
		{"kwargs unknown, a list", chatWith(`"chat_template_kwargs":{"x":[]}`), "chat_template_kwargs"},
		{"kwargs unknown, long", chatWith(`"chat_template_kwargs":{"x":"` + strings.Repeat("x", 255) + `"}`), "chat_template_kwargs"},
		{"add_generation_prompt", chatWith(`"add_generation_prompt":[]`), "add_generation_prompt"},
		{"continue_final_message", chatWith(`"continue_final_message":" yes"`), "continue_final_message"},
		{"continued and begun", chatWith(`"continue_final_message":true`), "continue_final_message"},
		{"continued and begun, said", chatWith(`"continue_final_message":true,"add_generation_prompt":true`), "continue_final_message"},
		{"truncate_prompt_tokens 0", chatWith(`"truncate_prompt_tokens":0`), "truncate_prompt_tokens"},
		{"truncate_prompt_tokens -2", chatWith(`"truncate_prompt_tokens":-2`), "truncate_prompt_tokens"},
		{"truncate_prompt_tokens a text", chatWith(`"truncate_prompt_tokens":"4k"`), "truncate_prompt_tokens"},
		{"two constraints", chatWith(`"guided_json":{},"guided_regex":"a"`), "guided_regex"},
		{"guided and structured", chatWith(`"structured_outputs":{"json":{}},"guided_choice":["a"]`), "guided_choice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(t, Chat, c.body).Translate(8)
			if err == nil || err.Param != c.param || err.Code != "invalid_request" || !json.Valid(err.Body()) {
				t.Errorf("%+v", err)
			}
		})
	}
	for body, param := range map[string]string{
		`{"model":"m"}`: "prompt", `{"model":"m","messages":[{}]}`: "prompt",
		`{"model":"m","prompt":"p","max_completion_tokens":"x"}`: "max_completion_tokens",
		`{"model":"m","prompt":"p","max_tokens":0}`:              "max_tokens", `{"model":"m","prompt":"p","max_tokens":"0","echo":"no"}`: "max_tokens", `{"model":"m","prompt":"p","max_tokens":-1,"echo":true}`: "max_tokens",
	} {
		if _, err := parse(t, Completions, body).Translate(8); err == nil || err.Param != param {
			t.Errorf("%s: %+v", body, err)
		}
	}
}

func TestDeveloper(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"renamed", `[{"role":"developer","content":"x"}]`, `[{"role":"system","content":"x"}]`},
		{"white space stays", `[ { "role" : "developer" , "content":"x" } , {"role":"user"} ]`, `[ { "role" : "system" , "content":"x" } , {"role":"user"} ]`},
		{"several", `[{"content":"a","role":"developer"},{"role":"user","content":"b"},{"role":"developer","content":"c"}]`, `[{"content":"a","role":"system"},{"role":"user","content":"b"},{"role":"system","content":"c"}]`},
		{"the word in a text", `[{"role":"user","content":"developer"}]`, ``},
		{"the word quoted in a text", `[{"role":"user","content":"a \"developer\" and \"role\":\"developer\""}]`, ``},
		{"both", `[{"role":"developer","content":"\"developer\""},{"role":"user","content":"developer"}]`, `[{"role":"system","content":"\"developer\""},{"role":"user","content":"developer"}]`},
		{"as a name", `[{"role":"user","name":"developer","content":"x"}]`, ``},
		{"deeper", `[{"role":"user","content":[{"type":"text","role":"developer"}]}]`, ``},
		{"no object", `["developer",{"role":"developer"},null]`, `["developer",{"role":"system"},null]`},
		{"another case", `[{"role":"Developer"}]`, ``},
		{"an escaped key", `[{"r\u006fle":"developer"}]`, `[{"r\u006fle":"system"}]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := parse(t, Chat, `{"model":"m","messages":`+c.in+`}`)
			if _, err := q.Translate(8); err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want == "" {
				want = c.in
			}
			if got, _ := q.Raw("messages"); string(got) != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestNameReasoning(t *testing.T) {
	for _, c := range []struct{ name, in, want, old string }{
		{"the old name", `[{"role":"assistant","reasoning_content":"r"}]`, `[{"role":"assistant","reasoning":"r"}]`, `[{"role":"assistant","reasoning_content":"r"}]`},
		{"the new name", `[{"role":"assistant","reasoning":"r"}]`, `[{"role":"assistant","reasoning":"r"}]`, `[{"role":"assistant","reasoning_content":"r"}]`},
		{"both", `[{"reasoning_content":"a","role":"assistant","reasoning":"b"}]`, `[{"role":"assistant","reasoning":"b"}]`, `[{"role":"assistant","reasoning_content":"b"}]`},
		{"a null that would win", `[{"reasoning":null,"role":"assistant","reasoning_content":"a"}]`, `[{"role":"assistant","reasoning":"a"}]`, `[{"role":"assistant","reasoning_content":"a"}]`},
		{"escaped", `[{"re\u0061soning_content" : "a"}]`, `[{"reasoning" : "a"}]`, `[{"reasoning_content" : "a"}]`},
		{"in a text", `[{"role":"user","content":"reasoning_content"},{"role":"user","content":"\"reasoning_content\":1"}]`, ``, ``},
		{"several", `[{"reasoning_content":"a"},7,{"reasoning_content":"b"}]`, `[{"reasoning":"a"},7,{"reasoning":"b"}]`, `[{"reasoning_content":"a"},7,{"reasoning_content":"b"}]`},
	} {
		q := parse(t, Chat, `{"model":"m","messages":`+c.in+`}`)
		if _, err := q.Translate(8); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct{ name, want string }{{"", c.want}, {"reasoning_content", c.old}, {"reasoning", c.want}} {
			if step.name != "" {
				q.RenameReasoning(step.name) // as for a server of another version
			}
			want := step.want
			if want == "" {
				want = c.in
			}
			if got, _ := q.Raw("messages"); string(got) != want {
				t.Errorf("%s, %s: %s, want %s", c.name, step.name, got, want)
			}
		}
	}
}
