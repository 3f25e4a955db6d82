package qwen

import (
	"fmt"
	"strings"
	"testing"
)

func TestRender(t *testing.T) {
	const hi = "<|im_start|>user\nhi<|im_end|>\n"
	for _, test := range []struct{ name, messages, want string }{
		{"parts are joined, empty ones dropped",
			`[{"role":"user","content":["a",{"type":"text","text":"b"},{"type":"text","text":""},{"type":"text","text":null},{"type":"input_text","text":"c"}]}]`,
			"<|im_start|>user\na\nb\nc<|im_end|>\n"},
		{"null and missing content", `[{"role":"user","content":null},{"role":"system"},{"role":"user","content":[]}]`,
			"<|im_start|>user\n<|im_end|>\n<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n"},
		{"unknown roles are dropped", `[{"role":"developer","content":"x"},{"role":"user","content":"hi"}]`, hi},
		{"reasoning under its newer name", `[{"role":"user","content":"hi"},{"role":"assistant","content":"\n\nyes","reasoning":"\nhm\n"}]`,
			hi + "<|im_start|>assistant\n<think>\nhm\n</think>\n\nyes<|im_end|>\n"},
		{"the newer name wins", `[{"role":"user","content":"hi"},{"role":"assistant","content":"yes","reasoning":"a","reasoning_content":"b"}]`,
			hi + "<|im_start|>assistant\n<think>\na\n</think>\n\nyes<|im_end|>\n"},
		{"a list of reasoning is none", `[{"role":"user","content":"hi"},{"role":"assistant","content":"<think>\nx\n</think>\n\nyes","reasoning":[{"type":"text","text":"r"}],"reasoning_content":"s"}]`,
			hi + "<|im_start|>assistant\n<think>\nx\n</think>\n\nyes<|im_end|>\n"},
		{"null reasoning is none", `[{"role":"user","content":"hi"},{"role":"assistant","content":"<think>\nx\n</think>\n\nyes","reasoning":null}]`,
			hi + "<|im_start|>assistant\n<think>\nx\n</think>\n\nyes<|im_end|>\n"},
		{"thoughts before the last query go", `[{"role":"assistant","content":"<think>\nx\n</think>\n\nyes"},{"role":"user","content":"hi"}]`,
			"<|im_start|>assistant\nyes<|im_end|>\n" + hi},
		{"a result in a user's name is no query",
			`[{"role":"user","content":"hi"},{"role":"assistant","content":"a","reasoning":"r"},{"role":"user","content":"<tool_response>1</tool_response>"}]`,
			hi + "<|im_start|>assistant\n<think>\nr\n</think>\n\na<|im_end|>\n<|im_start|>user\n<tool_response>1</tool_response><|im_end|>\n"},
		{"arguments are dumped again",
			`[{"role":"user","content":"hi"},{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1e5,\"b\":[1,2]}"}},{"function":{"name":"g","arguments":"{not json"}},{"function":{"name":"h"}}]},{"role":"user","content":"hi"}]`,
			hi + "<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 100000.0, \"b\": [1, 2]}}\n</tool_call>\n" +
				"<tool_call>\n{\"name\": \"g\", \"arguments\": {not json}\n</tool_call>\n<tool_call>\n{\"name\": \"h\", \"arguments\": {}}\n</tool_call><|im_end|>\n" + hi},
		{"results in a row share a turn", `[{"role":"tool","content":"1"},{"role":"tool","content":"2"},{"role":"user","content":"hi"},{"role":"tool","content":"3"}]`,
			"<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n" + hi +
				"<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"},
		{"the last of repeated keys counts", `[{"role":"system","content":"x","role":"user","content":"h\u0069"}]`, hi},
		{"escapes", `[{"r\u006fle":"user","content":"\ud83d\ude00\ud83d \/\t"}]`, "<|im_start|>user\n😀\ufffd /\t<|im_end|>\n"},
	} {
		got, err := Render(Chat{Messages: []byte(test.messages), NoGenerationPrompt: true})
		if err != nil || got != test.want {
			t.Errorf("%s: %q, %v\nwant %q", test.name, got, err, test.want)
		}
	}
}

