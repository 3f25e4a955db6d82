package qwen

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestDialectOf(t *testing.T) {
	for minor, want := range map[int]Dialect{-1: Newest, 0: V12, 16: V12, 20: V12, 21: V21, 22: V21, 23: V23, 26: V24, 28: V27, 31: V29, 32: V32, 99: Newest} {
		if got := DialectOf(minor); got != want {
			t.Errorf("DialectOf(%d) = %d, want %d", minor, got, want)
		}
	}
}

// TestToolsByRelease renders the same tools as several releases of vLLM do.
func TestToolsByRelease(t *testing.T) {
	const begin = `{"type": "function", "function": {"name": "f", "description": null, "parameters": null`
	for _, test := range []struct{ tool, v12, v21, v24, v27 string }{
		{
			`{"function":{"strict":null,"name":"f"}}`,
			begin + `, "strict": null}}`, begin + `, "strict": null}}`, begin + `}}`, begin + `}}`,
		},
		{
			`{"function":{"strict":true,"name":"f","x":1},"y":2}`,
			begin + `, "strict": true, "x": 1}, "y": 2}`, begin + `, "strict": true, "x": 1}, "y": 2}`,
			begin + `, "strict": true, "x": 1}, "y": 2}`, begin + `, "strict": true}}`,
		},
		{
			`{"function":{"name":"f","x":1},"cache_control":{"type":"ephemeral"},"defer_loading":true}`,
			begin + `, "x": 1}, "cache_control": {"type": "ephemeral"}, "defer_loading": true}`,
			begin + `, "defer_loading": true, "x": 1}, "defer_loading": true, "cache_control": {"type": "ephemeral"}}`,
			begin + `, "defer_loading": true, "x": 1}, "defer_loading": true, "cache_control": {"type": "ephemeral"}}`,
			begin + `, "defer_loading": true}, "defer_loading": true}`,
		},
		{
			`{"function":{"defer_loading":false,"name":"f"},"defer_loading":null}`,
			begin + `, "defer_loading": false}, "defer_loading": null}`,
			begin + `, "defer_loading": false}}`, begin + `, "defer_loading": false}}`, begin + `, "defer_loading": false}}`,
		},
	} {
		for d, want := range map[Dialect]string{V12: test.v12, V21: test.v21, V24: test.v24, V27: test.v27} {
			got, err := d.appendTool(nil, []byte(test.tool))
			if err != nil || string(got) != want {
				t.Errorf("%s as %d\n got %s, %v\nwant %s", test.tool, d, got, err, want)
			}
		}
	}
	for tool, want := range map[string]string{
		`{"function":{"name":"f","strict":"yes"}}`:      "function.strict must be true, false or null",
		`{"function":{"name":"f"},"defer_loading":1}`:   "defer_loading must be true, false or null",
		`{"function":{"name":"f","defer_loading":"x"}}`: "function.defer_loading must be true, false or null",
		`{"function":{"name":"f","parameters":[]}}`:     "function.parameters must be an object or null",
	} {
		if got, err := Newest.appendTool(nil, []byte(tool)); err == nil || err.Error() != want {
			t.Errorf("%s: %s, %v, want %s", tool, got, err, want)
		}
	}
}

func TestArgumentsByRelease(t *testing.T) {
	const refused = "refused"
	for _, test := range []struct{ arguments, v12, v23, v29 string }{
		{`"{\"city\": \"Par"`, refused, refused, "{}"},
		{`"[1, 2]"`, "[1, 2]", "[1, 2]", "{}"},
		{`[1,2]`, "[1, 2]", "[1, 2]", "{}"},
		{`[]`, "{}", "{}", "{}"},
		{`"42"`, "42", "42", "{}"},
		{`"\"a\""`, "a", "a", "{}"},
		{`"null"`, "null", "{}", "{}"},
		{`""`, "{}", "{}", "{}"},
		{`null`, "{}", "{}", "{}"},
		{`"  {\"a\" :1}  "`, `{"a": 1}`, `{"a": 1}`, `{"a": 1}`},
		{`{"a":1}`, `{"a": 1}`, `{"a": 1}`, `{"a": 1}`},
	} {
		for d, want := range map[Dialect]string{V12: test.v12, V21: test.v12, V23: test.v23, V27: test.v23, V29: test.v29, V32: test.v29} {
			got, err := d.appendArguments(nil, []byte(test.arguments))
			if err != nil {
				got = []byte(refused)
			}
			if string(got) != want {
				t.Errorf("%s as %d: %s, %v, want %s", test.arguments, d, got, err, want)
			}
		}
	}
}

