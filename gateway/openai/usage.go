package openai

import (
	"strconv"

	"tidegate/gateway/jsonwalk"
)

// Usage is the number of tokens that a request used. Output includes reasoning, the end
// token and tool-call markup; Input includes Cached.
type Usage struct {
	Input     int
	Cached    int
	Output    int
	Reasoning int
}

// maxFigure bounds sums and products of tokens: thousands of them still fit into 64 bits,
// and a double represents each exactly.
const maxFigure = 1 << 48

// Total returns OpenAI's total_tokens.
func (u Usage) Total() int { return Plus(u.Input, u.Output) }

// Plus returns the sum of two numbers of tokens, at most 2^48. A negative one counts as 0.
func Plus(a, b int) int {
	return min(min(max(a, 0), maxFigure)+min(max(b, 0), maxFigure), maxFigure)
}

// Times returns the product of two numbers of tokens, at most 2^48. A negative one counts as
// 0.
func Times(a, b int) int {
	a, b = max(a, 0), max(b, 0)
	if a > 0 && b > maxFigure/a {
		return maxFigure
	}
	return a * b
}

// consistent returns u with each part lowered to its whole.
func (u Usage) consistent() Usage {
	u.Cached, u.Reasoning = min(u.Cached, u.Input), min(u.Reasoning, u.Output)
	return u
}

// append appends a usage object of the API. A detail of 0 is written only if it is known.
func (u Usage) append(b []byte, known figures) []byte {
	b = strconv.AppendInt(append(b, `{"prompt_tokens":`...), int64(u.Input), 10)
	b = strconv.AppendInt(append(b, `,"total_tokens":`...), int64(u.Total()), 10)
	b = strconv.AppendInt(append(b, `,"completion_tokens":`...), int64(u.Output), 10)
	if u.Cached > 0 || known&cachedFigure != 0 {
		b = strconv.AppendInt(append(b, `,"prompt_tokens_details":{"cached_tokens":`...), int64(u.Cached), 10)
		b = append(b, '}')
	}
	if u.Reasoning > 0 || known&reasoningFigure != 0 {
		b = strconv.AppendInt(append(b, `,"completion_tokens_details":{"reasoning_tokens":`...), int64(u.Reasoning), 10)
		b = append(b, '}')
	}
	return append(b, '}')
}

// addReasoning adds reasoning tokens, which the gateway has counted, to a usage object of
// the engine without any.
func (e *edits) addReasoning(usage []byte, tokens int) {
	const name, part = "completion_tokens_details", "reasoning_tokens"
	member := strconv.AppendInt([]byte(`,"`+part+`":`), int64(tokens), 10)
	switch details := jsonwalk.Find(usage, name); {
	case details == nil:
		e.insert(usage[:len(usage)-1], join(`,"`, name, `":{`, string(member[1:]), `}`))
	case details[0] == '{':
		rest, _ := withoutMember(details, part) // it may be null
		e.replace(details, withLastMember(rest, member))
	default:
		e.replace(details, join(`{`, string(member[1:]), `}`))
	}
}

// Faults is a set of bits: the reasons why an engine's usage cannot be true.
type Faults uint8

// The faults.
const (
	FaultMissing   Faults = 1 << iota // the input or the output was never stated
	FaultInvalid                      // a figure is no whole number, or is negative, or total_tokens is not the sum
	FaultExcessive                    // a figure is above the bounds of the request
	FaultDecreased                    // a figure is below an earlier one of the same stream
	FaultUnseen                       // a unary answer never arrived
)

// FaultNames returns the names of all faults, in the order of their bits.
func FaultNames() []string {
	return []string{"missing", "invalid", "excessive", "fallen", "unseen"}
}

