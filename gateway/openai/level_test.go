package openai

import (
	"encoding/json"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk/jsontest"
)

func TestWhole(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		route          Route
		most, limit    int
	}{
		{"streamed", `{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":10}`, `{"model":"m","stream":false,"max_tokens":10}`, Chat, 100, 10},
		{"nothing to do", ` { "stream" : false, "n":1, "max_tokens" : 10 }`, ` { "stream" : false, "n":1, "max_tokens" : 10 }`, Chat, 10, 10},
		{"another spelling", ` { "stream" : false, "n":1, "max_tokens" : 10.0 }`, `{"stream":false,"n":1,"max_tokens":10}`, Chat, 10, 10},
		{"clamped", `{"max_tokens":101}`, `{"max_tokens":100}`, Chat, 100, 100},
		{"the other spelling", `{"max_completion_tokens":5000}`, `{"max_completion_tokens":100}`, Chat, 100, 100},
		{"both, the effective one is low", `{"max_tokens":5000,"max_completion_tokens":50}`, `{"max_tokens":5000,"max_completion_tokens":50}`, Chat, 100, 50},
		{"both, the effective one is high", `{"max_tokens":50,"max_completion_tokens":5000}`, `{"max_tokens":100,"max_completion_tokens":100}`, Chat, 100, 100},
		{"none", `{"a":1}`, `{"a":1,"max_tokens":100}`, Chat, 100, 100},
		{"null", `{"max_tokens":null}`, `{"max_tokens":100}`, Chat, 100, 100},
		{"none, completion", `{"a":1}`, `{"a":1,"max_tokens":16}`, Completions, 100, 16},
		{"none, completion, lower", `{}`, `{"max_tokens":8}`, Completions, 8, 8},
		{"a completion does not know the other", `{"max_completion_tokens":5,"max_tokens":500}`, `{"max_completion_tokens":100,"max_tokens":100}`, Completions, 100, 100},
		{"a completion with the other alone", `{"max_completion_tokens":5}`, `{"max_completion_tokens":16,"max_tokens":16}`, Completions, 100, 16},
		{"choices", `{"n":4,"best_of":5,"max_tokens":1}`, `{"n":1,"best_of":1,"max_tokens":1}`, Completions, 100, 1},
		{"a minimum above the cap", `{"min_tokens":500,"max_tokens":600}`, `{"min_tokens":100,"max_tokens":100}`, Chat, 100, 100},
		{"a minimum below", `{"min_tokens":5,"max_tokens":600}`, `{"min_tokens":5,"max_tokens":100}`, Chat, 100, 100},
		{"no minimum can be read", `{"min_tokens":"x","max_tokens":6}`, `{"min_tokens":"x","max_tokens":6}`, Chat, 100, 6},
	} {
		q := parse(t, c.route, c.in)
		if limit := q.MakeUnary(c.most); string(q.Bytes()) != c.want || limit != c.limit {
			t.Errorf("%s: %s, limit %d; want %s, %d", c.name, q.Bytes(), limit, c.want, c.limit)
		}
	}
}

func TestStopThinking(t *testing.T) {
	const set = `"temperature":0.7,"top_p":0.8,"top_k":20`
	off := `{"chat_template_kwargs":{"enable_thinking":false},` + set + `}`
	for _, c := range []struct {
		name, in, want string
		grown          int
	}{
		{"nothing said", `{}`, off, 4},
		{"null", `{"chat_template_kwargs":null}`, off, 4},
		{"empty", `{"chat_template_kwargs":{ }}`, off, 4},
		{"no object", `{"chat_template_kwargs":5}`, off, 4},
		{"on", `{"chat_template_kwargs":{"enable_thinking":true}}`, off, 4},
		{"off", `{"chat_template_kwargs":{"enable_thinking":false}}`, off, 0},
		{"a string, which the template takes for on", `{"chat_template_kwargs":{"enable_thinking":"false"}}`, off, 4},
		{"null inside", `{"chat_template_kwargs":{"enable_thinking":null}}`, off, 4},
		{"twice, the last is off", `{"chat_template_kwargs":{"enable_thinking":true,"enable_thinking":false}}`, off, 0},
		{"twice, the last is on", `{"chat_template_kwargs":{"enable_thinking":false, "enable_thinking":true}}`, off, 4},
		{"escaped", `{"chat_template_kwargs":{"a":1,"enable\u005fthinking":true}}`, `{"chat_template_kwargs":{"enable_thinking":false,"a":1},` + set + `}`, 4},
		{"merged", `{"chat_template_kwargs":{"a" : 1.0, "enable_thinking":true ,"b":[ "x" ]}}`, `{"chat_template_kwargs":{"enable_thinking":false,"a" : 1.0 ,"b":[ "x" ]},` + set + `}`, 4},
		{"first of several", `{"chat_template_kwargs":{"enable_thinking":true , "b":"\u0041"}}`, `{"chat_template_kwargs":{"enable_thinking":false,"b":"\u0041"},` + set + `}`, 4},
		{"no generation prompt", `{"add_generation_prompt":false}`, `{"add_generation_prompt":false,` + off[1:], 0},
		{"budgets", `{"thinking_token_budget":5,"thinking_budget":6,"reasoning_effort":"high","reasoning":{"effort":"low"}}`, off, 4},
		{"the rest of reasoning stays", `{"reasoning":{"effort":"low", "summary": "auto"}}`, `{"reasoning":{ "summary": "auto"},` + off[1:], 4},
		{"reasoning without an effort", `{"reasoning":{ "summary": "auto"}}`, `{"reasoning":{ "summary": "auto"},` + off[1:], 4},
		{"own sampling", `{"temperature":0,"top_k":null,"top_p":1}`, `{"temperature":0,"top_k":20,"top_p":1,"chat_template_kwargs":{"enable_thinking":false}}`, 4},
	} {
		q := parse(t, Chat, c.in)
		growth := q.Growth()
		if grown := q.StopThinking(); string(q.Bytes()) != c.want || grown != c.grown || growth != grown {
			t.Errorf("%s: %s, %d more (%d said); want %s, %d", c.name, q.Bytes(), grown, growth, c.want, c.grown)
		}
		if again := q.StopThinking(); again != 0 || string(q.Bytes()) != c.want {
			t.Errorf("%s: a second time: %s, %d", c.name, q.Bytes(), again)
		}
	}
	const raw = `{"prompt":"a","reasoning_effort":"high"}`
	if q := parse(t, Completions, raw); q.StopThinking() != 0 || q.Growth() != 0 || string(q.Bytes()) != raw {
		t.Errorf("a completion became %s", q.Bytes())
	}
}

