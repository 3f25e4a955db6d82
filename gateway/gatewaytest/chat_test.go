package gatewaytest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

const chatPath = "/v1/chat/completions"

func TestWholeAnswer(t *testing.T) {
	b := start(t, func(o *Options) { o.Aliases = []string{"other"} })
	status, v := b.post(chatPath, `{"model":"other","messages":[{"role":"user","content":"Hello"}],"unknown":1,"sim":{"tokens":20,"thinking_tokens":8}}`,
		"X-Request-Id", "abc")
	if status != http.StatusOK {
		t.Fatal(status, v)
	}
	if v.Get("id").String() != "chatcmpl-abc" || v.Get("model").String() != "Qwen3-1.7B" {
		t.Error("id and model:", v)
	}
	m := v.Get("choices.0.message")
	for _, key := range []string{"refusal", "annotations", "audio", "function_call"} {
		if m.Get(key).Raw != "null" {
			t.Errorf("%s: %s", key, m.Get(key).Raw)
		}
	}
	if !strings.HasPrefix(m.Get("content").String(), "\n\n") || m.Get("reasoning").String() == "" || m.Get("reasoning_content").Exists() {
		t.Error("message:", m)
	}
	u := v.Get("usage")
	if u.Get("prompt_tokens").Int() != 9 || u.Get("completion_tokens").Int() != 20 || u.Get("total_tokens").Int() != 29 ||
		u.Get("prompt_tokens_details").Raw != "null" {
		t.Error("usage:", u)
	}
	r := b.record("abc")
	if r.Prompt != 9 || r.Output != 20 || r.Reasoning != 8 || r.Delivered != 20 || r.Finish != "stop" || r.Model != "other" ||
		r.Aborted || r.FirstToken.IsZero() || len(r.Body) == 0 {
		t.Errorf("record: %+v", r)
	}
	// The answer is real tokens: EOS, two markers and nothing else is missing.
	n := b.tokenizer.Count(m.Get("content").String()) + b.tokenizer.Count(m.Get("reasoning").String())
	if n > 17 {
		t.Errorf("%d tokens of text for 20 billed", n)
	}
}

func TestStream(t *testing.T) {
	b := start(t, nil)
	s := b.stream(chatPath, chat("Hello", usage+`,"sim":{"tokens":20,"thinking_tokens":8}`), "X-Request-Id", "s1")
	if !s.done {
		t.Fatal("no [DONE]")
	}
	first := s.chunks[0].Get("choices.0")
	if first.Get("delta").Raw != `{"role":"assistant","content":""}` || first.Get("logprobs").Raw != "null" {
		t.Error("role chunk:", first)
	}
	if u := s.chunks[0].Get("usage"); u.Get("prompt_tokens").Int() != 9 || u.Get("completion_tokens").Int() != 0 {
		t.Error("role usage:", u)
	}
	lastCount := int64(0)
	for _, c := range s.chunks {
		if n := c.Get("usage.completion_tokens").Int(); n < lastCount {
			t.Error("usage falls:", c)
		} else {
			lastCount = n
		}
	}
	if s.finish(0) != "stop" || lastCount != 20 {
		t.Error("finish and count:", s.finish(0), lastCount)
	}
	if end := s.last(); len(end.Get("choices").Array()) != 0 || end.Get("usage.completion_tokens").Int() != 20 || end.Get("usage.prompt_tokens_details").Exists() {
		t.Error("usage chunk:", end)
	}
	_, whole := b.post(chatPath, chat("Hello", `"sim":{"tokens":20,"thinking_tokens":8}`))
	for field, path := range map[string]string{"delta.content": "content", "delta.reasoning": "reasoning"} {
		if s.joined(0, field) != whole.Get("choices.0.message."+path).String() {
			t.Errorf("%s differs: %q", path, s.joined(0, field))
		}
	}
}

func TestUsageRules(t *testing.T) {
	for _, c := range []struct {
		name, more    string
		edit          func(*Options)
		final, chunks bool
	}{
		{"not asked", `"stream":true`, nil, false, false},
		{"include", `"stream":true,"stream_options":{"include_usage":true}`, nil, true, false},
		{"continuous alone", `"stream":true,"stream_options":{"continuous_usage_stats":true}`, nil, false, false},
		{"both", usage, nil, true, true},
		{"empty options", `"stream":true,"stream_options":{}`, nil, false, false},
		{"empty options of old", `"stream":true,"stream_options":{}`, func(o *Options) { o.Version = "0.17.1" }, true, false},
		{"forced", `"stream":true`, func(o *Options) { o.ForceIncludeUsage = true }, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, c.edit)
			s := b.stream(chatPath, chat("Hello", c.more))
			if got := len(s.last().Get("choices").Array()) == 0; got != c.final {
				t.Error("usage chunk:", got)
			}
			if got := s.chunks[0].Get("usage").Exists(); got != c.chunks {
				t.Error("continuous:", got)
			}
		})
	}
}

