package openai

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
)

// words is a Tally of words, for tests.
type words struct{ text strings.Builder }

func newWords() Tally { return new(words) }

func (w *words) Add(part string) { w.text.WriteString(part) }
func (w *words) Tokens() int     { return len(strings.Fields(w.text.String())) }

// asked is a request with a prompt of 10 tokens and two choices of at most 20.
func asked() Bounds {
	return Bounds{Input: 10, Context: 100, Prompts: 1, Limit: 20, Choices: 2}
}

// TestUsageOfWholeAnswers: whatever an engine states, what counts is what can be true,
// and the caller is shown the same. The two choices say three words each, and end.
func TestUsageOfWholeAnswers(t *testing.T) {
	const (
		sane    = `{"prompt_tokens":9,"total_tokens":16,"completion_tokens":7}`
		own     = 8 // three words and an end, twice
		missing = "missing"
	)
	for _, c := range []struct {
		usage string // empty: absent
		want  Usage
		fault string // all words for what was wrong
		exact bool   // and yet no figure that counts was replaced
	}{
		{sane, Usage{Input: 9, Output: 7}, "", true},
		{`{"prompt_tokens":0,"completion_tokens":0}`, Usage{}, "", true},
		{`{"prompt_tokens":9.0,"completion_tokens":7.00}`, Usage{Input: 9, Output: 7}, "", true},
		{`{"prompt_tokens":100,"completion_tokens":42}`, Usage{Input: 100, Output: 42}, "", true}, // one more for each choice
		{`{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":null,"completion_tokens_details":{"reasoning_tokens":null}}`, Usage{Input: 9, Output: 7}, "", true},
		{`{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":9},"completion_tokens_details":{"reasoning_tokens":7}}`, Usage{9, 9, 7, 7}, "", true},

		{``, Usage{Input: 10, Output: own}, missing, false},
		{`null`, Usage{Input: 10, Output: own}, missing, false},
		{`{}`, Usage{Input: 10, Output: own}, missing, false},
		{`"text"`, Usage{Input: 10, Output: own}, missing, false},
		{`{"prompt_tokens":9}`, Usage{Input: 9, Output: own}, missing, false},
		{`{"completion_tokens":7}`, Usage{Input: 10, Output: 7}, missing, false},
		{`{"prompt_tokens":9,"completion_tokens":null}`, Usage{Input: 9, Output: own}, missing, false},
		{`{"prompt_tokens":"9","completion_tokens":"7"}`, Usage{Input: 10, Output: own}, "invalid", false},
		{`{"prompt_tokens":9.5,"completion_tokens":7}`, Usage{Input: 10, Output: 7}, "invalid", false},
		{`{"prompt_tokens":-9,"completion_tokens":-7,"total_tokens":-16}`, Usage{Input: 10, Output: own}, "invalid", false},
		{`{"prompt_tokens":9,"completion_tokens":1234567890123456789}`, Usage{Input: 9, Output: own}, "excessive", false},
		{`{"prompt_tokens":9,"completion_tokens":123456789012345678901234567890}`, Usage{Input: 9, Output: own}, "excessive", false},
		{`{"prompt_tokens":0.9e1,"completion_tokens":7e400}`, Usage{Input: 9, Output: own}, "excessive", false},
		{`{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":-1}}`, Usage{Input: 9, Output: 7}, "invalid", false},
		{`{"prompt_tokens":9,"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":-1}}`, Usage{Input: 9, Output: 7}, "invalid", false},
		{`{"prompt_tokens":9,"completion_tokens":7,"total_tokens":-3}`, Usage{Input: 9, Output: 7}, "invalid", true},
		{`{"prompt_tokens":101,"completion_tokens":43}`, Usage{Input: 10, Output: own}, "excessive", false},
		{`{"prompt_tokens":100000000000000000,"completion_tokens":100000000000000000}`, Usage{Input: 10, Output: own}, "excessive", false},
		{`{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":10}}`, Usage{Input: 9, Output: 7}, "excessive", false},
		{`{"prompt_tokens":9,"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":8}}`, Usage{Input: 9, Output: 7}, "excessive", false},
		{`{"prompt_tokens":-1,"completion_tokens":43}`, Usage{Input: 10, Output: own}, "invalid,excessive", false},
		{`{"prompt_tokens":-1}`, Usage{Input: 10, Output: own}, "missing,invalid", false},
	} {
		body := `{"choices":[{"index":0,"message":{"content":"one two three"},"finish_reason":"stop"},{"index":1,"message":{"content":"four five six"},"finish_reason":"stop"}]`
		if c.usage != "" {
			body += `,"usage":` + c.usage
		}
		a, err := ReadAnswer(Chat, View{}, []byte(body+"}"), asked(), newWords)
		if err != nil || a.Usage != c.want || a.Estimated == c.exact || strings.Join(a.Faults.Names(), ",") != c.fault {
			t.Errorf("%s: %+v, estimated %v, %v, %v", c.usage, a.Usage, a.Estimated, a.Faults.Names(), err)
		}
		if c.fault == "" {
			continue
		}
		if got := shownUsage(t, a.Body); got != c.want {
			t.Errorf("%s: the caller is shown %+v", c.usage, got)
		}
	}
}

