package openai

import "testing"

// TestOverflows knows the context refusals of all versions of vLLM by their wording, and
// takes no other refusal for one. The texts are the servers' own, each in the body of its
// version.
func TestOverflows(t *testing.T) {
	const shorter = ` Please reduce the length of the messages or completion.`
	flat := func(message string) string {
		return `{"object":"error","message":"` + message + `","type":"BadRequestError","param":null,"code":400}`
	}
	nested := func(message, param string) string {
		return `{"error":{"message":"` + message + `","type":"BadRequestError","param":` + param + `,"code":400}}`
	}
	for _, c := range []struct {
		name, body string
		want       bool
	}{
		{"0.4 to 0.10", flat(`This model's maximum context length is 2048 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion).` + shorter), true},
		{"0.4 without a limit", flat(`This model's maximum context length is 2048 tokens. However, you requested 3000 tokens in the messages, Please reduce the length of the messages.`), true},
		{"0.6, the engine", flat(`The prompt (total length 3000) is too long to fit into the model (context length 2048). Make sure that ` + "`max_model_len`" + ` is no smaller than the number of text tokens.`), true},
		{"0.7 to 0.33, the engine", flat(`The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make sure that ` + "`max_model_len`" + ` is no smaller than the number of text tokens.`), true},
		{"0.16, the engine, exactly full", flat(`The decoder prompt (length 2048) plus the number of requested output tokens (at least 1) is longer than the maximum model length of 2048.`), true},
		{"0.5 to 0.11, nothing left", flat(`max_tokens must be at least 1, got -952.`), true},
		{"0.11", nested(`This model's maximum context length is 2048 tokens. However, your request has 3000 input tokens. Please reduce the length of the input messages.`, `null`), true},
		{"0.11, limit", nested(`'max_tokens' or 'max_completion_tokens' is too large: 1500. This model's maximum context length is 2048 tokens and your request has 1000 input tokens (1500 > 2048 - 1000).`, `null`), true},
		{"0.12 and later, by the parameter", nested(`Too long.`, `"input_tokens"`), true},
		{"0.12 and later, not even tokenized", nested(`Too long.`, `"input_text"`), true},
		{"0.16, limit, without a space", nested(`max_tokens=5000cannot be greater than max_model_len=max_total_tokens=2048. Please request fewer output tokens. (parameter=max_tokens, value=5000)`, `"max_tokens"`), true},
		{"0.16", nested(`You passed 3000 input tokens and requested 5 output tokens. However, the model's context length is only 2048 tokens, resulting in a maximum input length of 2043 tokens. Please reduce the length of the input prompt.`, `null`), true},
		{"0.32", nested(`This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.`, `null`), true},
		{"0.32, limit", nested(`max_completion_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output tokens.`, `"max_completion_tokens"`), true},
		{"0.32, the limit's own check", nested(`Input length (3000) exceeds model's maximum context length (2048).`, `null`), true},
		{"responses", nested(`The engine prompt length 3000 exceeds the max_model_len 2048. Please reduce prompt.`, `null`), true},
		{"the Rust frontend", nested(`this model's maximum context length is 2048 tokens, but the prompt contains 3000 input tokens`, `null`), true},

		{"no limit at all", flat(`max_tokens must be at least 1, got 0.`), false},
		{"the cut is too long, 0.16", nested(`truncate_prompt_tokens=5000 cannot be greater than max_model_len - max_tokens = 2043. Please request a smaller truncation size.`, `"truncate_prompt_tokens"`), false},
		{"the cut is too long, 0.10", flat(`truncate_prompt_tokens value (5000) is greater than max_model_len (2048). Please, select a smaller truncation size.`), false},
		{"too many choices", flat(`n must be at most 16384, got 99999.`), false},
		{"log probabilities", nested(`Requested sample logprobs of 50, which is greater than max allowed: 20`, `null`), false},
	} {
		e := ReadError([]byte(c.body))
		if e.Message == "" || e.Overflows() != c.want {
			t.Errorf("%s: %q: overflows %v", c.name, e.Message, e.Overflows())
		}
	}
}
