package openai

import (
	"bytes"

	"tidegate/gateway/jsonwalk"
)

// A shape is the common part of the chunks of a stream. They differ only in the text and in
// the numbers of the usage. So a chunk that matches the shape of the last one is read and
// rewritten by comparison, in a third of the time. Any other chunk is parsed, and its shape
// is learned.
type shape struct {
	known     bool
	index     int  // index of the choice
	reasoning bool // whether the text is reasoning

	// The chunk as the backend sends it: prefix, text (a JSON string) and suffix, and, if
	// usage is set, the usage object and tail.
	prefix, suffix, tail []byte
	usage                bool

	// The chunk as the caller sees it. If shownMiddle is not nil, it and the text again
	// follow the text: the reasoning under its second name.
	shownPrefix, shownMiddle, shownSuffix []byte
}

// maxShapes bounds the number of shapes that a stream learns. If all of its chunks differ
// (log probabilities, choices in turn), learning does not pay.
const maxShapes = 8

// placeholder replaces the text while a shape is learned; no tokenizer makes it.
const placeholder = "\"\\u0000\\u0001tidegate\\u0001\\u0000\""

// matchShape appends the caller's version of data and counts its tokens, if data has the
// known shape.
func (t *Tap) matchShape(dst, data []byte) ([]byte, bool) {
	s := &t.shape
	if !s.known || !bytes.HasPrefix(data, s.prefix) {
		return dst, false
	}
	w := jsonwalk.InsideAt(data, len(s.prefix)) // inside the chunk's object
	if !w.SkipString() {
		return dst, false
	}
	text, rest := data[len(s.prefix):w.Pos()], data[w.Pos():]
	if len(text) == len(`""`) { // whether an empty one is shown depends on the rest
		return dst, false
	}
	if !bytes.HasPrefix(rest, s.suffix) {
		return dst, false
	}
	var report stated
	if s.usage {
		w.Skip(len(s.suffix))
		if !w.Enter('{') {
			return dst, false
		}
		if report = readStated(&w); w.Err() != nil {
			return dst, false
		}
		rest = data[w.Pos():]
	} else {
		rest = rest[len(s.suffix):]
	}
	if !bytes.Equal(rest, s.tail) || s.index >= len(t.choices) {
		return dst, false
	}
	p := &t.choices[s.index]
	if s.usage {
		sane, faults := t.check(p, &report)
		if faults != 0 {
			return dst, false
		}
		t.record(p, &report, sane, s.reasoning)
	} else {
		t.estimate(p).addDelta(text, s.reasoning, t.NewTally)
	}
	t.ended = false
	dst = append(append(append(dst, "data: "...), s.shownPrefix...), text...)
	if s.shownMiddle != nil {
		dst = append(append(dst, s.shownMiddle...), text...)
	}
	return append(append(dst, s.shownSuffix...), '\n', '\n'), true
}

// learnShape sets the shape to that of the chunk that was just parsed. To learn the caller's
// version it parses the same chunk again with a placeholder for its text.
func (t *Tap) learnShape(data []byte) {
	t.shape.known = false
	if t.shapes == maxShapes || t.View.ContinuousUsage || len(t.last.choices) != 1 || t.last.choices[0].finish != "" {
		return
	}
	one := t.last.choices[0]
	if idCount(one.ids) > 0 {
		return // each chunk has other ids
	}
	text := soleText(one)
	if text == nil {
		return
	}
	t.shapes++
	start := offset(data, text)
	suffix := data[start+len(text):]
	s := shape{index: one.index, reasoning: one.reasoned, prefix: bytes.Clone(data[:start])}
	if s.usage = t.last.usage != nil; s.usage {
		pos := offset(suffix, t.last.usage)
		if pos < 0 || pos > len(suffix) { // the usage comes before the text
			return
		}
		s.tail = bytes.Clone(suffix[pos+len(t.last.usage):])
		suffix = suffix[:pos]
	}
	s.suffix = bytes.Clone(suffix)
	probe := append(append(bytes.Clone(data[:start]), placeholder...), data[start+len(text):]...)
	if !t.last.read(&t.edits, &t.View, probe, t.contentName()) {
		return
	}
	if t.last.usage != nil {
		t.edits.list = append(t.edits.list, t.last.cut)
	}
	parts := bytes.Split(t.edits.append(nil), []byte(placeholder))
	switch len(parts) {
	case 2:
		s.shownPrefix, s.shownSuffix = parts[0], parts[1]
	case 3:
		s.shownPrefix, s.shownMiddle, s.shownSuffix = parts[0], parts[1], parts[2]
	default:
		return
	}
	s.known = true
	t.shape = s
}

// soleText returns the only text of a choice as a raw string, or nil if it has none, more
// than one, or anything else.
func soleText(c choice) (text []byte) {
	if c.text != nil {
		return c.text
	}
	for w := jsonwalk.Members(c.part); w.Next(); {
		key := string(w.Key)
		raw := w.Value()
		switch {
		case key == "content" || key == "reasoning" || key == "reasoning_content":
			if jsonwalk.IsNull(raw) {
				continue
			}
			if text != nil || raw[0] != '"' {
				return nil
			}
			text = raw
		case !jsonwalk.IsNull(raw) && string(raw) != "[]":
			return nil
		}
	}
	return text
}
