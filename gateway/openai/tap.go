package openai

import (
	"errors"
	"fmt"
)

// maxChoices bounds the index of a choice (prompts × n).
const maxChoices = 1 << 14

// Errors of a stream that did not end as a whole answer does.
var (
	ErrGarbage    = errors.New("the stream carries something that is no chunk")
	ErrUnfinished = errors.New("the stream ended before the answer did")
)

// StreamError is an error event: vLLM sends what goes wrong after the 200, be it
// the server's fault or the caller's, inside the stream.
type StreamError struct {
	Status int // vLLM's code; 500 where it gave none
	Err    Error
}

func (e *StreamError) Error() string { return "error in the stream: " + e.Err.Message }

// Tap follows one stream on its way to the caller. It counts tokens from the
// usage that every chunk carries (stream_options.continuous_usage_stats), so that
// a stream that is cut is counted to what was delivered, and it edits each event
// to what the caller asked for. One goroutine may use it.
//
// A chunk is not a token: several tokens may share one, and some have none.
type Tap struct {
	View  View
	Route Route

	edits   edits
	choices []progress
	input   int
	cached  int
	final   *Usage
	counted bool // the server counted the reasoning itself
	done    bool
}

// progress is how far one choice has come. Its output tokens are its own: with
// n > 1 a chunk's usage speaks of the chunk's choice alone.
type progress struct {
	output   int
	thought  int // output tokens when its reasoning was last heard of
	finished bool
}

// Event appends to dst what the caller is to get for the event whose data is
// given, which may be nothing. The error is a *StreamError, ErrGarbage or
// ErrUnfinished; then nothing is appended.
func (t *Tap) Event(dst, data []byte) ([]byte, error) {
	if string(data) == "[DONE]" {
		if !t.whole() {
			return dst, ErrUnfinished
		}
		t.done = true
		return append(dst, "data: [DONE]\n\n"...), nil
	}
	show, err := t.chunk(data)
	if err != nil || !show {
		return dst, err
	}
	dst = append(dst, "data: "...)
	return append(t.edits.append(dst), '\n', '\n'), nil
}

// Done reports whether [DONE] came after every choice had finished.
func (t *Tap) Done() bool { return t.done }

// Answered reports whether any choice has begun.
func (t *Tap) Answered() bool { return len(t.choices) > 0 }

func (t *Tap) whole() bool {
	for i := range t.choices {
		if !t.choices[i].finished {
			return false
		}
	}
	return len(t.choices) > 0
}

// parts are the members of a chunk or an answer that matter here, nil where absent.
type parts struct {
	model, choices, usage, failure []byte
	usageCut                       edit
}

// read finds the parts; ok is false where data is no JSON object.
func (p *parts) read(e *edits, data []byte) (ok bool) {
	e.reset(data)
	w := members(data)
	for first := true; w.next(); first = false {
		switch string(w.key) {
		case "model":
			p.model = w.value
		case "choices":
			p.choices = w.value
		case "usage":
			if !isNull(w.value) {
				p.usage = w.value
				e.cut(&w, first)
				p.usageCut, e.list = e.list[0], e.list[:0]
			}
		case "error":
			if !isNull(w.value) {
				p.failure = w.value
			}
		}
	}
	return w.failure() == nil
}

// chunk reads one chunk, prepares its edits, and says whether the caller sees it.
func (t *Tap) chunk(data []byte) (show bool, err error) {
	var p parts
	if !p.read(&t.edits, data) {
		return false, ErrGarbage
	}
	if p.failure != nil {
		return false, streamError(data, p.failure)
	}
	t.View.name(&t.edits, p.model)
	var u Usage
	var counted bool
	if p.usage != nil {
		u, counted = readUsage(p.usage)
		t.counted = t.counted || counted
	}
	last, empty := -1, true
	list := elements(p.choices)
	for list.next() {
		c := t.View.choice(&t.edits, list.value, t.part())
		last = c.index
		if err := t.advance(c, p.usage != nil, u); err != nil {
			return false, err
		}
		empty = empty && c.emptied && c.finish == ""
	}
	switch {
	case p.usage == nil:
		return last < 0 || !empty, nil
	case last < 0: // the last chunk: usage alone, of all choices together
		t.final = &u
		return t.View.IncludeUsage, nil
	}
	t.input, t.cached = u.Input, max(t.cached, u.Cached)
	if !t.View.ContinuousUsage {
		t.edits.list = append(t.edits.list, p.usageCut)
	}
	return !empty, nil
}

func (t *Tap) part() string {
	if t.Route == Completions {
		return ""
	}
	return "delta"
}

// advance notes how far a choice has come.
func (t *Tap) advance(c choice, known bool, u Usage) error {
	if c.finish == "abort" { // the server was paused or shut down
		return ErrUnfinished
	}
	if c.index < 0 || c.index >= maxChoices {
		return fmt.Errorf("%w: choice %d", ErrGarbage, c.index)
	}
	for len(t.choices) <= c.index {
		t.choices = append(t.choices, progress{})
	}
	p := &t.choices[c.index]
	p.finished = p.finished || c.finish != ""
	if known {
		p.output = u.Output
		if c.reasoned {
			p.thought = u.Output
		}
		if t.counted {
			p.thought = u.Reasoning
		}
	}
	return nil
}

// Usage is what the answer has taken so far; known is false while the server has
// said nothing. Where the server does not count reasoning tokens itself, they are
// the tokens up to the last reasoning heard of and the mark that ends it.
func (t *Tap) Usage() (u Usage, known bool) {
	u = Usage{Input: t.input, Cached: t.cached}
	known = t.final != nil || t.input > 0
	for i := range t.choices {
		p := &t.choices[i]
		u.Output += p.output
		u.Reasoning += p.thought
		if !t.counted && p.thought > 0 && p.thought < p.output {
			u.Reasoning++
		}
	}
	if t.final != nil {
		if !t.counted {
			t.final.Reasoning = u.Reasoning
		}
		u = *t.final
	}
	return u, known
}

func streamError(data, failure []byte) *StreamError {
	e := &StreamError{Status: 500, Err: ReadError(data)}
	if code, ok := integer(find(failure, "code")); ok && code >= 400 && code < 600 {
		e.Status = int(code)
	}
	return e
}
