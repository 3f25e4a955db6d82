package qwen

import (
	"bytes"
	"math"
	"strconv"

	"tidegate/gateway/jsonwalk"
)

// A dumper reads one JSON value and writes it as Python's json.loads and
// json.dumps(ensure_ascii=False) would: ", " and ": " between tokens, floats as repr, and
// integers of any size unchanged. A repeated key keeps its first place and its last value.
// The dumper is as strict as vLLM's parser, which does not touch what is not JSON. Like
// Python it reads NaN and Infinity as JSON.
type dumper struct {
	src   []byte
	pos   int
	out   []byte
	depth int
	spare []byte // scratch for strings
	moved []byte // scratch for rewrite, shared by all depths
}

// A span is one member of the object being written, as offsets into dumper.out.
type span struct{ key, value, end int }

// linearKeys is the number of keys of an object up to which a repeated key is found by
// comparing them all. Beyond it a map is used.
const linearKeys = 16

// appendPython appends the only value of src, which may have white space around it. If src
// is not JSON or is nested deeper than maxDepth, ok is false and dst is returned unchanged.
func appendPython(dst, src []byte) (out []byte, ok bool) {
	d := dumper{src: src, out: dst}
	d.space()
	if !d.value() {
		return dst, false
	}
	d.space()
	if d.pos != len(src) {
		return dst, false
	}
	return d.out, true
}

func (d *dumper) space() { d.pos = jsonwalk.SkipSpace(d.src, d.pos) }

// next reports whether c comes next, and steps over it if so.
func (d *dumper) next(c byte) bool {
	if d.pos < len(d.src) && d.src[d.pos] == c {
		d.pos++
		return true
	}
	return false
}

func (d *dumper) value() bool {
	if d.pos == len(d.src) {
		return false
	}
	switch c := d.src[d.pos]; {
	case c == '"':
		return d.string()
	case c == '{' || c == '[':
		if d.depth == maxDepth {
			return false
		}
		d.depth++
		d.pos++
		ok := false
		if c == '{' {
			ok = d.object()
		} else {
			ok = d.array()
		}
		d.depth--
		return ok
	case '0' <= c && c <= '9' || c == '-':
		return d.number()
	}
	return d.word("true") || d.word("false") || d.word("null") || d.word("NaN") || d.word("Infinity")
}

func (d *dumper) word(w string) bool {
	if !bytes.HasPrefix(d.src[d.pos:], []byte(w)) {
		return false
	}
	d.pos += len(w)
	d.out = append(d.out, w...)
	return true
}

func (d *dumper) array() bool {
	d.out = append(d.out, '[')
	d.space()
	for first := true; !d.next(']'); first = false {
		if !first {
			if !d.next(',') {
				return false
			}
			d.out = append(d.out, ", "...)
			d.space()
		}
		if !d.value() {
			return false
		}
		d.space()
	}
	d.out = append(d.out, ']')
	return true
}

func (d *dumper) object() bool {
	d.out = append(d.out, '{')
	begin := len(d.out)
	var array [linearKeys]span
	seen := array[:0]
	var index map[string]int // once there are many keys
	hasRepeats := false
	d.space()
	for first := true; !d.next('}'); first = false {
		if !first {
			if !d.next(',') {
				return false
			}
			d.out = append(d.out, ", "...)
			d.space()
		}
		s := span{key: len(d.out)}
		if d.pos == len(d.src) || d.src[d.pos] != '"' || !d.string() {
			return false
		}
		key := d.out[s.key:len(d.out)]
		place, repeats := d.find(seen, index, key)
		d.space()
		if !d.next(':') {
			return false
		}
		d.space()
		d.out = append(d.out, ": "...)
		s.value = len(d.out)
		if !d.value() {
			return false
		}
		s.end = len(d.out)
		d.space()
		if repeats {
			hasRepeats = true
			seen[place].value, seen[place].end = s.value, s.end
			continue
		}
		seen = append(seen, s)
		if len(seen) == linearKeys {
			index = make(map[string]int)
		}
		if index != nil {
			d.indexFrom(seen, index)
		}
	}
	if hasRepeats {
		d.rewrite(begin, seen)
	}
	d.out = append(d.out, '}')
	return true
}

// find returns the index in seen of the member with the key, which is quoted as written.
func (d *dumper) find(seen []span, index map[string]int, key []byte) (int, bool) {
	if index != nil {
		place, ok := index[string(key)]
		return place, ok
	}
	for i, s := range seen {
		if bytes.HasPrefix(d.out[s.key:], key) { // key includes the closing quote
			return i, true
		}
	}
	return 0, false
}

// indexFrom adds to index the keys of seen that are not yet in it.
func (d *dumper) indexFrom(seen []span, index map[string]int) {
	for i := len(index); i < len(seen); i++ {
		key := d.out[seen[i].key:]
		index[string(key[:jsonwalk.SkipString(key, 0)])] = i
	}
}

// rewrite replaces the members written since begin with those of seen.
func (d *dumper) rewrite(begin int, seen []span) {
	d.moved = append(d.moved[:0], d.out[begin:]...)
	written := d.moved
	d.out = d.out[:begin]
	for i, s := range seen {
		if i > 0 {
			d.out = append(d.out, ", "...)
		}
		key := written[s.key-begin:]
		d.out = append(d.out, key[:jsonwalk.SkipString(key, 0)]...)
		d.out = append(d.out, ": "...)
		d.out = append(d.out, written[s.value-begin:s.end-begin]...)
	}
}

func (d *dumper) string() bool {
	end := jsonwalk.SkipString(d.src, d.pos)
	if end < 0 {
		return false
	}
	s := d.src[d.pos+1 : end-1]
	d.pos = end
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' {
			return false
		}
		if s[i] != '\\' {
			continue
		}
		i++
		if s[i] == 'u' && jsonwalk.Hex4(s[i+1:]) < 0 || bytes.IndexByte([]byte(`"\/bfnrtu`), s[i]) < 0 {
			return false
		}
	}
	if bytes.IndexByte(s, '\\') >= 0 {
		d.spare = jsonwalk.AppendUnquoted(d.spare[:0], s)
		s = d.spare
	}
	d.out = appendPythonString(d.out, s)
	return true
}

func (d *dumper) digits() bool {
	begin := d.pos
	for d.pos < len(d.src) && '0' <= d.src[d.pos] && d.src[d.pos] <= '9' {
		d.pos++
	}
	return d.pos > begin
}

func (d *dumper) number() bool {
	begin := d.pos
	if d.next('-') && d.word("Infinity") {
		d.out = append(d.out[:len(d.out)-len("Infinity")], "-Infinity"...)
		return true
	}
	if !d.next('0') && !d.digits() {
		return false
	}
	float := false
	if d.next('.') {
		float = true
		if !d.digits() {
			return false
		}
	}
	if d.next('e') || d.next('E') {
		float = true
		_ = d.next('+') || d.next('-')
		if !d.digits() {
			return false
		}
	}
	text := d.src[begin:d.pos]
	if !float {
		if string(text) == "-0" {
			text = text[1:] // Python has no negative zero among its integers
		}
		d.out = append(d.out, text...)
		return true
	}
	// Out of range ParseFloat returns an error and the infinity that Python reads.
	f, _ := strconv.ParseFloat(string(text), 64)
	switch {
	case math.IsInf(f, 1):
		d.out = append(d.out, "Infinity"...)
	case math.IsInf(f, -1):
		d.out = append(d.out, "-Infinity"...)
	default:
		d.out = appendPythonFloat(d.out, f)
	}
	return true
}