func TestManyChoices(t *testing.T) {
	b := start(t, nil)
	s := b.stream(chatPath, chat("Hello", usage+`,"n":3,"sim":{"tokens":12}`), "X-Request-Id", "n3")
	roles := 0
	for _, c := range s.chunks {
		if c.Get("choices.0.delta.role").Exists() {
			roles++
		}
		if len(c.Get("choices").Array()) == 1 && c.Get("usage.completion_tokens").Int() > 12 {
			t.Error("a chunk's usage must be that of its own choice:", c)
		}
	}
	if roles != 3 {
		t.Error("role chunks:", roles)
	}
	if u := s.last().Get("usage"); u.Get("prompt_tokens").Int() != 9 || u.Get("completion_tokens").Int() != 36 {
		t.Error("usage:", u)
	}
	if one := s.joined(0, "delta.content"); one == s.joined(1, "delta.content") && one == s.joined(2, "delta.content") {
		t.Error("choices are all the same")
	}
	if r := b.record("n3"); r.Output != 36 || r.Delivered != 36 || len(r.Choices) != 3 || r.Choices[2].Delivered != 12 || r.Prompt != 9 {
		t.Errorf("record: %+v", r)
	}
	if _, v := b.post(chatPath, chat("Hello", `"n":2`)); len(v.Get("choices").Array()) != 2 {
		t.Error("choices:", v)
	}
}

func TestLimits(t *testing.T) {
	b := start(t, nil)
	for _, c := range []struct {
		more, finish string
		tokens       int64
	}{
		{`"max_tokens":7,"sim":{"tokens":50}`, "length", 7},
		{`"max_tokens":7,"max_completion_tokens":9,"sim":{"tokens":50}`, "length", 9},
		{`"max_tokens":50,"sim":{"tokens":50}`, "stop", 50},
		{`"max_tokens":30,"ignore_eos":true`, "length", 30},
		{`"max_tokens":100,"stop":["beta"],"sim":{"text":"alpha beta gamma","thinking_tokens":3}`, "stop", 0},
	} {
		_, v := b.post(chatPath, chat("Hello", c.more))
		if v.Get("choices.0.finish_reason").String() != c.finish {
			t.Error(c.more, v)
		}
		if c.tokens > 0 && v.Get("usage.completion_tokens").Int() != c.tokens {
			t.Error(c.more, v.Get("usage"))
		}
	}
	_, v := b.post(chatPath, chat("Hello", `"stop":["beta","zzz"],"sim":{"text":"alpha beta gamma","thinking_tokens":3}`))
	if ch := v.Get("choices.0"); ch.Get("message.content").String() != "\n\nalpha " || ch.Get("stop_reason").String() != "beta" {
		t.Error("stop:", ch)
	}
	s := b.stream(chatPath, chat("Hello", `"stream":true,"stop":["beta","zzz"],"sim":{"text":"alpha beta gamma","thinking_tokens":3}`))
	if got := s.joined(0, "delta.content"); got != "\n\nalpha " || strings.Contains(s.raw, "bet") && !strings.Contains(s.raw, `"stop_reason":"beta"`) {
		t.Errorf("streamed stop: %q", got)
	}
}

func TestLogprobs(t *testing.T) {
	b := start(t, nil)
	_, v := b.post(chatPath, chat("Hello", `"logprobs":true,"top_logprobs":2,"sim":{"tokens":10}`))
	list := v.Get("choices.0.logprobs.content").Array()
	if len(list) != 10 || len(list[0].Get("top_logprobs").Array()) != 2 || !list[0].Get("bytes").IsArray() {
		t.Error(v.Get("choices.0.logprobs"))
	}
	s := b.stream(chatPath, chat("Hello", `"stream":true,"logprobs":true,"sim":{"tokens":10}`))
	n := 0
	for _, c := range s.chunks {
		n += len(c.Get("choices.0.logprobs.content").Array())
	}
	if n != 10 {
		t.Error("streamed logprobs:", n)
	}
	// More than --max-logprobs is found by the engine only: inside the stream.
	status, v := b.post(chatPath, chat("Hello", `"logprobs":true,"top_logprobs":21`))
	if status != http.StatusBadRequest {
		t.Error(status, v)
	}
	s = b.stream(chatPath, chat("Hello", `"stream":true,"logprobs":true,"top_logprobs":21`))
	if len(s.chunks) != 1 || s.chunks[0].Get("error.code").Int() != 400 || !s.done {
		t.Error(s.raw)
	}
}

