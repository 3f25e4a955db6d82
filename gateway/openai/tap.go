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

// StreamError is an error in an answer of status 200: vLLM sends what goes wrong after
// the 200, be it the server's fault or the caller's, inside the stream, and old versions
// send the error of a dead engine as the whole body of a 200.
type StreamError struct {
	Status int // vLLM's code; 500 where it gave none
	Err    Error
}

func (e *StreamError) Error() string { return "error in the answer: " + e.Err.Message }

// Tap follows one stream on its way to the caller. It counts tokens from the
// usage that every chunk carries (stream_options.continuous_usage_stats), so that
// a stream that is cut is counted to what was delivered, and it edits each event
// to what the caller asked for. What a chunk says without stating how many tokens
// the choice has by then, or with a figure that cannot be true, is counted here,
// until a figure that can be true makes up for it. One goroutine may use it.
//
// A chunk is not a token: several tokens may share one, and some have none.
type Tap struct {
	View   View
	Route  Route
	Bounds Bounds
	// NewTally makes what counts a text where the engine does not.
	NewTally func() Tally
	// DelayEnd lets the end of the answer wait for the chunk with the usage, of which it
	// gets the system_fingerprint.
	DelayEnd bool

	edits          edits
	last           chunk
	shape          shape
	shapes         int
	choices        []progress
	input          int // of the only prompt, where has says that it was stated
	cached         int
	known          figures // that the engine has stated of the answer so far, but for the output
	faults         Faults  // of all usage so far
	final          Usage
	finalEstimated bool   // a figure of final is not the engine's
	ended          bool   // final was given
	usageHead      []byte // how a chunk with the final usage begins
	pending        []byte // the event that ends the answer, until it is known whether it gets a fingerprint; empty: none
	done           bool
}

// progress is how far one choice has come. Its output tokens are its own: with
// n > 1 a chunk's usage speaks of the chunk's choice alone.
type progress struct {
	output    int       // that the engine stated last
	reasoning int       // output tokens when its reasoning was last heard of
	estimate  *estimate // of what it has said since; nil: the engine has stated all
	finished  bool
}

// Event appends to dst what the caller is to get for the event whose data is
// given, which may be nothing. The error is a *StreamError, ErrGarbage or
// ErrUnfinished; then at most what Rest returns is appended.
func (t *Tap) Event(dst, data []byte) ([]byte, error) {
	if t.done { // what comes after the end is nobody's: the request has been counted
		return dst, nil
	}
	if string(data) == "[DONE]" {
		if !t.complete() {
			return dst, ErrUnfinished
		}
		t.done = true
		return append(t.appendUsage(t.Rest(dst)), "data: [DONE]\n\n"...), nil
	}
	if len(t.pending) == 0 {
		if out, ok := t.matchShape(dst, data); ok {
			return out, nil
		}
	}
	show, err := t.chunk(data)
	if len(t.pending) > 0 {
		if err == nil && len(t.last.choices) == 0 {
			t.addFingerprint(t.last.fingerprint)
		}
		dst = t.Rest(dst)
	}
	if err != nil || !show {
		return dst, err
	}
	out := dst
	hold := t.delaysEnd()
	if hold {
		out = t.pending[:0]
	}
	out = append(out, "data: "...)
	start := len(out)
	out = t.edits.append(out)
	if oneLine(out[start:]) && !hold {
		t.learnShape(data)
	}
	out = append(out, '\n', '\n')
	if hold {
		t.pending = out
		return dst, nil
	}
	return out, nil
}

// delaysEnd reports whether the chunk ends the answer and may lack its fingerprint. vLLM puts
// that into the chunk with the usage, which it is always asked for; a caller who has not
// asked for that is to have it where vLLM would have put it then, in the last chunk.
func (t *Tap) delaysEnd() bool {
	c := &t.last
	return t.DelayEnd && !t.View.IncludeUsage && c.fingerprint == nil && len(c.choices) > 0 && c.choices[len(c.choices)-1].finish != "" && t.complete()
}

// addFingerprint gives the event that is held a fingerprint; nil: there is none.
func (t *Tap) addFingerprint(fingerprint []byte) {
	if len(fingerprint) == 0 || fingerprint[0] != '"' || len(fingerprint) > maxName {
		return
	}
	const name, data, end = "system_fingerprint", "data: ", "\n\n"
	object, _ := withoutMember(bytes.TrimSpace(t.pending[len(data):len(t.pending)-len(end)]), name) // null, perhaps
	object = withLastMember(object, join(`,"`, name, `":`, string(fingerprint)))
	t.pending = append(append(append(t.pending[:0], data...), object...), end...)
}

