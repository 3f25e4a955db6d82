package openai

import (
	"bytes"
	"errors"

	"tidegate/gateway/jsonwalk"
)

// ErrNoAnswer is the error of a body that is no completion.
var ErrNoAnswer = errors.New("the body is no completion")

// An Answer is a unary answer.
type Answer struct {
	Body      []byte // body that the caller sees
	Usage     Usage  // checked usage
	Estimated bool   // whether a figure of Usage is the gateway's own, since the engine's could not be true
	Faults    Faults // faults of the engine's usage
}

// ReadAnswer edits the JSON body of a unary answer to what its caller is to see, and reads
// its usage. It replaces a figure that is missing or cannot be true, also in the usage that
// the caller sees: the input by that of b, the output and the reasoning by the counts of
// tallies that newTally returns. If the engine counted no reasoning tokens, ReadAnswer
// counts each reasoning text and the marks around it, and adds them to the usage.
//
// The error is a *StreamError if the body holds an error, ErrUnfinished if the engine has
// aborted the answer, or else ErrNoAnswer.
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
	case hasRepaired && !hasReasoning: // the backend counted the content as reasoning
		u.Reasoning = 0
		if faults == 0 {
			e.replace(jsonwalk.Find(jsonwalk.Find(c.usage, "completion_tokens_details"), "reasoning_tokens"), []byte("0"))
		}
	}
	u = u.consistent()
	a = Answer{Usage: u, Estimated: s.replaced(sane), Faults: faults}
	switch {
	case faults != 0:
		c.correct(&e, u.append(nil, sane&(cachedFigure|reasoningFigure)))
	case sane&reasoningFigure == 0 && countedReasoning > 0 && countedReasoning <= u.Output && u.Reasoning == countedReasoning: // the caller sees no figure that cannot be true
		e.addReasoning(c.usage, countedReasoning)
	}
	a.Body = e.append(make([]byte, 0, len(body)+len(body)/8))
	return a, nil
}

// correct replaces or adds the usage object of a unary answer.
func (c *chunk) correct(e *edits, usage []byte) {
	if c.usage != nil {
		e.replace(c.usage, usage)
		return
	}
	if c.noUsage != nil {
		e.replace(c.noUsage, usage)
		return
	}
	end := bytes.LastIndexByte(e.raw, '}') // end of the answer, which is not empty
	e.list = append(e.list, edit{end, end, append([]byte(`,"usage":`), usage...)})
}
