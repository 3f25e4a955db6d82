package openai

import "strconv"

// Usage is how many tokens a request took. Output includes reasoning, the end
// token and tool-call markup; Input includes Cached.
type Usage struct {
	Input     int
	Cached    int
	Output    int
	Reasoning int
}

// maxFigure bounds sums and products of tokens: thousands of them still add up within
// 64 bits, and a double holds each exactly.
const maxFigure = 1 << 48

// Total is what OpenAI calls total_tokens.
func (u Usage) Total() int { return Plus(u.Input, u.Output) }

// Plus returns a + b of two numbers of tokens, 2^48 at most. A negative one counts as 0.
func Plus(a, b int) int {
	return min(min(max(a, 0), maxFigure)+min(max(b, 0), maxFigure), maxFigure)
}

// Times returns a × b of two numbers of tokens, 2^48 at most. A negative one counts as 0.
func Times(a, b int) int {
	a, b = max(a, 0), max(b, 0)
	if a > 0 && b > maxFigure/a {
		return maxFigure
	}
	return a * b
}

// consistent is u with no part larger than the whole.
func (u Usage) consistent() Usage {
	u.Cached, u.Reasoning = min(u.Cached, u.Input), min(u.Reasoning, u.Output)
	return u
}

// append writes a usage object as the API has it. A detail that is 0 stands in it if it is
// known, and not only left out.
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

// addReasoning edits a usage object, of which the engine states no reasoning tokens, so
// that it states those that were counted here.
func (e *edits) addReasoning(usage []byte, tokens int) {
	const name, part = "completion_tokens_details", "reasoning_tokens"
	member := strconv.AppendInt([]byte(`,"`+part+`":`), int64(tokens), 10)
	switch details := find(usage, name); {
	case details == nil:
		e.insert(usage[:len(usage)-1], join(`,"`, name, `":{`, string(member[1:]), `}`))
	case details[0] == '{':
		rest, _ := withoutMember(details, part) // null, perhaps
		e.replace(details, withLastMember(rest, member))
	default:
		e.replace(details, join(`{`, string(member[1:]), `}`))
	}
}

// Faults are ways in which an engine's usage cannot be the truth, as a set of bits.
type Faults uint8

// The ways.
const (
	FaultMissing   Faults = 1 << iota // the input or the output was never stated
	FaultInvalid                      // a figure is no whole number, or is negative, or total_tokens is not the sum
	FaultExcessive                    // a figure is above what the request allows
	FaultFallen                       // a figure is below one that the same stream had stated before
	FaultUnseen                       // nobody saw the answer, which was to come in one piece
)

// FaultNames are the words for all faults, in the order of their bits.
func FaultNames() []string {
	return []string{"missing", "invalid", "excessive", "fallen", "unseen"}
}

// Names are the words for the faults in the set.
func (f Faults) Names() (names []string) {
	for i, name := range FaultNames() {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// Bounds say what the usage of an answer can be, by what was asked for. The zero
// value bounds an answer of which nothing is known.
type Bounds struct {
	Input   int  // tokens of all prompts by the gateway's own count, which replace a figure that cannot be true
	Context int  // tokens that a prompt can have; 0: not known
	Prompts int  // number of prompts; 0: one
	Limit   int  // tokens that a choice may have; 0: not known
	Choices int  // number of choices of all prompts together; 0: one
	Echo    bool // the text of each choice begins with its prompt
}

// longestContext stands for a context or a limit that is not known, in tokens: no
// Qwen3 model has a longer one.
const longestContext = 1 << 20

// upperBound returns up to which a figure can be true: so many tokens each, and one more.
func upperBound(tokens, number, extra int) int {
	if tokens <= 0 {
		tokens = longestContext
	}
	return Times(Plus(tokens, extra), max(number, 1))
}

// figures is a set of the numbers in a usage object.
type figures uint8

const (
	inputFigure figures = 1 << iota
	outputFigure
	cachedFigure
	reasoningFigure
	totalFigure

	neededFigures = inputFigure | outputFigure
)

// stated is a usage object as the engine wrote it.
type stated struct {
	Usage
	total int     // total_tokens
	valid figures // those that are whole numbers, 0 or more
	wrong figures // those that are there, not null, and no such numbers
}

// set takes in one number; nil where it is not there.
func (s *stated) set(f figures, target *int, raw []byte) {
	s.valid &^= f
	s.wrong &^= f
	n, ok := integer(raw)
	switch {
	case ok && n >= 0:
		*target = int(n)
		s.valid |= f
	case raw != nil && !isNull(raw):
		s.wrong |= f
	}
}

// readUsage reads a usage object.
func readUsage(raw []byte) stated {
	w := members(raw)
	return w.usage()
}

// usage reads the rest of a usage object that has been entered.
func (w *walker) usage() (s stated) {
	for w.next() {
		key := w.key
		value := w.value()
		switch string(key) {
		case "prompt_tokens":
			s.set(inputFigure, &s.Input, value)
		case "completion_tokens":
			s.set(outputFigure, &s.Output, value)
		case "total_tokens":
			s.set(totalFigure, &s.total, value)
		case "prompt_tokens_details":
			s.set(cachedFigure, &s.Cached, find(value, "cached_tokens"))
		case "completion_tokens_details":
			s.set(reasoningFigure, &s.Reasoning, find(value, "reasoning_tokens"))
		}
	}
	return s
}

// check returns which figures of a usage object can be true, of so many prompts and
// choices in a request with these bounds, and what is wrong with the others. least is
// what the same stream has stated before. It is the only place that decides this.
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
		sane, faults, input = sane&^inputFigure, faults|FaultFallen, floor.Input
	}
	switch {
	case sane&outputFigure == 0:
	case s.Output > upperBound(b.Limit, choices, 1):
		sane, faults = sane&^outputFigure, faults|FaultExcessive
	case s.Output < floor.Output:
		sane, faults = sane&^outputFigure, faults|FaultFallen
	}
	if sane&cachedFigure != 0 && s.Cached > input {
		sane, faults = sane&^cachedFigure, faults|FaultExcessive
	}
	switch {
	case sane&reasoningFigure == 0:
	case sane&outputFigure == 0: // it is a part of what cannot be true
		sane &^= reasoningFigure
	case s.Reasoning > s.Output:
		sane, faults = sane&^reasoningFigure, faults|FaultExcessive
	case s.Reasoning < floor.Reasoning:
		sane, faults = sane&^reasoningFigure, faults|FaultFallen
	}
	if sane&(neededFigures|totalFigure) == neededFigures|totalFigure && s.total != s.Usage.Total() {
		sane, faults = sane&^totalFigure, faults|FaultInvalid
	}
	return sane, faults
}

// replaced reports whether a figure that counts must be replaced, given which can be true.
func (s *stated) replaced(sane figures) bool {
	return (neededFigures|(s.valid|s.wrong)&(cachedFigure|reasoningFigure))&^sane != 0
}
