package jsonwalk

import (
	"bytes"
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

// The functions in this file find borders only: where a value begins and ends. They search
// strings for the closing quote with vector instructions, in a fifteenth of the Walker's time
// for a string of 32 KiB, and do not check what lies between the borders.

// ErrNotJSON is the error of a text whose borders cannot be found.
var ErrNotJSON = errors.New("invalid JSON")

// SkipSpace returns the index of the first byte from i on that is not white space.
func SkipSpace(b []byte, i int) int {
	for i < len(b) && IsSpace(b[i]) {
		i++
	}
	return i
}

// SkipString returns the end of the string that begins with the quote at i, or -1.
func SkipString(b []byte, i int) int {
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

// SkipValue returns the end of the value at i, or -1. It finds borders only and does not
// check that the bytes between them are JSON.
func SkipValue(b []byte, i int) int {
	begin, depth := i, 0
	for i < len(b) {
		switch b[i] {
		case '"':
			if i = SkipString(b, i); i < 0 {
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

// Depth returns the deepest nesting of arrays and objects in b, which need not be JSON.
func Depth(b []byte) (deepest int) {
	level := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			if i = SkipString(b, i) - 1; i < 0 {
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

// EachElement calls f with the index and the bytes of each element of the array b. It stops
// at the first error of f and returns it. If b is no array it returns ErrNotJSON.
func EachElement(b []byte, f func(i int, element []byte) error) error {
	pos := SkipSpace(b, 0)
	if pos == len(b) || b[pos] != '[' {
		return ErrNotJSON
	}
	pos = SkipSpace(b, pos+1)
	if pos < len(b) && b[pos] == ']' {
		return endOf(b, pos+1)
	}
	for n := 0; ; n++ {
		end := SkipValue(b, pos)
		if end < 0 {
			return ErrNotJSON
		}
		if err := f(n, b[pos:end]); err != nil {
			return err
		}
		pos = SkipSpace(b, end)
		if pos == len(b) {
			return ErrNotJSON
		}
		if b[pos] == ']' {
			return endOf(b, pos+1)
		}
		if b[pos] != ',' {
			return ErrNotJSON
		}
		pos = SkipSpace(b, pos+1)
	}
}

// EachMember calls f with the unescaped key and the bytes of the value of each member of the
// object b, in order. It stops at the first error of f and returns it. If b is no object
// it returns ErrNotJSON.
func EachMember(b []byte, f func(key, value []byte) error) error {
	pos := SkipSpace(b, 0)
	if pos == len(b) || b[pos] != '{' {
		return ErrNotJSON
	}
	pos = SkipSpace(b, pos+1)
	if pos < len(b) && b[pos] == '}' {
		return endOf(b, pos+1)
	}
	for {
		if pos == len(b) || b[pos] != '"' {
			return ErrNotJSON
		}
		end := SkipString(b, pos)
		if end < 0 {
			return ErrNotJSON
		}
		key := b[pos+1 : end-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			key = AppendUnquoted(nil, key)
		}
		pos = SkipSpace(b, end)
		if pos == len(b) || b[pos] != ':' {
			return ErrNotJSON
		}
		pos = SkipSpace(b, pos+1)
		if end = SkipValue(b, pos); end < 0 {
			return ErrNotJSON
		}
		if err := f(key, b[pos:end]); err != nil {
			return err
		}
		pos = SkipSpace(b, end)
		if pos == len(b) {
			return ErrNotJSON
		}
		if b[pos] == '}' {
			return endOf(b, pos+1)
		}
		if b[pos] != ',' {
			return ErrNotJSON
		}
		pos = SkipSpace(b, pos+1)
	}
}

// endOf returns ErrNotJSON if b holds anything but white space from i on.
func endOf(b []byte, i int) error {
	if SkipSpace(b, i) != len(b) {
		return ErrNotJSON
	}
	return nil
}

// AppendUnquoted appends the decoded inside of a JSON string. A surrogate without its
// other half becomes U+FFFD, and an escape that JSON does not know is copied.
func AppendUnquoted(dst, s []byte) []byte {
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
			r := Hex4(s)
			if r < 0 {
				dst = append(dst, escape...)
				continue
			}
			s = s[4:]
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(s) >= 6 && s[0] == '\\' && s[1] == 'u' {
					low = Hex4(s[2:])
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

// Hex4 returns the value of the four hexadecimal digits that s begins with, or -1.
func Hex4(s []byte) rune {
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
