package openai

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// delta is a chat chunk of choice i, as vLLM writes it, with what is behind its
// choices. finish is a JSON value.
func delta(i int, delta, finish, behind string) string {
	return fmt.Sprintf(`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"Qwen/Qwen3-1.7B","choices":[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s,"token_ids":null}]%s}`,
		i, delta, finish, behind)
}

// spent is the usage behind a chunk's choices.
func spent(input, output int) string {
	return fmt.Sprintf(`,"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}`, input, input+output, output)
}

const lastChunk = `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"Qwen/Qwen3-1.7B","choices":[],"usage":{"prompt_tokens":9,"total_tokens":29,"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":4}}}`

// feed passes events until one fails and returns what the caller sees, without
// the framing.
func feed(t *testing.T, tap *Tap, events ...string) (seen []string, err error) {
	t.Helper()
	for _, e := range events {
		var out []byte
		if out, err = tap.Event([]byte("before"), []byte(e)); err != nil {
			if string(out) != "before" {
				t.Errorf("an error, and yet %q", out)
			}
			return seen, err
		}
		framed, ok := strings.CutPrefix(string(out), "before")
		if framed == "" {
			continue
		}
		whole := framed
		for framed != "" {
			event, rest, ended := strings.Cut(framed, "\n\n")
			data, begun := strings.CutPrefix(event, "data: ")
			if !ok || !begun || !ended || strings.ContainsAny(data, "\r\n") {
				t.Fatalf("no event: %q", whole)
			}
			seen, framed = append(seen, data), rest
		}
	}
	return seen, nil
}

func TestTapStream(t *testing.T) {
	events := []string{
		delta(0, `{"role":"assistant","content":""}`, `null`, spent(9, 0)),
		delta(0, `{"reasoning":"Hm"}`, `null`, spent(9, 2)),
		delta(0, `{"reasoning":"m"}`, `null`, spent(9, 5)),
		delta(0, `{"content":"A"}`, `null`, spent(9, 8)),
		delta(0, `{"content":"B"}`, `null`, spent(9, 9)),
		delta(0, `{"content":""}`, `"stop"`, spent(9, 10)),
		lastChunk, "[DONE]",
	}
	model := strings.NewReplacer(`"model":"Qwen/Qwen3-1.7B"`, `"model":"qwen"`)
	bare := func(s string) string { // what a caller sees that asked for no usage
		if i := strings.Index(s, `,"usage"`); i > 0 {
			s = s[:i] + "}"
		}
		s = strings.ReplaceAll(s, `"reasoning":"Hm"`, `"reasoning":"Hm","reasoning_content":"Hm"`)
		return model.Replace(strings.ReplaceAll(s, `"reasoning":"m"`, `"reasoning":"m","reasoning_content":"m"`))
	}
	hidden := append([]string{bare(events[0])}, bare(events[3]), bare(events[4]), bare(events[5]), "[DONE]")
	// The engine does not count the reasoning; the last chunk states what the tap has counted.
	last := strings.Replace(model.Replace(lastChunk), `{"cached_tokens":4}`, `{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":6}`, 1)
	var shown, continuous []string
	for _, e := range events {
		shown = append(shown, bare(e))
		e = strings.ReplaceAll(e, `"reasoning":"Hm"`, `"reasoning":"Hm","reasoning_content":"Hm"`)
		continuous = append(continuous, model.Replace(strings.ReplaceAll(e, `"reasoning":"m"`, `"reasoning":"m","reasoning_content":"m"`)))
	}
	for name, c := range map[string]struct {
		view View
		want []string
	}{
		"nothing asked": {View{Model: "qwen"}, slices.Delete(slices.Clone(shown), 6, 7)},
		"include_usage": {View{Model: "qwen", IncludeUsage: true}, slices.Replace(slices.Clone(shown), 6, 7, last)},
		"continuous":    {View{Model: "qwen", IncludeUsage: true, ContinuousUsage: true}, slices.Replace(continuous, 6, 7, last)},
		"no reasoning":  {View{Model: "qwen", HideReasoning: true}, hidden},
	} {
		t.Run(name, func(t *testing.T) {
			tap := Tap{View: c.view}
			got, err := feed(t, &tap, events...)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v\ngot\n%s\nwant\n%s", err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			want := Usage{Input: 9, Cached: 4, Output: 20, Reasoning: 6} // 5 and the end mark
			if u, estimated := tap.Usage(); u != want || estimated || tap.Faults() != 0 || !tap.Done() || len(tap.choices) == 0 {
				t.Errorf("%+v, %v, done %v", u, estimated, tap.Done())
			}
		})
	}
}

