package gatewaytest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/tidwall/gjson"
)

const weatherTools = `"tools":[
 {"type":"function","function":{"name":"get_weather","description":"Weather of a city","parameters":{"type":"object","properties":{"city":{"type":"string"},"unit":{"type":"string","enum":["celsius","fahrenheit"]}},"required":["city"]}}},
 {"type":"function","function":{"name":"add","description":"Add two numbers","parameters":{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"number"}},"required":["a","b"]}}}]`

func TestToolCalls(t *testing.T) {
	b := start(t, nil)
	for _, c := range []struct {
		name, text, more, finish string
		calls                    []string
	}{
		{"auto asks", "What is the weather in San Francisco, CA in fahrenheit?", "", "tool_calls",
			[]string{`get_weather {"city": "San Francisco, CA", "unit": "fahrenheit"}`}},
		{"auto does not", "Hello", "", "stop", nil},
		{"none", "What is the weather in Rome?", `,"tool_choice":"none"`, "stop", nil},
		{"required", "What is 3 + 4.5?", `,"tool_choice":"required"`, "tool_calls", []string{`get_weather`}},
		{"required and named in text", "add 3 and 4.5", `,"tool_choice":"required"`, "tool_calls", []string{`add {"a": 3, "b": 4.5}`}},
		{"named", "Hello", `,"tool_choice":{"type":"function","function":{"name":"add"}}`, "stop", []string{`add {"a": 1, "b": 1}`}},
		{"parallel", "call get_weather for 'Rome' and add 1 and 2", "", "tool_calls", []string{`get_weather {"city": "Rome"`, `add {"a": 1, "b": 2}`}},
		{"not parallel", "call get_weather for 'Rome' and add 1 and 2", `,"parallel_tool_calls":false`, "tool_calls", []string{`get_weather {"city": "Rome"`}},
		{"hook", "Hello", `,"sim":{"tool_calls":3}`, "tool_calls", []string{"get_weather", "add", "get_weather"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, v := b.post(chatPath, chat(c.text, weatherTools+c.more))
			ch := v.Get("choices.0")
			list := ch.Get("message.tool_calls").Array()
			if ch.Get("finish_reason").String() != c.finish || len(list) != len(c.calls) {
				t.Fatal(v)
			}
			for i, call := range list {
				got := call.Get("function.name").String() + " " + call.Get("function.arguments").String()
				if !strings.HasPrefix(got, c.calls[i]) || !strings.HasPrefix(call.Get("id").String(), "chatcmpl-tool-") {
					t.Errorf("%s: got %s", c.calls[i], call)
				}
			}
			if len(list) > 0 && ch.Get("message.content").Raw != "null" {
				t.Error("content:", ch)
			}
			s := b.stream(chatPath, chat(c.text, weatherTools+c.more+`,"stream":true`))
			names, arguments := streamedCalls(t, s)
			if len(names) != len(list) || s.finish(0) != c.finish {
				t.Fatal(s.raw)
			}
			for i, call := range list {
				if names[i] != call.Get("function.name").String() || arguments[i] != call.Get("function.arguments").String() {
					t.Errorf("streamed %s %s", names[i], arguments[i])
				}
			}
		})
	}
}

// streamedCalls joins hermes deltas: id, type and name once, without
// arguments, then fragments.
func streamedCalls(t *testing.T, s transcript) (names, arguments []string) {
	for _, c := range s.chunks {
		for _, d := range c.Get("choices.0.delta.tool_calls").Array() {
			if c.Get("choices.0.delta.content").Raw != "null" {
				t.Error("a tool delta has content null:", c)
			}
			i := int(d.Get("index").Int())
			if d.Get("id").Exists() {
				if d.Get("function.arguments").Exists() || d.Get("type").String() != "function" || i != len(names) {
					t.Error("first delta:", d)
				}
				names = append(names, d.Get("function.name").String())
				arguments = append(arguments, "")
				continue
			}
			arguments[i] += d.Get("function.arguments").String()
		}
	}
	return names, arguments
}

func TestToolDeltaShapeByVersion(t *testing.T) {
	for version, empty := range map[string]bool{"0.23.0": true, "0.28.0": false} {
		b := start(t, func(o *Options) { o.Version = version })
		s := b.stream(chatPath, chat("Hello", weatherTools+`,"stream":true,`+thinkingOff))
		if got := s.chunks[1].Get("choices.0.delta.tool_calls").Exists(); got != empty {
			t.Error(version, s.chunks[1])
		}
	}
}