// shownUsage reads the usage that a caller sees.
func shownUsage(t interface{ Fatalf(string, ...any) }, body []byte) Usage {
	var shown struct {
		Usage struct {
			Input  int `json:"prompt_tokens"`
			Output int `json:"completion_tokens"`
			Total  int `json:"total_tokens"`
			Cached struct {
				N int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
			Details struct {
				N int `json:"reasoning_tokens"`
			} `json:"completion_tokens_details"`
		}
	}
	if err := json.Unmarshal(body, &shown); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	u := shown.Usage
	if u.Total != u.Input+u.Output {
		t.Fatalf("%s: the total is not the sum", body)
	}
	return Usage{u.Input, u.Cached.N, u.Output, u.Details.N}
}

// TestOwnCountOfWholeAnswers: what stands for an output that an engine does not state.
func TestOwnCountOfWholeAnswers(t *testing.T) {
	for _, c := range []struct {
		name, choice string
		route        Route
		bounds       Bounds
		view         View
		output       int
		reasoning    int
	}{
		{"it ended by itself", `"message":{"content":"a b"},"finish_reason":"stop"`, Chat, asked(), View{}, 3, 0},
		{"it was cut at its limit", `"message":{"content":"a b"},"finish_reason":"length"`, Chat, asked(), View{}, 2, 0},
		{"nothing was said", `"message":{"content":""},"finish_reason":"stop"`, Chat, asked(), View{}, 1, 0},
		{"reasoning and its two marks", `"message":{"reasoning":"r r","content":"a"},"finish_reason":"stop"`, Chat, asked(), View{}, 6, 4},
		{"reasoning under both names", `"message":{"reasoning":"r r","reasoning_content":"r r","content":"a"},"finish_reason":"stop"`, Chat, asked(), View{}, 6, 4},
		{"reasoning that its caller does not see", `"message":{"reasoning":"r r","content":"a"},"finish_reason":"stop"`, Chat, asked(), View{HideReasoning: true}, 6, 4},
		{"content that is called reasoning", `"message":{"reasoning":"a b","content":null},"finish_reason":"stop"`, Chat, asked(), View{ThinkingOff: true}, 3, 0},
		{"a tool call", `"message":{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"`, Chat, asked(), View{}, 7, 0},
		{"tool calls that are none", `"message":{"content":"a","tool_calls":[1,{},{"function":5},{"function":{"name":5,"arguments":{}}}]},"finish_reason":"stop"`, Chat, asked(), View{}, 2, 0},
		{"token ids", `"message":{"content":"a"},"token_ids":[1,2,3,4],"finish_reason":"stop"`, Chat, asked(), View{}, 4, 0},
		{"more than was allowed", `"message":{"content":"` + strings.Repeat("a ", 99) + `"},"finish_reason":"stop"`, Chat, asked(), View{}, 40, 0},
		{"a completion", `"text":"a b","finish_reason":"stop"`, Completions, asked(), View{}, 3, 0},
		{"a completion with its prompt", `"text":"p p p p p p p p p p a b","finish_reason":"length"`, Completions, Bounds{Input: 10, Prompts: 1, Choices: 1, Echo: true}, View{}, 2, 0},
		{"nothing is known", `"text":"a","finish_reason":"stop"`, Completions, Bounds{}, View{}, 2, 0},
	} {
		a, err := ReadAnswer(c.route, c.view, []byte(`{"choices":[{"index":0,`+c.choice+`}]}`), c.bounds, newWords)
		if want := (Usage{Input: c.bounds.Input, Output: c.output, Reasoning: c.reasoning}); err != nil || a.Usage != want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, a.Usage, err, want)
		}
		if got := shownUsage(t, a.Body); got != a.Usage {
			t.Errorf("%s: the caller is shown %+v", c.name, got)
		}
	}
}

