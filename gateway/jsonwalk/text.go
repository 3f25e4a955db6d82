package jsonwalk

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Text decodes a raw JSON string that a Walker has read; ok is false for any other value.
// A byte that is not UTF-8 becomes U+FFFD.
func Text(raw []byte) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	inner := raw[1 : len(raw)-1]
	if bytes.IndexByte(inner, '\\') >= 0 || !utf8.Valid(inner) {
		var decoded string // not s, which would then be allocated in every call
		err := json.Unmarshal(raw, &decoded)
		return decoded, err == nil
	}
	return string(inner), true
}

// KeyIs reports whether a member's raw key, which may have escapes, is name. It reads no
// further than the first difference.
func KeyIs(raw []byte, name string) bool {
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
	r = Hex4(raw[2:])
	if utf16.IsSurrogate(r) {
		if size < 12 {
			return utf8.RuneError, size
		}
		r = utf16.DecodeRune(r, Hex4(raw[8:]))
	}
	return r, size
}

// Quote returns a raw key with its quotes.
func Quote(raw []byte) []byte { return append(append([]byte{'"'}, raw...), '"') }

// IsNull reports whether raw is the JSON null.
func IsNull(raw []byte) bool { return string(raw) == "null" }

// Find returns the raw value of a member of an object, or nil if there is none or raw is no
// object. Of members of the same name the last one counts, as it does for the backend.
func Find(raw []byte, name string) (value []byte) {
	if len(raw) == 0 || IsNull(raw) {
		return nil // the usual case, without a walk
	}
	for w := Members(raw); w.Next(); {
		if KeyIs(w.Key, name) {
			value = w.Value()
		}
	}
	return value
}

// Count returns the number of elements of an array.
func Count(raw []byte) (n int) {
	for w := Elements(raw); w.Next(); {
		n++
	}
	return n
}

// CutLen returns the length of the longest beginning of the inside of a raw string that has
// at most limit bytes and splits no character, escape or pair of surrogates. limit must be
// at least 12.
func CutLen(inner []byte, limit int) int {
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

// IsNothing reports whether value is absent or null.
func IsNothing(value []byte) bool { return len(value) == 0 || IsNull(value) }

// IsSpace reports whether c is white space of JSON.
func IsSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }
