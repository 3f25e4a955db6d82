package openai

import "errors"

// ErrNoAnswer says that a body is no completion.
var ErrNoAnswer = errors.New("the body is no completion")

// ReadAnswer turns the one JSON body of an answer that is not streamed into what
// its caller is to see, and reads its usage. Where the server counted no
// reasoning tokens, count (which may be nil) is asked for those of each
// reasoning text, to which the marks around it are added.
func ReadAnswer(route Route, v View, body []byte, count func(string) int) (out []byte, u Usage, known bool, err error) {
	var (
		e edits
		c chunk
	)
	part := "message"
	if route == Completions {
		part = ""
	}
	if !c.read(&e, &v, body, part) || !c.listed || c.failure != nil {
		return nil, u, false, ErrNoAnswer
	}
	counted := false
	if known = c.usage != nil; known {
		u, counted = readUsage(c.usage)
	}
	thought, repaired := false, false
	for _, one := range c.choices {
		thought, repaired = thought || one.reasoned, repaired || one.repaired
		if one.finish == "abort" {
			return nil, u, known, ErrUnfinished
		}
		if one.reasoned && !counted && count != nil {
			u.Reasoning += reasoningTokens(one.part, count)
		}
	}
	if repaired && !thought && counted {
		u.Reasoning = 0 // the server counted what it took for reasoning
		e.replace(find(find(c.usage, "completion_tokens_details"), "reasoning_tokens"), []byte("0"))
	}
	u.Reasoning = min(u.Reasoning, u.Output)
	return e.append(make([]byte, 0, len(body)+len(body)/8)), u, known, nil
}

// reasoningTokens counts a message's reasoning and its marks, <think> and (where
// an answer follows) </think>.
func reasoningTokens(message []byte, count func(string) int) int {
	raw := find(message, "reasoning")
	if raw == nil || isNull(raw) {
		raw = find(message, "reasoning_content")
	}
	s, _ := text(raw)
	n := count(s) + 1
	if content := find(message, "content"); content != nil && !isNull(content) {
		n++
	}
	return n
}
