package gatewaytest

import (
	"net/http"
	"strings"
	"testing"
)

const thinkingOff = `"chat_template_kwargs":{"enable_thinking":false}`

func TestReasoningFieldByVersion(t *testing.T) {
	for version, fields := range map[string][2]bool{
		"0.11.0": {false, true}, "0.12.0": {true, true}, "0.15.1": {true, true}, "0.16.0": {true, false}, "0.32.0": {true, false},
	} {
		t.Run(version, func(t *testing.T) {
			b := start(t, func(o *Options) { o.Version = version })
			_, v := b.post(chatPath, chat("Hello", `"sim":{"tokens":20}`))
			s := b.stream(chatPath, chat("Hello", `"stream":true,"sim":{"tokens":20}`))
			for i, name := range []string{"reasoning", "reasoning_content"} {
				if got := v.Get("choices.0.message."+name).String() != ""; got != fields[i] {
					t.Error(name, got)
				}
				if got := s.joined(0, "delta."+name) != ""; got != fields[i] {
					t.Error("streamed", name, got)
				}
			}
		})
	}
}

func TestThinkingSwitch(t *testing.T) {
	b := start(t, nil)
	for more, want := range map[string][2]int64{ // prompt tokens, thinks
		``:          {9, 1},
		thinkingOff: {13, 0},
		`"chat_template_kwargs":{"enable_thinking":"false"}`: {9, 1},
		`"enable_thinking":false`:                            {9, 1},
		`"reasoning_effort":"none"`:                          {13, 0},
		`"reasoning_effort":"low"`:                           {9, 1},
	} {
		_, v := b.post(chatPath, chat("Hello", more))
		thinks := int64(0)
		if v.Get("choices.0.message.reasoning").String() != "" {
			thinks = 1
		}
		if v.Get("usage.prompt_tokens").Int() != want[0] || thinks != want[1] {
			t.Error(more, v)
		}
	}
	_, v := b.post(chatPath, chat("Hello /no_think", `"sim":{"text":"Hi"}`))
	if v.Get("choices.0.message.reasoning").String() != "\n\n" {
		t.Error("/no_think:", v)
	}
	status, _ := b.post(chatPath, chat("Hello", `"chat_template_kwargs":{"tokenize":true}`))
	if status != http.StatusBadRequest {
		t.Error("tokenize in kwargs:", status)
	}
}

func TestParsers(t *testing.T) {
	none := start(t, func(o *Options) { o.ReasoningParser = "" })
	_, v := none.post(chatPath, chat("Hello", `"sim":{"text":"Hi"}`))
	m := v.Get("choices.0.message")
	if c := m.Get("content").String(); !strings.HasPrefix(c, "<think>\n") || !strings.HasSuffix(c, "\n</think>\n\nHi") || m.Get("reasoning").String() != "" {
		t.Error("no parser:", m)
	}
	s := none.stream(chatPath, chat("Hello", `"stream":true,"sim":{"text":"Hi"}`))
	if s.joined(0, "delta.content") != m.Get("content").String() {
		t.Error("no parser, streamed:", s.raw)
	}

	r1 := start(t, func(o *Options) { o.ReasoningParser = "deepseek_r1" })
	_, v = r1.post(chatPath, chat("Hello", thinkingOff+`,"sim":{"text":"Hi"}`))
	if m := v.Get("choices.0.message"); m.Get("content").Raw != "null" || m.Get("reasoning").String() != "Hi" {
		t.Error("deepseek_r1 quirk:", m)
	}
	s = r1.stream(chatPath, chat("Hello", `"stream":true,`+thinkingOff+`,"sim":{"text":"Hi"}`))
	if s.joined(0, "delta.content") != "Hi" {
		t.Error("deepseek_r1 streams right:", s.raw)
	}

	qwen3 := start(t, nil)
	_, v = qwen3.post(chatPath, chat("Hello", `"max_tokens":6,"sim":{"tokens":50,"thinking_tokens":30}`))
	if m := v.Get("choices.0.message"); m.Get("content").Raw != "null" || m.Get("reasoning").String() == "" || v.Get("choices.0.finish_reason").String() != "length" {
		t.Error("cut while thinking:", v)
	}
	if r := qwen3.Requests()[0]; r.Reasoning != 6 || r.Output != 6 {
		t.Errorf("%+v", r)
	}
}