func TestTapEnds(t *testing.T) {
	role := delta(0, `{"role":"assistant","content":""}`, `null`, spent(3, 0))
	word := delta(0, `{"content":"x"}`, `null`, spent(3, 4))
	end := delta(0, `{"content":""}`, `"length"`, spent(3, 5))
	for _, c := range []struct {
		name   string
		events []string
		err    error
		seen   int
		usage  Usage
	}{
		{"whole", []string{role, word, end, "[DONE]"}, nil, 4, Usage{Input: 3, Output: 5}},
		{"done at once", []string{"[DONE]"}, ErrUnfinished, 0, Usage{}},
		{"done before the role's choice finished", []string{role, "[DONE]"}, ErrUnfinished, 1, Usage{Input: 3}},
		{"done too early", []string{role, word, "[DONE]"}, ErrUnfinished, 2, Usage{Input: 3, Output: 4}},
		{"done, one choice of two", []string{role, delta(1, `{"content":"y"}`, `null`, spent(3, 7)), end, "[DONE]"}, ErrUnfinished, 3, Usage{Input: 3, Output: 12}},
		{"done, a choice never heard of", []string{delta(1, `{"content":"y"}`, `"stop"`, spent(3, 7)), "[DONE]"}, ErrUnfinished, 1, Usage{Input: 3, Output: 7}},
		{"only a usage chunk", []string{lastChunk, "[DONE]"}, ErrUnfinished, 0, Usage{Input: 9, Cached: 4, Output: 20}},
		{"aborted", []string{role, word, delta(0, `{"content":""}`, `"abort"`, spent(3, 6)), "[DONE]"}, ErrUnfinished, 2, Usage{Input: 3, Output: 4}},
		{"garbage", []string{role, "oops", word}, ErrGarbage, 1, Usage{Input: 3}},
		{"an empty event", []string{role, ""}, ErrGarbage, 1, Usage{Input: 3}},
		{"cut JSON", []string{role, word[:len(word)-1]}, ErrGarbage, 1, Usage{Input: 3}},
		{"an array", []string{role, `[]`}, ErrGarbage, 1, Usage{Input: 3}},
		{"choices no list", []string{`{"choices":{}}`}, ErrGarbage, 0, Usage{}},
		{"choices of numbers", []string{`{"choices":[1]}`}, ErrGarbage, 0, Usage{}},
		{"a negative index", []string{strings.Replace(word, `"index":0`, `"index":-1`, 1)}, ErrGarbage, 0, Usage{}},
		{"a huge index", []string{strings.Replace(word, `"index":0`, `"index":99999`, 1)}, ErrGarbage, 0, Usage{}},
		{"no done", []string{role, word, end}, nil, 3, Usage{Input: 3, Output: 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tap := Tap{}
			seen, err := feed(t, &tap, c.events...)
			if !errors.Is(err, c.err) || len(seen) != c.seen {
				t.Errorf("%d events, %v", len(seen), err)
			}
			if u, _ := tap.Usage(); u != c.usage {
				t.Errorf("usage %+v; want %+v", u, c.usage)
			}
			if done := c.name == "whole"; tap.Done() != done {
				t.Errorf("done: %v", tap.Done())
			}
		})
	}
}

func TestTapErrorEvents(t *testing.T) {
	for _, c := range []struct {
		event  string
		status int
		want   Error
	}{
		{`{"error":{"message":"too many logprobs","type":"BadRequestError","param":"top_logprobs","code":400}}`, 400, Error{Message: "too many logprobs", Type: "BadRequestError", Param: "top_logprobs"}},
		{`{"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}`, 500, Error{Message: "boom", Type: "InternalServerError"}},
		{`{"error":{"message":"busy","code":503}}`, 503, Error{Message: "busy"}},
		{`{"error":{"message":"odd","code":"internal"}}`, 500, Error{Message: "odd"}},
		{`{"error":{"message":"odd","code":200}}`, 500, Error{Message: "odd"}},
		{`{"error":{"message":"odd","code":700}}`, 500, Error{Message: "odd"}},
		{`{"error":"Unauthorized"}`, 500, Error{Message: "Unauthorized"}},
		{`{"id":"x","choices":[],"error":{"message":"late","code":400}}`, 400, Error{Message: "late"}},
	} {
		tap := Tap{}
		if _, err := feed(t, &tap, delta(0, `{"content":"x"}`, `null`, spent(3, 4))); err != nil {
			t.Fatal(err)
		}
		_, err := feed(t, &tap, c.event)
		var e *StreamError
		if !errors.As(err, &e) || e.Status != c.status || e.Err != c.want || !strings.Contains(e.Error(), c.want.Message) {
			t.Errorf("%s: %v (%+v)", c.event, err, e)
		}
		if u, estimated := tap.Usage(); estimated || u != (Usage{Input: 3, Output: 4}) {
			t.Errorf("%+v", u)
		}
	}
	tap := Tap{}
	if seen, err := feed(t, &tap, `{"choices":[],"error":null}`); err != nil || len(seen) != 1 {
		t.Error("an error that is null", err)
	}
}

