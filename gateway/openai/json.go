package openai

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds nesting, so that no body can exhaust the stack.
const (
	maxDepth = 200
	tooDeep  = "nested more than 200 deep"
)

// A walker is a strict JSON reader over bytes (RFC 8259) that returns spans of the
// original text. It validates and splits in one pass, and decodes and copies nothing.
//
// members and elements begin a loop over the members of an object or the elements of an
// array. The loop reads each value, or enters it and loops over it in the same way before
// the outer loop continues:
//
//	for w := members(raw); w.next(); {
//		if string(w.key) == "choices" && w.enter('[') {
//			for w.next() { … w.value() … }
//			continue
//		}
//		v := w.value()
//	}
type walker struct {
	b     []byte
	i     int
	depth int
	open  [8]byte // opening brackets of the loops, by depth
	fresh bool    // whether nothing of the innermost loop has been read yet
	taken bool    // whether the current value has been read or entered
	done  bool    // whether the outermost loop has ended

	// Fault at b[i], and a character that belongs to it, or 0. The error is formatted on
	// demand: most callers only need to know that there is a fault.
	wrong     string
	character byte

	key   []byte // raw key of the current member, without quotes, with escapes
	start int    // offset of the current member or element in b
}

// members walks the object in raw, which must hold nothing else but white space.
func members(raw []byte) (w walker) {
	w.b, w.taken = raw, true
	w.begin('{')
	return w
}

// elements walks the array in raw.
func elements(raw []byte) (w walker) {
	w.b, w.taken = raw, true
	w.begin('[')
	return w
}

// begin enters the object or array that begins with open.
func (w *walker) begin(open byte) {
	w.space()
	if !w.take(open) {
		w.failAt("expected", open)
		return
	}
	w.depth++
	w.open[w.depth-1], w.fresh = open, true
}

// enter begins a loop over the current value if it begins with open.
func (w *walker) enter(open byte) bool {
	if w.wrong != "" || w.depth == len(w.open) || w.i >= len(w.b) || w.b[w.i] != open {
		return false
	}
	w.begin(open)
	w.taken = true
	return true
}

// next moves to the next member or element of the innermost loop. After the end of the
// outermost loop, failure returns an error unless all of the text was valid.
func (w *walker) next() bool {
	if !w.taken {
		w.value()
	}
	if w.wrong != "" || w.done {
		return false
	}
	open := w.open[w.depth-1]
	w.space()
	if w.take(open + 2) { // '{'+2 is '}', '['+2 is ']'
		return w.leave()
	}
	if !w.fresh {
		if !w.take(',') {
			return w.failAt("expected ',' or", open+2)
		}
		w.space()
	}
	w.fresh, w.taken = false, false
	w.start = w.i
	if open == '{' {
		start := w.i + 1
		if !w.str() {
			return false
		}
		w.key = w.b[start : w.i-1]
		w.space()
		if !w.take(':') {
			return w.fail("expected ':'")
		}
		w.space()
	}
	return true
}

// leave ends the innermost loop.
func (w *walker) leave() bool {
	w.depth--
	w.fresh = false
	if w.depth > 0 {
		return false
	}
	if w.space(); w.i < len(w.b) {
		return w.failAt("expected the end and not", w.b[w.i])
	}
	w.done = true
	return false
}

// value reads the current value and returns its span, or nil after a fault.
func (w *walker) value() []byte {
	w.taken = true
	start := w.i
	if w.wrong != "" || !w.skip(w.depth) {
		return nil
	}
	return w.b[start:w.i]
}

// failure returns the fault with its offset; it is nil after a complete walk of a valid
// text.
func (w *walker) failure() error {
	switch {
	case w.wrong == "":
		return nil
	case w.character != 0:
		return fmt.Errorf("%s %q at byte %d", w.wrong, w.character, w.i)
	}
	return fmt.Errorf("%s at byte %d", w.wrong, w.i)
}

