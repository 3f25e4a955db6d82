package openai

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

// Bounds of a stream that is made here, in bytes.
const (
	maxLine  = 16 << 10 // of a line: there are clients that refuse long ones
	maxName  = 1 << 10  // of an id or the name of a model, as JSON
	maxSpent = 2 << 10  // of the usage
	maxShort = 128      // of a member that every chunk repeats
	maxRest  = 1 << 10  // of all those together
	minPiece = 64       // of a text that is begun at the end of a line
	ending   = 256      // kept free in each line, so that a chunk can be ended
)

// Stream turns answer, one JSON body as ReadAnswer returns it, into the stream that
// its caller asked for, from the first chunk to [DONE], and appends that to dst.
// A choice is told in one chunk, which is cut between characters where its line
// would be longer than 16 KiB. Usage in every chunk is that of the whole answer:
// when the first is sent, all has been made.
//
// begun is the id under which KeepAlive's chunks were sent, "" where none were: the
// stream goes on under it, and the role that the first of them gave is not repeated.
//
// What the answer has beyond the API is kept: short members stand in every chunk,
// long ones in the first, and those of a choice in its last. What cannot be cut and
// is longer than a line is left out. The error is ErrNoAnswer, or ErrUnfinished
// where a choice has no finish_reason or there is no choice; dst is then unchanged.
func (v View) Stream(dst []byte, route Route, answer []byte, begun string) ([]byte, error) {
	s := stream{route: route, out: slices.Grow(dst, len(answer)+len(answer)/8+2048)}
	a, err := s.read(answer, begun)
	if err != nil {
		return dst, err
	}
	if v.ContinuousUsage && a.usage != nil {
		s.tail = append(append(s.tail, `,"usage":`...), a.usage...)
	}
	written := 0
	w := elements(a.choices)
	for ; written <= MaxChoices && w.next(); written++ {
		one, err := readUnaryChoice(route, w.value())
		if err != nil {
			return dst, err
		}
		role := route == Chat && (begun == "" || one.index > 0)
		if role || written == 0 && len(a.long) > 0 {
			s.begin(one.index)
			if role {
				s.key("role")
				s.out = append(s.out, `"assistant"`...)
			}
			s.end("null", a.long...)
			a.long = nil
		}
		if err := s.choice(&one); err != nil {
			return dst, err
		}
	}
	if w.failure() != nil || written > MaxChoices {
		return dst, ErrNoAnswer
	}
	if written == 0 {
		return dst, ErrUnfinished
	}
	if v.IncludeUsage && a.usage != nil {
		s.out = append(append(s.out, s.head...), `],"usage":`...)
		s.out = append(append(s.out, a.usage...), "}\n\n"...)
	}
	return append(s.out, "data: [DONE]\n\n"...), nil
}

// stream is a stream as it is written. Of the chunk under way it knows what has
// been opened and must be closed.
type stream struct {
	route Route
	out   []byte
	head  []byte // how each chunk begins, up to its choices
	tail  []byte // what stands behind them

	line        int  // where the chunk begins in out
	index       int  // of its choice
	inDelta     bool // its delta is open
	first       bool // nothing stands before the next member
	hasContent  bool // it has text, or something that stands for it
	inCalls     bool // its list of tool calls is open
	hasLogprobs bool // it has log probabilities
}

// envelope is what is read of an answer but its choices' insides.
type envelope struct {
	choices, usage []byte
	long           []field // members that only the first chunk gets
}

func (s *stream) read(answer []byte, begun string) (a envelope, err error) {
	id, model, created := []byte(`""`), []byte(`""`), []byte("0")
	var short []byte
	w := members(answer)
	for w.next() {
		key, value := w.key, w.value()
		switch string(key) {
		case "id":
			id = value
		case "model":
			model = value
		case "created":
			created = value
		case "choices":
			a.choices = value
		case "usage":
			a.usage = streamUsage(value)
		case "object", "error":
		default:
			n := len(key) + len(value)
			switch {
			case isNull(value):
			case n > maxShort || len(short)+n+4 > maxRest:
				a.long = append(a.long, field{key, value})
			default:
				short = appendFlat(append(append(append(short, `,"`...), key...), `":`...), value)
			}
		}
	}
	if begun != "" {
		id = appendString(nil, begun)
	}
	_, dated := integer(created)
	if w.failure() != nil || !dated || len(id) > maxName || len(model) > maxName || len(a.usage) > maxSpent ||
		len(id) == 0 || id[0] != '"' || model[0] != '"' {
		return a, ErrNoAnswer
	}
	object := "chat.completion.chunk"
	if s.route == Completions {
		object = "text_completion"
	}
	h := append(append(s.head, `data: {"id":`...), id...)
	h = append(append(append(h, `,"object":"`...), object...), `","created":`...)
	h = append(append(append(h, created...), `,"model":`...), model...)
	s.head = append(append(h, short...), `,"choices":[`...)
	return a, nil
}