func TestRenderEnd(t *testing.T) {
	messages := []byte(`[{"role":"user","content":"hi"}]`)
	tok := newTokenizer(t)
	counts := map[ending]int{}
	for _, e := range []ending{{}, {NoThinking: true}, {NoGenerationPrompt: true}, {NoThinking: true, NoGenerationPrompt: true}} {
		text, err := Render(Chat{Messages: messages, NoThinking: e.NoThinking, NoGenerationPrompt: e.NoGenerationPrompt})
		if err != nil {
			t.Fatal(err)
		}
		counts[e] = tok.Count(text)
	}
	base := counts[ending{NoGenerationPrompt: true}]
	if counts[ending{}] != base+3 || counts[ending{NoThinking: true}] != base+7 || counts[ending{true, true}] != base {
		t.Errorf("%v", counts)
	}
}

// ending is the options that rule what stands after the last message.
type ending struct{ NoThinking, NoGenerationPrompt bool }

func TestRenderTools(t *testing.T) {
	for _, test := range []struct {
		tools, want string
		dialect     Dialect
	}{
		{`[{"function":{"name":"f"},"type":"function"}]`, `{"function": {"name": "f"}, "type": "function"}`, Template},
		{`[{"function":{"parameters":{"b":1,"a":1.0},"name":"f","strict":true},"x":"é","type":"function"}]`,
			`{"type": "function", "function": {"name": "f", "description": null, "parameters": {"b": 1, "a": 1.0}, "strict": true}, "x": "é"}`, V12},
		{`[{"function":{"name":"f","description":"d","name":"g"}}]`,
			`{"type": "function", "function": {"name": "g", "description": "d", "parameters": null}}`, V12},
	} {
		got, err := Render(Chat{Messages: []byte(`[{"role":"system","content":"s"},{"role":"user","content":"hi"}]`),
			Tools: []byte(test.tools), Dialect: test.dialect})
		if err != nil {
			t.Error(err)
			continue
		}
		_, got, _ = strings.Cut(got, "<tools>\n")
		got, _, _ = strings.Cut(got, "\n</tools>")
		if got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.tools, got, test.want)
		}
	}
	for _, none := range []string{"", "null", "[]", " [ ] "} {
		got, err := Render(Chat{Messages: []byte(`[{"role":"user","content":"hi"}]`), Tools: []byte(none)})
		if err != nil || strings.Contains(got, "Tools") {
			t.Errorf("tools %q: %q, %v", none, got, err)
		}
	}
}

func TestRenderErrors(t *testing.T) {
	const user = `{"role":"user","content":"hi"}`
	counter := NewCounter(newTokenizer(t), 100)
	deep := strings.Repeat("[", 600) + strings.Repeat("]", 600)
	for _, test := range []struct{ messages, tools, want string }{
		{``, ``, "messages must be an array"},
		{`{}`, ``, "messages must be an array"},
		{`[` + user, ``, "messages must be an array"},
		{`[` + user + `]x`, ``, "messages must be an array"},
		{`[]`, ``, "messages must not be empty"},
		{`[1]`, ``, "messages[0]: must be an object"},
		{`[` + user + `,{"content":"x"}]`, ``, "messages[1]: role must be a string"},
		{`[` + user + `,` + user + `,{"role":"user","content":5}]`, ``,
			"messages[2]: content must be a string, an array of parts or null"},
		{`[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]`, ``,
			`messages[0]: content[0]: only text content can be counted, not "image_url"`},
		{`[{"role":"user","content":[7]}]`, ``, "messages[0]: content[0]: must be an object or a string"},
		{`[{"role":"user","content":[{}]}]`, ``, "messages[0]: content[0]: type must be a string"},
		{`[{"role":"user","content":[{"type":"text","text":1}]}]`, ``, "messages[0]: content[0]: text must be a string"},
		{`[{"role":"assistant","tool_calls":{}}]`, ``, "messages[0]: tool_calls must be an array or null"},
		{`[{"role":"assistant","tool_calls":[1]}]`, ``, "messages[0]: tool_calls[0]: must be an object"},
		{`[{"role":"assistant","tool_calls":[{"function":1}]}]`, ``, "messages[0]: tool_calls[0]: function must be an object"},
		{`[{"role":"assistant","tool_calls":[{"function":{}}]}]`, ``, "messages[0]: tool_calls[0]: name must be a string"},
		{`[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":true}}]}]`, ``,
			"messages[0]: tool_calls[0]: arguments must be a string or an object"},
		{`[` + user + `]`, `{}`, "tools must be an array or null"},
		{`[` + user + `]`, `[{"type":"function","function":{"name":1}}]`, "tools[0]: function.name must be a string"},
		{`[` + user + `]`, `[1]`, "tools[0]: must be an object"},
		{`[` + user + `]`, `[{}]`, "tools[0]: function must be an object"},
		{`[` + user + `]`, `[{"function":{"name":"f","parameters":{"a":` + deep + `}}}]`, "tools[0]: must be JSON, at most 512 levels deep"},
		{`[` + user + `]`, `[{"type":"custom","custom":{"name":"x"}}]`, `tools[0]: type must be "function"`},
		{`[` + user + `]`, `[{"function":{"name":"f","description":1}}]`, "tools[0]: function.description must be a string or null"},
		{`[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"a"}}]}]`, ``,
			"messages[0]: tool_calls[0]: arguments must be JSON: the release of vLLM that answers here refuses others"},
		{`[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"` + deep + `"}}]}]`, ``,
			"messages[0]: tool_calls[0]: arguments must be at most 512 levels deep"},
	} {
		chat := Chat{Messages: []byte(test.messages), Tools: []byte(test.tools), Dialect: V12}
		if _, err := Render(chat); err == nil || err.Error() != test.want {
			t.Errorf("%s %s: %v, want %s", test.messages, test.tools, err, test.want)
		}
		if _, err := counter.Chat(chat); err == nil || err.Error() != test.want {
			t.Errorf("%s %s: Counter: %v, want %s", test.messages, test.tools, err, test.want)
		}
	}
}