// usages is the events of a stream of one choice, a word a chunk, with these usages; an
// empty one is absent. The last is that of the chunk before the end.
func usages(each ...string) (events []string) {
	behind := func(usage string) string {
		if usage == "" {
			return ""
		}
		return `,"usage":` + usage
	}
	last := len(each) - 1
	for i, usage := range each[:last] {
		finish := "null"
		if i == last-1 {
			finish = `"stop"`
		}
		events = append(events, delta(0, fmt.Sprintf(`{"content":"w%d "}`, i), finish, behind(usage)))
	}
	if each[last] != "" {
		events = append(events, `{"id":"x","created":1,"model":"m","choices":[]`+behind(each[last])+`}`)
	}
	return events
}

func used(input, output int) string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}`, input, input+output, output)
}

// TestUsageOfStreams: a stream counts what the engine states as far as that can be true,
// and what it does not state is counted as it passes, whether the stream ends or is cut.
func TestUsageOfStreams(t *testing.T) {
	const bad = `{"prompt_tokens":-1,"completion_tokens":-1}`
	for _, c := range []struct {
		name   string
		each   []string
		want   Usage
		fault  string
		exact  bool
		cut    Usage // after all but the last two events
		cutFor string
	}{
		{"stated all along", []string{used(9, 2), used(9, 4), used(9, 6), used(9, 6)}, Usage{Input: 9, Output: 6}, "", true, Usage{Input: 9, Output: 4}, ""},
		{"stated at the end", []string{"", "", "", used(9, 6)}, Usage{Input: 9, Output: 6}, "", true, Usage{Input: 10, Output: 2}, "missing"},
		{"not at the end", []string{used(9, 2), used(9, 4), used(9, 6), ""}, Usage{Input: 9, Output: 6}, "", true, Usage{Input: 9, Output: 4}, ""},
		{"never", []string{"", "", "", ""}, Usage{Input: 10, Output: 4}, "missing", false, Usage{Input: 10, Output: 2}, "missing"},
		{"null", []string{"null", "null", "null", "null"}, Usage{Input: 10, Output: 4}, "missing", false, Usage{Input: 10, Output: 2}, "missing"},
		{"empty", []string{"{}", "{}", "{}", "{}"}, Usage{Input: 10, Output: 4}, "missing", false, Usage{Input: 10, Output: 2}, "missing"},
		{"negative", []string{bad, bad, bad, bad}, Usage{Input: 10, Output: 4}, "invalid", false, Usage{Input: 10, Output: 2}, "invalid"},
		{"negative on the way", []string{used(9, 2), bad, used(9, 6), used(9, 6)}, Usage{Input: 9, Output: 6}, "invalid", true, Usage{Input: 9, Output: 3}, "invalid"},
		{"negative at the end", []string{used(9, 2), used(9, 4), used(9, 6), bad}, Usage{Input: 9, Output: 6}, "invalid", false, Usage{Input: 9, Output: 4}, ""},
		{"falling", []string{used(9, 8), used(9, 4), used(9, 4), used(9, 4)}, Usage{Input: 9, Output: 11}, "fallen", false, Usage{Input: 9, Output: 9}, "fallen"},
		{"falling at the end", []string{used(9, 2), used(9, 4), used(9, 6), used(9, 5)}, Usage{Input: 9, Output: 6}, "fallen", false, Usage{Input: 9, Output: 4}, ""},
		{"a prompt that falls", []string{used(9, 2), used(1, 4), used(1, 6), used(1, 6)}, Usage{Input: 9, Output: 6}, "fallen", false, Usage{Input: 9, Output: 4}, "fallen"},
		{"too much", []string{used(9, 2), used(9, 22), used(9, 6), used(9, 43)}, Usage{Input: 9, Output: 6}, "excessive", false, Usage{Input: 9, Output: 3}, "excessive"},
		{"a prompt that is too much", []string{used(101, 2), used(101, 4), used(101, 6), used(101, 6)}, Usage{Input: 10, Output: 6}, "excessive", false, Usage{Input: 10, Output: 4}, "excessive"},
		{"zero, and that is meant", []string{used(0, 0), used(0, 0), used(0, 0), used(0, 0)}, Usage{}, "", true, Usage{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range []View{{}, {IncludeUsage: true}, {IncludeUsage: true, ContinuousUsage: true}} {
				events := usages(c.each...)
				for _, cut := range []bool{false, true} {
					want, fault := c.want, c.fault
					end := "[DONE]"
					if cut {
						want, fault = c.cut, c.cutFor
						events, end = usages(c.each...)[:2], ""
					}
					tap := Tap{View: v, Bounds: asked(), NewTally: newWords}
					seen, err := feed(t, &tap, events...)
					if err != nil {
						t.Fatal(err)
					}
					u, estimated := tap.Usage()
					if u != want || !cut && estimated == c.exact || cut && estimated != (fault != "") || strings.Join(tap.Faults().Names(), ",") != fault {
						t.Errorf("cut %v: %+v, estimated %v, %v", cut, u, estimated, tap.Faults().Names())
					}
					if end == "" {
						continue
					}
					more, err := feed(t, &tap, end)
					if seen = append(seen, more...); err != nil || !tap.Done() {
						t.Fatal(err)
					}
					if v.IncludeUsage {
						if got := shownUsage(t, []byte(seen[len(seen)-2])); got != want {
							t.Errorf("the caller is shown %s for %+v", seen[len(seen)-2], want)
						}
					}
				}
			}
		})
	}
}

// TestContinuousUsageIsCorrected: who asked for usage in every chunk is shown what counts.
func TestContinuousUsageIsCorrected(t *testing.T) {
	tap := Tap{View: View{IncludeUsage: true, ContinuousUsage: true}, Bounds: asked(), NewTally: newWords}
	seen, err := feed(t, &tap, usages(used(9, 2), used(9, -4), `{}`, ``)...)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Usage{{Input: 9, Output: 2}, {Input: 9, Output: 3}, {Input: 9, Output: 5}} {
		if got := shownUsage(t, []byte(seen[i])); got != want {
			t.Errorf("chunk %d: %+v, want %+v", i, got, want)
		}
	}
}

// TestOwnCountOfStreams: what stands for the output of a stream that the engine does
// not state, over choices, tool calls, reasoning and token ids.
func TestOwnCountOfStreams(t *testing.T) {
	completion := func(i int, text string) string {
		return fmt.Sprintf(`{"choices":[{"index":%d,"text":%q,"finish_reason":"length"}]}`, i, text)
	}
	for _, c := range []struct {
		name   string
		route  Route
		bounds Bounds
		events []string
		want   Usage
	}{
		{"two choices in turn", Chat, asked(), []string{
			delta(0, `{"content":"a "}`, `null`, ``), delta(1, `{"content":"b "}`, `null`, ``), delta(0, `{"content":"a "}`, `"stop"`, ``), delta(1, `{"content":"b "}`, `"length"`, ``),
		}, Usage{Input: 10, Output: 5}},
		{"one word in many chunks", Chat, asked(), []string{
			delta(0, `{"content":"wo"}`, `null`, ``), delta(0, `{"content":"r"}`, `null`, ``), delta(0, `{"content":"d"}`, `null`, ``), delta(0, `{"content":"s"}`, `null`, ``),
		}, Usage{Input: 10, Output: 1}},
		{"reasoning", Chat, asked(), []string{
			delta(0, `{"role":"assistant","content":""}`, `null`, ``), delta(0, `{"reasoning":"r "}`, `null`, ``), delta(0, `{"reasoning":"r "}`, `null`, ``), delta(0, `{"content":"a"}`, `"stop"`, ``),
		}, Usage{Input: 10, Output: 6, Reasoning: 4}},
		{"reasoning that goes on unstated", Chat, asked(), []string{
			delta(0, `{"reasoning":"r "}`, `null`, spent(9, 2)), delta(0, `{"reasoning":"r "}`, `null`, ``), delta(0, `{"content":"a"}`, `null`, ``),
		}, Usage{Input: 9, Output: 5, Reasoning: 4}},
		{"tool calls", Chat, asked(), []string{
			delta(0, `{"tool_calls":[{"index":0,"function":{"name":"f","arguments":""}}]}`, `null`, ``),
			delta(0, `{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\": "}}]}`, `null`, ``), delta(0, `{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}`, `null`, ``),
			delta(0, `{"tool_calls":[{"index":1,"function":{"name":"g","arguments":"{}"}}]}`, `"tool_calls"`, ``),
		}, Usage{Input: 10, Output: 13}},
		{"token ids", Chat, asked(), []string{
			strings.Replace(delta(0, `{"content":"a"}`, `null`, ``), `"token_ids":null`, `"token_ids":[1,2,3]`, 1),
			strings.Replace(delta(0, `{"content":"a"}`, `null`, ``), `"token_ids":null`, `"token_ids":[1,2,3]`, 1),
			strings.Replace(delta(0, `{"content":""}`, `"stop"`, ``), `"token_ids":null`, `"token_ids":[7]`, 1),
		}, Usage{Input: 10, Output: 7}},
		{"more than was allowed", Chat, asked(), []string{delta(0, `{"content":"`+strings.Repeat("a ", 99)+`"}`, `null`, ``)}, Usage{Input: 10, Output: 40}},
		{"prompts that are repeated", Completions, Bounds{Input: 4, Prompts: 2, Choices: 2, Echo: true}, []string{completion(0, "p a"), completion(1, "p p p a a")}, Usage{Input: 4, Output: 3}},
		{"text behind a usage of all", Chat, asked(), []string{
			`{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}`, delta(0, `{"content":"a b"}`, `"length"`, ``),
		}, Usage{Input: 10, Output: 2}},
	} {
		for _, learnt := range []int{0, maxShapes} {
			tap := Tap{Route: c.route, Bounds: c.bounds, NewTally: newWords, shapes: learnt}
			if _, err := feed(t, &tap, c.events...); err != nil {
				t.Fatal(err)
			}
			if u, estimated := tap.Usage(); u != c.want || !estimated {
				t.Errorf("%s: %+v, want %+v", c.name, u, c.want)
			}
		}
	}
}

// TestNoTallyWhereUsageIsStated: an engine that states its usage costs no counting.
func TestNoTallyWhereUsageIsStated(t *testing.T) {
	tap := Tap{Bounds: asked(), NewTally: func() Tally {
		t.Error("text is counted")
		return newWords()
	}}
	if _, err := feed(t, &tap, usages(used(9, 2), used(9, 4), used(9, 6), used(9, 8), used(9, 9))...); err != nil {
		t.Fatal(err)
	}
	if n := tap.Longest(); n != 8 {
		t.Errorf("the longest choice has %d tokens", n)
	}
}

// TestFiguresSaturate: no sum or product of tokens overflows or is negative.
func TestFiguresSaturate(t *testing.T) {
	for _, c := range []struct{ a, b, sum, product int }{
		{2, 3, 5, 6}, {0, 5, 5, 0}, {-1, 5, 5, 0}, {math.MinInt, math.MinInt, 0, 0},
		{math.MaxInt, 1, maxFigure, maxFigure}, {math.MaxInt, math.MaxInt, maxFigure, maxFigure}, {460_000_000_000_000_000, 8 * 64, maxFigure, maxFigure},
	} {
		if s, p := Plus(c.a, c.b), Times(c.a, c.b); s != c.sum || p != c.product || Plus(c.b, c.a) != s || Times(c.b, c.a) != p {
			t.Errorf("%d and %d: sum %d, product %d", c.a, c.b, s, p)
		}
	}
	if n := (Usage{Input: math.MaxInt, Output: math.MaxInt}).Total(); n != maxFigure {
		t.Error(n)
	}
}

// FuzzUsage: whatever shape an engine gives its usage, nothing panics, no figure is
// negative, above what was allowed or below what was stated before, and no answer is
// free that the engine has not called so.
func FuzzUsage(f *testing.F) {
	for _, seed := range []string{
		used(9, 2), `{}`, `null`, `"text"`, `[1]`, `5`, `{"prompt_tokens":-1,"completion_tokens":-1}`, `{"prompt_tokens":1e3,"completion_tokens":1e17}`,
		`{"prompt_tokens":"9","completion_tokens":9.5,"total_tokens":null}`, `{"prompt_tokens":9,"completion_tokens":99999999999999999999}`,
		`{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":-1},"completion_tokens_details":{"reasoning_tokens":-1}}`,
		`{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":[],"completion_tokens_details":"x"}`, `{"prompt_tokens":9,"prompt_tokens":-9,"completion_tokens":0}`,
	} {
		f.Add(seed, used(9, 2), seed)
		f.Add(used(9, 2), seed, used(9, 4))
	}
	f.Fuzz(func(t *testing.T, first, second, last string) {
		each := []string{first, second, last}
		if !json.Valid([]byte("[" + strings.Join(each, ",") + "]")) {
			return
		}
		for i, usage := range each {
			each[i] = strings.NewReplacer("\n", " ", "\r", " ").Replace(usage)
		}
		within := func(u Usage, how string) {
			b := asked()
			if u.Input < 0 || u.Cached < 0 || u.Output < 0 || u.Reasoning < 0 || u.Cached > u.Input || u.Reasoning > u.Output ||
				u.Input > b.Context || u.Output > (b.Limit+1)*b.Choices {
				t.Fatalf("%s of %q: %+v", how, each, u)
			}
		}
		a, err := ReadAnswer(Chat, View{}, []byte(`{"choices":[{"index":0,"message":{"content":"a b"},"finish_reason":"stop"}],"usage":`+last+`}`), asked(), newWords)
		if err == nil {
			within(a.Usage, "whole")
			if s := readUsage([]byte(last)); a.Usage.Output == 0 && s.valid&outputFigure == 0 || a.Usage.Input == 0 && s.valid&inputFigure == 0 {
				t.Fatalf("%s is free", last)
			}
			if a.Faults != 0 {
				if got := shownUsage(t, a.Body); got != a.Usage {
					t.Fatalf("%s: the caller is shown %+v for %+v", last, got, a.Usage)
				}
			}
		}
		tap := Tap{View: View{IncludeUsage: true, ContinuousUsage: true}, Bounds: asked(), NewTally: newWords}
		stated := 0
		for _, e := range usages(each...) {
			if _, err := tap.Event(nil, []byte(e)); err != nil {
				return
			}
			u, _ := tap.Usage()
			within(u, "stream")
			if u.Output < stated {
				t.Fatalf("%q: %d tokens were stated, and %d count", each, stated, u.Output)
			}
			for i := range tap.choices {
				stated = max(stated, tap.choices[i].output)
			}
		}
		valid := figures(0)
		for _, usage := range each {
			valid |= readUsage([]byte(usage)).valid
		}
		if u, _ := tap.Usage(); u.Output == 0 && valid&outputFigure == 0 || u.Input == 0 && valid&inputFigure == 0 {
			t.Fatalf("%q is free: %+v", each, u)
		}
	})
}