func TestAnswerAfterToolResult(t *testing.T) {
	b := start(t, nil)
	body := `{"messages":[{"role":"user","content":"What is the weather in Rome?"},
		{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"get_weather","arguments":"{\"city\":\"Rome\"}"}}]},
		{"role":"tool","tool_call_id":"c1","content":"sunny"}],` + weatherTools + `}`
	if _, v := b.post(chatPath, body); len(v.Get("choices.0.message.tool_calls").Array()) != 0 || v.Get("choices.0.finish_reason").String() != "stop" {
		t.Error(v)
	}
}

func TestStructuredOutput(t *testing.T) {
	b := start(t, nil)
	ask := func(text, more string) string {
		t.Helper()
		_, v := b.post(chatPath, chat(text, more))
		s := b.stream(chatPath, chat(text, more+`,"stream":true`))
		whole := v.Get("choices.0.message.content").String()
		if s.joined(0, "delta.content") != whole {
			t.Errorf("streamed %q, whole %q", s.joined(0, "delta.content"), whole)
		}
		return whole
	}
	if got := ask("Joke as JSON with 'setup' and 'punchline'", `"response_format":{"type":"json_object"}`); gjson.Get(got, "setup").String() == "" || gjson.Get(got, "punchline").String() == "" {
		t.Error(got)
	}
	if got := ask("Is it blue or green? green", `"structured_outputs":{"choice":["red","green"]}`); got != "green" {
		t.Error(got)
	}
	if got := ask("hi", `"structured_outputs":{"regex":"[a-z]{3}-\\d{2}"}`); got != "aaa-11" {
		t.Error(got)
	}
	if got := ask("Plan 4 days in Rome", `"structured_outputs":{"json":{"type":"object","properties":{"days":{"type":"integer"},"city":{"type":"string"}}}}`); got != `{"days": 4, "city": "Rome"}` {
		t.Error(got)
	}
}

func TestInstancesFitTheirSchemas(t *testing.T) {
	text := "Plan 4 days in 'San Marco' with Anna, 2.5 hours each, not in winter, code ABC-12"
	for _, schema := range []string{
		`{"type":"object","properties":{"a":{"$ref":"#/$defs/P"},"b":{"anyOf":[{"type":"null"},{"type":"integer"}]}},"required":["a","b"],"$defs":{"P":{"type":"object","properties":{"n":{"type":"string"},"k":{"type":"array","items":{"$ref":"#/$defs/P"}}},"required":["n"],"additionalProperties":false}}}`,
		`{"type":"object","properties":{"x":{"type":"integer","minimum":100,"maximum":110},"y":{"type":"number","exclusiveMinimum":0,"multipleOf":0.5},"z":{"type":"integer","maximum":-3}},"required":["x","y","z"]}`,
		`{"type":"object","properties":{"s":{"type":"string","pattern":"^[A-Z]{3}-\\d{2}$"},"t":{"type":"string","minLength":40},"u":{"type":"string","maxLength":3}},"required":["s","t","u"]}`,
		`{"type":"array","items":{"enum":["summer","winter"]},"minItems":2,"maxItems":3}`,
		`{"type":"object","properties":{"c":{"const":7},"d":{"type":["string","null"]},"e":{"type":"boolean"},"f":{"type":"null"}},"required":["c","d","e","f"]}`,
		`{"type":"object","additionalProperties":{"type":"integer"},"minProperties":2}`,
		`{"allOf":[{"type":"object","properties":{"a":{"type":"string"}},"required":["a"]},{"properties":{"b":{"type":"integer"}},"required":["b"]}]}`,
		`{"oneOf":[{"type":"object","properties":{"kind":{"const":"cat"}},"required":["kind"]},{"type":"object","properties":{"kind":{"const":"dog"}},"required":["kind"]}]}`,
		`{"type":"array","prefixItems":[{"type":"string"},{"type":"integer"}],"items":{"type":"boolean"}}`,
		`{"type":"array","items":{"type":"number"}}`,
		`{"type":"object","properties":{"d":{"type":"string","format":"date"},"e":{"type":"string","format":"email"},"u":{"type":"string","format":"uuid"},"w":{"type":"string","format":"date-time"}},"required":["d","e","u","w"]}`,
		`{"type":"object"}`,
	} {
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if err := c.AddResource("s.json", doc); err != nil {
			t.Fatal(err)
		}
		compiled, err := c.Compile("s.json")
		if err != nil {
			t.Fatal(err)
		}
		got := instance(gjson.Parse(schema), text, nil)
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(got)))
		if err != nil {
			t.Fatalf("%s: %v", got, err)
		}
		if err := compiled.Validate(v); err != nil {
			t.Errorf("%s\n%s\n%v", schema, got, err)
		}
	}
}