// Holding reports whether the end of the answer waits for the chunk with the usage.
func (t *Tap) Holding() bool { return len(t.pending) > 0 }

// Rest appends what is held back of a stream, for when no event follows.
func (t *Tap) Rest(dst []byte) []byte {
	dst = append(dst, t.pending...)
	t.pending = t.pending[:0]
	return dst
}

// oneLine puts JSON on one line, as an event's data must be, and reports whether
// it was: in valid JSON an LF is only white space.
func oneLine(b []byte) bool {
	single := true
	for i := bytes.IndexByte(b, '\n'); i >= 0; i = bytes.IndexByte(b, '\n') {
		b[i], b, single = ' ', b[i+1:], false
	}
	return single
}

// Done reports whether [DONE] came after every choice had finished.
func (t *Tap) Done() bool { return t.done }

func (t *Tap) complete() bool {
	for i := range t.choices {
		if !t.choices[i].finished {
			return false
		}
	}
	return len(t.choices) > 0
}

// chunk is what is read of a chunk, or of an answer that comes as one body.
type chunk struct {
	id      []byte
	created []byte
	model   []byte
	choices []choice
	listed  bool // it has choices, be they none
	usage   []byte
	noUsage []byte // null in its place
	cut     edit   // takes the usage out
	failure []byte
	// system_fingerprint; nil where it is not there or null
	fingerprint []byte
}

// read reads data in one pass and edits what its caller is to see; ok is false
// where data is no chunk.
func (c *chunk) read(e *edits, v *View, data []byte, part string) (ok bool) {
	e.reset(data)
	*c = chunk{choices: c.choices[:0]}
	w := members(data)
	for first := true; w.next(); first = false {
		switch string(w.key) {
		case "model":
			c.model = w.value()
			v.setModel(e, c.model)
		case "choices":
			if c.listed = w.enter('['); !c.listed {
				return false
			}
			for w.next() {
				if !w.enter('{') {
					return false
				}
				c.choices = append(c.choices, v.readChoice(e, &w, part))
			}
		case "id":
			c.id = w.value()
		case "created":
			c.created = w.value()
		case "usage":
			if raw := w.value(); isNull(raw) {
				c.noUsage = raw
			} else {
				c.usage, c.cut = raw, e.cutEdit(&w, first)
			}
		case "error":
			if raw := w.value(); !isNull(raw) {
				c.failure = raw
			}
		case "system_fingerprint":
			if raw := w.value(); !isNull(raw) {
				c.fingerprint = raw
			}
		}
	}
	return w.failure() == nil
}

// chunk reads one chunk, prepares its edits, and says whether the caller sees it.
func (t *Tap) chunk(data []byte) (show bool, err error) {
	c := &t.last
	if !c.read(&t.edits, &t.View, data, t.contentName()) {
		return false, ErrGarbage
	}
	if c.failure != nil {
		return false, streamError(data, c.failure)
	}
	if len(c.choices) == 0 {
		return t.recordFinal(c), nil
	}
	var s *stated
	if c.usage != nil {
		read := readUsage(c.usage)
		s = &read
	}
	faults := Faults(0)
	for i := range c.choices {
		one := &c.choices[i]
		if err := t.checkChoice(one); err != nil {
			return false, err
		}
		faults |= t.advance(one, s)
		show = show || !one.emptied || one.finish != ""
	}
	t.faults |= faults
	switch {
	case s == nil:
	case !t.View.ContinuousUsage:
		t.edits.list = append(t.edits.list, c.cut)
	case faults != 0:
		t.edits.replace(c.usage, t.choiceUsage(&t.choices[c.choices[0].index]).append(nil, t.known&reasoningFigure))
	}
	return show, nil
}

// choiceUsage is the usage of one choice, as the engine should have stated it.
func (t *Tap) choiceUsage(p *progress) Usage {
	u := Usage{Input: t.Bounds.Input / max(t.Bounds.Prompts, 1), Output: p.output, Reasoning: p.reasoning}
	if t.known&inputFigure != 0 {
		u.Input = t.input
	}
	if p.estimate != nil {
		output, reasoning := p.estimate.tokens()
		u.Output, u.Reasoning = Plus(u.Output, output), Plus(u.Reasoning, reasoning)
	}
	return u
}