func TestBillingHeader(t *testing.T) {
	const header = `x-anthropic-billing-header: cc_version=2; cch=12ab;`
	for _, test := range []struct{ messages, v29, v32 string }{
		{
			`[{"role":"system","content":"` + header + `\nBe short.\nYes."}]`,
			"<|im_start|>system\n" + header + "\nBe short.\nYes.<|im_end|>\n", "<|im_start|>system\nBe short.\nYes.<|im_end|>\n",
		},
		{
			`[{"role":"system","content":[{"type":"text","text":"` + header + `"},{"type":"text","text":"a"}]}]`,
			"<|im_start|>system\n" + header + "\na<|im_end|>\n", "<|im_start|>system\na<|im_end|>\n",
		},
		{`[{"role":"user","content":"` + header + `"}]`, "<|im_start|>user\n" + header + "<|im_end|>\n", "<|im_start|>user\n" + header + "<|im_end|>\n"},
	} {
		for d, want := range map[Dialect]string{V29: test.v29, V32: test.v32} {
			got, err := Render(Chat{Messages: []byte(test.messages), NoGenerationPrompt: true, Dialect: d})
			if err != nil || got != want {
				t.Errorf("%s as %d: %q, %v, want %q", test.messages, d, got, err, want)
			}
		}
	}
}

func TestContinueFinalMessage(t *testing.T) {
	const hi = "<|im_start|>user\nhi<|im_end|>\n"
	for _, test := range []struct{ last, want string }{
		{`{"role":"assistant","content":"The sky is "}`, hi + "<|im_start|>assistant\n<think>\n\n</think>\n\nThe sky is "},
		{`{"role":"assistant","content":"a","reasoning":"r","tool_calls":[{"function":{"name":"f"}}]}`, hi + "<|im_start|>assistant\n<think>\nr\n</think>\n\na"},
		{`{"role":"assistant","content":null}`, hi + "<|im_start|>assistant\n<think>\n\n</think>\n\n"},
		{`{"role":"user","content":"and"}`, hi + "<|im_start|>user\nand"},
		{`{"role":"tool","content":"1"}`, hi + "<|im_start|>user\n<tool_response>\n1"},
		{`{"role":"assistant","content":"` + continueTag + `b"}`, hi + "<|im_start|>assistant\n<think>\n\n</think>\n\n" + continueTag + "b"},
		{`{"role":"critic","content":"x"}`, ""},
		{`{"role":"assistant","content":"<think>a</think>b"}`, ""}, // its line ends become others
	} {
		chat := Chat{Messages: []byte(`[{"role":"user","content":"hi"},` + test.last + `]`), NoGenerationPrompt: true, Continue: true, Dialect: Newest}
		got, err := Render(chat)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: %q, %v, want %q", test.last, got, err, test.want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "messages[1]: continue_final_message is set, but") {
			t.Errorf("%s: %v", test.last, err)
		}
	}
}

// TestVLLM compares with the prompts that running servers of two releases made.
func TestVLLM(t *testing.T) {
	tok := newTokenizer(t)
	f, err := os.Open("testdata/vllm.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := json.NewDecoder(f)
	n := 0
	for ; rows.More(); n++ {
		var row struct {
			Version, Name       string
			Messages, Tools     json.RawMessage
			NoThinking          bool  `json:"no_thinking"`
			AddGenerationPrompt *bool `json:"add_generation_prompt"`
			Continue            bool  `json:"continue_final_message"`
			IDs                 []uint32
			Refused             int
		}
		if err := rows.Decode(&row); err != nil {
			t.Fatal(err)
		}
		var minor int
		if _, err := fmt.Sscanf(row.Version, "0.%d.", &minor); err != nil {
			t.Fatal(row.Version, err)
		}
		chat := Chat{
			Messages: row.Messages, Tools: row.Tools, NoThinking: row.NoThinking, Continue: row.Continue,
			NoGenerationPrompt: row.AddGenerationPrompt != nil && !*row.AddGenerationPrompt, Dialect: DialectOf(minor),
		}
		prompt, err := Render(chat)
		count, countErr := NewCounter(tok, 10).Chat(chat)
		if got := tok.Append(nil, prompt); (err != nil) != (row.Refused > 0) || err == nil && !slices.Equal(got, row.IDs) {
			t.Errorf("%s, %s: %q, %v\n got %d\nwant %d, status %d", row.Version, row.Name, prompt, err, got, row.IDs, row.Refused)
		}
		if count != len(row.IDs) || (countErr == nil) != (err == nil) {
			t.Errorf("%s, %s: %d tokens, %v, want %d", row.Version, row.Name, count, countErr, len(row.IDs))
		}
	}
	if n == 0 {
		t.Error("no rows")
	}
}
