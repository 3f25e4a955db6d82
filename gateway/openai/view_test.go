package openai

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk/jsontest"
)

// TestReasoningNames: what a delta becomes under each setting; empty: nothing is
// shown at all.
func TestReasoningNames(t *testing.T) {
	for _, c := range []struct{ in, both, own, content, hidden string }{
		{`{"content":"a"}`, `{"content":"a"}`, `{"content":"a"}`, `{"content":"a"}`, `{"content":"a"}`},
		{`{"reasoning":"a"}`, `{"reasoning":"a","reasoning_content":"a"}`, `{"reasoning":"a"}`, `{"reasoning_content":"a"}`, ``},
		{`{"reasoning_content":"a"}`, `{"reasoning_content":"a","reasoning":"a"}`, `{"reasoning":"a"}`, `{"reasoning_content":"a"}`, ``},
		{`{"reasoning":"a","reasoning_content":"a"}`, `{"reasoning":"a","reasoning_content":"a"}`, `{"reasoning":"a"}`, `{"reasoning_content":"a"}`, ``},
		{`{"reasoning_content":"a" , "reasoning":"a"}`, `{"reasoning_content":"a" , "reasoning":"a"}`, `{ "reasoning":"a"}`, `{"reasoning_content":"a" }`, ``},
		{`{ "reasoning" : null }`, `{ "reasoning" : null,"reasoning_content":null }`, `{ "reasoning" : null }`, `{ "reasoning_content" : null }`, ``},
		{`{"reasoning":null,"content":"b"}`, `{"reasoning":null,"reasoning_content":null,"content":"b"}`, `{"reasoning":null,"content":"b"}`, `{"reasoning_content":null,"content":"b"}`, `{"content":"b"}`},
		{`{"content":"b","reasoning":"a"}`, `{"content":"b","reasoning":"a","reasoning_content":"a"}`, `{"content":"b","reasoning":"a"}`, `{"content":"b","reasoning_content":"a"}`, `{"content":"b"}`},
		{`{"reasoning":"a","content":"b","reasoning_content":"a"}`, `{"reasoning":"a","content":"b","reasoning_content":"a"}`, `{"reasoning":"a","content":"b"}`, `{"content":"b","reasoning_content":"a"}`, `{"content":"b"}`},
		{`{"reasoning":"a","reasoning_content":"a","content":"b"}`, `{"reasoning":"a","reasoning_content":"a","content":"b"}`, `{"reasoning":"a","content":"b"}`, `{"reasoning_content":"a","content":"b"}`, `{"content":"b"}`},
		{`{"content":null,"reasoning":"a","tool_calls":[]}`, `{"content":null,"reasoning":"a","reasoning_content":"a","tool_calls":[]}`, `{"content":null,"reasoning":"a","tool_calls":[]}`, `{"content":null,"reasoning_content":"a","tool_calls":[]}`, ``},
		{`{"reasoning":"a","tool_calls":[{"index":0}]}`, `{"reasoning":"a","reasoning_content":"a","tool_calls":[{"index":0}]}`, `{"reasoning":"a","tool_calls":[{"index":0}]}`, `{"reasoning_content":"a","tool_calls":[{"index":0}]}`, `{"tool_calls":[{"index":0}]}`},
		{`{"role":"assistant","reasoning":"a"}`, `{"role":"assistant","reasoning":"a","reasoning_content":"a"}`, `{"role":"assistant","reasoning":"a"}`, `{"role":"assistant","reasoning_content":"a"}`, `{"role":"assistant"}`},
		{`{"content":"\"reasoning\":1"}`, `{"content":"\"reasoning\":1"}`, `{"content":"\"reasoning\":1"}`, `{"content":"\"reasoning\":1"}`, `{"content":"\"reasoning\":1"}`},
		{`null`, `null`, `null`, `null`, `null`},
	} {
		for i, want := range []string{c.both, c.own, c.content, c.hidden} {
			v := View{Reasoning: Names(i)}
			if i == 3 {
				v = View{HideReasoning: true}
			}
			tap := Tap{View: v}
			seen, err := feed(t, &tap, delta(0, c.in, `null`, ``))
			if err != nil || len(seen) > 1 || want == "" != (len(seen) == 0) || want != "" && seen[0] != delta(0, want, `null`, ``) {
				t.Errorf("%+v, %s: %s, %v", v, c.in, seen, err)
			}
			// A chunk that ends the choice is shown in any case.
			tap = Tap{View: v}
			if seen, err = feed(t, &tap, delta(0, c.in, `"stop"`, ``)); err != nil || len(seen) != 1 {
				t.Errorf("%+v, %s, finished: %s, %v", v, c.in, seen, err)
			}
		}
	}
}