// streamUsage is a usage object on one line and without its nulls, which streams have not.
func streamUsage(usage []byte) []byte {
	if len(usage) == 0 || usage[0] != '{' {
		return nil
	}
	out := append(make([]byte, 0, len(usage)), '{')
	for w := members(usage); w.next(); {
		key, value := w.key, w.value()
		if isNull(value) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = appendFlat(append(append(append(out, '"'), key...), `":`...), value)
	}
	return append(out, '}')
}

// appendFlat appends JSON on one line: a line end in it can only be white space.
func appendFlat(dst, raw []byte) []byte {
	start := len(dst)
	dst = append(dst, raw...)
	for i, c := range dst[start:] {
		if c == '\n' || c == '\r' {
			dst[start+i] = ' '
		}
	}
	return dst
}

// namedText is a text and the names that it has in a chunk.
type namedText struct {
	names []string
	text  []byte // raw
}

// unaryChoice is one choice of a whole answer.
type unaryChoice struct {
	index     int
	texts     []namedText // in the order in which it is told
	calls     []byte
	logprobs  []byte
	finish    string
	deltaRest []field // of its message
	rest      []field // its own
}

func readUnaryChoice(route Route, raw []byte) (c unaryChoice, err error) {
	w := members(raw)
	for w.next() {
		key, value := w.key, w.value()
		switch string(key) {
		case "index":
			n, ok := integer(value)
			if !ok || n < 0 || n >= MaxChoices {
				return c, fmt.Errorf("%w: choice %s", ErrNoAnswer, value[:min(len(value), 20)])
			}
			c.index = int(n)
		case "finish_reason":
			c.finish, _ = text(value)
		case "logprobs":
			c.logprobs = value
		case "delta":
		case "text":
			if route == Completions && value[0] == '"' {
				c.texts = append(c.texts, namedText{[]string{"text"}, value})
			}
		case "message":
			if route == Chat {
				c.message(value)
			}
		default:
			if !isNull(value) {
				c.rest = append(c.rest, field{key, value})
			}
		}
	}
	switch {
	case w.failure() != nil, len(c.finish) > maxShort:
		return c, ErrNoAnswer
	case c.finish == "":
		return c, ErrUnfinished
	}
	return c, nil
}

// message reads what a message says. What thinks comes before what is said.
func (c *unaryChoice) message(raw []byte) {
	var reasoning, alias, content, refusal []byte
	for w := members(raw); w.next(); {
		key, value := w.key, w.value()
		target := &reasoning
		switch string(key) {
		case "role":
			continue
		case "reasoning":
		case "reasoning_content":
			target = &alias
		case "content":
			target = &content
		case "refusal":
			target = &refusal
		case "tool_calls":
			if value[0] == '[' {
				c.calls = value
				continue
			}
			target = nil
		default:
			target = nil
		}
		switch {
		case target != nil && value[0] == '"':
			*target = value
		case carriesContent(value):
			c.deltaRest = append(c.deltaRest, field{key, value})
		}
	}
	if bytes.Equal(reasoning, alias) {
		c.addText(reasoning, "reasoning", "reasoning_content")
	} else {
		c.addText(reasoning, "reasoning")
		c.addText(alias, "reasoning_content")
	}
	c.addText(content, "content")
	c.addText(refusal, "refusal")
}

func (c *unaryChoice) addText(raw []byte, names ...string) {
	if raw != nil {
		c.texts = append(c.texts, namedText{names, raw})
	}
}

// choice tells one choice.
func (s *stream) choice(c *unaryChoice) error {
	s.begin(c.index)
	for _, p := range c.texts {
		s.text(p)
	}
	i := 0
	for w := elements(c.calls); c.calls != nil && w.next(); i++ {
		if err := s.call(i, w.value()); err != nil {
			return err
		}
	}
	for _, f := range c.deltaRest {
		s.addMember(f, true)
	}
	if len(c.logprobs) > 0 && c.logprobs[0] == '{' {
		s.probabilities(c.logprobs)
	}
	for _, f := range c.rest {
		s.addMember(f, false)
	}
	reason := appendString(nil, c.finish)
	if len(reason) > maxShort { // no value of the API is long, or grows when it is quoted
		return ErrNoAnswer
	}
	s.end(string(reason))
	return nil
}

// begin begins a chunk.
func (s *stream) begin(index int) {
	s.line, s.index = len(s.out), index
	s.hasContent, s.inCalls, s.hasLogprobs = false, false, false
	s.out = append(append(s.out, s.head...), `{"index":`...)
	s.out = strconv.AppendInt(s.out, int64(index), 10)
	if s.inDelta = s.route == Chat; s.inDelta {
		s.out = append(s.out, `,"delta":{`...)
	}
	s.first = s.inDelta
}

// next ends the chunk, in which the choice does not end, and begins another.
func (s *stream) next() {
	s.end("null")
	s.begin(s.index)
}