func (t *Tap) contentName() string {
	if t.Route == Completions {
		return ""
	}
	return "delta"
}

// checkChoice makes sure that a choice goes on and has its place.
func (t *Tap) checkChoice(c *choice) error {
	if c.finish == "abort" { // the server was paused or shut down
		return ErrUnfinished
	}
	if c.index < 0 || c.index >= MaxChoices {
		return fmt.Errorf("%w: choice %d", ErrGarbage, c.index)
	}
	for len(t.choices) <= c.index {
		t.choices = append(t.choices, progress{})
	}
	return nil
}

// advance notes how far a choice has come. s is the usage in its chunk, nil where there
// is none; what cannot be true of it is returned.
func (t *Tap) advance(c *choice, s *stated) (faults Faults) {
	p := &t.choices[c.index]
	if c.finish != "" {
		p.finished = true
		t.keepUsageHead()
	}
	t.ended = false // an answer that goes on was not stated as a whole
	if s == nil {
		t.estimate(p).add(c, false, t.NewTally)
		return 0
	}
	sane, faults := t.check(p, s)
	t.record(p, s, sane, c.reasoned)
	if sane&outputFigure == 0 {
		t.estimate(p).add(c, false, t.NewTally)
	}
	return faults
}

// check holds the usage in a chunk, which speaks of one choice, against what that can be.
func (t *Tap) check(p *progress, s *stated) (sane figures, faults Faults) {
	floor := Usage{Input: t.input, Output: p.output}
	if t.known&reasoningFigure != 0 {
		floor.Reasoning = p.reasoning
	}
	return t.Bounds.check(s, 1, 1, floor)
}

// record takes in what the engine has stated of one choice.
func (t *Tap) record(p *progress, s *stated, sane figures, reasoned bool) {
	if sane&inputFigure != 0 && t.Bounds.Prompts < 2 {
		t.input = s.Input
		t.known |= inputFigure
	}
	if sane&cachedFigure != 0 {
		t.cached = max(t.cached, s.Cached)
	}
	if sane&reasoningFigure != 0 {
		p.reasoning = s.Reasoning
		t.known |= reasoningFigure
	}
	if sane&outputFigure != 0 {
		p.output, p.estimate = s.Output, nil
		if reasoned && t.known&reasoningFigure == 0 {
			p.reasoning = s.Output
		}
	}
}

// estimate is what counts a choice while the engine does not.
func (t *Tap) estimate(p *progress) *estimate {
	if p.estimate == nil {
		p.estimate = &estimate{thinking: p.reasoning > 0}
	}
	return p.estimate
}

// recordFinal takes in a chunk without choices, whose usage is that of all of them together. It
// says whether the caller sees the chunk.
func (t *Tap) recordFinal(c *chunk) (show bool) {
	if c.usage == nil {
		return true
	}
	s := readUsage(c.usage)
	floor := Usage{Input: t.input}
	for i := range t.choices {
		floor.Output = Plus(floor.Output, t.choices[i].output)
		if t.known&reasoningFigure != 0 {
			floor.Reasoning = Plus(floor.Reasoning, t.choices[i].reasoning)
		}
	}
	if t.ended { // it has been said before
		floor = t.final
	}
	sane, faults := t.Bounds.check(&s, t.Bounds.Prompts, t.Bounds.Choices, floor)
	t.faults |= faults
	u, _ := t.Usage()
	for _, f := range []struct {
		figure         figures
		target, stated *int
	}{
		{inputFigure, &u.Input, &s.Input}, {outputFigure, &u.Output, &s.Output},
		{reasoningFigure, &u.Reasoning, &s.Reasoning}, {cachedFigure, &u.Cached, &s.Cached},
	} {
		if sane&f.figure != 0 {
			*f.target = *f.stated
		}
	}
	if (s.valid|s.wrong)&cachedFigure == 0 && sane&inputFigure != 0 {
		u.Cached = 0 // the engine tells nothing of it where nothing was cached
	}
	t.final, t.ended, t.finalEstimated = u.consistent(), true, s.replaced(sane)
	switch {
	case !t.View.IncludeUsage:
	case faults != 0:
		t.edits.replace(c.usage, t.final.append(nil, sane&(cachedFigure|reasoningFigure)))
	case sane&reasoningFigure == 0 && t.final.Reasoning > 0:
		t.edits.addReasoning(c.usage, t.final.Reasoning)
	}
	return t.View.IncludeUsage
}

