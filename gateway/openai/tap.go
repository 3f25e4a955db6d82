package openai

import (
	"bytes"
	"errors"
	"fmt"
)

// MaxChoices bounds the choices of an answer and so the index of a choice (prompts × n).
const MaxChoices = 1 << 14

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
	// Input is the prompts' tokens by the gateway's own count where there are
	// several, since until the last chunk the server states each prompt's alone.
	Input int

	edits   edits
	last    chunk
	shape   shape
	learnt  int
	choices []progress
	input   int
	cached  int
	final   Usage
	ended   bool // final was given
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
	if out, ok := t.fits(dst, data); ok {
		return out, nil
	}
	show, err := t.chunk(data)
	if err != nil || !show {
		return dst, err
	}
	dst = append(dst, "data: "...)
	from := len(dst)
	dst = t.edits.append(dst)
	if oneLine(dst[from:]) {
		t.learn(data)
	}
	return append(dst, '\n', '\n'), nil
}

// oneLine puts JSON on one line, as an event's data must be, and reports whether
// it was: in valid JSON an LF is only white space.
func oneLine(b []byte) bool {
	was := true
	for i := bytes.IndexByte(b, '\n'); i >= 0; i = bytes.IndexByte(b, '\n') {
		b[i], b, was = ' ', b[i+1:], false
	}
	return was
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

// chunk is what is read of a chunk, or of an answer that comes as one body.
type chunk struct {
	choices []choice
	listed  bool // it has choices, be they none
	usage   []byte
	cut     edit // takes the usage out
	failure []byte
}

// read reads data in one pass and edits what its caller is to see; ok is false
// where data is no chunk.
func (c *chunk) read(e *edits, v *View, data []byte, part string) (ok bool) {
	e.reset(data)
	c.choices, c.listed, c.usage, c.failure = c.choices[:0], false, nil, nil
	w := members(data)
	for first := true; w.next(); first = false {
		switch string(w.key) {
		case "model":
			v.name(e, w.value())
		case "choices":
			if c.listed = w.enter('['); !c.listed {
				return false
			}
			for w.next() {
				if !w.enter('{') {
					return false
				}
				c.choices = append(c.choices, v.choice(e, &w, part))
			}
		case "usage":
			if raw := w.value(); !isNull(raw) {
				c.usage, c.cut = raw, e.cutting(&w, first)
			}
		case "error":
			if raw := w.value(); !isNull(raw) {
				c.failure = raw
			}
		}
	}
	return w.failure() == nil
}

// chunk reads one chunk, prepares its edits, and says whether the caller sees it.
func (t *Tap) chunk(data []byte) (show bool, err error) {
	c := &t.last
	if !c.read(&t.edits, &t.View, data, t.part()) {
		return false, ErrGarbage
	}
	if c.failure != nil {
		return false, streamError(data, c.failure)
	}
	var u Usage
	if c.usage != nil {
		var counted bool
		u, counted = readUsage(c.usage)
		t.counted = t.counted || counted
	}
	if len(c.choices) == 0 {
		if c.usage == nil {
			return true, nil
		}
		t.final, t.ended = u, true // of all choices together
		return t.View.IncludeUsage, nil
	}
	for _, one := range c.choices {
		if err := t.advance(one, c.usage != nil, u); err != nil {
			return false, err
		}
		show = show || !one.emptied || one.finish != ""
	}
	if c.usage != nil {
		t.input, t.cached = u.Input, max(t.cached, u.Cached)
		if !t.View.ContinuousUsage {
			t.edits.list = append(t.edits.list, c.cut)
		}
	}
	return show, nil
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
	if c.index < 0 || c.index >= MaxChoices {
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
	known = t.ended || t.input > 0
	if t.Input > 0 {
		u.Input = t.Input
	}
	for i := range t.choices {
		p := &t.choices[i]
		u.Output += p.output
		u.Reasoning += p.thought
		if !t.counted && p.thought > 0 && p.thought < p.output {
			u.Reasoning++
		}
	}
	if !t.ended {
		return u, known
	}
	final := t.final
	if !t.counted {
		final.Reasoning = u.Reasoning
	}
	return final, true
}

func streamError(data, failure []byte) *StreamError {
	e := &StreamError{Status: 500, Err: ReadError(data)}
	if code, ok := integer(find(failure, "code")); ok && code >= 400 && code < 600 {
		e.Status = int(code)
	}
	return e
}