// drawChunk is a chunk with members in any order and some that nobody knows, and
// beside it what it means.
func drawChunk(t *rapid.T, part string) []byte {
	var choices []string
	for i := range rapid.IntRange(0, 2).Draw(t, "choices") {
		names, values := []string{`"index"`}, []string{fmt.Sprint(i)}
		if rapid.Bool().Draw(t, "finish") {
			names = append(names, `"finish_reason"`)
			values = append(values, rapid.SampledFrom([]string{"null", `"stop"`, `"length"`, `"repetition"`, `"tool_calls"`}).Draw(t, "reason"))
		}
		if rapid.Bool().Draw(t, "part") {
			var inner, texts []string
			for _, n := range []string{"role", "content", "reasoning", "reasoning_content", "tool_calls", "later"} {
				if rapid.Bool().Draw(t, n) {
					inner = append(inner, `"`+n+`"`)
					texts = append(texts, rapid.SampledFrom([]string{"null", `""`, "[]", `"x"`, jsontest.String(t)}).Draw(t, "text"))
				}
			}
			inner, texts = shuffled(t, inner, texts)
			names, values = append(names, `"`+part+`"`), append(values, jsontest.Object(t, inner, texts))
		}
		if rapid.Bool().Draw(t, "logprobs") {
			names, values = append(names, `"logprobs"`), append(values, jsontest.Value(t, 2))
		}
		names, values = shuffled(t, names, values)
		choices = append(choices, jsontest.Object(t, names, values))
	}
	names := []string{`"model"`, `"choices"`}
	values := []string{jsontest.String(t), "[" + jsontest.Space(t) + strings.Join(choices, jsontest.Space(t)+","+jsontest.Space(t)) + jsontest.Space(t) + "]"}
	if rapid.Bool().Draw(t, "usage") {
		names = append(names, `"usage"`)
		values = append(values, rapid.SampledFrom([]string{"null", `{"prompt_tokens":3,"completion_tokens": 4}`, "{}"}).Draw(t, "spent"))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "more") {
		names, values = append(names, fmt.Sprintf(`"x%d"`, i)), append(values, jsontest.Value(t, 2))
	}
	names, values = shuffled(t, names, values)
	return []byte(jsontest.Object(t, names, values))
}

func shuffled(t *rapid.T, names, values []string) (n, v []string) {
	order := make([]int, len(names))
	for i := range order {
		order[i] = i
	}
	for _, i := range rapid.Permutation(order).Draw(t, "order") {
		n, v = append(n, names[i]), append(v, values[i])
	}
	return n, v
}

func drawView(t *rapid.T) View {
	v := View{
		Model: rapid.SampledFrom([]string{"", "qwen"}).Draw(t, "model"), IncludeUsage: rapid.Bool().Draw(t, "include usage"),
		HideReasoning: rapid.Bool().Draw(t, "hide"), Reasoning: Names(rapid.IntRange(0, 2).Draw(t, "names")),
	}
	v.ContinuousUsage = v.IncludeUsage && rapid.Bool().Draw(t, "continuous usage")
	return v
}

