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

// walker is a strict JSON reader over bytes (RFC 8259) that hands out spans of
// the original text. One pass validates and splits; nothing is decoded or copied.
//
// It is used as a loop over the members of one object or the elements of one
// array, which begins with members or elements. A value may be entered instead
// of taken, and is then looped over in the same way before the outer loop goes on:
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
	open  [8]byte // what is being looped over, by depth
	fresh bool    // nothing of it has been read yet
	taken bool    // the current value has been taken or entered
	done  bool    // the outermost loop has ended

	// What is wrong where the walk ended, as text that a character may follow: most of
	// those who meet a fault only need to know that there is one.
	wrong     string
	character byte

	key   []byte // raw key of the current member, without quotes, escapes as written
	start int    // where the current member or element begins in b
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

func (w *walker) begin(open byte) {
	w.space()
	if !w.take(open) {
		w.failAt("expected", open)
		return
	}
	w.depth++
	w.open[w.depth-1], w.fresh = open, true
}

// enter begins a loop over the current value if it opens with open.
func (w *walker) enter(open byte) bool {
	if w.wrong != "" || w.depth == len(w.open) || w.i >= len(w.b) || w.b[w.i] != open {
		return false
	}
	w.begin(open)
	w.taken = true
	return true
}

// next moves to the next member or element of the innermost loop. When the
// outermost loop has ended, failure says whether all of the text was valid.
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

// value takes the current value; nil after a fault.
func (w *walker) value() []byte {
	w.taken = true
	start := w.i
	if w.wrong != "" || !w.skip(w.depth) {
		return nil
	}
	return w.b[start:w.i]
}

// failure is nil after a complete walk of a valid text.
func (w *walker) failure() error {
	switch {
	case w.wrong == "":
		return nil
	case w.character != 0:
		return fmt.Errorf("%s %q at byte %d", w.wrong, w.character, w.i)
	}
	return fmt.Errorf("%s at byte %d", w.wrong, w.i)
}

func (w *walker) fail(wrong string) bool { return w.failAt(wrong, 0) }

// failAt fails where a character was expected, or not.
func (w *walker) failAt(wrong string, character byte) bool {
	w.wrong, w.character = wrong, character
	if w.i >= len(w.b) {
		w.wrong, w.character = "unexpected end of JSON", 0
	}
	return false
}

func (w *walker) take(c byte) bool {
	if w.i < len(w.b) && w.b[w.i] == c {
		w.i++
		return true
	}
	return false
}

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

// skip passes over one value of any kind.
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

func (w *walker) word(want string) bool {
	if len(w.b)-w.i < len(want) || string(w.b[w.i:w.i+len(want)]) != want {
		return w.fail("invalid value")
	}
	w.i += len(want)
	return true
}

func (w *walker) digits() bool {
	start := w.i
	for w.i < len(w.b) && w.b[w.i]-'0' <= 9 {
		w.i++
	}
	return w.i > start
}

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

// special marks, in the high bit of its byte, each byte of v that cannot stand
// for itself inside a JSON string: a quote, a backslash or a control character.
// The lowest mark is exact; higher ones may be false, so only the lowest is used.
func special(v uint64) uint64 {
	quote, slash := v^(ones*'"'), v^(ones*'\\')
	return ((quote-ones)&^quote | (slash-ones)&^slash | (v-ones*' ')&^v) & highs
}

// str passes over a string, eight bytes a step.
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

// keyIs compares a member's raw key, which may be written with escapes, with a name. It
// reads no more of the key than is like the name.
func keyIs(raw []byte, name string) bool {
	if len(raw) <= len(name) { // an escape is longer than what it stands for
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

// unescape returns what the valid escape that raw begins with stands for, and its
// length, or that of a pair of surrogates. One without the other is U+FFFD.
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

// hex4 reads four hexadecimal digits.
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

// quoted puts back the quotes that stand on both sides of a raw key.
func quoted(raw []byte) []byte { return append(append([]byte{'"'}, raw...), '"') }

// isNull reports whether raw is the JSON null.
func isNull(raw []byte) bool { return string(raw) == "null" }

// find returns the raw value of one member of an object, nil where there is
// none or raw is no object. Of members of the same name the last one counts, as
// it does for the server behind.
func find(raw []byte, name string) (value []byte) {
	if len(raw) == 0 || isNull(raw) {
		return nil // what is usually left out: no error need be worded for it
	}
	for w := members(raw); w.next(); {
		if keyIs(w.key, name) {
			value = w.value()
		}
	}
	return value
}

// cutLen is where to cut the inside of a raw string so that the first part is at most
// so many bytes, which must be at least a dozen, and no character, escape or pair
// of surrogates is torn.
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

// escapeLen is the length of the escape, or the pair of surrogates, that raw
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

// surrogate reports whether \uXYZZ has X as its first digit and Y from low to high.
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