// Names returns the names of the faults in the set.
func (f Faults) Names() (names []string) {
	for i, name := range FaultNames() {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// Bounds are the bounds of an answer's usage, which follow from its request. The zero value
// is for an unknown request.
type Bounds struct {
	Input   int  // tokens of all prompts by the gateway's own count, which replaces a figure that cannot be true
	Context int  // most tokens of a prompt; 0 if unknown
	Prompts int  // number of prompts; 0 means 1
	Limit   int  // most tokens of a choice; 0 if unknown
	Choices int  // number of choices of all prompts together; 0 means 1
	Echo    bool // whether the text of each choice begins with its prompt
}

// longestContext replaces an unknown context or limit, in tokens. No Qwen3 model has a
// longer one.
const longestContext = 1 << 20

// upperBound returns the largest sane figure for number prompts or choices of at most
// tokens+extra tokens each. 0 tokens means that the limit is unknown.
func upperBound(tokens, number, extra int) int {
	if tokens <= 0 {
		tokens = longestContext
	}
	return Times(Plus(tokens, extra), max(number, 1))
}

// figures is a set of the figures in a usage object.
type figures uint8

const (
	inputFigure figures = 1 << iota
	outputFigure
	cachedFigure
	reasoningFigure
	totalFigure

	neededFigures = inputFigure | outputFigure
)

// stated is a usage object as the engine sent it.
type stated struct {
	Usage
	total int     // total_tokens
	valid figures // figures that are whole numbers, 0 or more
	wrong figures // figures that are present, not null, and not valid
}

// set sets one figure from its raw value, which is nil if absent.
func (s *stated) set(f figures, target *int, raw []byte) {
	s.valid &^= f
	s.wrong &^= f
	n, ok := integer(raw)
	switch {
	case ok && n >= 0:
		*target = int(n)
		s.valid |= f
	case raw != nil && !jsonwalk.IsNull(raw):
		s.wrong |= f
	}
}

// readUsage reads a usage object.
func readUsage(raw []byte) stated {
	w := jsonwalk.Members(raw)
	return readStated(&w)
}

// readStated reads the members of a usage object that w has entered.
func readStated(w *jsonwalk.Walker) (s stated) {
	for w.Next() {
		key := w.Key
		value := w.Value()
		switch string(key) {
		case "prompt_tokens":
			s.set(inputFigure, &s.Input, value)
		case "completion_tokens":
			s.set(outputFigure, &s.Output, value)
		case "total_tokens":
			s.set(totalFigure, &s.total, value)
		case "prompt_tokens_details":
			s.set(cachedFigure, &s.Cached, jsonwalk.Find(value, "cached_tokens"))
		case "completion_tokens_details":
			s.set(reasoningFigure, &s.Reasoning, jsonwalk.Find(value, "reasoning_tokens"))
		}
	}
	return s
}

// check returns the figures of a usage object that can be true for so many prompts and
// choices of a request with these bounds, and the faults of the others. floor is the
// usage that the same stream has stated before. No other code decides this.
func (b *Bounds) check(s *stated, prompts, choices int, floor Usage) (sane figures, faults Faults) {
	sane = s.valid
	if s.wrong != 0 {
		faults |= FaultInvalid
	}
	if (s.valid|s.wrong)&neededFigures != neededFigures {
		faults |= FaultMissing
	}
	input := s.Input
	switch {
	case sane&inputFigure == 0:
		input = b.Input
	case s.Input > upperBound(b.Context, prompts, 0):
		sane, faults, input = sane&^inputFigure, faults|FaultExcessive, b.Input
	case s.Input < floor.Input:
		sane, faults, input = sane&^inputFigure, faults|FaultDecreased, floor.Input
	}
	switch {
	case sane&outputFigure == 0:
	case s.Output > upperBound(b.Limit, choices, 1):
		sane, faults = sane&^outputFigure, faults|FaultExcessive
	case s.Output < floor.Output:
		sane, faults = sane&^outputFigure, faults|FaultDecreased
	}
	if sane&cachedFigure != 0 && s.Cached > input {
		sane, faults = sane&^cachedFigure, faults|FaultExcessive
	}
	switch {
	case sane&reasoningFigure == 0:
	case sane&outputFigure == 0: // it is a part of the output, which cannot be true
		sane &^= reasoningFigure
	case s.Reasoning > s.Output:
		sane, faults = sane&^reasoningFigure, faults|FaultExcessive
	case s.Reasoning < floor.Reasoning:
		sane, faults = sane&^reasoningFigure, faults|FaultDecreased
	}
	if sane&(neededFigures|totalFigure) == neededFigures|totalFigure && s.total != s.Usage.Total() {
		sane, faults = sane&^totalFigure, faults|FaultInvalid
	}
	return sane, faults
}

// replaced reports whether a figure must be replaced, since it is not among the sane ones.
func (s *stated) replaced(sane figures) bool {
	return (neededFigures|(s.valid|s.wrong)&(cachedFigure|reasoningFigure))&^sane != 0
}