func TestText(t *testing.T) {
	b := start(t, nil)
	off := `"chat_template_kwargs":{"enable_thinking":false}`
	_, v := b.post(chatPath, chat("共享推理是什么？", off))
	if text := v.Get("choices.0.message.content").String(); !hasHan(text) || strings.ContainsRune(text, '\uFFFD') {
		t.Errorf("%q", text)
	}
	// Characters of several tokens never come in halves.
	s := b.stream(chatPath, chat("x", `"stream":true,`+off+`,"sim":{"text":"🦊🪿 naïve 𠜎 ok"}`))
	if got := s.joined(0, "delta.content"); got != "🦊🪿 naïve 𠜎 ok" || strings.Contains(s.raw, "\uFFFD") {
		t.Errorf("%q", got)
	}
}

func TestCompletions(t *testing.T) {
	b := start(t, nil)
	_, v := b.post("/v1/completions", `{"prompt":"Once upon a time","echo":true}`)
	if v.Get("usage.completion_tokens").Int() != 16 || v.Get("choices.0.finish_reason").String() != "length" ||
		!strings.HasPrefix(v.Get("choices.0.text").String(), "Once upon a time") || !strings.HasPrefix(v.Get("id").String(), "cmpl-") {
		t.Error(v)
	}
	for prompt, want := range map[string][2]int64{
		`["one","two three"]`: {2, 3}, `[9707,11,1879]`: {1, 3}, `[[9707],[9707,1879]]`: {2, 3},
	} {
		_, v := b.post("/v1/completions", `{"prompt":`+prompt+`,"max_tokens":4,"logprobs":1}`)
		if int64(len(v.Get("choices").Array())) != want[0] || v.Get("usage.prompt_tokens").Int() != want[1] ||
			v.Get("usage.completion_tokens").Int() != 4*want[0] {
			t.Error(prompt, v)
		}
	}
	s := b.stream("/v1/completions", `{"prompt":["one","two three"],"n":2,"max_tokens":5,`+usage+`}`)
	if s.last().Get("usage.completion_tokens").Int() != 20 || s.finish(3) != "length" || s.chunks[0].Get("object").String() != "text_completion" || !s.done {
		t.Error(s.raw)
	}
}

func TestRefusals(t *testing.T) {
	b := start(t, func(o *Options) { o.MaxModelLen = 100; o.ToolParser = false })
	tool := `"tools":[{"type":"function","function":{"name":"f"}}]`
	for _, c := range []struct {
		body, kind, param string
		status            int64
	}{
		{`{`, "Bad Request", "", 400},
		{`[]`, "Bad Request", "", 400},
		{`{"model":"Qwen3-1.7B"}`, "Bad Request", "messages", 400},
		{chat("Hello", `"stream_options":{"include_usage":true}`), "Bad Request", "stream_options", 400},
		{chat("Hello", `"top_logprobs":2`), "Bad Request", "top_logprobs", 400},
		{chat("Hello", `"max_tokens":"x"`), "Bad Request", "max_tokens", 400},
		{chat("Hello", `"stream":"yes"`), "Bad Request", "stream", 400},
		{chat("Hello", `"max_tokens":0`), "BadRequestError", "max_tokens", 400},
		{chat("Hello", `"temperature":-1`), "BadRequestError", "temperature", 400},
		{chat("Hello", `"n":0`), "BadRequestError", "n", 400},
		{chat("Hello", `"max_tokens":95`), "BadRequestError", "input_tokens", 400},
		{chat("Hello", `"max_tokens":101`), "BadRequestError", "max_tokens", 400},
		{chat(strings.Repeat("hello ", 200), ``), "BadRequestError", "input_tokens", 400},
		{chat(strings.Repeat("hello ", 3000), ``), "BadRequestError", "input_text", 400},
		{chat("Hello", `"tools":[]`), "Bad Request", "tools", 400},
		{chat("Hello", tool), "BadRequestError", "", 400},
		{chat("Hello", tool+`,"tool_choice":{"type":"function","function":{"name":"g"}}`), "Bad Request", "tool_choice", 400},
		{chat("Hello", `"chat_template":"x"`), "BadRequestError", "chat_template", 400},
		{chat("Hello", `"structured_outputs":{"regex":"a","choice":["b"]}`), "Bad Request", "structured_outputs", 400},
		{strings.Replace(chat("Hello", ""), "Qwen3-1.7B", "gpt-4", 1), "NotFoundError", "model", 404},
	} {
		status, v := b.post(chatPath, c.body)
		e := v.Get("error")
		if int64(status) != c.status || e.Get("code").Int() != c.status || e.Get("code").Type != gjson.Number ||
			e.Get("type").String() != c.kind || e.Get("param").String() != c.param {
			t.Errorf("%.90s: %d %s", c.body, status, v)
		}
	}
	resp, err := b.client.Post(b.URL+chatPath, "text/plain", strings.NewReader(chat("Hello", "")))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Error("content type:", resp.StatusCode)
	}
	if got := b.Stats(); got.Refused != 21 || got.GenerationTokens != 0 {
		t.Errorf("%+v", got)
	}
}