// Usage is what the answer has taken so far, and whether a figure of it is the
// gateway's own. Where the server does not count reasoning tokens itself, they are
// the tokens up to the last reasoning heard of and the mark that ends it.
func (t *Tap) Usage() (u Usage, estimated bool) {
	if t.ended {
		return t.final, t.finalEstimated
	}
	u = Usage{Input: t.Bounds.Input, Cached: t.cached}
	if t.known&inputFigure != 0 {
		u.Input = t.input
	}
	counted, unstated, hasEstimate := 0, 0, false
	for i := range t.choices {
		p := &t.choices[i]
		u.Output += p.output
		u.Reasoning += p.reasoning
		if t.known&reasoningFigure == 0 && p.reasoning > 0 && p.reasoning < p.output {
			u.Reasoning++
		}
		if p.estimate == nil {
			continue
		}
		output, reasoning := p.estimate.tokens()
		counted, u.Reasoning, hasEstimate = counted+output, u.Reasoning+reasoning, hasEstimate || output > 0
		if p.output == 0 {
			unstated++ // the prompt that its text may begin with is not yet in an engine's figure
		}
	}
	if hasEstimate {
		u.Output = max(u.Output, min(u.Output+t.Bounds.outputEstimate(counted, unstated), upperBound(t.Bounds.Limit, t.Bounds.Choices, 0)))
	}
	estimated = hasEstimate || t.faults != 0 || t.known&inputFigure == 0 && t.Bounds.Prompts < 2
	return u.consistent(), estimated
}

// Longest is how many tokens the longest choice has so far.
func (t *Tap) Longest() (tokens int) {
	for i := range t.choices {
		tokens = max(tokens, t.choiceUsage(&t.choices[i]).Output)
	}
	return tokens
}

// Faults are what was wrong with the engine's usage. That none was given is a fault
// once the stream has ended.
func (t *Tap) Faults() Faults {
	if _, estimated := t.Usage(); estimated && t.faults == 0 {
		return FaultMissing
	}
	return t.faults
}

// keepUsageHead keeps how the chunk before the end begins, in case that the engine sends
// none with the usage for which the caller has asked.
func (t *Tap) keepUsageHead() {
	c := &t.last
	if !t.View.IncludeUsage || len(c.id) == 0 || len(c.created) == 0 || len(c.id)+len(c.created)+len(c.model) > maxName {
		return
	}
	object := "chat.completion.chunk"
	if t.Route == Completions {
		object = "text_completion"
	}
	h := append(append(t.usageHead[:0], `{"id":`...), c.id...)
	h = append(append(append(h, `,"object":"`...), object...), `","created":`...)
	h = append(append(h, c.created...), `,"model":`...)
	if t.View.Model != "" || len(c.model) == 0 {
		h = appendString(h, t.View.Model)
	} else {
		h = append(h, c.model...)
	}
	t.usageHead = append(h, `,"choices":[],"usage":`...)
}

// appendUsage appends the chunk with the usage of the answer where the caller has asked for
// one and the engine has sent none.
func (t *Tap) appendUsage(dst []byte) []byte {
	if !t.View.IncludeUsage || t.ended || len(t.usageHead) == 0 {
		return dst
	}
	u, _ := t.Usage()
	dst = append(append(dst, "data: "...), t.usageHead...)
	return append(u.append(dst, t.known&reasoningFigure), "}\n\n"...)
}

// streamError is the error that data holds, of which failure is the object.
func streamError(data, failure []byte) *StreamError {
	e := &StreamError{Status: 500, Err: ReadError(data)}
	if code, ok := integer(find(failure, "code")); ok && code >= 400 && code < 600 {
		e.Status = int(code)
	}
	return e
}

// answerError is why a body is no answer: the error that it holds, in either of vLLM's
// shapes, or ErrNoAnswer.
func answerError(body []byte) error {
	object := body
	if inner := find(body, "error"); inner != nil {
		object = inner
	}
	e := streamError(body, object)
	if e.Err.Message == "" {
		return ErrNoAnswer
	}
	return e
}
