package openai

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"tidegate/gateway/jsonwalk"
)

// Bounds of a stream that is made here, in bytes.
const (
	maxLine  = 16 << 10 // a line; some clients refuse long ones
	maxName  = 1 << 10  // an id or a model's name, as JSON
	maxSpent = 2 << 10  // the usage
	maxShort = 128      // a member that every chunk repeats
	maxRest  = 1 << 10  // all of those members together
	minPiece = 64       // least piece of a text that is begun at the end of a line
	ending   = 256      // reserve of each line for the end of the chunk
)

// Stream turns answer, one JSON body as ReadAnswer returns it, into the stream that
// its caller asked for, from the first chunk to [DONE], and appends it to dst. Each
// choice is one chunk, which is cut between characters if its line would be longer
// than 16 KiB. Usage in every chunk is that of the whole answer, which is complete
// before the first chunk is sent.
//
// begun is the id of the chunks that KeepAlive has sent, or "" if it has sent none.
// The stream continues under this id and does not repeat the role, which the first of
// them has given.
//
// Members beyond the API are kept: short ones in every chunk, long ones in the first,
// and those of a choice in its last. A member that cannot be cut and is longer than a
// line is left out. The error is ErrNoAnswer, or ErrUnfinished if a choice has no
// finish_reason or there is no choice. Then dst is returned unchanged.
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
	w := jsonwalk.Elements(a.choices)
	for ; written <= MaxChoices && w.Next(); written++ {
		one, err := readUnaryChoice(route, w.Value())
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
	if w.Err() != nil || written > MaxChoices {
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

// A stream writes the chunks of a stream. It tracks the open parts of the current chunk.
type stream struct {
	route Route
	out   []byte
	head  []byte // beginning of each chunk, up to its choices
	tail  []byte // members of each chunk behind its choices

	line        int  // beginning of the current chunk in out
	index       int  // index of its choice
	inDelta     bool // its delta is open
	first       bool // the next member is the first of its object
	hasContent  bool // it has a text, or tool calls in place of one
	inCalls     bool // its list of tool calls is open
	hasLogprobs bool // it has log probabilities
}

// An envelope is an answer without the insides of its choices.
type envelope struct {
	choices, usage []byte
	long           []field // members for the first chunk only
}

// read reads the members of an answer and sets s.head.
func (s *stream) read(answer []byte, begun string) (a envelope, err error) {
	id, model, created := []byte(`""`), []byte(`""`), []byte("0")
	var short []byte
	w := jsonwalk.Members(answer)
	for w.Next() {
		key, value := w.Key, w.Value()
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
			case jsonwalk.IsNull(value):
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
	if w.Err() != nil || !dated || len(id) > maxName || len(model) > maxName || len(a.usage) > maxSpent ||
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

// streamUsage returns a usage object on one line and without nulls, as streams have it.
func streamUsage(usage []byte) []byte {
	if len(usage) == 0 || usage[0] != '{' {
		return nil
	}
	out := append(make([]byte, 0, len(usage)), '{')
	for w := jsonwalk.Members(usage); w.Next(); {
		key, value := w.Key, w.Value()
		if jsonwalk.IsNull(value) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = appendFlat(append(append(append(out, '"'), key...), `":`...), value)
	}
	return append(out, '}')
}

// appendFlat appends JSON on one line. A line end in valid JSON is white space.
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

// A namedText is a text and its names in a chunk.
type namedText struct {
	names []string
	text  []byte // raw
}

// A unaryChoice is one choice of a unary answer.
type unaryChoice struct {
	index     int
	texts     []namedText // texts in the order of the stream
	calls     []byte
	logprobs  []byte
	finish    string
	deltaRest []field // other members of its message
	rest      []field // other members of the choice
}

// readUnaryChoice reads one choice of a unary answer.
func readUnaryChoice(route Route, raw []byte) (c unaryChoice, err error) {
	w := jsonwalk.Members(raw)
	for w.Next() {
		key, value := w.Key, w.Value()
		switch string(key) {
		case "index":
			n, ok := integer(value)
			if !ok || n < 0 || n >= MaxChoices {
				return c, fmt.Errorf("%w: choice %s", ErrNoAnswer, value[:min(len(value), 20)])
			}
			c.index = int(n)
		case "finish_reason":
			c.finish, _ = jsonwalk.Text(value)
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
			if !jsonwalk.IsNull(value) {
				c.rest = append(c.rest, field{key, value})
			}
		}
	}
	switch {
	case w.Err() != nil, len(c.finish) > maxShort:
		return c, ErrNoAnswer
	case c.finish == "":
		return c, ErrUnfinished
	}
	return c, nil
}

// message reads the members of a message. Its reasoning comes before its content.
func (c *unaryChoice) message(raw []byte) {
	var reasoning, alias, content, refusal []byte
	for w := jsonwalk.Members(raw); w.Next(); {
		key, value := w.Key, w.Value()
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

// addText adds a text unless it is nil.
func (c *unaryChoice) addText(raw []byte, names ...string) {
	if raw != nil {
		c.texts = append(c.texts, namedText{names, raw})
	}
}

// choice writes one choice.
func (s *stream) choice(c *unaryChoice) error {
	s.begin(c.index)
	for _, p := range c.texts {
		s.text(p)
	}
	i := 0
	for w := jsonwalk.Elements(c.calls); c.calls != nil && w.Next(); i++ {
		if err := s.call(i, w.Value()); err != nil {
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
	if len(reason) > maxShort { // no value of the API is long, even when escaped
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

// next ends the chunk, but not the choice, and begins another.
func (s *stream) next() {
	s.end("null")
	s.begin(s.index)
}

// end ends the chunk; finish is JSON. It writes the members behind its choices that fit.
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

// endDelta ends the delta of the choice. A delta without content gets an empty text.
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

// room returns the bytes left in the line of this chunk.
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

// addMember writes a member that cannot be cut, into the delta or beside it. If the chunk
// has no room it writes it into the next one.
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

// text writes a text, in several chunks if it is long.
func (s *stream) text(p namedText) {
	rest := p.text[1 : len(p.text)-1]
	for len(rest) > 0 {
		piece := s.room()/len(p.names) - len(`,"reasoning_content":""`)
		if piece < len(rest) && piece < minPiece {
			s.next()
			continue
		}
		n := jsonwalk.CutLen(rest, piece)
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

// call writes the tool call with index i: first its other members, then its arguments, in
// pieces if they are long.
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
		n := jsonwalk.CutLen(rest, s.room())
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

// toolCall returns the first delta of a message's tool call, up to its arguments, and the
// arguments as a raw string. They are nil if they are no string; then head is complete
// except for its closing brace.
func toolCall(i int, raw []byte) (head, arguments []byte, err error) {
	head = strconv.AppendInt(append(head, `{"index":`...), int64(i), 10)
	var function []byte
	w := jsonwalk.Members(raw)
	for w.Next() {
		key, value := w.Key, w.Value()
		switch string(key) {
		case "index":
		case "function":
			function = value
		default:
			head = appendFlat(append(append(append(head, `,"`...), key...), `":`...), value)
		}
	}
	if w.Err() != nil || function != nil && function[0] != '{' {
		return nil, nil, ErrNoAnswer
	}
	if function == nil {
		return head, nil, nil
	}
	head = append(head, `,"function":{`...)
	for w := jsonwalk.Members(function); w.Next(); {
		key, value := w.Key, w.Value()
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