// TestUsageAfterTheEnd: a figure that was final does not fall, and after [DONE], when
// the request has been counted, nothing more is passed on or counted.
func TestUsageAfterTheEnd(t *testing.T) {
	tap := Tap{View: View{IncludeUsage: true}, Bounds: asked(), NewTally: newWords}
	events := usages(used(9, 2), used(9, 4), used(9, 6), used(9, 6))
	again := usages(used(9, 2), used(9, 4), used(9, 6), used(9, 3))
	if _, err := feed(t, &tap, append(events, again[len(again)-1])...); err != nil {
		t.Fatal(err)
	}
	if u, _ := tap.Usage(); u.Output != 6 || strings.Join(tap.Faults().Names(), ",") != "fallen" {
		t.Errorf("%+v, %v", u, tap.Faults().Names())
	}
	if _, err := feed(t, &tap, "[DONE]"); err != nil || !tap.Done() {
		t.Fatal(err)
	}
	for _, late := range []string{events[0], `{"error":{"message":"x"}}`, "[DONE]"} {
		if out, err := tap.Event(nil, []byte(late)); len(out) > 0 || err != nil {
			t.Errorf("after the end: %s, %v", out, err)
		}
	}
	if u, _ := tap.Usage(); u.Output != 6 {
		t.Errorf("%+v", u)
	}
}
