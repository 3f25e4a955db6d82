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
		p parts
	)
	if !p.read(&e, body) || p.choices == nil || p.failure != nil {
		return nil, u, false, ErrNoAnswer
	}
	v.name(&e, p.model)
	part := "message"
	if route == Completions {
		part = ""
	}
	counted := false
	if p.usage != nil {
		u, counted = readUsage(p.usage)
	}
	list := elements(p.choices)
	for list.next() {
		c := v.choice(&e, list.value, part)
		if c.finish == "abort" {
			return nil, u, p.usage != nil, ErrUnfinished
		}
		if c.reasoned && !counted && count != nil {
			u.Reasoning += reasoningTokens(find(list.value, part), count)
		}
	}
	if list.failure() != nil {
		return nil, u, false, ErrNoAnswer
	}
	u.Reasoning = min(u.Reasoning, u.Output)
	return e.append(make([]byte, 0, len(body)+len(body)/8)), u, p.usage != nil, nil
}

// reasoningTokens counts a message's reasoning and its marks, <think> and (where
// an answer follows) </think>.
func reasoningTokens(message []byte, count func(string) int) int {
	raw := find(message, "reasoning")
	if raw == nil {
		raw = find(message, "reasoning_content")
	}
	s, _ := text(raw)
	n := count(s) + 1
	if content := find(message, "content"); content != nil && !isNull(content) {
		n++
	}
	return n
}
