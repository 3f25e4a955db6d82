package gateway

import (
	"fmt"

	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/qwen"
	"tidegate/gateway/refusal"
)

// parse reads who calls, which model is meant and how long the prompt is, and
// edits the body into what the server is to get.
func (g *Gateway) parse(c *call) error {
	if err := c.identify(); err != nil {
		return err
	}
	if known := g.Admission.Refused(limit.Request{Subjects: c.subjects(), Tier: string(c.who.Tier)}); known != nil {
		return known // before anything is read of those who hammer
	}
	raw, err := c.readBody()
	if err != nil {
		return err
	}
	body, fault := openai.ParseRequest(c.kind, raw)
	if fault != nil {
		return fault
	}
	c.body = body
	if c.wish, fault = body.Translate(c.set.MaxN); fault != nil {
		return fault
	}
	if fault = body.CheckTokens(qwen.Vocabulary); fault != nil {
		return fault
	}
	if c.asked, err = g.askedModel(c); err != nil {
		return err
	}
	c.model, c.served, c.streamed = c.asked, c.asked.Name, c.wish.Stream
	if err := c.accept(); err != nil {
		return err
	}
	c.noThinking = c.wish.NoThinking
	if c.wish.ThinkingOpen && c.model.NoThinking() {
		c.noThinking, body.QuietDefault = true, true
	}
	if c.longest, err = g.countPrompt(c); err != nil {
		return err
	}
	if err := c.bound(c.longest, g.Ladder.Effect(degrade.StreamingOff).MaxTokens); err != nil {
		return err
	}
	c.out = &reply{c: c, lastWrite: c.began, told: c.began, buffers: &g.buffers, id: c.id + "-1", model: c.served}
	if c.wish.Stream {
		body.Set("stream_options", []byte(`{"include_usage":true,"continuous_usage_stats":true}`))
	} else {
		body.Delete("stream_options")
	}
	held := body.Compact() // who waits for a place holds no more
	if held <= cap(raw) {
		held = min(held, len(raw))
	}
	return c.hold(held)
}

// countPrompt counts the tokens of the prompt exactly, and returns those of the
// longest where there are several, which is the one that must fit the context.
func (g *Gateway) countPrompt(c *call) (longest int, err error) {
	if c.kind == openai.Completions {
		raw, _ := c.body.Raw("prompt")
		prompts, fault := openai.Prompts(raw, c.set.MaxPrompts)
		if fault != nil {
			return 0, fault
		}
		c.several, c.answers = len(prompts) > 1, len(prompts)*c.wish.N
		if c.answers > openai.MaxChoices {
			return 0, refusal.New(refusal.InvalidRequest, "prompt", fmt.Sprintf("prompt: %d prompts with n %d ask for more than %d answers", len(prompts), c.wish.N, openai.MaxChoices))
		}
		for _, p := range prompts {
			n := p.Tokens
			if p.Tokens == 0 {
				n = g.Counter.Text(p.Text)
			}
			longest = max(longest, n)
			c.prompt += c.kept(n)
		}
		return c.truncate(longest), nil
	}
	n, err := g.countChat(chatOf(c.body, c.noThinking), c.model)
	if err != nil {
		return 0, err
	}
	n = c.truncate(n)
	c.prompt, c.answers = n, c.wish.N
	return n, nil
}

// kept is how many tokens remain of a prompt of so many, after truncate_prompt_tokens.
func (c *call) kept(prompt int) int {
	keep := c.wish.Truncate
	if keep < 0 {
		// As many as leave room for the answer, in a context that is known.
		if keep = c.model.Context() - max(c.wish.MaxTokens, 1); keep < 1 {
			return prompt
		}
	}
	if keep == 0 {
		return prompt
	}
	return min(prompt, keep)
}

// truncate writes into the body to how many tokens the longest prompt is cut, as a
// number that all versions of vLLM read alike, and returns how many it has then.
func (c *call) truncate(longest int) int {
	if c.wish.Truncate == 0 {
		return longest
	}
	keep := c.kept(longest)
	c.truncated = keep < longest
	if !c.truncated {
		c.body.Truncated(0)
		return longest
	}
	c.body.Truncated(keep)
	return keep
}

