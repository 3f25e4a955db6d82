package openai

import "bytes"

// translateMessages puts into the conversation what vLLM reads: it renames the role developer,
// which Qwen's template would drop in silence, and reasoning_content.
func (q *Request) translateMessages() *Error {
	messages, _ := q.Raw("messages")
	if first := elements(messages); !first.next() {
		return invalid("messages", "messages must not be empty")
	}
	if bytes.Contains(messages, []byte(`\u`)) || bytes.Contains(messages, []byte(`"developer"`)) {
		q.renameRole(messages, "developer", `"system"`)
	}
	q.RenameReasoning("reasoning")
	return nil
}

// renameRole gives the messages of one role another, whose name is no longer.
func (q *Request) renameRole(messages []byte, role, replacement string) {
	var out []byte
	last := 0
	for w := elements(messages); w.next(); {
		if !w.enter('{') {
			continue
		}
		for w.next() {
			isRole := keyIs(w.key, "role")
			raw := w.value()
			if name, ok := text(raw); isRole && ok && name == role {
				if out == nil {
					out = make([]byte, 0, len(messages)) // it becomes no longer
				}
				out = append(append(out, messages[last:w.i-len(raw)]...), replacement...)
				last = w.i
			}
		}
	}
	if last > 0 {
		q.Set("messages", append(out, messages[last:]...))
	}
}

// RenameReasoning puts the reasoning of messages under the one name that the server reads:
// reasoning, or, before vLLM 0.16, reasoning_content. vLLM 0.16 to 0.21 ignores the
// latter, and nobody counts what is ignored. Where a message has both, reasoning holds,
// as in vLLM from 0.22 on.
func (q *Request) RenameReasoning(name string) {
	otherName := "reasoning_content"
	if name == otherName {
		otherName = "reasoning"
	}
	if q.reasoning == name {
		return // it has been done
	}
	q.reasoning = name
	messages, ok := q.Raw("messages")
	if !ok || !bytes.Contains(messages, []byte(otherName)) && !bytes.Contains(messages, []byte(`\u`)) {
		return
	}
	var e edits
	e.reset(messages)
	for w := elements(messages); w.next(); {
		if w.b[w.i] == '{' {
			object := w.value()
			e.renameReasoning(object, name)
		}
	}
	if len(e.list) > 0 {
		q.Set("messages", e.append(make([]byte, 0, len(messages))))
	}
}

// renameReasoning edits one message: what is said under the name that is not read goes
// under the one that is, or goes, where reasoning is there and holds.
func (e *edits) renameReasoning(message []byte, name string) {
	hasReasoning := !isNothing(find(message, "reasoning"))
	kept := 0
	for w := members(message); w.next(); {
		key := w.key
		isReasoning, isContent := keyIs(key, "reasoning"), keyIs(key, "reasoning_content")
		w.value()
		switch {
		case !isReasoning && !isContent, string(key) == name && isReasoning == hasReasoning:
			kept++
		case isReasoning == hasReasoning: // the value that holds, under the other name
			e.replace(key, []byte(name))
			kept++
		default:
			e.cut(&w, kept == 0)
		}
	}
}

// isNothing reports whether a value is absent or null.
func isNothing(raw []byte) bool { return raw == nil || isNull(raw) }
