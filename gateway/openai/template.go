package openai

import (
	"strconv"

	"tidegate/gateway/jsonwalk"
)

// A kwargRule is the treatment of a key of chat_template_kwargs.
type kwargRule int

const (
	kwargPassed  kwargRule = iota // passed if its value is small: Qwen3's template does not read it
	kwargCounted                  // passed: the template reads it, and the count includes it
	kwargField                    // refused: a field of the body has the same meaning and is counted
	kwargServer                   // refused: only the backend may set it
)

// maxKwarg bounds the value of a key that is passed, in bytes of JSON.
const maxKwarg = 256

// lookupKwarg returns the rule of a key of chat_template_kwargs. vLLM passes the template
// the keys that it reads and the parameters of the library's apply_chat_template. They win
// over the body's own fields, so a prompt that came there would be rendered uncounted.
func lookupKwarg(name string) kwargRule {
	switch name {
	case "enable_thinking":
		return kwargCounted
	case "messages", "tools", "documents", "add_generation_prompt", "continue_final_message":
		return kwargField
	case "chat_template", "tokenize", "namespace", "conversation", "conversations", "padding", "truncation", "max_length",
		"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs":
		return kwargServer
	}
	return kwargPassed
}

// templateKwargs checks chat_template_kwargs. It returns its object, without a thinking
// switch that has no effect, and the value of the switch, or nil if there is none.
func (q *Request) templateKwargs() (object, thinking []byte, err *Error) {
	const field = "chat_template_kwargs"
	raw, ok := q.Raw(field)
	if !ok {
		return nil, nil, nil
	}
	if raw[0] != '{' {
		return nil, nil, invalid(field, "chat_template_kwargs must be an object")
	}
	for w := jsonwalk.Members(raw); w.Next(); {
		name, _ := jsonwalk.Text(jsonwalk.Quote(w.Key))
		value := w.Value()
		switch lookupKwarg(name) {
		case kwargCounted:
			thinking = value
		case kwargField:
			return nil, nil, invalid(field, "chat_template_kwargs.%s is not taken: send %s as a field of the body, where it is counted", name, name)
		case kwargServer:
			return nil, nil, invalid(field, "chat_template_kwargs.%s is not taken: it is the server's own", name)
		case kwargPassed:
			if len(value) > maxKwarg || value[0] == '{' || value[0] == '[' {
				return nil, nil, invalid(field, "chat_template_kwargs.%.64s must be a number, true, false, null or a text of at most %d bytes", name, maxKwarg)
			}
		}
	}
	// vLLM ignores both of these values.
	if s, _ := jsonwalk.Text(thinking); jsonwalk.IsNull(thinking) || s == "auto" {
		thinking = nil
		raw, _ = withoutMember(raw, "enable_thinking")
		q.Set(field, raw)
	}
	return raw, thinking, nil
}

// translateThinking translates all spellings of the thinking switch into the one in
// chat_template_kwargs.
func (q *Request) translateThinking(w *Wish) *Error {
	if err := q.thinkingBudget(); err != nil {
		return err
	}
	enabled, present, err := q.thinkingSwitch()
	if err != nil {
		return err
	}
	kwargs, explicit, err := q.templateKwargs()
	if err != nil {
		return err
	}
	switch { // a switch in the object itself wins
	case explicit != nil:
		w.NoThinking = string(explicit) == "false"
	case !present:
		w.ThinkingOpen = true
	default:
		w.NoThinking = !enabled
		value := "true"
		if !enabled {
			value = "false"
		}
		q.Set("chat_template_kwargs", withMember(kwargs, "enable_thinking", value))
	}
	return q.promptEnd()
}

// promptEnd checks the members that decide the end of the prompt. Bool rewrites them, so
// that vLLM, which accepts many spellings, reads the same values as the count.
func (q *Request) promptEnd() *Error {
	generation, present, err := q.Bool("add_generation_prompt")
	if err != nil {
		return err
	}
	continued, _, err := q.Bool("continue_final_message")
	if err != nil {
		return err
	}
	if continued && (generation || !present) {
		return invalid("continue_final_message", "continue_final_message must come with add_generation_prompt: false")
	}
	return nil
}

// Truncation returns the number of tokens that a prompt is cut to; -1: as many as fit; 0: it
// is not cut.
func (q *Request) Truncation() (int, *Error) {
	n, ok, err := q.Int("truncate_prompt_tokens", -1)
	if err == nil && ok && n == 0 {
		err = invalid("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1, or -1 for as many as fit")
	}
	return n, err
}

// SetTruncation sets the number of tokens that a prompt is cut to; 0: it is not cut.
func (q *Request) SetTruncation(tokens int) {
	if tokens == 0 {
		q.Delete("truncate_prompt_tokens")
		return
	}
	q.Set("truncate_prompt_tokens", strconv.AppendInt(nil, int64(tokens), 10))
}

// thinkingBudget renames thinking_budget to vLLM's thinking_token_budget.
func (q *Request) thinkingBudget() *Error {
	_, ok, err := q.Int("thinking_budget", 0)
	if err != nil || !ok {
		return err
	}
	raw, _ := q.Raw("thinking_budget")
	q.Delete("thinking_budget")
	if _, present := q.Raw("thinking_token_budget"); !present {
		q.Set("thinking_token_budget", raw)
	}
	return nil
}

// thinkingSwitch reads and removes the spellings of the thinking switch that vLLM does not
// know. present is false if there is none.
func (q *Request) thinkingSwitch() (enabled, present bool, err *Error) {
	enabled, present, err = q.Bool("enable_thinking")
	if err != nil {
		return false, false, err
	}
	q.Delete("enable_thinking")
	if raw, ok := q.Raw("thinking"); ok {
		q.Delete("thinking")
		kind, _ := jsonwalk.Text(jsonwalk.Find(raw, "type"))
		if kind != "enabled" && kind != "disabled" && kind != "adaptive" {
			return false, false, invalid("thinking", `thinking.type must be "enabled" or "disabled"`)
		}
		if !present {
			enabled, present = kind != "disabled", true
		}
	}
	effort, known := q.reasoningEffort()
	if present || !known {
		return enabled, present, nil
	}
	return effort != "none", true, nil
}

// reasoningEffort reads the effort, in either spelling. An effort of none is only a thinking
// switch, and vLLM before 0.18 refuses the word, so it is removed.
func (q *Request) reasoningEffort() (effort string, known bool) {
	raw, ok := q.Raw("reasoning_effort")
	if !ok {
		reasoning, _ := q.Raw("reasoning")
		effort, known = jsonwalk.Text(jsonwalk.Find(reasoning, "effort"))
		return effort, known && effort != ""
	}
	if effort, known = jsonwalk.Text(raw); effort == "none" {
		q.Delete("reasoning_effort")
	}
	return effort, known && effort != ""
}

// ThinkingSwitch applies the translations of a chat that change its prompt. It reports
// whether the chat's thinking is off, or open: left to the backend's default.
func (q *Request) ThinkingSwitch() (disabled, open bool, err *Error) {
	var w Wish
	if err := q.translateThinking(&w); err != nil {
		return false, false, err
	}
	return w.NoThinking, w.ThinkingOpen, q.translateMessages()
}
