package openai

import (
	"bytes"

	"tidegate/gateway/jsonwalk"
)

// translateMessages renames the role developer, which Qwen's template would drop without an
// error, and reasoning_content, to the names that vLLM reads.
func (q *Request) translateMessages() *Error {
	messages, _ := q.Raw("messages")
	if first := jsonwalk.Elements(messages); !first.Next() {
		return invalid("messages", "messages must not be empty")
	}
	if bytes.Contains(messages, []byte(`\u`)) || bytes.Contains(messages, []byte(`"developer"`)) {
		q.renameRole(messages, "developer", `"system"`)
	}
	q.RenameReasoning("reasoning")
	return nil
}

// renameRole replaces a role of messages. The JSON of the replacement must not be longer.
func (q *Request) renameRole(messages []byte, role, replacement string) {
	var out []byte
	last := 0
	for w := jsonwalk.Elements(messages); w.Next(); {
		if !w.Enter('{') {
			continue
		}
		for w.Next() {
			isRole := jsonwalk.KeyIs(w.Key, "role")
			raw := w.Value()
			if name, ok := jsonwalk.Text(raw); isRole && ok && name == role {
				if out == nil {
					out = make([]byte, 0, len(messages)) // the result is not longer
				}
				out = append(append(out, messages[last:w.Pos()-len(raw)]...), replacement...)
				last = w.Pos()
			}
		}
	}
	if last > 0 {
		q.Set("messages", append(out, messages[last:]...))
	}
}

// RenameReasoning puts the reasoning of messages under the only name that the backend reads:
// reasoning, or reasoning_content before vLLM 0.16. vLLM 0.16 to 0.21 ignores the latter,
// and ignored text must not be counted. If a message has both, reasoning wins, as in vLLM
// from 0.22 on.
func (q *Request) RenameReasoning(name string) {
	otherName := "reasoning_content"
	if name == otherName {
		otherName = "reasoning"
	}
	if q.reasoning == name {
		return // already done
	}
	q.reasoning = name
	messages, ok := q.Raw("messages")
	if !ok || !bytes.Contains(messages, []byte(otherName)) && !bytes.Contains(messages, []byte(`\u`)) {
		return
	}
	var e edits
	e.reset(messages)
	for w := jsonwalk.Elements(messages); w.Next(); {
		if message := w.Value(); len(message) > 0 && message[0] == '{' {
			e.renameReasoning(message, name)
		}
	}
	if len(e.list) > 0 {
		q.Set("messages", e.append(make([]byte, 0, len(messages))))
	}
}

// renameReasoning edits one message. It keeps the reasoning that wins, under the given name,
// and removes the other.
func (e *edits) renameReasoning(message []byte, name string) {
	hasReasoning := !jsonwalk.IsNothing(jsonwalk.Find(message, "reasoning"))
	kept := 0
	for w := jsonwalk.Members(message); w.Next(); {
		key := w.Key
		isReasoning, isContent := jsonwalk.KeyIs(key, "reasoning"), jsonwalk.KeyIs(key, "reasoning_content")
		w.Value()
		switch {
		case !isReasoning && !isContent, string(key) == name && isReasoning == hasReasoning:
			kept++
		case isReasoning == hasReasoning: // the value that wins, under the other name
			e.replace(key, []byte(name))
			kept++
		default:
			e.cut(&w, kept == 0)
		}
	}
}
