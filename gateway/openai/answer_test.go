package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestReadAnswer(t *testing.T) {
	const tail = `],"usage":{"prompt_tokens":9,"total_tokens":29,"completion_tokens":20,"prompt_tokens_details":null}}`
	chat := func(choices string) string { return `{"id":"x","model":"Qwen/Qwen3-1.7B","choices":[` + choices + tail }
	usage := Usage{Input: 9, Output: 20}
	reasoned := func(n int) Usage { return Usage{Input: 9, Output: 20, Reasoning: n} }
	for _, c := range []struct {
		name, in, want string
		view           View
		usage          Usage
	}{
		{"plain", chat(`{"index":0,"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}`), ``, View{}, usage},
		{"model", chat(``), `{"id":"x","model":"qwen","choices":[` + tail, View{Model: "qwen"}, usage},
		{"both names", chat(`{"message":{"content":"a","reasoning":"one two"}}`), chat(`{"message":{"content":"a","reasoning":"one two","reasoning_content":"one two"}}`), View{}, reasoned(4)},
		{"one name", chat(`{"message":{"content":"a","reasoning_content":"one"}}`), chat(`{"message":{"content":"a","reasoning":"one"}}`), View{Reasoning: OnlyReasoning}, reasoned(3)},
		{"hidden", chat(`{"message":{"reasoning":"one","content":"a"}}`), chat(`{"message":{"content":"a"}}`), View{HideReasoning: true}, reasoned(3)},
		{"hidden, nothing else", chat(`{"message":{"reasoning":"one"}}`), chat(`{"message":{}}`), View{HideReasoning: true}, reasoned(2)},
		{"no content", chat(`{"message":{"content":null,"reasoning":"one two"},"finish_reason":"length"}`), ``, View{Reasoning: OnlyReasoning}, reasoned(3)},
		{"null", chat(`{"message":{"content":"a","reasoning":null}}`), ``, View{Reasoning: OnlyReasoning}, usage},
		{"null beside the other name", chat(`{"message":{"content":"a","reasoning":null,"reasoning_content":"one two"}}`), ``, View{}, reasoned(4)},
		{"two choices", chat(`{"message":{"content":"a","reasoning":"one two"}},{"message":{"reasoning":"three"}}`), chat(`{"message":{"content":"a"}},{"message":{}}`), View{HideReasoning: true}, reasoned(6)},
		{"never more than all", chat(`{"message":{"content":"a","reasoning":"` + strings.Repeat("w ", 50) + `"}}`), ``, View{Reasoning: OnlyReasoning}, reasoned(20)},
		{"repetition", chat(`{"message":{},"finish_reason":"repetition"}`), chat(`{"message":{},"finish_reason":"stop"}`), View{}, usage},
		{"usage is always shown", chat(``), ``, View{IncludeUsage: false}, usage},
		{"counted by the server", `{"choices":[{"message":{"reasoning":"a b c"}}],"usage":{"prompt_tokens":1,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":{"reasoning_tokens":7}}}`, ``, View{Reasoning: OnlyReasoning}, Usage{Input: 1, Cached: 1, Output: 9, Reasoning: 7}},
		{"white space stays", " {\n \"choices\" : [ ]\n, \"usage\" : { \"prompt_tokens\" : 1 , \"completion_tokens\":0} } ", ``, View{}, Usage{Input: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := ReadAnswer(Chat, c.view, []byte(c.in), Bounds{}, newWords)
			if c.want == "" {
				c.want = c.in
			}
			if c.usage.Reasoning > 0 && c.name != "never more than all" { // what the server has not counted is added
				c.want = strings.Replace(c.want, `"prompt_tokens_details":null}`, fmt.Sprintf(`"prompt_tokens_details":null,"completion_tokens_details":{"reasoning_tokens":%d}}`, c.usage.Reasoning), 1)
			}
			if err != nil || a.Estimated || a.Faults != 0 || string(a.Body) != c.want {
				t.Errorf("%v, %v, %v\ngot  %s\nwant %s", a.Estimated, a.Faults.Names(), err, a.Body, c.want)
			}
			if a.Usage != c.usage {
				t.Errorf("%+v; want %+v", a.Usage, c.usage)
			}
		})
	}
	a, err := ReadAnswer(Chat, View{}, []byte(chat(`{"message":{"reasoning":"a"}}`)), Bounds{}, nil)
	if err != nil || a.Usage != usage {
		t.Errorf("without a counter: %+v, %v", a, err)
	}
}

