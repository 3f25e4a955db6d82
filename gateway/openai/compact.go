package openai

import "bytes"

// Bounds in bytes of what Compact leaves alone: to look through every small body would
// cost more than it saves.
const (
	smallBody  = 32 << 10
	looseBytes = 4 << 10
)

// Compact makes the request hold no more bytes than it needs: one buffer with the
// members as they are now, without white space between tokens and without what was
// deleted or replaced. It returns how many bytes that are. A small body and one that wastes
// little are not copied.
func (q *Request) Compact() int {
	if cap(q.body) <= smallBody {
		return cap(q.body)
	}
	size, detached := 2, 0
	for _, f := range q.fields {
		size += len(f.key) + 4 + compactLen(f.value)
		if f.detached { // what it replaces is still held in the body
			detached += len(f.value)
		}
	}
	if cap(q.body)-size <= looseBytes && detached <= looseBytes {
		return cap(q.body)
	}
	out := append(make([]byte, 0, size), '{')
	fields := make([]member, len(q.fields)) // the old ones, and deleted ones behind them, hold the old body
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

// compactLen is the length of a JSON text without white space between tokens. Strings, which
// are most of a long body, are passed over as wholes.
func compactLen(raw []byte) (n int) {
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '"':
			end := stringEnd(raw, i)
			n += end - i
			i = end
		case isSpace(c):
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
		case isSpace(c):
			out = append(out, raw[start:i]...)
			i++
			start = i
		default:
			i++
		}
	}
	return append(out, raw[start:]...)
}

// stringEnd returns where the string that begins at a quotation mark ends in valid JSON.
func stringEnd(raw []byte, begin int) int {
	for pos := begin + 1; ; pos++ {
		next := bytes.IndexByte(raw[pos:], '"')
		if next < 0 {
			return len(raw)
		}
		pos += next
		escapes := pos
		for raw[escapes-1] == '\\' {
			escapes--
		}
		if (pos-escapes)%2 == 0 {
			return pos + 1
		}
	}
}
