package openai

import (
	"bytes"

	"tidegate/gateway/jsonwalk"
)

// Names selects the names under which a caller gets the reasoning. vLLM has called it
// reasoning_content, both, and (since v0.16) reasoning; clients read one or the other.
type Names int

// The settings of models[].reasoning.
const (
	BothNames Names = iota
	OnlyReasoning
	OnlyReasoningContent
)

// A View is the form of an answer that one caller sees.
type View struct {
	Model           string // model that answers; it is named in every body
	IncludeUsage    bool   // whether a stream ends with a chunk with the usage
	ContinuousUsage bool   // whether every chunk of a stream has the usage
	HideReasoning   bool
	Reasoning       Names
	// ThinkingOff means that the chat template switched thinking off. Then a unary answer
	// with reasoning and without content has its content in the reasoning: vLLM's
	// deepseek_r1 parser takes all text up to an end mark, which never comes, for
	// reasoning.
	ThinkingOff bool
}

// setModel replaces the model's name by v.Model.
func (v *View) setModel(e *edits, raw []byte) {
	if v.Model != "" && len(raw) >= 2 && string(raw[1:len(raw)-1]) != v.Model {
		e.replace(raw, appendString(nil, v.Model))
	}
}

// A choice is one entry of choices.
type choice struct {
	index    int
	finish   string // finish_reason; "" while the choice continues
	part     []byte // delta or message
	text     []byte // text of a completion
	ids      []byte // token ids, if the caller asked for them
	reasoned bool   // whether it has reasoning that is not null
	emptied  bool   // whether nothing is left to show without the reasoning
	repaired bool   // whether its content came as reasoning
}

// readChoice reads the choice that w has entered, and adds the edits of the caller's
// version to e. part is the member that holds the text: delta, message, or "" for
// completions.
func (v *View) readChoice(e *edits, w *jsonwalk.Walker, part string) (c choice) {
	for w.Next() {
		switch string(w.Key) {
		case "index":
			n, _ := integer(w.Value())
			c.index = int(n)
		case "finish_reason":
			raw := w.Value()
			c.finish, _ = jsonwalk.Text(raw)
			if c.finish == "repetition" { // vLLM's own; OpenAI's enumeration has no such value
				c.finish = "stop"
				e.replace(raw, []byte(`"stop"`))
			}
		case "text":
			c.text = w.Value()
		case "token_ids":
			c.ids = w.Value()
		case part:
			c.part = w.Value()
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

// editReasoning renames, repeats or removes the reasoning in a delta or message, as the view
// asks.
func (v *View) editReasoning(e *edits, raw []byte) (reasoned, emptied bool) {
	shownName, otherName := "reasoning", "reasoning_content"
	if v.Reasoning == OnlyReasoningContent {
		shownName, otherName = otherName, shownName
	}
	hasBoth := jsonwalk.Find(raw, shownName) != nil && jsonwalk.Find(raw, otherName) != nil
	kept, shown := 0, false
	w := jsonwalk.Members(raw)
	for w.Next() {
		key, value := w.Key, w.Value()
		name := string(key)
		if name != shownName && name != otherName {
			kept++
			shown = shown || carriesContent(value)
			continue
		}
		reasoned = reasoned || !jsonwalk.IsNull(value)
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

// carriesContent reports whether a member's value is of use to its reader. A role is: some
// clients refuse a message that never had one.
func carriesContent(value []byte) bool {
	switch string(value) {
	case "null", `""`, "[]":
		return false
	}
	return true
}

// repairMessage returns a message with its reasoning as its content, or nil if it has any
// other content.
func repairMessage(message []byte) []byte {
	var reasoning []byte
	for w := jsonwalk.Members(message); w.Next(); {
		key, value := string(w.Key), w.Value()
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
	for w := jsonwalk.Members(message); w.Next(); {
		key, value := w.Key, w.Value()
		switch string(key) {
		case "reasoning", "reasoning_content", "content":
			continue
		}
		out = append(append(append(out, `,"`...), key...), `":`...)
		out = append(out, value...)
	}
	return append(out, '}')
}