// TestTapCountsChoices: with n > 1 a chunk's usage speaks of its own choice.
func TestTapCountsChoices(t *testing.T) {
	tap := Tap{Route: Completions}
	piece := func(i, output int, finish string) string {
		return fmt.Sprintf(`{"object":"text_completion","model":"m","choices":[{"index":%d,"text":"x","logprobs":null,"finish_reason":%s}]%s}`, i, finish, spent(10, output))
	}
	if u, estimated := tap.Usage(); !estimated || u != (Usage{}) || len(tap.choices) > 0 {
		t.Errorf("%+v, %v", u, estimated)
	}
	for _, step := range []struct {
		event string
		want  Usage
	}{
		{piece(0, 1, "null"), Usage{Input: 10, Output: 1}},
		{piece(2, 5, "null"), Usage{Input: 10, Output: 6}},
		{piece(0, 3, "null"), Usage{Input: 10, Output: 8}},
		{piece(1, 2, `"stop"`), Usage{Input: 10, Output: 10}},
		{piece(2, 9, `"length"`), Usage{Input: 10, Output: 14}},
		{`{"choices":[]}`, Usage{Input: 10, Output: 14}},
		{piece(0, 4, `"repetition"`), Usage{Input: 10, Output: 15}},
		{`{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":16}}`, Usage{Input: 10, Output: 16}},
	} {
		if _, err := feed(t, &tap, step.event); err != nil {
			t.Fatal(err)
		}
		if u, estimated := tap.Usage(); u != step.want || estimated {
			t.Fatalf("after %s: %+v, want %+v", step.event, u, step.want)
		}
	}
	if _, err := feed(t, &tap, "[DONE]"); err != nil || !tap.Done() {
		t.Error(err)
	}
	// Several prompts: each chunk states its own prompt's tokens.
	tap = Tap{Route: Completions, Bounds: Bounds{Input: 25, Prompts: 2, Choices: 2}}
	if _, err := feed(t, &tap, piece(0, 1, "null"), piece(1, 2, "null")); err != nil {
		t.Fatal(err)
	}
	if u, _ := tap.Usage(); u != (Usage{Input: 25, Output: 3}) {
		t.Errorf("%+v", u)
	}
	if _, err := feed(t, &tap, lastChunk); err != nil {
		t.Fatal(err)
	}
	if u, _ := tap.Usage(); u.Input != 9 || u.Output != 20 {
		t.Errorf("the last usage does not win: %+v", u)
	}
}

