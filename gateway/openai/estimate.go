package openai

// Tally counts the tokens of a text that comes in parts.
type Tally interface {
	// Add takes in the next part.
	Add(part string)
	// Tokens returns how many tokens all parts so far have together.
	Tokens() int
}

// estimate counts by itself what a choice says whose tokens the engine does not state:
// by the ids of the tokens, where the engine gives those, else by the text. The zero
// value has counted nothing.
type estimate struct {
	ids          int   // token ids that the engine gave
	reasoningIDs int   // those of them that came with reasoning
	reasoning    Tally // of the reasoning; nil: there was none
	content      Tally // of all else; nil: there was none
	thinking     bool  // the mark before its reasoning was counted by the engine
	inCall       bool  // a tool call has been begun in words
	stopped      bool  // the choice has ended by itself, which takes a token
}

// The marks around a tool call, as Qwen3's chat template has them.
const (
	callBegin  = "<tool_call>\n{\"name\": \""
	callMiddle = "\", \"arguments\": "
	callEnd    = "}\n</tool_call>"
)

// add takes in what a choice says in one chunk, or, if whole, in its only one.
func (e *estimate) add(c *choice, whole bool, newTally func() Tally) {
	if n := idCount(c.ids); n > 0 {
		e.ids += n
		if c.reasoned {
			e.reasoningIDs += n
		}
		return
	}
	e.stopped = e.stopped || c.finish != "" && c.finish != "length"
	if c.text != nil {
		e.addRaw(&e.content, c.text, whole, newTally)
	}
	if c.part == nil {
		return
	}
	reasoned := false
	for w := members(c.part); w.next(); {
		key, value := w.key, w.value()
		switch string(key) {
		case "reasoning", "reasoning_content":
			switch {
			case reasoned || value[0] != '"': // one is often there under both names
			case c.repaired:
				e.addRaw(&e.content, value, whole, newTally)
			default:
				e.addRaw(&e.reasoning, value, whole, newTally)
			}
			reasoned = reasoned || value[0] == '"'
		case "content", "refusal":
			e.addRaw(&e.content, value, whole, newTally)
		case "tool_calls":
			for w := elements(value); value[0] == '[' && w.next(); {
				e.addCall(w.value(), newTally)
			}
		}
	}
	if e.inCall && whole {
		addText(&e.content, callEnd, newTally)
	}
}

// addDelta takes in the raw text of a chunk that has nothing else.
func (e *estimate) addDelta(raw []byte, reasoned bool, newTally func() Tally) {
	if reasoned {
		e.addRaw(&e.reasoning, raw, false, newTally)
	} else {
		e.addRaw(&e.content, raw, false, newTally)
	}
}

// addRaw takes in a raw text; what is no text says nothing.
func (e *estimate) addRaw(tally *Tally, raw []byte, whole bool, newTally func() Tally) {
	if s, ok := text(raw); ok && (s != "" || whole) {
		addText(tally, s, newTally)
	}
}

// addText takes in a text.
func addText(tally *Tally, s string, newTally func() Tally) {
	if newTally == nil {
		return // nobody can count
	}
	if *tally == nil {
		*tally = newTally()
	}
	(*tally).Add(s)
}

// addCall takes in a tool call, or a part of its arguments.
func (e *estimate) addCall(raw []byte, newTally func() Tally) {
	function := find(raw, "function")
	if len(function) == 0 || function[0] != '{' {
		return
	}
	if name, ok := text(find(function, "name")); ok && name != "" {
		if e.inCall {
			addText(&e.content, callEnd+"\n", newTally)
		}
		e.inCall = true
		addText(&e.content, callBegin+name+callMiddle, newTally)
	}
	if arguments, ok := text(find(function, "arguments")); ok && arguments != "" {
		addText(&e.content, arguments, newTally)
	}
}

// tokens returns what has been counted. Reasoning stands between two marks, the second
// of which has come once something else is said.
func (e *estimate) tokens() (output, reasoning int) {
	reasoning = e.reasoningIDs
	output = e.ids
	if e.reasoning != nil {
		n := e.reasoning.Tokens()
		if !e.thinking {
			n++
		}
		if e.content != nil {
			n++
		}
		reasoning, output = reasoning+n, output+n
	}
	if e.content != nil {
		output += e.content.Tokens()
	}
	if e.stopped {
		output++
	}
	return output, reasoning
}

// idCount is how many token ids raw has, which is null where nobody asked for them.
func idCount(raw []byte) int {
	if len(raw) == 0 || raw[0] != '[' {
		return 0
	}
	return Count(raw)
}

// outputEstimate returns what replaces the output that the engine does not state, in tokens: what
// was counted, less the prompts of so many choices where their text repeats them, and
// never more than was allowed.
func (b *Bounds) outputEstimate(counted, choices int) int {
	if b.Echo {
		counted -= Times(b.Input, choices) / max(b.Choices, 1)
	}
	return min(max(counted, 0), upperBound(b.Limit, b.Choices, 0))
}