// expected makes the same changes to a decoded chunk, the plain way.
func expected(v View, chunk map[string]any, part string, stream bool) (shown bool) {
	if v.Model != "" {
		chunk["model"] = v.Model
	}
	choices := chunk["choices"].([]any)
	for _, c := range choices {
		c := c.(map[string]any)
		if c["finish_reason"] == "repetition" {
			c["finish_reason"] = "stop"
		}
		d, _ := c[part].(map[string]any)
		mine, has := d["reasoning"]
		theirs, hasToo := d["reasoning_content"]
		delete(d, "reasoning")
		delete(d, "reasoning_content")
		reasons := has || hasToo
		shown = shown || c["finish_reason"] != nil || !v.HideReasoning || !reasons || tells(d)
		if v.HideReasoning || !reasons {
			continue
		}
		if !has {
			mine = theirs
		}
		if !hasToo {
			theirs = mine
		}
		if v.Reasoning != OnlyReasoningContent {
			d["reasoning"] = mine
		}
		if v.Reasoning != OnlyReasoning {
			d["reasoning_content"] = theirs
		}
	}
	if stream && chunk["usage"] != nil && len(choices) > 0 && !v.ContinuousUsage {
		delete(chunk, "usage")
	}
	return shown || len(choices) == 0 && (chunk["usage"] == nil || v.IncludeUsage)
}

// tells says that a delta holds something for its reader.
func tells(d map[string]any) bool {
	for v := range maps.Values(d) {
		if list, ok := v.([]any); v != nil && v != "" && !(ok && len(list) == 0) {
			return true
		}
	}
	return false
}

// TestViewChangesNothingElse: a chunk or an answer comes out as it came in but
// for what is meant to change.
func TestViewChangesNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t)
		in := drawChunk(t, "delta")
		var want map[string]any
		if err := json.Unmarshal(in, &want); err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		shown := expected(v, want, "delta", true)
		tap := Tap{View: v}
		out, err := tap.Event(nil, in)
		if err != nil || shown != (len(out) > 0) {
			t.Fatalf("%+v\n%s\nbecame %q (%v); shown should be %v", v, in, out, err, shown)
		}
		if _, stated := want["usage"]; shown && stated && tap.faults != 0 {
			var corrected struct{ Usage any }
			if err := json.Unmarshal(out[len("data: "):], &corrected); err != nil {
				t.Fatal(err)
			}
			want["usage"] = corrected.Usage // TestUsage holds what it is
		}
		if shown {
			checkSame(t, in, out[len("data: "):], want)
			if strings.Contains(strings.TrimSuffix(string(out), "\n\n"), "\n") {
				t.Fatalf("%q is on several lines", out)
			}
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t)
		in := drawChunk(t, "message")
		var want map[string]any
		if err := json.Unmarshal(in, &want); err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		expected(v, want, "message", false)
		a, err := ReadAnswer(Chat, v, in, Bounds{}, newWords)
		if err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		var shown struct{ Usage map[string]any }
		if err := json.Unmarshal(a.Body, &shown); err != nil {
			t.Fatal(err)
		}
		const details = "completion_tokens_details"
		stated, _ := want["usage"].(map[string]any)
		switch {
		case a.Faults != 0:
			want["usage"] = shown.Usage // TestUsage holds what it is
		case stated != nil && stated[details] == nil && shown.Usage[details] != nil:
			if got, ok := shown.Usage[details].(map[string]any); !ok || got["reasoning_tokens"] != float64(a.Usage.Reasoning) || a.Usage.Reasoning == 0 {
				t.Fatalf("%s\nbecame %s", in, a.Body)
			}
			stated[details] = shown.Usage[details]
		}
		checkSame(t, in, a.Body, want)
	})
}

func checkSame(t *rapid.T, in, out []byte, want map[string]any) {
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%s\nbecame %s: %v", in, out, err)
	}
	if again, _ := json.Marshal(got); string(again) != string(raw) {
		t.Fatalf("%s\nbecame %s\nwant   %s", in, out, raw)
	}
}
