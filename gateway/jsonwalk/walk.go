package jsonwalk

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// maxDepth bounds the nesting of values, so that no body can exhaust the stack.
const (
	maxDepth = 200
	tooDeep  = "nested more than 200 deep"
)

// A Walker is a strict JSON reader over bytes (RFC 8259) that returns spans of the
// original text. It validates and splits in one pass, and decodes and copies nothing.
//
// Members and elements begin a loop over the members of an object or the elements of an
// array. The loop reads each value, or enters it and loops over it in the same way before
// the outer loop continues:
//
//	for w := jsonwalk.Members(raw); w.Next(); {
//		if string(w.Key) == "choices" && w.Enter('[') {
//			for w.Next() { … w.Value() … }
//			continue
//		}
//		v := w.Value()
//	}
type Walker struct {
	raw      []byte
	pos      int
	depth    int
	open     [8]byte // opening brackets of the loops, by depth
	fresh    bool    // whether nothing of the innermost loop has been read yet
	consumed bool    // whether the current value has been read or entered
	done     bool    // whether the outermost loop has ended

	// Fault at raw[pos], and a character that belongs to it, or 0. The error is formatted on
	// demand: most callers only need to know that there is a fault.
	wrong     string
	character byte

	Key   []byte // raw key of the current member, without quotes, with escapes
	Start int    // offset of the current member or element in Raw
}

// Members walks the object in raw, which must hold nothing else but white space.
func Members(raw []byte) (w Walker) {
	w.raw, w.consumed = raw, true
	w.begin('{')
	return w
}

// Elements walks the array in raw.
func Elements(raw []byte) (w Walker) {
	w.raw, w.consumed = raw, true
	w.begin('[')
	return w
}

// InsideAt returns a walker that is inside an object whose member's value begins at pos of
// raw. It can only read strings and enter values.
func InsideAt(raw []byte, pos int) Walker { return Walker{raw: raw, pos: pos, depth: 1} }

// Raw returns the text that is walked.
func (w *Walker) Raw() []byte { return w.raw }

// Pos returns the offset of the next byte in Raw.
func (w *Walker) Pos() int { return w.pos }

// Skip skips n bytes, which the caller has read itself.
func (w *Walker) Skip(n int) { w.pos += n }

// begin enters the object or array that begins with open.
func (w *Walker) begin(open byte) {
	w.space()
	if !w.accept(open) {
		w.failAt("expected", open)
		return
	}
	w.depth++
	w.open[w.depth-1], w.fresh = open, true
}

// Enter begins a loop over the current value if it begins with open.
func (w *Walker) Enter(open byte) bool {
	if w.wrong != "" || w.depth == len(w.open) || w.pos >= len(w.raw) || w.raw[w.pos] != open {
		return false
	}
	w.begin(open)
	w.consumed = true
	return true
}

// Next moves to the next member or element of the innermost loop. After the end of the
// outermost loop, Err returns an error unless all of the text was valid.
func (w *Walker) Next() bool {
	if !w.consumed {
		w.Value()
	}
	if w.wrong != "" || w.done {
		return false
	}
	open := w.open[w.depth-1]
	w.space()
	if w.accept(open + 2) { // '{'+2 is '}', '['+2 is ']'
		return w.end()
	}
	if !w.fresh {
		if !w.accept(',') {
			return w.failAt("expected ',' or", open+2)
		}
		w.space()
	}
	w.fresh, w.consumed = false, false
	w.Start = w.pos
	if open == '{' {
		start := w.pos + 1
		if !w.SkipString() {
			return false
		}
		w.Key = w.raw[start : w.pos-1]
		w.space()
		if !w.accept(':') {
			return w.fail("expected ':'")
		}
		w.space()
	}
	return true
}

// end ends the innermost loop.
func (w *Walker) end() bool {
	w.depth--
	w.fresh = false
	if w.depth > 0 {
		return false
	}
	if w.space(); w.pos < len(w.raw) {
		return w.failAt("expected the end and not", w.raw[w.pos])
	}
	w.done = true
	return false
}

// Value reads the current value and returns its span, or nil after a fault.
func (w *Walker) Value() []byte {
	w.consumed = true
	start := w.pos
	if w.wrong != "" || !w.skip(w.depth) {
		return nil
	}
	return w.raw[start:w.pos]
}

// Err returns the fault with its offset; it is nil after a complete walk of a valid
// text.
func (w *Walker) Err() error {
	switch {
	case w.wrong == "":
		return nil
	case w.character != 0:
		return fmt.Errorf("%s %q at byte %d", w.wrong, w.character, w.pos)
	}
	return fmt.Errorf("%s at byte %d", w.wrong, w.pos)
}