func TestReadAnswerRefuses(t *testing.T) {
	for _, in := range []string{``, `oops`, `[]`, `{}`, `{"usage":{}}`, `{"choices":null}`, `{"choices":[1]}`, `{"choices":[{}]`, `{"choices":[]} x`, `{"error":{}}`, `{"error":null}`, `<html>`} {
		if a, err := ReadAnswer(Chat, View{}, []byte(in), Bounds{}, nil); !errors.Is(err, ErrNoAnswer) || a.Body != nil {
			t.Errorf("%s: %s, %v", in, a.Body, err)
		}
	}
	for in, want := range map[string]StreamError{
		`{"choices":[],"error":{"message":"x"}}`:                                                       {500, Error{Message: "x"}},
		`{"error":{"message":"x","type":"InternalServerError","param":null,"code":500}}`:               {500, Error{Message: "x", Type: "InternalServerError"}},
		`{"error":{"message":"x","type":"ServiceUnavailableError","code":503}}`:                        {503, Error{Message: "x", Type: "ServiceUnavailableError"}},
		`{"error":{"message":"x","type":"UnprocessableEntityError","code":422}}`:                       {422, Error{Message: "x", Type: "UnprocessableEntityError"}},
		`{"object":"error","message":"x","type":"BadRequestError","param":"n","code":400}`:             {400, Error{Message: "x", Type: "BadRequestError", Param: "n"}},
		`{"object":"error","message":"EngineCore encountered an issue.","type":"t","code":"x","a":[]}`: {500, Error{Message: "EngineCore encountered an issue.", Type: "t"}},
		`{"error":"The model is currently scaling"}`:                                                   {500, Error{Message: "The model is currently scaling"}},
		`{"error":{"message":"x","code":200}}`:                                                         {500, Error{Message: "x"}},
	} {
		var got *StreamError
		if a, err := ReadAnswer(Chat, View{}, []byte(in), Bounds{}, nil); !errors.As(err, &got) || *got != want || a.Body != nil {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	a, err := ReadAnswer(Chat, View{}, []byte(`{"choices":[{"message":{"content":"a"},"finish_reason":"abort"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}`), Bounds{}, nil)
	if !errors.Is(err, ErrUnfinished) || a.Body != nil {
		t.Errorf("aborted: %+v, %v", a, err)
	}
}

// TestRepair: a server with the deepseek_r1 parser calls the answer reasoning where
// it was told not to think.
func TestRepair(t *testing.T) {
	const tail = `}],"usage":{"prompt_tokens":9,"completion_tokens":20}}`
	chat := func(message string) string { return `{"choices":[{"message":` + message + tail }
	for _, c := range []struct {
		name, in, want string
		view           View
		reasoning      int
	}{
		{"null", `{"role":"assistant","content":null,"reasoning":"one two","tool_calls":[]}`, `{"content":"one two","role":"assistant","tool_calls":[]}`, View{}, 0},
		{"the old name", `{"reasoning_content":"a\u0041","content":""}`, `{"content":"a\u0041"}`, View{}, 0},
		{"both names", `{ "content" : null , "reasoning" : "a" , "reasoning_content":"a" }`, `{"content":"a"}`, View{}, 0},
		{"one of them null", `{"content":null,"reasoning":null,"reasoning_content":"a"}`, `{"content":"a"}`, View{}, 0},
		{"no content at all", `{"reasoning":"a"}`, `{"content":"a"}`, View{}, 0},
		{"reasoning hidden", `{"content":null,"reasoning":"a"}`, `{"content":"a"}`, View{HideReasoning: true}, 0},
		{"one name", `{"content":null,"reasoning":"a"}`, `{"content":"a"}`, View{Reasoning: OnlyReasoningContent}, 0},
		{"content is there", `{"content":"b","reasoning":"a"}`, `{"content":"b","reasoning":"a"}`, View{Reasoning: OnlyReasoning}, 3},
		{"a tool call is there", `{"content":null,"reasoning":"a","tool_calls":[{}]}`, `{"content":null,"reasoning":"a","tool_calls":[{}]}`, View{Reasoning: OnlyReasoning}, 2},
		{"nothing to move", `{"content":null,"reasoning":null}`, `{"content":null,"reasoning":null}`, View{Reasoning: OnlyReasoning}, 0},
		{"nothing in it", `{"content":null,"reasoning":""}`, `{"content":null,"reasoning":""}`, View{Reasoning: OnlyReasoning}, 1},
		{"right already", `{"content":"\"reasoning","reasoning":null}`, `{"content":"\"reasoning","reasoning":null}`, View{Reasoning: OnlyReasoning}, 0},
	} {
		c.view.ThinkingOff = true
		want := chat(c.want)
		if c.reasoning > 0 {
			want = strings.Replace(want, `"completion_tokens":20`, fmt.Sprintf(`"completion_tokens":20,"completion_tokens_details":{"reasoning_tokens":%d}`, c.reasoning), 1)
		}
		a, err := ReadAnswer(Chat, c.view, []byte(chat(c.in)), Bounds{}, newWords)
		if err != nil || a.Faults != 0 || string(a.Body) != want || a.Usage != (Usage{Input: 9, Output: 20, Reasoning: c.reasoning}) {
			t.Errorf("%s: %s, %+v, %v", c.name, a.Body, a.Usage, err)
		}
		c.view.ThinkingOff = false
		if a, err := ReadAnswer(Chat, c.view, []byte(chat(c.in)), Bounds{}, newWords); err != nil || strings.Contains(c.name, "null") && string(a.Body) == chat(c.want) {
			t.Errorf("%s, thinking: %s, %v", c.name, a.Body, err)
		}
	}
	counted := func(n int, second string) string {
		return fmt.Sprintf(`{"usage":{"prompt_tokens":9,"completion_tokens":20,"completion_tokens_details":{"reasoning_tokens":%d}},"choices":[{"message":{"content":null,"reasoning":"a"}}%s]}`, n, second)
	}
	a, err := ReadAnswer(Chat, View{ThinkingOff: true}, []byte(counted(17, "")), Bounds{}, nil)
	if want := strings.Replace(counted(0, ""), `"content":null,"reasoning":"a"`, `"content":"a"`, 1); err != nil || string(a.Body) != want || a.Usage != (Usage{Input: 9, Output: 20}) {
		t.Errorf("%s, %+v, %v", a.Body, a.Usage, err)
	}
	a, err = ReadAnswer(Chat, View{ThinkingOff: true}, []byte(counted(17, `,{"message":{"content":"b","reasoning":"a"}}`)), Bounds{}, nil)
	if err != nil || a.Usage.Reasoning != 17 {
		t.Errorf("one choice has really thought: %+v, %v", a.Usage, err)
	}
	// A stream is right already: its reasoning stays reasoning.
	tap := Tap{View: View{ThinkingOff: true, Reasoning: OnlyReasoning}}
	if seen, err := feed(t, &tap, delta(0, `{"reasoning":"a"}`, `null`, ``)); err != nil || seen[0] != delta(0, `{"reasoning":"a"}`, `null`, ``) {
		t.Errorf("%s, %v", seen, err)
	}
}

func TestUsageTotal(t *testing.T) {
	if n := (Usage{Input: 3, Cached: 2, Output: 4, Reasoning: 1}).Total(); n != 7 {
		t.Error(n)
	}
}

func TestErrorBody(t *testing.T) {
	for want, e := range map[string]Error{
		`{"error":{"message":"m","type":"t","param":"p","code":"c"}}`:             {"m", "t", "p", "c"},
		`{"error":{"message":"m","type":"t","param":null,"code":null}}`:           {Message: "m", Type: "t"},
		`{"error":{"message":"a<b>&\"c\" é","type":"","param":null,"code":null}}`: {Message: `a<b>&"c" é`},
	} {
		if got := string(e.Body()); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if e.Error() != e.Message {
			t.Error(e.Error())
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		e := Error{rapid.String().Draw(t, "message"), rapid.String().Draw(t, "type"), rapid.String().Draw(t, "param"), rapid.String().Draw(t, "code")}
		body := e.Body()
		var got struct {
			Error struct{ Message, Type, Param, Code string }
		}
		if err := json.Unmarshal(body, &got); err != nil || Error(got.Error) != e || strings.Contains(string(body), "\n") {
			t.Fatalf("%q: %+v, %v", body, got, err)
		}
	})
}

func TestReadError(t *testing.T) {
	long := strings.Repeat("é", maxMessage)
	for _, c := range []struct {
		in   string
		want Error
	}{
		{`{"error":{"message":"m","type":"BadRequestError","param":"input_tokens","code":400}}`, Error{"m", "BadRequestError", "input_tokens", ""}},
		{`{"error":{"message":"The model does not exist.","type":"NotFoundError","param":null,"code":404}}`, Error{Message: "The model does not exist.", Type: "NotFoundError"}},
		{`{"error":"Unauthorized"}`, Error{Message: "Unauthorized"}},
		{`{"error":"The model is currently scaling. Please try again later."}`, Error{Message: "The model is currently scaling. Please try again later."}},
		{`{"detail":"Not Found"}`, Error{Message: "Not Found"}},
		{`{"detail":[{"loc":["body","n"],"msg":"bad"}]}`, Error{Message: `[{"loc":["body","n"],"msg":"bad"}]`}},
		{`{"object":"error","message":"m","type":"t","param":null,"code":400}`, Error{Message: "m", Type: "t"}},
		{`{"error":{"message":"é\u0041\n"}}`, Error{Message: "éA"}},
		{`{"error":null}`, Error{}},
		{`{"error":{}}`, Error{}},
		{`"a text"`, Error{}},
		{" Bad Gateway \n", Error{}},
		{"<html>\xff</html>", Error{}},
		{``, Error{}},
		{`{"error":{"message":"` + long + `"}}`, Error{Message: long[:maxMessage] + "…"}},
		{`{"error":{"message":"m","param":"` + long + `","type":"` + long + `"}}`, Error{"m", long[:maxMessage] + "…", long[:maxMessage] + "…", ""}},
	} {
		if got := ReadError([]byte(c.in)); got != c.want {
			t.Errorf("%.60s: %+v", c.in, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		e := ReadError(rapid.SliceOf(rapid.Byte()).Draw(t, "body"))
		if !utf8.ValidString(e.Message) || !json.Valid(e.Body()) {
			t.Fatalf("%+v", e)
		}
	})
}

func TestKeepAlive(t *testing.T) {
	at := time.Unix(1700000000, 5)
	for _, c := range []struct {
		route Route
		first bool
		want  string
	}{
		{Chat, true, `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"q\"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`},
		{Chat, false, `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"q\"m","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null}]}`},
		{Completions, true, `{"id":"chatcmpl-1","object":"text_completion","created":1700000000,"model":"q\"m","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":null}]}`},
	} {
		got := KeepAlive(c.route, "chatcmpl-1", `q"m`, at, c.first)
		if string(got) != "data: "+c.want+"\n\n" {
			t.Errorf("%s", got)
		}
		events, _ := scan(strings.NewReader(string(got)))
		if len(events) != 1 || !json.Valid([]byte(events[0])) {
			t.Errorf("%q", events)
		}
	}
}