func TestHiddenReasoning(t *testing.T) {
	for version, streamed := range map[string]bool{"0.23.0": true, "0.28.0": false} {
		b := start(t, func(o *Options) { o.Version = version })
		_, v := b.post(chatPath, chat("Hello", `"include_reasoning":false,"sim":{"tokens":20}`))
		if v.Get("choices.0.message.reasoning").String() != "" || v.Get("usage.completion_tokens").Int() != 20 {
			t.Error(v)
		}
		details := v.Get("usage.completion_tokens_details.reasoning_tokens")
		if details.Exists() != (version == "0.28.0") || details.Exists() && details.Int() != 6 {
			t.Error(version, v.Get("usage"))
		}
		s := b.stream(chatPath, chat("Hello", `"stream":true,"include_reasoning":false,"sim":{"tokens":20}`))
		if got := s.joined(0, "delta.reasoning") != ""; got != streamed {
			t.Error(version, "streamed reasoning:", got)
		}
	}
}

func TestThinkingBudget(t *testing.T) {
	b := start(t, nil)
	b.post(chatPath, chat("Hello", `"thinking_token_budget":5,"sim":{"tokens":60,"thinking_tokens":40}`))
	if r := b.Requests()[0]; r.Reasoning != 9 {
		t.Errorf("budget 5 and four marks: %d", r.Reasoning)
	}
	none := start(t, func(o *Options) { o.ReasoningParser = "" })
	if status, _ := none.post(chatPath, chat("Hello", `"thinking_token_budget":5`)); status != http.StatusBadRequest {
		t.Error(status)
	}
	s := none.stream(chatPath, chat("Hello", `"stream":true,"thinking_token_budget":5`))
	if s.chunks[0].Get("error.code").Int() != 400 || !s.done {
		t.Error(s.raw)
	}
}

func TestCachedTokens(t *testing.T) {
	long := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 20)
	b := start(t, func(o *Options) { o.PromptTokensDetails = true })
	_, first := b.post(chatPath, chat(long, ""))
	_, second := b.post(chatPath, chat(long, ""))
	prompt := first.Get("usage.prompt_tokens").Int()
	if got := first.Get("usage.prompt_tokens_details.cached_tokens"); !got.Exists() || got.Int() != 0 {
		t.Error("first:", first.Get("usage"))
	}
	if got := second.Get("usage.prompt_tokens_details.cached_tokens").Int(); got != (prompt-1)/16*16 {
		t.Error("second:", second.Get("usage"))
	}
	_, salted := b.post(chatPath, chat(long, `"cache_salt":"x"`))
	if got := salted.Get("usage.prompt_tokens_details.cached_tokens").Int(); got != 0 {
		t.Error("salted:", got)
	}
	old := start(t, func(o *Options) { o.PromptTokensDetails = true; o.Version = "0.22.0" })
	if _, v := old.post(chatPath, chat(long, "")); v.Get("usage.prompt_tokens_details").Raw != "null" {
		t.Error("0 is not written before v0.23:", v.Get("usage"))
	}
}

// TestAnswerTokens: the answer's length is asked for, and thinking doubles it on top.
func TestAnswerTokens(t *testing.T) {
	b := start(t, nil)
	for _, c := range []struct {
		more   string
		output int64
		cut    bool
	}{
		{`"sim":{"answer_tokens":40}`, 120, false},
		{thinkingOff + `,"sim":{"answer_tokens":40}`, 40, false},
		{`"sim":{"answer_tokens":40,"thinking_tokens":10}`, 50, false},
		{`"sim":{"answer_tokens":40},"max_tokens":100`, 100, true},
	} {
		_, v := b.post(chatPath, chat("Hello", c.more))
		cut := v.Get("choices.0.finish_reason").String() == "length"
		if v.Get("usage.completion_tokens").Int() != c.output || cut != c.cut {
			t.Error(c.more, v)
		}
	}
	_, v := b.post(chatPath, chat("Hello /no_think", `"sim":{"answer_tokens":40}`))
	if v.Get("usage.completion_tokens").Int() != 40+emptyThink {
		t.Error("/no_think:", v)
	}
}
