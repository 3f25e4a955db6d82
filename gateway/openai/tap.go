package openai

import (
	"bytes"
	"errors"
	"fmt"

	"tidegate/gateway/jsonwalk"
)

// MaxChoices bounds the choices of an answer and so the index of a choice (prompts × n).
const MaxChoices = 1 << 14

// Errors of a stream that is not a complete answer.
var (
	ErrGarbage    = errors.New("the answer has an event that is not a chunk")
	ErrUnfinished = errors.New("the answer ended before it was complete")
)

// A StreamError is an error in an answer of status 200. vLLM sends errors that occur after
// the 200, the backend's and the caller's, inside the stream. Old versions send the error of
// a dead engine as the whole body of a 200.
type StreamError struct {
	Status int // code that vLLM gave; 500 if it gave none
	Err    Error
}

func (e *StreamError) Error() string { return "error in the answer: " + e.Err.Message }

// A Tap follows one stream on its way to the caller. It edits each event to what the caller
// asked for. It counts tokens by the usage in every chunk
// (stream_options.continuous_usage_stats), so that an aborted stream is counted up to what
// was delivered. If a chunk has no usage, or figures that cannot be true, the tap counts
// its text itself, until the next sane figure includes it. One goroutine may use it.
//
// A chunk is not a token: several tokens may share one, and some have none.
type Tap struct {
	View   View
	Route  Route
	Bounds Bounds
	// NewTally returns a counter of a text whose tokens the engine does not state.
	NewTally func() Tally
	// DelayEnd delays the end of the answer until the chunk with the usage, whose
	// system_fingerprint it gets.
	DelayEnd bool

	edits          edits
	last           chunk
	shape          shape
	shapes         int
	choices        []progress
	input          int     // tokens of the only prompt, if known has inputFigure
	cached         int     // cached input tokens
	known          figures // figures that the engine has stated so far, except the output
	faults         Faults  // faults of all usage so far
	final          Usage   // usage of the whole answer, if ended
	finalEstimated bool    // whether a figure of final is not the engine's
	ended          bool    // whether the engine has stated the usage of the whole answer
	usageHead      []byte  // beginning of a chunk with the final usage
	pending        []byte  // event that ends the answer and waits for a fingerprint; empty for none
	done           bool
}

// progress is the state of one choice. With n > 1 the usage in a chunk is that of the
// chunk's choice alone.
type progress struct {
	output    int       // output tokens that the engine stated last
	reasoning int       // output tokens up to its last reasoning
	estimate  *estimate // count of its text since the last stated figure; nil for none
	finished  bool
}

// Event appends to dst the caller's version of the event with this data, which may be
// empty. The error is a *StreamError, ErrGarbage or ErrUnfinished; then it appends at most
// what Rest would.
func (t *Tap) Event(dst, data []byte) ([]byte, error) {
	if t.done { // the request has been counted: what follows its end is dropped
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
// the fingerprint into the chunk with the usage, which the gateway always asks for. A caller
// that has not asked for usage gets it in the last chunk, where vLLM would have put it.
func (t *Tap) delaysEnd() bool {
	c := &t.last
	return t.DelayEnd && !t.View.IncludeUsage && c.fingerprint == nil && len(c.choices) > 0 && c.choices[len(c.choices)-1].finish != "" && t.complete()
}

// addFingerprint adds a fingerprint to the pending event, unless it is nil.
func (t *Tap) addFingerprint(fingerprint []byte) {
	if len(fingerprint) == 0 || fingerprint[0] != '"' || len(fingerprint) > maxName {
		return
	}
	const name, data, end = "system_fingerprint", "data: ", "\n\n"
	object, _ := withoutMember(bytes.TrimSpace(t.pending[len(data):len(t.pending)-len(end)]), name) // it may be null
	object = withLastMember(object, join(`,"`, name, `":`, string(fingerprint)))
	t.pending = append(append(append(t.pending[:0], data...), object...), end...)
}

// Holding reports whether the end of the answer waits for the chunk with the usage.
func (t *Tap) Holding() bool { return len(t.pending) > 0 }

// Rest appends the delayed end of the answer, if any, for a stream without another event.
func (t *Tap) Rest(dst []byte) []byte {
	dst = append(dst, t.pending...)
	t.pending = t.pending[:0]
	return dst
}

// oneLine puts JSON on one line, as an event's data must be, and reports whether it was on
// one. An LF in valid JSON is white space.
func oneLine(b []byte) bool {
	single := true
	for i := bytes.IndexByte(b, '\n'); i >= 0; i = bytes.IndexByte(b, '\n') {
		b[i], b, single = ' ', b[i+1:], false
	}
	return single
}

// Done reports whether [DONE] has come after the end of every choice.
func (t *Tap) Done() bool { return t.done }

// complete reports whether every choice has finished.
func (t *Tap) complete() bool {
	for i := range t.choices {
		if !t.choices[i].finished {
			return false
		}
	}
	return len(t.choices) > 0
}

// A chunk holds the raw members of a chunk, or of a unary answer.
type chunk struct {
	id          []byte
	created     []byte
	model       []byte
	choices     []choice
	listed      bool // whether it has a list of choices, which may be empty
	usage       []byte
	noUsage     []byte // the null in place of a usage
	cut         edit   // edit that removes the usage
	failure     []byte // error object
	fingerprint []byte // system_fingerprint; nil if absent or null
}

// read reads data in one pass and prepares the edits of the caller's version; ok is false
// if data is no chunk.
func (c *chunk) read(e *edits, v *View, data []byte, part string) (ok bool) {
	e.reset(data)
	*c = chunk{choices: c.choices[:0]}
	w := jsonwalk.Members(data)
	for first := true; w.Next(); first = false {
		switch string(w.Key) {
		case "model":
			c.model = w.Value()
			v.setModel(e, c.model)
		case "choices":
			if c.listed = w.Enter('['); !c.listed {
				return false
			}
			for w.Next() {
				if !w.Enter('{') {
					return false
				}
				c.choices = append(c.choices, v.readChoice(e, &w, part))
			}
		case "id":
			c.id = w.Value()
		case "created":
			c.created = w.Value()
		case "usage":
			if raw := w.Value(); jsonwalk.IsNull(raw) {
				c.noUsage = raw
			} else {
				c.usage, c.cut = raw, e.cutEdit(&w, first)
			}
		case "error":
			if raw := w.Value(); !jsonwalk.IsNull(raw) {
				c.failure = raw
			}
		case "system_fingerprint":
			if raw := w.Value(); !jsonwalk.IsNull(raw) {
				c.fingerprint = raw
			}
		}
	}
	return w.Err() == nil
}

// chunk reads one chunk and prepares its edits. show reports whether the caller sees it.
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

// choiceUsage returns the usage of one choice, as the engine should have stated it.
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

// contentName returns the member of a choice that holds its content; "" for a completion.
func (t *Tap) contentName() string {
	if t.Route == Completions {
		return ""
	}
	return "delta"
}

// checkChoice checks that a choice was not aborted and has a valid index, and makes room for
// its progress.
func (t *Tap) checkChoice(c *choice) error {
	if c.finish == "abort" { // the backend was paused or shut down
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

// advance updates the progress of a choice. s is the usage in its chunk, or nil. It returns
// the faults of that usage.
func (t *Tap) advance(c *choice, s *stated) (faults Faults) {
	p := &t.choices[c.index]
	if c.finish != "" {
		p.finished = true
		t.keepUsageHead()
	}
	t.ended = false // the answer continues, so the last usage was not final
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

// check checks the usage in a chunk, which is that of one choice.
func (t *Tap) check(p *progress, s *stated) (sane figures, faults Faults) {
	floor := Usage{Input: t.input, Output: p.output}
	if t.known&reasoningFigure != 0 {
		floor.Reasoning = p.reasoning
	}
	return t.Bounds.check(s, 1, 1, floor)
}

// record records the sane figures that the engine has stated of one choice.
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

// estimate returns the estimate of a choice, which it creates if there is none.
func (t *Tap) estimate(p *progress) *estimate {
	if p.estimate == nil {
		p.estimate = &estimate{thinking: p.reasoning > 0}
	}
	return p.estimate
}

// recordFinal records the usage in a chunk without choices, which is that of the whole
// answer. It reports whether the caller sees the chunk.
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
	if t.ended { // the engine has stated it before
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
		u.Cached = 0 // the engine leaves it out if nothing was cached
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

// Usage returns the usage of the answer so far, and whether it has a figure of the gateway's
// own. If the backend does not count reasoning tokens, they are the tokens up to the last
// reasoning and the mark that ends it.
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
			unstated++ // its text may begin with the prompt, which no figure of the engine includes yet
		}
	}
	if hasEstimate {
		u.Output = max(u.Output, min(u.Output+t.Bounds.outputEstimate(counted, unstated), upperBound(t.Bounds.Limit, t.Bounds.Choices, 0)))
	}
	estimated = hasEstimate || t.faults != 0 || t.known&inputFigure == 0 && t.Bounds.Prompts < 2
	return u.consistent(), estimated
}

// Longest returns the number of tokens of the longest choice so far.
func (t *Tap) Longest() (tokens int) {
	for i := range t.choices {
		tokens = max(tokens, t.choiceUsage(&t.choices[i]).Output)
	}
	return tokens
}

// Faults returns the faults of the engine's usage. At the end of the stream a missing usage
// is a fault too.
func (t *Tap) Faults() Faults {
	if _, estimated := t.Usage(); estimated && t.faults == 0 {
		return FaultMissing
	}
	return t.faults
}

// keepUsageHead keeps the beginning of a chunk for the usage, in case the caller has asked
// for it and the engine sends none.
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

// appendUsage appends a chunk with the usage of the answer if the caller has asked for one
// and the engine has sent none.
func (t *Tap) appendUsage(dst []byte) []byte {
	if !t.View.IncludeUsage || t.ended || len(t.usageHead) == 0 {
		return dst
	}
	u, _ := t.Usage()
	dst = append(append(dst, "data: "...), t.usageHead...)
	return append(u.append(dst, t.known&reasoningFigure), "}\n\n"...)
}

// streamError returns the error in data, whose error object is failure.
func streamError(data, failure []byte) *StreamError {
	e := &StreamError{Status: 500, Err: ReadError(data)}
	if code, ok := integer(jsonwalk.Find(failure, "code")); ok && code >= 400 && code < 600 {
		e.Status = int(code)
	}
	return e
}

// answerError returns the error in a body that is no answer, in either of vLLM's shapes, or
// ErrNoAnswer.
func answerError(body []byte) error {
	object := body
	if inner := jsonwalk.Find(body, "error"); inner != nil {
		object = inner
	}
	e := streamError(body, object)
	if e.Err.Message == "" {
		return ErrNoAnswer
	}
	return e
}
