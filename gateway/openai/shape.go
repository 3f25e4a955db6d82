package openai

import "bytes"

// shape is what the chunks of a stream have in common. They repeat each other but
// for the text and the usage's numbers, so a chunk that fits the shape of the last
// one is read and rewritten by comparing, in a third of the time. Everything else
// goes the long way, from which the shape is learnt.
type shape struct {
	known    bool
	index    int  // of the choice
	reasoned bool // the text is reasoning

	// The chunk as it comes: before, the text (a JSON string), after, and where
	// usage is set the usage object and tail.
	before, after, tail []byte
	usage               bool

	// The chunk as the caller sees it. Where again is not nil it and the text once
	// more stand behind the text: the second name of the reasoning.
	shownBefore, again, shownAfter []byte
}

// maxLearnt bounds how often a stream's shape is learnt: one whose chunks all
// differ (log probabilities, choices in turn) is not worth it.
const maxLearnt = 8

// placeholder stands for the text while a shape is learnt; no tokenizer makes it.
const placeholder = "\"\\u0000\\u0001tidegate\\u0001\\u0000\""

// fits appends what the caller sees of data if it has the shape, and counts it.
func (t *Tap) fits(dst, data []byte) ([]byte, bool) {
	s := &t.shape
	if !s.known || !bytes.HasPrefix(data, s.before) {
		return dst, false
	}
	w := walker{b: data, i: len(s.before), depth: 1} // inside of the chunk's object
	if !w.str() {
		return dst, false
	}
	text, rest := data[len(s.before):w.i], data[w.i:]
	if len(text) == len(`""`) { // whether an empty one is shown hangs on what else there is
		return dst, false
	}
	if !bytes.HasPrefix(rest, s.after) {
		return dst, false
	}
	var report stated
	if s.usage {
		w.i += len(s.after)
		if !w.enter('{') {
			return dst, false
		}
		if report = w.usage(); w.failure() != nil {
			return dst, false
		}
		rest = data[w.i:]
	} else {
		rest = rest[len(s.after):]
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
		t.state(p, &report, sane, s.reasoned)
	} else {
		t.estimate(p).hear(text, s.reasoned, t.NewTally)
	}
	t.ended = false
	dst = append(append(append(dst, "data: "...), s.shownBefore...), text...)
	if s.again != nil {
		dst = append(append(dst, s.again...), text...)
	}
	return append(append(dst, s.shownAfter...), '\n', '\n'), true
}

// learn takes the shape of the chunk that the long way has just passed. What the
// caller is to see is learnt by passing the same chunk once more with a
// placeholder for its text.
func (t *Tap) learn(data []byte) {
	t.shape.known = false
	if t.learnt == maxLearnt || t.View.ContinuousUsage || len(t.last.choices) != 1 || t.last.choices[0].finish != "" {
		return
	}
	one := t.last.choices[0]
	if idsIn(one.ids) > 0 {
		return // each chunk has its own
	}
	text := theText(one)
	if text == nil {
		return
	}
	t.learnt++
	from := offset(data, text)
	after := data[from+len(text):]
	s := shape{index: one.index, reasoned: one.reasoned, before: bytes.Clone(data[:from])}
	if s.usage = t.last.usage != nil; s.usage {
		at := offset(after, t.last.usage)
		if at < 0 || at > len(after) { // the usage stands before the text
			return
		}
		s.tail = bytes.Clone(after[at+len(t.last.usage):])
		after = after[:at]
	}
	s.after = bytes.Clone(after)
	probe := append(append(bytes.Clone(data[:from]), placeholder...), data[from+len(text):]...)
	if !t.last.read(&t.edits, &t.View, probe, t.part()) {
		return
	}
	if t.last.usage != nil {
		t.edits.list = append(t.edits.list, t.last.cut)
	}
	parts := bytes.Split(t.edits.append(nil), []byte(placeholder))
	switch len(parts) {
	case 2:
		s.shownBefore, s.shownAfter = parts[0], parts[1]
	case 3:
		s.shownBefore, s.again, s.shownAfter = parts[0], parts[1], parts[2]
	default:
		return
	}
	s.known = true
	t.shape = s
}

// theText is the one string of a choice that its caller reads, or nil.
func theText(c choice) (text []byte) {
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