// fail sets a fault and returns false.
func (w *walker) fail(wrong string) bool { return w.failAt(wrong, 0) }

// failAt sets a fault about a character, or about the end of the text, and returns false.
func (w *walker) failAt(wrong string, character byte) bool {
	w.wrong, w.character = wrong, character
	if w.i >= len(w.b) {
		w.wrong, w.character = "unexpected end of JSON", 0
	}
	return false
}

// take consumes c if it comes next.
func (w *walker) take(c byte) bool {
	if w.i < len(w.b) && w.b[w.i] == c {
		w.i++
		return true
	}
	return false
}

// space skips white space.
func (w *walker) space() {
	for w.i < len(w.b) {
		switch w.b[w.i] {
		case ' ', '\t', '\n', '\r':
			w.i++
		default:
			return
		}
	}
}

// skip skips one value of any kind.
func (w *walker) skip(depth int) bool {
	if w.i >= len(w.b) {
		return w.fail("")
	}
	switch c := w.b[w.i]; c {
	case '"':
		return w.str()
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
func (w *walker) nest(open byte, depth int) bool {
	closing := open + 2
	w.i++
	w.space()
	if w.take(closing) {
		return true
	}
	for {
		if open == '{' {
			if !w.str() {
				return false
			}
			w.space()
			if !w.take(':') {
				return w.fail("expected ':'")
			}
			w.space()
		}
		if !w.skip(depth) {
			return false
		}
		w.space()
		if w.take(closing) {
			return true
		}
		if !w.take(',') {
			return w.failAt("expected ',' or", closing)
		}
		w.space()
	}
}

// word consumes true, false or null.
func (w *walker) word(want string) bool {
	if len(w.b)-w.i < len(want) || string(w.b[w.i:w.i+len(want)]) != want {
		return w.fail("invalid value")
	}
	w.i += len(want)
	return true
}

// digits consumes one or more digits.
func (w *walker) digits() bool {
	start := w.i
	for w.i < len(w.b) && w.b[w.i]-'0' <= 9 {
		w.i++
	}
	return w.i > start
}

// number consumes a number.
func (w *walker) number() bool {
	w.take('-')
	if !w.take('0') && !w.digits() {
		return w.fail("invalid value")
	}
	if w.take('.') && !w.digits() {
		return w.fail("invalid number")
	}
	if w.take('e') || w.take('E') {
		if !w.take('+') {
			w.take('-')
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

// str consumes a string, eight bytes at a time.
func (w *walker) str() bool {
	if !w.take('"') {
		return w.fail("expected a string")
	}
	for {
		for w.i+8 <= len(w.b) {
			if m := special(binary.LittleEndian.Uint64(w.b[w.i:])); m != 0 {
				w.i += bits.TrailingZeros64(m) / 8
				break
			}
			w.i += 8
		}
		if w.i >= len(w.b) {
			return w.fail("")
		}
		switch c := w.b[w.i]; {
		case c == '"':
			w.i++
			return true
		case c == '\\':
			if !w.escape() {
				return false
			}
		case c < ' ':
			return w.fail("control character in a string")
		default:
			w.i++
		}
	}
}

// escape consumes an escape.
func (w *walker) escape() bool {
	w.i++
	if w.i >= len(w.b) {
		return w.fail("")
	}
	switch w.b[w.i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		w.i++
		return true
	case 'u':
		for range 4 {
			w.i++
			if w.i >= len(w.b) {
				return w.fail("")
			}
			if c := w.b[w.i] | 0x20; w.b[w.i]-'0' > 9 && (c < 'a' || c > 'f') {
				return w.fail("invalid \\u escape")
			}
		}
		w.i++
		return true
	}
	return w.fail("invalid escape")
}

// text decodes a raw JSON string; ok is false for any other value.
func text(raw []byte) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	inner := raw[1 : len(raw)-1]
	if bytes.IndexByte(inner, '\\') >= 0 || !utf8.Valid(inner) {
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	}
	return string(inner), true
}

// keyIs reports whether a member's raw key, which may have escapes, is name. It reads no
// further than the first difference.
func keyIs(raw []byte, name string) bool {
	if len(raw) <= len(name) { // an escape is longer than its character
		return string(raw) == name
	}
	for {
		n := bytes.IndexByte(raw[:min(len(raw), len(name)+1)], '\\')
		if n < 0 || string(raw[:n]) != name[:n] {
			return false
		}
		r, size := unescape(raw[n:])
		var character [utf8.UTFMax]byte
		rest, ok := strings.CutPrefix(name[n:], string(character[:utf8.EncodeRune(character[:], r)]))
		if !ok {
			return false
		}
		if raw, name = raw[n+size:], rest; len(raw) <= len(name) {
			return string(raw) == name
		}
	}
}

// unescape returns the character of the valid escape, or pair of surrogates, that raw
// begins with, and its length in bytes. A surrogate without its other half is U+FFFD.
func unescape(raw []byte) (r rune, size int) {
	if i := strings.IndexByte(`bfnrt`, raw[1]); i >= 0 {
		return rune("\b\f\n\r\t"[i]), 2
	}
	if raw[1] != 'u' {
		return rune(raw[1]), 2
	}
	size = escapeLen(raw)
	r = hex4(raw[2:])
	if utf16.IsSurrogate(r) {
		if size < 12 {
			return utf8.RuneError, size
		}
		r = utf16.DecodeRune(r, hex4(raw[8:]))
	}
	return r, size
}

// hex4 returns the value of the four hexadecimal digits that raw begins with.
func hex4(raw []byte) (r rune) {
	for _, c := range raw[:4] {
		digit := c - '0'
		if digit > 9 {
			digit = c | 0x20 - 'a' + 10
		}
		r = r<<4 | rune(digit)
	}
	return r
}

// quoted returns a raw key with its quotes.
func quoted(raw []byte) []byte { return append(append([]byte{'"'}, raw...), '"') }

// isNull reports whether raw is the JSON null.
func isNull(raw []byte) bool { return string(raw) == "null" }

// find returns the raw value of a member of an object, or nil if there is none or raw is no
// object. Of members of the same name the last one counts, as it does for the backend.
func find(raw []byte, name string) (value []byte) {
	if len(raw) == 0 || isNull(raw) {
		return nil // the usual case, without a walk
	}
	for w := members(raw); w.next(); {
		if keyIs(w.key, name) {
			value = w.value()
		}
	}
	return value
}

// cutLen returns the length of the longest beginning of the inside of a raw string that has
// at most limit bytes and splits no character, escape or pair of surrogates. limit must be
// at least 12.
func cutLen(inner []byte, limit int) int {
	if len(inner) <= limit {
		return len(inner)
	}
	pos := 0
	for {
		next := bytes.IndexByte(inner[pos:limit], '\\')
		if next < 0 {
			pos = limit
			for back := 0; back < utf8.UTFMax-1 && !utf8.RuneStart(inner[pos]); back++ {
				pos--
			}
			return pos
		}
		pos += next
		n := escapeLen(inner[pos:])
		if pos+n > limit {
			return pos
		}
		pos += n
	}
}

// escapeLen returns the length in bytes of the escape, or pair of surrogates, that raw
// begins with.
func escapeLen(raw []byte) int {
	switch {
	case raw[1] != 'u':
		return 2
	case surrogate(raw, 'd', '8', 'b') && len(raw) >= 12 && raw[6] == '\\' && raw[7] == 'u' && surrogate(raw[6:], 'd', 'c', 'f'):
		return 12
	}
	return 6
}

// surrogate reports whether the escape \uXYZZ has first as X and one of low to high as Y.
func surrogate(raw []byte, first, low, high byte) bool {
	lower := func(c byte) byte {
		if c >= 'A' {
			c |= 0x20
		}
		return c
	}
	y := lower(raw[3])
	return lower(raw[2]) == first && y >= low && y <= high
}
