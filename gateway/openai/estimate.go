package openai

import "tidegate/gateway/jsonwalk"

// A Tally counts the tokens of a text that comes in parts.
type Tally interface {
	// Add appends the next part of the text.
	Add(part string)
	// Tokens returns the number of tokens of all parts so far.
	Tokens() int
}

// An estimate counts the tokens of a choice that the engine does not state: by token ids
// if the engine sends them, and by the text otherwise. The zero value is empty.
type estimate struct {
	ids          int   // number of token ids from the engine
	reasoningIDs int   // number of those that came with reasoning
	reasoning    Tally // text of the reasoning; nil for none
	content      Tally // all other text; nil for none
	thinking     bool  // whether the engine has counted the mark before the reasoning
	inCall       bool  // whether a tool call has begun in content
	stopped      bool  // whether the choice has ended by itself, which costs a token
}

// The marks around a tool call in Qwen3's chat template.
const (
	callBegin  = "<tool_call>\n{\"name\": \""
	callMiddle = "\", \"arguments\": "
	callEnd    = "}\n</tool_call>"
)

// add counts the text of a choice in one chunk. whole means that the chunk is the whole
// answer.
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
	for w := jsonwalk.Members(c.part); w.Next(); {
		key, value := w.Key, w.Value()
		switch string(key) {
		case "reasoning", "reasoning_content":
			switch {
			case reasoned || value[0] != '"': // it often comes under both names
			case c.repaired:
				e.addRaw(&e.content, value, whole, newTally)
			default:
				e.addRaw(&e.reasoning, value, whole, newTally)
			}
			reasoned = reasoned || value[0] == '"'
		case "content", "refusal":
			e.addRaw(&e.content, value, whole, newTally)
		case "tool_calls":
			for w := jsonwalk.Elements(value); value[0] == '[' && w.Next(); {
				e.addCall(w.Value(), newTally)
			}
		}
	}
	if e.inCall && whole {
		addText(&e.content, callEnd, newTally)
	}
}

// addDelta counts the raw text of a chunk that has only this text.
func (e *estimate) addDelta(raw []byte, reasoned bool, newTally func() Tally) {
	if reasoned {
		e.addRaw(&e.reasoning, raw, false, newTally)
	} else {
		e.addRaw(&e.content, raw, false, newTally)
	}
}

// addRaw counts a raw string, and ignores any other JSON value.
func (e *estimate) addRaw(tally *Tally, raw []byte, whole bool, newTally func() Tally) {
	if s, ok := jsonwalk.Text(raw); ok && (s != "" || whole) {
		addText(tally, s, newTally)
	}
}

// addText adds s to a tally, which it creates if there is none.
func addText(tally *Tally, s string, newTally func() Tally) {
	if newTally == nil {
		return // there is no tokenizer
	}
	if *tally == nil {
		*tally = newTally()
	}
	(*tally).Add(s)
}

// addCall counts a tool call, or a part of its arguments.
func (e *estimate) addCall(raw []byte, newTally func() Tally) {
	function := jsonwalk.Find(raw, "function")
	if len(function) == 0 || function[0] != '{' {
		return
	}
	if name, ok := jsonwalk.Text(jsonwalk.Find(function, "name")); ok && name != "" {
		if e.inCall {
			addText(&e.content, callEnd+"\n", newTally)
		}
		e.inCall = true
		addText(&e.content, callBegin+name+callMiddle, newTally)
	}
	if arguments, ok := jsonwalk.Text(jsonwalk.Find(function, "arguments")); ok && arguments != "" {
		addText(&e.content, arguments, newTally)
	}
}

// tokens returns the counts so far. Reasoning is enclosed in two marks, and other content
// means that the second has come.
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

// idCount returns the number of token ids in raw, which is null if the caller did not ask
// for them.
func idCount(raw []byte) int {
	if len(raw) == 0 || raw[0] != '[' {
		return 0
	}
	return Count(raw)
}

// outputEstimate returns the output tokens that replace a figure the engine does not state:
// the count of the text, without the prompts that the texts of so many choices repeat, and
// at most the limit.
func (b *Bounds) outputEstimate(counted, choices int) int {
	if b.Echo {
		counted -= Times(b.Input, choices) / max(b.Choices, 1)
	}
	return min(max(counted, 0), upperBound(b.Limit, b.Choices, 0))
}
