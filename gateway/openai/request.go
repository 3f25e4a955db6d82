package openai

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"tidegate/gateway/jsonwalk"
)

// A Route is the kind of generation that a body asks for.
type Route int

// The generations of the OpenAI API.
const (
	Chat        Route = iota // POST /v1/chat/completions
	Completions              // POST /v1/completions
)

// maxMembers bounds the top-level members of a body; vLLM knows about eighty.
const maxMembers = 256

// A Request is the body of a generation request. It is not safe for concurrent use. Its
// bytes alias the body that it was parsed from.
type Request struct {
	Route Route
	// QuietDefault means that the backends switch thinking off for a chat that does not set
	// it (--default-chat-template-kwargs).
	QuietDefault bool

	body      []byte
	fields    []member
	edited    bool
	reasoning string // name of the messages' reasoning; empty if not yet unified
}

// A member is a top-level member of the body. Its name is decoded; key and value are raw.
type member struct {
	name, key, value []byte
	detached         bool // whether the value is no part of the parsed body
}

// A field is a member of an object; key and value are raw.
type field struct {
	key, value []byte
}

// maxFieldName bounds the name of a member, in bytes.
const maxFieldName = 256

// ByteOrderMark is the character that some editors and Windows programs put before a text
// in UTF-8.
const ByteOrderMark = "\uFEFF"

// ParseRequest parses a body: one JSON object in UTF-8, which may follow a byte order mark,
// without duplicate members and without names over 256 bytes. It moves the members of a
// nested extra_body into the body itself, as the SDKs do. The error is meant for the caller.
func ParseRequest(route Route, body []byte) (*Request, *Error) {
	body = bytes.TrimPrefix(body, []byte(ByteOrderMark))
	if bytes.HasPrefix(body, []byte("\xff\xfe")) || bytes.HasPrefix(body, []byte("\xfe\xff")) {
		return nil, invalid("", "the body is UTF-16: send it in UTF-8")
	}
	if !utf8.Valid(body) {
		return nil, invalid("", "the body is not valid UTF-8")
	}
	q := &Request{Route: route, body: body, fields: make([]member, 0, 12)}
	w := jsonwalk.Members(body)
	for w.Next() {
		seen := len(q.fields)
		i, err := q.addMember("", &w)
		if err != nil {
			return nil, err
		}
		if i < seen {
			// Two readers of the same body could each see another model or another max_tokens.
			name := string(q.fields[i].name)
			return nil, invalid(name, "%q stands twice in the body", name)
		}
	}
	if err := w.Err(); err != nil {
		return nil, invalid("", "the body is not a JSON object: %v", err)
	}
	return q, q.mergeExtraBody()
}

// invalid returns the error of an invalid body.
func invalid(param, format string, args ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, args...), Type: "invalid_request_error", Param: param, Code: "invalid_request"}
}

// addMember adds the current member of w to the body, or replaces the one of the same name,
// and returns its index. It decodes a name that is written with escapes. param is the
// member of the body that contains it, for errors.
func (q *Request) addMember(param string, w *jsonwalk.Walker) (i int, err *Error) {
	const longest = maxFieldName * len(`\u0000`)
	name := w.Key
	if len(name) <= longest && bytes.IndexByte(name, '\\') >= 0 {
		decoded, _ := jsonwalk.Text(jsonwalk.Quote(name))
		name = []byte(decoded)
	}
	if len(name) > maxFieldName {
		return 0, invalid(param, "the name of a field, %q…, is longer than %d bytes", name[:32], maxFieldName)
	}
	for i := range q.fields {
		if bytes.Equal(q.fields[i].name, name) {
			q.fields[i].value = w.Value()
			return i, nil
		}
	}
	if len(q.fields) >= maxMembers {
		return 0, invalid(param, "the body has more than %d top-level fields", maxMembers)
	}
	q.fields = append(q.fields, member{name: name, key: w.Key, value: w.Value()})
	return len(q.fields) - 1, nil
}

// mergeExtraBody moves the members of extra_body into the body.
func (q *Request) mergeExtraBody() *Error {
	extra, ok := q.Raw("extra_body")
	if !ok {
		return nil
	}
	q.Delete("extra_body")
	if jsonwalk.IsNull(extra) {
		return nil
	}
	w := jsonwalk.Members(extra)
	for w.Next() {
		if _, err := q.addMember("extra_body", &w); err != nil {
			return err
		}
	}
	if err := w.Err(); err != nil {
		return invalid("extra_body", "extra_body must be an object")
	}
	return nil
}

// index returns the index of a member, or -1.
func (q *Request) index(name string) int {
	for i := range q.fields {
		if string(q.fields[i].name) == name {
			return i
		}
	}
	return -1
}

// Raw returns the JSON text of a member. A member that is null counts as absent.
func (q *Request) Raw(name string) (value []byte, ok bool) {
	if i := q.index(name); i >= 0 && !jsonwalk.IsNull(q.fields[i].value) {
		return q.fields[i].value, true
	}
	return nil, false
}

// Set replaces or adds a member. raw must be valid JSON; the request keeps it.
func (q *Request) Set(name string, raw []byte) {
	q.edited = true
	if i := q.index(name); i >= 0 {
		q.fields[i].value, q.fields[i].detached = raw, true
		return
	}
	key := strconv.AppendQuote(nil, name)
	key = key[1 : len(key)-1]
	q.fields = append(q.fields, member{name: key, key: key, value: raw, detached: true})
}

