package gateway

import (
	"fmt"

	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
	"tidegate/gateway/qwen"
	"tidegate/gateway/refusal"
)

// count sets the exact tokens of the prompt and of the longest one, which is the one
// that must fit the context, and the number of choices.
func (q *request) count(counter *qwen.Counter, prompt door.Prompt) error {
	if prompt.Texts == nil {
		chat := prompt.Chat
		chat.NoThinking = q.noThinking
		n, err := countChat(counter, chat, q.model)
		if err != nil {
			return err
		}
		q.longest = q.cut(n)
		q.prompt, q.choices = q.longest, q.choicesPerPrompt()
		return nil
	}
	if q.choices = len(prompt.Texts) * q.choicesPerPrompt(); q.choices > openai.MaxChoices {
		return refusal.New(refusal.InvalidRequest, "prompt", fmt.Sprintf("prompt: %d prompts with n %d ask for more than %d answers", len(prompt.Texts), q.Wish.N, openai.MaxChoices))
	}
	longest := 0
	for _, p := range prompt.Texts {
		n := p.Tokens
		if n == 0 {
			n = counter.Text(p.Text)
		}
		longest = max(longest, n)
		q.prompt += q.truncated(n)
	}
	q.longest = q.cut(longest)
	return nil
}

// truncated returns how many tokens remain of a prompt after truncate_prompt_tokens.
func (q *request) truncated(prompt int) int {
	keep := q.Wish.Truncate
	if keep < 0 {
		// As many as leave room for the answer, in a context that is known.
		if keep = q.model.Context() - max(q.Wish.MaxTokens, 1); keep < 1 {
			return prompt
		}
	}
	if keep == 0 {
		return prompt
	}
	return min(prompt, keep)
}

// cut returns how many tokens remain of the longest prompt, and sets truncate where that
// is fewer. The body gets it as a number, which all versions of vLLM read alike.
func (q *request) cut(longest int) int {
	kept := q.truncated(longest)
	if kept < longest {
		q.truncate = kept
	}
	return kept
}

// countChat returns the tokens of a conversation as the backends of a model render it.
// Their versions may differ, and nobody knows yet which of them will answer: then the
// longest is reserved for, and the backend's own usage settles it.
func countChat(counter *qwen.Counter, chat qwen.Chat, m *backend.Model) (tokens int, err error) {
	known := false
	eachDialect(m, func(d qwen.Dialect) {
		chat.Dialect = d
		n, fault := counter.Chat(chat)
		if fault == nil {
			tokens, known = max(tokens, n), true
		} else if err == nil {
			err = refusal.New(refusal.InvalidRequest, "messages", fault.Error())
		}
	})
	if known {
		return tokens, nil
	}
	return 0, err
}

// eachDialect calls f once with each dialect that the backends of a model in rotation have;
// with the newest where there are none.
func eachDialect(m *backend.Model, f func(qwen.Dialect)) {
	var seen uint // a bit for each
	if m != nil {
		for _, b := range m.Backends {
			if d := qwen.DialectOf(b.Facts().Capabilities.Minor()); b.Seat.InRotation() && seen&(1<<d) == 0 {
				seen |= 1 << d
				f(d)
			}
		}
	}
	if seen == 0 {
		f(qwen.Newest)
	}
}

// renderChat returns the prompt that the backends of a model make of a conversation: the
// longest, where their versions differ. Without a model it is that of the newest vLLM.
func renderChat(counter *qwen.Counter, chat qwen.Chat, m *backend.Model) (longest string, err error) {
	eachDialect(m, func(d qwen.Dialect) {
		chat.Dialect = d
		prompt, fault := qwen.Render(chat)
		switch {
		case fault != nil && err == nil:
			err = refusal.New(refusal.InvalidRequest, "messages", fault.Error())
		case fault == nil && (longest == "" || counter.Text(prompt) > counter.Text(longest)):
			longest = prompt
		}
	})
	if longest != "" {
		return longest, nil
	}
	return "", err
}
