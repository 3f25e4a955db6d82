package qwen

import (
	"bytes"
	"strconv"

	"tidegate/gateway/jsonwalk"
)

// maxDepth bounds the nesting of arrays and objects in a value that is dumped again.
// Python's own limit is near 1,000.
const maxDepth = 512

// str decodes a JSON string; ok is false if value is another kind of JSON value.
func str(value []byte) (s string, ok bool) {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return "", false
	}
	inner := value[1 : len(value)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), true
	}
	return string(jsonwalk.AppendUnquoted(make([]byte, 0, len(inner)), inner)), true
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