// countChat counts the tokens of a conversation as the servers of a model render it.
// Their versions may render it in different ways, and nobody knows yet which of them
// will answer: then the longest is reserved for, and the server's own usage settles it.
func (g *Gateway) countChat(chat qwen.Chat, m *backend.Model) (tokens int, err error) {
	known := false
	dialects(m, func(d qwen.Dialect) {
		chat.Dialect = d
		n, fault := g.Counter.Chat(chat)
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

// dialects calls f with each dialect that the servers of a model in rotation have, once;
// with the newest where there are none.
func dialects(m *backend.Model, f func(qwen.Dialect)) {
	var seen uint // a bit for each
	if m != nil {
		for _, b := range m.Backends {
			if d := qwen.DialectOf(b.Facts().Can.Minor()); b.Seat.Up() && seen&(1<<d) == 0 {
				seen |= 1 << d
				f(d)
			}
		}
	}
	if seen == 0 {
		f(qwen.Newest)
	}
}

// chatOf is the conversation in a body, as it is handed to the chat template.
func chatOf(body *openai.Request, noThinking bool) qwen.Chat {
	chat := qwen.Chat{NoThinking: noThinking}
	chat.Messages, _ = body.Raw("messages")
	chat.Tools, _ = body.Raw("tools")
	chat.NoGenerationPrompt = isFalse(body, "add_generation_prompt")
	goesOn, _ := body.Raw("continue_final_message")
	chat.Continue = string(goesOn) == "true"
	return chat
}

func isFalse(body *openai.Request, name string) bool {
	raw, _ := body.Raw(name)
	return string(raw) == "false"
}

// perTool is by how many tokens versions of vLLM differ in rendering a tool.
const perTool = 16

// bound makes sure that the answer has a limit, and that the prompt and the limit fit the
// model's context: a limit that does not is lowered to what the prompt leaves. vLLM does
// that from 0.32 on, and refuses such a request before. The prompt alone must leave room
// for one token, as vLLM of all versions wants it. Where the context is not known, because
// the servers do not say it or none is in rotation, an answer without a limit gets capped:
// the engine would bound it by a number that nobody here could reserve.
func (c *call) bound(prompt, capped int) error {
	if c.wish.ScoresPrompt && prompt > openai.MaxScored {
		return refusal.New(refusal.InvalidRequest, "echo", fmt.Sprintf("echo asks for the log probabilities of a prompt of %d tokens, and %d is the most: shorten the prompt, or leave out echo or the log probabilities",
			prompt, openai.MaxScored))
	}
	context, asked := c.model.Context(), c.wish.MaxTokens
	c.limit = asked
	left := context - prompt
	switch {
	case context == 0 && asked == 0:
		c.limit = c.body.LimitTokens(capped)
	case context == 0:
	case asked > context:
		param := c.body.LimitName()
		return refusal.New(refusal.ContextLength, param, fmt.Sprintf("the context of %s is %d tokens; the prompt has %d, and %s asks for %d: lower it, or leave it out (%s)",
			c.model.Name, context, prompt, param, asked, refusal.ContextLength))
	case left < 1:
		return c.overflow(fmt.Sprintf("the context of %s is %d tokens, and the prompt alone has %d, which leaves no room for an answer: shorten the prompt",
			c.model.Name, context, prompt))
	case asked == 0, asked > left:
		c.limit = c.body.LimitTokens(c.room(left))
	}
	return nil
}

// room is what an answer may have of the tokens that a prompt leaves of a context, where
// the caller has set no lower limit.
func (c *call) room(left int) int {
	if tools, ok := c.body.Raw("tools"); ok && c.kind == openai.Chat {
		left -= perTool * openai.Count(tools)
	}
	return max(left, 1)
}

// renderChat is the prompt that the servers of a model make of a conversation: the
// longest, where their versions differ. Without a model it is that of the newest vLLM.
func (g *Gateway) renderChat(body *openai.Request, m *backend.Model, noThinking bool) (longest string, err error) {
	chat := chatOf(body, noThinking)
	dialects(m, func(d qwen.Dialect) {
		chat.Dialect = d
		prompt, fault := qwen.Render(chat)
		switch {
		case fault != nil && err == nil:
			err = refusal.New(refusal.InvalidRequest, "messages", fault.Error())
		case fault == nil && (longest == "" || g.Counter.Text(prompt) > g.Counter.Text(longest)):
			longest = prompt
		}
	})
	if longest != "" {
		return longest, nil
	}
	return "", err
}