// TestLevelsKeepTheRest: the body stays JSON, and what no level is about stays as
// it was written.
func TestLevelsKeepTheRest(t *testing.T) {
	about := []string{
		"stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p", "top_k",
		"chat_template_kwargs", "thinking_token_budget", "thinking_budget", "reasoning_effort", "reasoning",
	}
	rapid.Check(t, func(t *rapid.T) {
		var names, values []string
		for _, n := range append(slices.Clone(about), "messages", "tools", "later") {
			if rapid.Bool().Draw(t, n) {
				names = append(names, `"`+n+`"`)
				values = append(values, jsontest.Value(t, 3))
			}
		}
		names, values = shuffled(t, names, values)
		body := jsontest.Object(t, names, values)
		route := Route(rapid.IntRange(0, 1).Draw(t, "route"))
		q, fault := ParseRequest(route, []byte(body))
		if fault != nil {
			t.Fatal(fault)
		}
		var inner []jsontest.Pair
		if raw, ok := q.Raw("chat_template_kwargs"); ok && raw[0] == '{' {
			inner = jsontest.Pairs(t, raw)
		}
		limit := q.MakeUnary(rapid.IntRange(1, 100).Draw(t, "most"))
		q.StopThinking()
		out := q.Bytes()
		if !json.Valid(out) || limit < 1 {
			t.Fatalf("%s\nbecame %s, limit %d", body, out, limit)
		}
		rest := func(list []jsontest.Pair) []jsontest.Pair {
			return slices.DeleteFunc(list, func(p jsontest.Pair) bool { return slices.Contains(about, p.Name) || p.Name == "enable_thinking" })
		}
		after := jsontest.Pairs(t, out)
		if route == Chat {
			i := slices.IndexFunc(after, func(p jsontest.Pair) bool { return p.Name == "chat_template_kwargs" })
			kwargs := jsontest.Pairs(t, []byte(after[i].Value))
			if kwargs[0] != (jsontest.Pair{Name: "enable_thinking", Value: "false"}) || !slices.Equal(rest(kwargs), rest(inner)) {
				t.Fatalf("%v became %v", inner, kwargs)
			}
		}
		if was, is := rest(jsontest.Pairs(t, []byte(body))), rest(after); !slices.Equal(was, is) {
			t.Fatalf("%v\nbecame %v", was, is)
		}
	})
}

func TestNeeds(t *testing.T) {
	const tools = `"tools":[{"type":"function"}]`
	for in, want := range map[string]Needs{
		`{}`:                                       {},
		`{"tools":[]}`:                             {},
		`{"tools":null,"tool_choice":"auto"}`:      {},
		`{` + tools + `}`:                          {Tools: true, AutoTools: true},
		`{` + tools + `,"tool_choice":null}`:       {Tools: true, AutoTools: true},
		`{` + tools + `,"tool_choice":"auto"}`:     {Tools: true, AutoTools: true},
		`{` + tools + `,"tool_choice":"none"}`:     {},
		`{` + tools + `,"tool_choice":"required"}`: {Tools: true, Call: true},
		`{` + tools + `,"tool_choice":{"type":"function","function":{"name":"f"}}}`:                  {Tools: true, Call: true},
		`{` + tools + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required"}}}`: {Tools: true, AutoTools: true, Call: true},
		`{` + tools + `,"tool_choice":{"type":"allowed_tools"}}`:                                     {Tools: true, AutoTools: true},
		`{"response_format":{"type":"text"}}`:                                                        {},
		`{"response_format":null}`:                                                                   {},
		`{"response_format":{"type":"json_object"}}`:                                                 {Structured: true},
		`{"response_format":{"type":"json_schema","json_schema":{}}}`:                                {Structured: true},
		`{"response_format":{"type":"structural_tag"}}`:                                              {Structured: true},
		`{"structured_outputs":{"regex":"a"}}`:                                                       {Structured: true},
		`{"structured_outputs":null}`:                                                                {},
		`{"guided_choice":["a"]}`:                                                                    {Structured: true},
		`{` + tools + `,"tool_choice":"required","response_format":{"type":"json_object"}}`:          {Tools: true, Call: true, Structured: true},
	} {
		if got := parse(t, Chat, in).Needs(); got != want {
			t.Errorf("%s: %+v", in, got)
		}
		want.Tools, want.AutoTools, want.Call = false, false, false
		if got := parse(t, Completions, in).Needs(); got != want {
			t.Errorf("completion %s: %+v", in, got)
		}
	}
}