func TestAppendPython(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`{"a":1,"b":[true,false,null]}`, `{"a": 1, "b": [true, false, null]}`},
		{" [ 1 , 2 ] \n", "[1, 2]"},
		{"{ }", "{}"},
		{"[]", "[]"},
		{"1e5", "100000.0"}, {"1e16", "1e+16"}, {"1E15", "1000000000000000.0"}, {"1.0", "1.0"},
		{"1e-5", "1e-05"}, {"0.0001", "0.0001"}, {"1.5e-7", "1.5e-07"}, {"1e22", "1e+22"}, {"1e100", "1e+100"},
		{"123456789012345678901234567890", "123456789012345678901234567890"},
		{"-0", "0"}, {"-0.0", "-0.0"}, {"0e0", "0.0"}, {"1e400", "Infinity"}, {"-1e400", "-Infinity"},
		{"[NaN,Infinity,-Infinity]", "[NaN, Infinity, -Infinity]"},
		{`"\u00e9\/\u001f\u007f\"\\\b\f\n\r\t"`, `"é/\u001f` + "\x7f" + `\"\\\b\f\n\r\t"`},
		{`{"a":1,"b":2,"a":3}`, `{"a": 3, "b": 2}`},
		{`{"a":{"x":1,"x":2},"b":0,"\u0061":[]}`, `{"a": [], "b": 0}`},
	} {
		got, ok := appendPython([]byte("x"), []byte(test.in))
		if !ok || string(got) != "x"+test.want {
			t.Errorf("%s = %s, %v, want %s", test.in, got, ok, test.want)
		}
	}
	many := `{"k0":0`
	for i := range 40 {
		many += fmt.Sprintf(`,"k%d":1`, i+1)
	}
	if got, ok := appendPython(nil, []byte(many+`,"k30":7}`)); !ok || strings.Count(string(got), `"k30"`) != 1 || !strings.Contains(string(got), `"k30": 7, "k31"`) {
		t.Errorf("many keys: %s", got)
	}
	for _, bad := range []string{"", " ", "{", "[1,]", "{,}", `{"a"}`, `{"a":}`, `{"a":1,}`, "01", "1.", "1e", "-", "+1", ".5",
		"tru", "[1 2]", `"a`, `"\x"`, `"\u12g4"`, "\"\n\"", "1 2", "{1:2}", `{"a":1 "b":2}`, "]", strings.Repeat("[", 1<<20)} {
		if got, ok := appendPython(nil, []byte(bad)); ok {
			t.Errorf("%.20q passes as %s", bad, got)
		}
	}
}
