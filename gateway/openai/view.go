package openai

import "bytes"

// Names says under which names a caller is given the reasoning: vLLM has called
// it reasoning_content, both, and (since v0.16) reasoning; clients read one or
// the other.
type Names int

// The settings of models[].reasoning.
const (
	BothNames Names = iota
	OnlyReasoning
	OnlyReasoningContent
)

// View is how one caller sees an answer.
type View struct {
	Model           string // what really answers; stands in every body
	IncludeUsage    bool
	ContinuousUsage bool
	HideReasoning   bool
	Reasoning       Names
	// ThinkingOff says that the chat template was told not to think. Then an answer
	// in one piece that has reasoning and no content has its content there: vLLM's
	// deepseek_r1 parser takes all up to a mark for reasoning that never comes.
	ThinkingOff bool
}

// name makes the model's name true.
func (v *View) name(e *edits, raw []byte) {
	if v.Model != "" && len(raw) >= 2 && string(raw[1:len(raw)-1]) != v.Model {
		e.replace(raw, appendString(nil, v.Model))
	}
}

// choice is what a gateway must know of one entry of choices.
type choice struct {
	index    int
	finish   string // "" while it goes on
	part     []byte // its delta or message
	text     []byte // of a completion
	ids      []byte // of its tokens, where the caller asked for them
	reasoned bool   // it carries reasoning that is not null
	emptied  bool   // hiding the reasoning left nothing to show
	repaired bool   // what was called reasoning is its content
}

// choice reads the choice that w has entered, and edits what its caller is to
// see. part is the member that holds the text: delta, message, or none for
// completions.
func (v *View) choice(e *edits, w *walker, part string) (c choice) {
	for w.next() {
		switch string(w.key) {
		case "index":
			n, _ := integer(w.value())
			c.index = int(n)
		case "finish_reason":
			raw := w.value()
			c.finish, _ = text(raw)
			if c.finish == "repetition" { // vLLM's own; OpenAI's enumeration has no such value
				c.finish = "stop"
				e.replace(raw, []byte(`"stop"`))
			}
		case "text":
			c.text = w.value()
		case "token_ids":
			c.ids = w.value()
		case part:
			c.part = w.value()
			if !bytes.Contains(c.part, []byte(`"reasoning`)) {
				continue
			}
			if v.ThinkingOff && part == "message" {
				if right := repaired(c.part); right != nil {
					c.repaired = true
					e.replace(c.part, right)
					continue
				}
			}
			c.reasoned, c.emptied = v.reasoning(e, c.part)
		}
	}
	return c
}

// reasoning gives the reasoning in a delta or message the names it is to have.
func (v *View) reasoning(e *edits, raw []byte) (reasoned, emptied bool) {
	own, other := "reasoning", "reasoning_content"
	if v.Reasoning == OnlyReasoningContent {
		own, other = other, own
	}
	both := find(raw, own) != nil && find(raw, other) != nil
	kept, shown := 0, false
	w := members(raw)
	for w.next() {
		key, value := w.key, w.value()
		name := string(key)
		if name != own && name != other {
			kept++
			shown = shown || telling(value)
			continue
		}
		reasoned = reasoned || !isNull(value)
		switch {
		case v.HideReasoning, both && name == other && v.Reasoning != BothNames:
			e.cut(&w, kept == 0)
			continue
		case both:
		case v.Reasoning == BothNames:
			missing := other
			if name == other {
				missing = own
			}
			e.insert(value, join(`,"`, missing, `":`, string(value)))
		case name == other:
			e.replace(key, []byte(own))
		}
		kept++
	}
	return reasoned, v.HideReasoning && !shown
}

// telling reports whether a member's value says anything to its reader. A role
// does: there are clients that refuse a message that never had one.
func telling(value []byte) bool {
	switch string(value) {
	case "null", `""`, "[]":
		return false
	}
	return true
}

// repaired is a message whose content stands under reasoning, put right; nil where
// it says anything else.
func repaired(message []byte) []byte {
	var said []byte
	for w := members(message); w.next(); {
		key, value := string(w.key), w.value()
		switch key {
		case "reasoning", "reasoning_content":
			if value[0] == '"' && telling(value) {
				said = value
			}
		case "content", "tool_calls":
			if telling(value) {
				return nil
			}
		}
	}
	if said == nil {
		return nil
	}
	out := append(make([]byte, 0, len(message)+len(`{"content":,`)), `{"content":`...)
	out = append(out, said...)
	for w := members(message); w.next(); {
		key, value := w.key, w.value()
		switch string(key) {
		case "reasoning", "reasoning_content", "content":
			continue
		}
		out = append(append(append(out, `,"`...), key...), `":`...)
		out = append(out, value...)
	}
	return append(out, '}')
}