func TestTapCountsReasoning(t *testing.T) {
	details := func(output, reasoning int) string {
		return fmt.Sprintf(`,"usage":{"prompt_tokens":5,"completion_tokens":%d,"completion_tokens_details":{"reasoning_tokens":%d}}`, output, reasoning)
	}
	reason := func(behind string) string { return delta(0, `{"reasoning":"r"}`, `null`, behind) }
	content := func(behind string) string { return delta(0, `{"content":"c"}`, `null`, behind) }
	for _, c := range []struct {
		name   string
		events []string
		want   int
	}{
		{"none", []string{content(spent(5, 3))}, 0},
		{"null is none", []string{delta(0, `{"reasoning":null,"content":"c"}`, `null`, spent(5, 3))}, 0},
		{"only, the end mark not yet there", []string{reason(spent(5, 3))}, 3},
		{"then content", []string{reason(spent(5, 3)), content(spent(5, 9))}, 4},
		{"the other name", []string{delta(0, `{"reasoning_content":"r"}`, `null`, spent(5, 3)), content(spent(5, 9))}, 4},
		{"two choices", []string{reason(spent(5, 3)), delta(1, `{"reasoning":"r"}`, `null`, spent(5, 6)), content(spent(5, 9))}, 10},
		{"kept in the final usage", []string{reason(spent(5, 3)), content(spent(5, 9)), lastChunk}, 4},
		{"the server's count", []string{reason(details(3, 2)), content(details(9, 7))}, 7},
		{"the server's final count", []string{reason(spent(5, 3)), content(spent(5, 9)), `{"choices":[]` + details(20, 8) + `}`}, 8},
		{"the server's count, without usage of its own", []string{reason(``), content(``), `{"choices":[]` + details(20, 8) + `}`}, 8},
		{"the server begins to count on the way", []string{reason(spent(5, 3)), reason(spent(5, 4)), reason(details(5, 4)), content(details(9, 6)), content(details(10, 6))}, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, hide := range []bool{false, true} {
				tap := Tap{View: View{HideReasoning: hide}}
				if _, err := feed(t, &tap, c.events...); err != nil {
					t.Fatal(err)
				}
				if u, _ := tap.Usage(); u.Reasoning != c.want {
					t.Errorf("hidden %v: %d; want %d", hide, u.Reasoning, c.want)
				}
			}
		})
	}
}

// TestFingerprint: vLLM puts its fingerprint into the last chunk of a stream, which is that
// with the usage only where it is asked for. A caller who has not asked has it all the same.
func TestFingerprint(t *testing.T) {
	const print = `,"system_fingerprint":"vllm-0.32.0-b9c6adc7"`
	withPrint := strings.TrimSuffix(lastChunk, "}") + print + "}"
	text := delta(0, `{"content":"A"}`, `null`, "")
	end := delta(0, `{"content":"B"}`, `"stop"`, "")
	second := delta(1, `{"content":"C"}`, `"stop"`, "")
	stamped := func(chunk string) string { return strings.TrimSuffix(chunk, "}") + print + "}" }
	for _, c := range []struct {
		name       string
		view       View
		send, want []string
	}{
		{"not asked for usage", View{}, []string{text, end, withPrint, "[DONE]"}, []string{text, stamped(end), "[DONE]"}},
		{"asked for usage", View{IncludeUsage: true}, []string{text, end, withPrint, "[DONE]"}, []string{text, end, withPrint, "[DONE]"}},
		{"two choices", View{}, []string{end, text, second, withPrint, "[DONE]"}, []string{end, text, stamped(second), "[DONE]"}},
		{"an engine without one", View{}, []string{text, end, lastChunk, "[DONE]"}, []string{text, end, "[DONE]"}},
		{"an engine without usage", View{}, []string{text, end, "[DONE]"}, []string{text, end, "[DONE]"}},
		{"it is there already", View{}, []string{text, stamped(end), withPrint, "[DONE]"}, []string{text, stamped(end), "[DONE]"}},
		{"it is null there", View{}, []string{text, strings.Replace(end, `"object":`, `"system_fingerprint":null,"object":`, 1), withPrint, "[DONE]"}, []string{text, stamped(end), "[DONE]"}},
		{"white space behind the chunk", View{}, []string{text, end + " ", withPrint, "[DONE]"}, []string{text, stamped(end), "[DONE]"}},
		{"it is no text", View{}, []string{text, end, strings.Replace(withPrint, `"vllm-0.32.0-b9c6adc7"`, `{"a":1}`, 1), "[DONE]"}, []string{text, end, "[DONE]"}},
	} {
		tap := Tap{View: c.view, DelayEnd: true, NewTally: newWords}
		got, err := feed(t, &tap, c.send...)
		if err != nil || !tap.Done() || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v\ngot\n%s\nwant\n%s", c.name, err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
	// What has come is the caller's, whatever happens behind it.
	for _, next := range []string{"", "oops", `{"error":{"message":"dead","code":500}}`} {
		tap := Tap{DelayEnd: true, NewTally: newWords}
		out, err := tap.Event(nil, []byte(end))
		if err != nil || len(out) > 0 {
			t.Fatalf("%q, %v", out, err)
		}
		if next != "" {
			if out, err = tap.Event(out, []byte(next)); err == nil {
				t.Errorf("%s: no error", next)
			}
		}
		if out = tap.Rest(out); string(out) != "data: "+end+"\n\n" || len(tap.Rest(nil)) > 0 {
			t.Errorf("%s: %q", next, out)
		}
	}
}