// Delete removes members; a name may be absent.
func (q *Request) Delete(names ...string) {
	for _, name := range names {
		if i := q.index(name); i >= 0 {
			q.edited = true
			q.fields = append(q.fields[:i], q.fields[i+1:]...)
		}
	}
}

// Text returns a member that must be a string; ok is false if it is absent.
func (q *Request) Text(name string) (s string, ok bool, err *Error) {
	raw, ok := q.Raw(name)
	if !ok {
		return "", false, nil
	}
	if s, ok = jsonwalk.Text(raw); !ok {
		return "", false, invalid(name, "%s must be a string", name)
	}
	return s, true, nil
}

// Bool returns a member that must be true or false, in any spelling that vLLM accepts; it
// is false if absent. It rewrites the member in JSON's spelling.
func (q *Request) Bool(name string) (value, ok bool, err *Error) {
	raw, ok := q.Raw(name)
	if !ok {
		return false, false, nil
	}
	value, ok = lenientBoolean(raw)
	if !ok {
		return false, false, invalid(name, "%s must be true or false", name)
	}
	if word := strconv.FormatBool(value); string(raw) != word {
		q.Set(name, []byte(word))
	}
	return value, true, nil
}

// Int returns a member that must be a whole number of at least low, in any spelling that
// vLLM accepts. A larger one than 2³¹-1 counts as 2³¹-1, so that a product of a few stays
// within 64 bits. It rewrites the member in plain digits.
func (q *Request) Int(name string, low int) (n int, ok bool, err *Error) {
	raw, ok := q.Raw(name)
	if !ok {
		return 0, false, nil
	}
	v, whole := lenientInteger(raw)
	if !whole || v < int64(low) {
		return 0, false, invalid(name, "%s must be a whole number of at least %d", name, low)
	}
	if v > math.MaxInt32 {
		v = math.MaxInt32
		q.Set(name, strconv.AppendInt(nil, v, 10))
	}
	q.setPlain(name, raw, v)
	return int(v), true, nil
}

// setPlain rewrites a member, whose raw value was read as n, in plain digits.
func (q *Request) setPlain(name string, raw []byte, n int64) {
	r := plainNumbers{raw: raw}
	r.add(raw, n)
	if plain, changed := r.text(); changed {
		q.Set(name, plain)
	}
}

// Bytes returns the body with all edits. The values of members that were not edited are
// byte for byte those of the original.
func (q *Request) Bytes() []byte {
	if !q.edited {
		return q.body
	}
	size := 2
	for _, f := range q.fields {
		size += len(f.key) + len(f.value) + 4
	}
	out := append(make([]byte, 0, size), '{')
	for i, f := range q.fields {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), f.key...), '"', ':')
		out = append(out, f.value...)
	}
	return append(out, '}')
}

// A Prompt is one prompt of a completion: a text, or the number of its token ids.
type Prompt struct {
	Text   string
	Tokens int
}

// Prompts reads the four forms of prompt: a string, a list of strings, a list of token ids,
// or a list of such lists. More than limit prompts are an error; the rest is not read.
func Prompts(raw []byte, limit int) ([]Prompt, *Error) {
	if s, ok := jsonwalk.Text(raw); ok {
		return []Prompt{{Text: s}}, nil
	}
	wrong := invalid("prompt", "prompt must be a string, a list of strings, a list of token ids, or a list of such lists")
	if len(raw) == 0 || raw[0] != '[' {
		return nil, wrong
	}
	var prompts []Prompt
	var first kind
	ids := 0
	for w := jsonwalk.Elements(raw); w.Next(); {
		value := w.Value()
		if k := kindOf(value); first == 0 {
			first = k
		} else if k != first {
			return nil, wrong
		}
		if len(prompts) == limit && (first == stringKind || first == arrayKind) {
			return nil, invalid("prompt", "prompt: the request has more than %d prompts, the most that this gateway takes at a time (server.max_prompts): send several requests", limit)
		}
		switch first {
		case stringKind:
			s, _ := jsonwalk.Text(value)
			prompts = append(prompts, Prompt{Text: s})
		case arrayKind:
			n, ok := countIDs(value)
			if !ok {
				return nil, wrong
			}
			prompts = append(prompts, Prompt{Tokens: n})
		default:
			if _, whole := lenientInteger(value); !whole {
				return nil, wrong
			}
			ids++
		}
	}
	switch {
	case ids > 0:
		return []Prompt{{Tokens: ids}}, nil
	case len(prompts) == 0:
		return nil, wrong
	}
	return prompts, nil
}

// A kind is the kind of a JSON value.
type kind byte

// The kinds that matter here.
const (
	stringKind kind = '"'
	arrayKind  kind = '['
	otherKind  kind = ' '
)

func kindOf(value []byte) kind {
	switch k := kind(value[0]); k {
	case stringKind, arrayKind:
		return k
	}
	return otherKind
}

// countIDs returns the number of token ids in an array; ok is false if it is empty or has
// other elements.
func countIDs(raw []byte) (n int, ok bool) {
	for w := jsonwalk.Elements(raw); w.Next(); n++ {
		if _, whole := lenientInteger(w.Value()); !whole {
			return 0, false
		}
	}
	return n, n > 0
}

// Count returns the number of elements of an array.
func Count(raw []byte) int { return jsonwalk.Count(raw) }