// end ends the chunk; finish is JSON. Of the members behind its choices those are
// written that fit.
func (s *stream) end(finish string, behind ...field) {
	s.endDelta()
	if !s.hasLogprobs {
		s.out = append(s.out, `,"logprobs":null`...)
	}
	s.out = append(append(append(s.out, `,"finish_reason":`...), finish...), "}]"...)
	for _, f := range behind {
		if f.size() <= s.room() {
			s.member(f)
		}
	}
	s.out = append(append(s.out, s.tail...), "}\n\n"...)
}

// endDelta ends what the choice says in this chunk, which is something in each.
func (s *stream) endDelta() {
	s.endCalls()
	if !s.hasContent {
		name := "content"
		if s.route == Completions {
			name = "text"
		}
		s.key(name)
		s.out, s.hasContent = append(s.out, `""`...), true
	}
	if s.inDelta {
		s.out, s.inDelta = append(s.out, '}'), false
	}
	s.first = false
}

func (s *stream) endCalls() {
	if s.inCalls {
		s.out, s.inCalls = append(s.out, ']'), false
	}
}

// room is how much may still be written into the line of this chunk.
func (s *stream) room() int {
	return maxLine - (len(s.out) - s.line) - len(s.tail) - ending
}

func (s *stream) key(name string) {
	if !s.first {
		s.out = append(s.out, ',')
	}
	s.first = false
	s.out = append(append(append(s.out, '"'), name...), `":`...)
}

func (f field) size() int { return len(f.key) + len(f.value) + len(`,"":`) }

func (s *stream) member(f field) {
	s.key(string(f.key))
	s.out = appendFlat(s.out, f.value)
}

// addMember puts a member that cannot be cut into the delta or beside it, in the next
// chunk where this one has no room.
func (s *stream) addMember(f field, delta bool) {
	if s.endCalls(); f.size() > s.room() {
		s.next()
	}
	if !delta {
		s.endDelta()
	}
	if f.size() <= s.room() {
		s.member(f)
	}
}

// text tells a text.
func (s *stream) text(p namedText) {
	rest := p.text[1 : len(p.text)-1]
	for len(rest) > 0 {
		piece := s.room()/len(p.names) - len(`,"reasoning_content":""`)
		if piece < len(rest) && piece < minPiece {
			s.next()
			continue
		}
		n := cutLen(rest, piece)
		for _, name := range p.names {
			s.key(name)
			s.quote(rest[:n])
		}
		s.hasContent, rest = true, rest[n:]
		if len(rest) > 0 {
			s.next()
		}
	}
}

func (s *stream) quote(inner []byte) {
	s.out = append(append(append(s.out, '"'), inner...), '"')
}

// call tells the tool call at place i: first all about it, then its arguments, in
// pieces where they are long.
func (s *stream) call(i int, raw []byte) error {
	head, arguments, err := toolCall(i, raw)
	if err != nil {
		return err
	}
	if len(head)+minPiece > s.room() {
		s.next()
		if len(head)+minPiece > s.room() {
			return fmt.Errorf("%w: a tool call's name is too long", ErrNoAnswer)
		}
	}
	s.beginCall(head)
	if arguments == nil {
		s.out = append(s.out, '}')
		return nil
	}
	for rest := arguments[1 : len(arguments)-1]; ; {
		n := cutLen(rest, s.room())
		s.quote(rest[:n])
		s.out = append(s.out, "}}"...)
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
		s.next()
		next := strconv.AppendInt([]byte(`{"index":`), int64(i), 10)
		s.beginCall(append(next, `,"function":{"arguments":`...))
	}
}

func (s *stream) beginCall(head []byte) {
	if s.inCalls {
		s.out = append(s.out, ',')
	} else {
		s.key("tool_calls")
		s.out = append(s.out, '[')
	}
	s.inCalls, s.hasContent = true, true
	s.out = append(s.out, head...)
}

// toolCall is a call of a message as the first delta about it, up to its
// arguments; nil arguments: it has none that could be cut.
func toolCall(i int, raw []byte) (head, arguments []byte, err error) {
	head = strconv.AppendInt(append(head, `{"index":`...), int64(i), 10)
	var function []byte
	w := members(raw)
	for w.next() {
		key, value := w.key, w.value()
		switch string(key) {
		case "index":
		case "function":
			function = value
		default:
			head = appendFlat(append(append(append(head, `,"`...), key...), `":`...), value)
		}
	}
	if w.failure() != nil || function != nil && function[0] != '{' {
		return nil, nil, ErrNoAnswer
	}
	if function == nil {
		return head, nil, nil
	}
	head = append(head, `,"function":{`...)
	for w := members(function); w.next(); {
		key, value := w.key, w.value()
		if string(key) == "arguments" && value[0] == '"' {
			arguments = value
			continue
		}
		head = appendFlat(append(append(append(head, '"'), key...), `":`...), value)
		head = append(head, ',')
	}
	if arguments == nil {
		return append(bytes.TrimSuffix(head, []byte(",")), '}'), nil, nil
	}
	return append(head, `"arguments":`...), arguments, nil
}
