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

// setModel makes the model's name true.
func (v *View) setModel(e *edits, raw []byte) {
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

// readChoice reads the choice that w has entered, and edits what its caller is to
// see. part is the member that holds the text: delta, message, or none for
// completions.
func (v *View) readChoice(e *edits, w *walker, part string) (c choice) {
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
				if right := repairMessage(c.part); right != nil {
					c.repaired = true
					e.replace(c.part, right)
					continue
				}
			}
			c.reasoned, c.emptied = v.editReasoning(e, c.part)
		}
	}
	return c
}

// editReasoning gives the reasoning in a delta or message the names it is to have.
func (v *View) editReasoning(e *edits, raw []byte) (reasoned, emptied bool) {
	shownName, otherName := "reasoning", "reasoning_content"
	if v.Reasoning == OnlyReasoningContent {
		shownName, otherName = otherName, shownName
	}
	hasBoth := find(raw, shownName) != nil && find(raw, otherName) != nil
	kept, shown := 0, false
	w := members(raw)
	for w.next() {
		key, value := w.key, w.value()
		name := string(key)
		if name != shownName && name != otherName {
			kept++
			shown = shown || carriesContent(value)
			continue
		}
		reasoned = reasoned || !isNull(value)
		switch {
		case v.HideReasoning, hasBoth && name == otherName && v.Reasoning != BothNames:
			e.cut(&w, kept == 0)
			continue
		case hasBoth:
		case v.Reasoning == BothNames:
			missing := otherName
			if name == otherName {
				missing = shownName
			}
			e.insert(value, join(`,"`, missing, `":`, string(value)))
		case name == otherName:
			e.replace(key, []byte(shownName))
		}
		kept++
	}
	return reasoned, v.HideReasoning && !shown
}

// carriesContent reports whether a member's value says anything to its reader. A role
// does: there are clients that refuse a message that never had one.
func carriesContent(value []byte) bool {
	switch string(value) {
	case "null", `""`, "[]":
		return false
	}
	return true
}

// repairMessage is a message whose content stands under reasoning, put right; nil where
// it says anything else.
func repairMessage(message []byte) []byte {
	var reasoning []byte
	for w := members(message); w.next(); {
		key, value := string(w.key), w.value()
		switch key {
		case "reasoning", "reasoning_content":
			if value[0] == '"' && carriesContent(value) {
				reasoning = value
			}
		case "content", "tool_calls":
			if carriesContent(value) {
				return nil
			}
		}
	}
	if reasoning == nil {
		return nil
	}
	out := append(make([]byte, 0, len(message)+len(`{"content":,`)), `{"content":`...)
	out = append(out, reasoning...)
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
