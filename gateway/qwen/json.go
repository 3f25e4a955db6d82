package qwen

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of arrays and objects in a value that is dumped again.
// Python's own limit is near 1,000.
const maxDepth = 512

var errJSON = errors.New("invalid JSON")

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// skipSpace returns the index of the first byte from i on that is not white space.
func skipSpace(b []byte, i int) int {
	for i < len(b) && isSpace(b[i]) {
		i++
	}
	return i
}

// skipString returns the end of the string that begins with the quote at i, or -1.
func skipString(b []byte, i int) int {
	for i++; ; i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		i += n
		slashes := 0 // after an odd number of them the quote belongs to the string
		for b[i-1-slashes] == '\\' {
			slashes++ // stops at the opening quote at the latest
		}
		if slashes%2 == 0 {
			return i + 1
		}
	}
}

// skipValue returns the end of the value at i, or -1. It finds borders only and does not
// check that the bytes between them are JSON.
func skipValue(b []byte, i int) int {
	begin, depth := i, 0
	for i < len(b) {
		switch b[i] {
		case '"':
			if i = skipString(b, i); i < 0 {
				return -1
			}
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				if i == begin {
					return -1
				}
				return i // the container of a number, true, false or null ends
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\n', '\r', '\t':
			if depth == 0 {
				if i == begin {
					return -1
				}
				return i
			}
		}
		i++
	}
	if depth > 0 || i == begin {
		return -1
	}
	return i
}

// depth returns the deepest nesting of arrays and objects in b, which need not be JSON.
func depth(b []byte) (deepest int) {
	level := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			if i = skipString(b, i) - 1; i < 0 {
				return deepest
			}
		case '{', '[':
			level++
			deepest = max(deepest, level)
		case '}', ']':
			level--
		}
	}
	return deepest
}

// elements calls f with the index and the bytes of each element of the array b. It stops
// at the first error of f and returns it. If b is no array it returns errJSON.
func elements(b []byte, f func(i int, element []byte) error) error {
	pos := skipSpace(b, 0)
	if pos == len(b) || b[pos] != '[' {
		return errJSON
	}
	pos = skipSpace(b, pos+1)
	if pos < len(b) && b[pos] == ']' {
		return endOf(b, pos+1)
	}
	for n := 0; ; n++ {
		end := skipValue(b, pos)
		if end < 0 {
			return errJSON
		}
		if err := f(n, b[pos:end]); err != nil {
			return err
		}
		pos = skipSpace(b, end)
		if pos == len(b) {
			return errJSON
		}
		if b[pos] == ']' {
			return endOf(b, pos+1)
		}
		if b[pos] != ',' {
			return errJSON
		}
		pos = skipSpace(b, pos+1)
	}
}

// members calls f with the unescaped key and the bytes of the value of each member of the
// object b, in order. It stops at the first error of f and returns it. If b is no object
// it returns errJSON.
func members(b []byte, f func(key, value []byte) error) error {
	pos := skipSpace(b, 0)
	if pos == len(b) || b[pos] != '{' {
		return errJSON
	}
	pos = skipSpace(b, pos+1)
	if pos < len(b) && b[pos] == '}' {
		return endOf(b, pos+1)
	}
	for {
		if pos == len(b) || b[pos] != '"' {
			return errJSON
		}
		end := skipString(b, pos)
		if end < 0 {
			return errJSON
		}
		key := b[pos+1 : end-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			key = appendUnquoted(nil, key)
		}
		pos = skipSpace(b, end)
		if pos == len(b) || b[pos] != ':' {
			return errJSON
		}
		pos = skipSpace(b, pos+1)
		if end = skipValue(b, pos); end < 0 {
			return errJSON
		}
		if err := f(key, b[pos:end]); err != nil {
			return err
		}
		pos = skipSpace(b, end)
		if pos == len(b) {
			return errJSON
		}
		if b[pos] == '}' {
			return endOf(b, pos+1)
		}
		if b[pos] != ',' {
			return errJSON
		}
		pos = skipSpace(b, pos+1)
	}
}

// endOf returns errJSON if b holds anything but white space from i on.
func endOf(b []byte, i int) error {
	if skipSpace(b, i) != len(b) {
		return errJSON
	}
	return nil
}

func isNull(value []byte) bool { return string(value) == "null" }

// isNothing reports whether value is absent or null.
func isNothing(value []byte) bool { return len(value) == 0 || isNull(value) }

// str decodes a JSON string; ok is false if value is another kind of JSON value.
func str(value []byte) (s string, ok bool) {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return "", false
	}
	inner := value[1 : len(value)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), true
	}
	return string(appendUnquoted(make([]byte, 0, len(inner)), inner)), true
}

// appendUnquoted appends the decoded inside of a JSON string. A surrogate without its
// other half becomes U+FFFD, and an escape that JSON does not know is copied.
func appendUnquoted(dst, s []byte) []byte {
	for {
		n := bytes.IndexByte(s, '\\')
		if n < 0 || n+1 == len(s) {
			return append(dst, s...)
		}
		dst = append(dst, s[:n]...)
		c := s[n+1]
		escape := s[n : n+2]
		s = s[n+2:]
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(s)
			if r < 0 {
				dst = append(dst, escape...)
				continue
			}
			s = s[4:]
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(s) >= 6 && s[0] == '\\' && s[1] == 'u' {
					low = hex4(s[2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					s = s[6:]
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, escape...)
		}
	}
}

// hex4 returns the value of the four hexadecimal digits that s begins with, or -1.
func hex4(s []byte) rune {
	if len(s) < 4 {
		return -1
	}
	r := rune(0)
	for _, c := range s[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// appendPythonString appends a JSON string as json.dumps(s, ensure_ascii=False) writes it.
func appendPythonString(dst []byte, s []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for len(s) > 0 {
		n := 0
		for n < len(s) && s[n] >= ' ' && s[n] != '"' && s[n] != '\\' {
			n++
		}
		dst = append(dst, s[:n]...)
		if n == len(s) {
			break
		}
		switch c := s[n]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		case '\f':
			dst = append(dst, `\f`...)
		case '\b':
			dst = append(dst, `\b`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		s = s[n+1:]
	}
	return append(dst, '"')
}

// appendPythonFloat appends f as Python's repr writes it.
func appendPythonFloat(dst []byte, f float64) []byte {
	const plainFrom, plainTo = 1e-4, 1e16 // outside this range repr uses an exponent
	if a := max(f, -f); a != 0 && (a < plainFrom || a >= plainTo) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	begin := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if bytes.IndexByte(dst[begin:], '.') < 0 {
		dst = append(dst, ".0"...)
	}
	return dst
}
