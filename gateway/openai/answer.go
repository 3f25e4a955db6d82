package openai

import (
	"bytes"
	"errors"
)

// ErrNoAnswer says that a body is no completion.
var ErrNoAnswer = errors.New("the body is no completion")

// Answer is an answer in one piece.
type Answer struct {
	Body      []byte // as its caller is to see it
	Usage     Usage  // what it took, checked
	Estimated bool   // a figure of Usage is the gateway's own, where the engine's could not be true
	Faults    Faults // of the engine's usage
}

// ReadAnswer turns the one JSON body of an answer that is not streamed into what its
// caller is to see, and reads its usage. A figure that is not there or that cannot be
// true is replaced, in the usage that the caller sees as well: the input by that of b,
// the output and the reasoning by what the tallies that fresh makes count. Where the
// engine counted no reasoning tokens, those of each reasoning text are counted, to
// which the marks around it are added, and the usage states them.
//
// The error is a *StreamError where the body holds one, ErrNoAnswer or, where the
// engine gave up, ErrUnfinished.
func ReadAnswer(route Route, v View, body []byte, b Bounds, newTally func() Tally) (a Answer, err error) {
	var (
		e edits
		c chunk
	)
	part := "message"
	if route == Completions {
		part = ""
	}
	if !c.read(&e, &v, body, part) || !c.listed || c.failure != nil {
		return a, answerError(body)
	}
	var s stated
	if c.usage != nil {
		s = readUsage(c.usage)
	}
	sane, faults := b.check(&s, b.Prompts, b.Choices, Usage{})
	hasReasoning, hasRepaired := false, false
	countedOutput, countedReasoning := 0, 0
	for i := range c.choices {
		one := &c.choices[i]
		if one.finish == "abort" {
			return a, ErrUnfinished
		}
		hasReasoning, hasRepaired = hasReasoning || one.reasoned, hasRepaired || one.repaired
		if sane&outputFigure == 0 || one.reasoned && sane&reasoningFigure == 0 {
			var count estimate
			count.add(one, true, newTally)
			output, reasoning := count.tokens()
			countedOutput, countedReasoning = Plus(countedOutput, output), Plus(countedReasoning, reasoning)
		}
	}
	u := s.Usage
	if sane&inputFigure == 0 {
		u.Input = b.Input
	}
	if sane&cachedFigure == 0 {
		u.Cached = 0
	}
	if sane&outputFigure == 0 {
		u.Output = b.outputEstimate(countedOutput, len(c.choices))
	}
	switch {
	case sane&reasoningFigure == 0:
		u.Reasoning = countedReasoning
	case hasRepaired && !hasReasoning: // the server counted what it took for reasoning
		u.Reasoning = 0
		if faults == 0 {
			e.replace(find(find(c.usage, "completion_tokens_details"), "reasoning_tokens"), []byte("0"))
		}
	}
	u = u.consistent()
	a = Answer{Usage: u, Estimated: s.replaced(sane), Faults: faults}
	switch {
	case faults != 0:
		c.correct(&e, u.append(nil, sane&(cachedFigure|reasoningFigure)))
	case sane&reasoningFigure == 0 && countedReasoning > 0 && countedReasoning <= u.Output && u.Reasoning == countedReasoning: // what cannot be true is not shown
		e.addReasoning(c.usage, countedReasoning)
	}
	a.Body = e.append(make([]byte, 0, len(body)+len(body)/8))
	return a, nil
}

// correct shows another usage object as that of an answer in one piece.
func (c *chunk) correct(e *edits, usage []byte) {
	if c.usage != nil {
		e.replace(c.usage, usage)
		return
	}
	if c.noUsage != nil {
		e.replace(c.noUsage, usage)
		return
	}
	end := bytes.LastIndexByte(e.raw, '}') // of the answer, which has choices
	e.list = append(e.list, edit{end, end, append([]byte(`,"usage":`), usage...)})
}
