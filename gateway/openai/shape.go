package openai

import "bytes"

// shape is what the chunks of a stream have in common. They repeat each other but
// for the text and the usage's numbers, so a chunk that fits the shape of the last
// one is read and rewritten by comparing, in a third of the time. Everything else
// goes the long way, from which the shape is learnt.
type shape struct {
	known     bool
	index     int  // of the choice
	reasoning bool // the text is reasoning

	// The chunk as it comes: before, the text (a JSON string), after, and where
	// usage is set the usage object and tail.
	prefix, suffix, tail []byte
	usage                bool

	// The chunk as the caller sees it. Where again is not nil it and the text once
	// more stand behind the text: the second name of the reasoning.
	shownPrefix, shownMiddle, shownSuffix []byte
}

// maxShapes bounds how often a stream's shape is learnt: one whose chunks all
// differ (log probabilities, choices in turn) is not worth it.
const maxShapes = 8

// placeholder stands for the text while a shape is learnt; no tokenizer makes it.
const placeholder = "\"\\u0000\\u0001tidegate\\u0001\\u0000\""

// matchShape appends what the caller sees of data if it has the shape, and counts it.
func (t *Tap) matchShape(dst, data []byte) ([]byte, bool) {
	s := &t.shape
	if !s.known || !bytes.HasPrefix(data, s.prefix) {
		return dst, false
	}
	w := walker{b: data, i: len(s.prefix), depth: 1} // inside of the chunk's object
	if !w.str() {
		return dst, false
	}
	text, rest := data[len(s.prefix):w.i], data[w.i:]
	if len(text) == len(`""`) { // whether an empty one is shown hangs on what else there is
		return dst, false
	}
	if !bytes.HasPrefix(rest, s.suffix) {
		return dst, false
	}
	var report stated
	if s.usage {
		w.i += len(s.suffix)
		if !w.enter('{') {
			return dst, false
		}
		if report = w.usage(); w.failure() != nil {
			return dst, false
		}
		rest = data[w.i:]
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

// learnShape takes the shape of the chunk that the long way has just passed. What the
// caller is to see is learnt by passing the same chunk once more with a
// placeholder for its text.
func (t *Tap) learnShape(data []byte) {
	t.shape.known = false
	if t.shapes == maxShapes || t.View.ContinuousUsage || len(t.last.choices) != 1 || t.last.choices[0].finish != "" {
		return
	}
	one := t.last.choices[0]
	if idCount(one.ids) > 0 {
		return // each chunk has its own
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
		if pos < 0 || pos > len(suffix) { // the usage stands before the text
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

// soleText is the one string of a choice that its caller reads, or nil.
func soleText(c choice) (text []byte) {
	if c.text != nil {
		return c.text
	}
	for w := members(c.part); w.next(); {
		key := string(w.key)
		raw := w.value()
		switch {
		case key == "content" || key == "reasoning" || key == "reasoning_content":
			if isNull(raw) {
				continue
			}
			if text != nil || raw[0] != '"' {
				return nil
			}
			text = raw
		case !isNull(raw) && string(raw) != "[]":
			return nil
		}
	}
	return text
}
