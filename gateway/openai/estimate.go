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
	ids        int   // token ids that the engine gave
	thoughtIDs int   // those of them that came with reasoning
	thoughts   Tally // of the reasoning; nil: there was none
	words      Tally // of all else; nil: there was none
	thinking   bool  // the mark before its reasoning was counted by the engine
	calling    bool  // a tool call has been begun in words
	ended      bool  // the choice has ended by itself, which takes a token
}

// The marks around a tool call, as Qwen3's chat template has them.
const (
	callBegin = "<tool_call>\n{\"name\": \""
	callGoes  = "\", \"arguments\": "
	callEnd   = "}\n</tool_call>"
)

// add takes in what a choice says in one chunk, or, if whole, in its only one.
func (e *estimate) add(c *choice, whole bool, fresh func() Tally) {
	if n := idsIn(c.ids); n > 0 {
		e.ids += n
		if c.reasoned {
			e.thoughtIDs += n
		}
		return
	}
	e.ended = e.ended || c.finish != "" && c.finish != "length"
	if c.text != nil {
		e.say(&e.words, c.text, whole, fresh)
	}
	if c.part == nil {
		return
	}
	thinks := false
	for w := members(c.part); w.next(); {
		key, value := w.key, w.value()
		switch string(key) {
		case "reasoning", "reasoning_content":
			switch {
			case thinks || value[0] != '"': // one is often there under both names
			case c.repaired:
				e.say(&e.words, value, whole, fresh)
			default:
				e.say(&e.thoughts, value, whole, fresh)
			}
			thinks = thinks || value[0] == '"'
		case "content", "refusal":
			e.say(&e.words, value, whole, fresh)
		case "tool_calls":
			for w := elements(value); value[0] == '[' && w.next(); {
				e.call(w.value(), fresh)
			}
		}
	}
	if e.calling && whole {
		tell(&e.words, callEnd, fresh)
	}
}

// hear takes in the raw text of a chunk that has nothing else.
func (e *estimate) hear(raw []byte, reasoned bool, fresh func() Tally) {
	if reasoned {
		e.say(&e.thoughts, raw, false, fresh)
	} else {
		e.say(&e.words, raw, false, fresh)
	}
}

// say takes in a raw text; what is no text says nothing.
func (e *estimate) say(into *Tally, raw []byte, whole bool, fresh func() Tally) {
	if s, ok := text(raw); ok && (s != "" || whole) {
		tell(into, s, fresh)
	}
}

// tell takes in a text.
func tell(into *Tally, s string, fresh func() Tally) {
	if fresh == nil {
		return // nobody can count
	}
	if *into == nil {
		*into = fresh()
	}
	(*into).Add(s)
}

// call takes in a tool call, or a part of its arguments.
func (e *estimate) call(raw []byte, fresh func() Tally) {
	function := find(raw, "function")
	if len(function) == 0 || function[0] != '{' {
		return
	}
	if name, ok := text(find(function, "name")); ok && name != "" {
		if e.calling {
			tell(&e.words, callEnd+"\n", fresh)
		}
		e.calling = true
		tell(&e.words, callBegin+name+callGoes, fresh)
	}
	if arguments, ok := text(find(function, "arguments")); ok && arguments != "" {
		tell(&e.words, arguments, fresh)
	}
}

// tokens returns what has been counted. Reasoning stands between two marks, the second
// of which has come once something else is said.
func (e *estimate) tokens() (output, reasoning int) {
	reasoning = e.thoughtIDs
	output = e.ids
	if e.thoughts != nil {
		n := e.thoughts.Tokens()
		if !e.thinking {
			n++
		}
		if e.words != nil {
			n++
		}
		reasoning, output = reasoning+n, output+n
	}
	if e.words != nil {
		output += e.words.Tokens()
	}
	if e.ended {
		output++
	}
	return output, reasoning
}

// idsIn is how many token ids raw has, which is null where nobody asked for them.
func idsIn(raw []byte) int {
	if len(raw) == 0 || raw[0] != '[' {
		return 0
	}
	return Count(raw)
}

// own returns what replaces the output that the engine does not state, in tokens: what
// was counted, less the prompts of so many choices where their text repeats them, and
// never more than was allowed.
func (b *Bounds) own(counted, choices int) int {
	if b.Echo {
		counted -= Times(b.Input, choices) / max(b.Choices, 1)
	}
	return min(max(counted, 0), most(b.Limit, b.Choices, 0))
}