// fail sets a fault and returns false.
func (w *Walker) fail(wrong string) bool { return w.failAt(wrong, 0) }

// failAt sets a fault about a character, or about the end of the text, and returns false.
func (w *Walker) failAt(wrong string, character byte) bool {
	w.wrong, w.character = wrong, character
	if w.pos >= len(w.raw) {
		w.wrong, w.character = "unexpected end of JSON", 0
	}
	return false
}

// accept consumes c if it comes next.
func (w *Walker) accept(c byte) bool {
	if w.pos < len(w.raw) && w.raw[w.pos] == c {
		w.pos++
		return true
	}
	return false
}

// space skips white space.
func (w *Walker) space() {
	for w.pos < len(w.raw) {
		switch w.raw[w.pos] {
		case ' ', '\t', '\n', '\r':
			w.pos++
		default:
			return
		}
	}
}

// skip skips one value of any kind.
func (w *Walker) skip(depth int) bool {
	if w.pos >= len(w.raw) {
		return w.fail("")
	}
	switch c := w.raw[w.pos]; c {
	case '"':
		return w.SkipString()
	case '{', '[':
		if depth >= maxDepth {
			return w.fail(tooDeep)
		}
		return w.nest(c, depth+1)
	case 't':
		return w.word("true")
	case 'f':
		return w.word("false")
	case 'n':
		return w.word("null")
	default:
		return w.number()
	}
}

// nest skips an object or array that begins with open.
func (w *Walker) nest(open byte, depth int) bool {
	closing := open + 2
	w.pos++
	w.space()
	if w.accept(closing) {
		return true
	}
	for {
		if open == '{' {
			if !w.SkipString() {
				return false
			}
			w.space()
			if !w.accept(':') {
				return w.fail("expected ':'")
			}
			w.space()
		}
		if !w.skip(depth) {
			return false
		}
		w.space()
		if w.accept(closing) {
			return true
		}
		if !w.accept(',') {
			return w.failAt("expected ',' or", closing)
		}
		w.space()
	}
}

// word consumes true, false or null.
func (w *Walker) word(want string) bool {
	if len(w.raw)-w.pos < len(want) || string(w.raw[w.pos:w.pos+len(want)]) != want {
		return w.fail("invalid value")
	}
	w.pos += len(want)
	return true
}

// digits consumes one or more digits.
func (w *Walker) digits() bool {
	start := w.pos
	for w.pos < len(w.raw) && w.raw[w.pos]-'0' <= 9 {
		w.pos++
	}
	return w.pos > start
}

// number consumes a number.
func (w *Walker) number() bool {
	w.accept('-')
	if !w.accept('0') && !w.digits() {
		return w.fail("invalid value")
	}
	if w.accept('.') && !w.digits() {
		return w.fail("invalid number")
	}
	if w.accept('e') || w.accept('E') {
		if !w.accept('+') {
			w.accept('-')
		}
		if !w.digits() {
			return w.fail("invalid number")
		}
	}
	return true
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special sets the high bit of each byte of v that has a special meaning inside a JSON
// string: a quote, a backslash or a control character. The lowest set bit is exact; higher
// ones may be false, so only the lowest is used.
func special(v uint64) uint64 {
	quote, slash := v^(ones*'"'), v^(ones*'\\')
	return ((quote-ones)&^quote | (slash-ones)&^slash | (v-ones*' ')&^v) & highs
}

// SkipString consumes a string, eight bytes at a time.
func (w *Walker) SkipString() bool {
	if !w.accept('"') {
		return w.fail("expected a string")
	}
	for {
		for w.pos+8 <= len(w.raw) {
			if m := special(binary.LittleEndian.Uint64(w.raw[w.pos:])); m != 0 {
				w.pos += bits.TrailingZeros64(m) / 8
				break
			}
			w.pos += 8
		}
		if w.pos >= len(w.raw) {
			return w.fail("")
		}
		switch c := w.raw[w.pos]; {
		case c == '"':
			w.pos++
			return true
		case c == '\\':
			if !w.escape() {
				return false
			}
		case c < ' ':
			return w.fail("control character in a string")
		default:
			w.pos++
		}
	}
}

// escape consumes an escape.
func (w *Walker) escape() bool {
	w.pos++
	if w.pos >= len(w.raw) {
		return w.fail("")
	}
	switch w.raw[w.pos] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		w.pos++
		return true
	case 'u':
		for range 4 {
			w.pos++
			if w.pos >= len(w.raw) {
				return w.fail("")
			}
			if c := w.raw[w.pos] | 0x20; w.raw[w.pos]-'0' > 9 && (c < 'a' || c > 'f') {
				return w.fail("invalid \\u escape")
			}
		}
		w.pos++
		return true
	}
	return w.fail("invalid escape")
}
