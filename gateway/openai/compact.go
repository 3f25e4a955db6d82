package openai

import (
	"bytes"

	"tidegate/gateway/jsonwalk"
)

// Bounds in bytes below which Compact does not copy: to read every small body would cost
// more than it saves.
const (
	smallBody  = 32 << 10 // bytes of a body
	looseBytes = 4 << 10  // wasted bytes
)

// Compact makes the request hold no more bytes than it needs. It copies the current
// members into one buffer, without white space between tokens and without deleted or
// replaced values. It returns the size of the buffer in bytes. It does not copy a small
// body or one that wastes little.
func (q *Request) Compact() int {
	if cap(q.body) <= smallBody {
		return cap(q.body)
	}
	size, detached := 2, 0
	for _, f := range q.fields {
		size += len(f.key) + 4 + compactLen(f.value)
		if f.detached { // the body still holds the value that it replaces
			detached += len(f.value)
		}
	}
	if cap(q.body)-size <= looseBytes && detached <= looseBytes {
		return cap(q.body)
	}
	out := append(make([]byte, 0, size), '{')
	fields := make([]member, len(q.fields)) // the old array, with deleted members behind it, holds the old body
	for i, f := range q.fields {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, '"')
		key := len(out)
		out = append(out, f.key...)
		value := len(out) + 2
		out = appendCompact(append(out, '"', ':'), f.value)
		fields[i] = member{key: out[key : value-2 : value-2], value: out[value:len(out):len(out)]}
		if fields[i].name = fields[i].key; !bytes.Equal(f.name, f.key) {
			fields[i].name = bytes.Clone(f.name)
		}
	}
	q.body, q.fields, q.edited = append(out, '}'), fields, false
	return cap(q.body)
}

// compactLen returns the length of a JSON text without white space between tokens. It skips
// strings, which are most of a long body, without reading each byte.
func compactLen(raw []byte) (n int) {
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '"':
			end := stringEnd(raw, i)
			n += end - i
			i = end
		case jsonwalk.IsSpace(c):
			i++
		default:
			i++
			n++
		}
	}
	return n
}

// appendCompact appends a JSON text without white space between tokens.
func appendCompact(out, raw []byte) []byte {
	start := 0
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '"':
			i = stringEnd(raw, i)
		case jsonwalk.IsSpace(c):
			out = append(out, raw[start:i]...)
			i++
			start = i
		default:
			i++
		}
	}
	return append(out, raw[start:]...)
}

// stringEnd returns the end of the string that begins with the quotation mark at begin. raw
// must be valid JSON.
func stringEnd(raw []byte, begin int) int {
	if end := jsonwalk.SkipString(raw, begin); end >= 0 {
		return end
	}
	return len(raw)
}
