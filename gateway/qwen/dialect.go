package qwen

import (
	"errors"
	"fmt"

	"tidegate/gateway/jsonwalk"
)

// A Dialect is a range of vLLM releases that change messages and tools in the same way
// before the chat template renders them. The same request can have another number of
// prompt tokens in another range. The zero value is the template alone, with tools as they
// were sent. The differences were read in the sources of the releases 0.12 to 0.32.
type Dialect uint8

const (
	// Template is no release: tools stand in the prompt as they were sent.
	Template Dialect = iota
	// V12 dumps a tool with null for each missing key, and keeps its unknown keys.
	V12
	// V21 knows defer_loading as a key of a tool and of its function.
	V21
	// V23 reads a call's arguments of "null" as none.
	V23
	// V24 knows strict, and leaves it out where it is null.
	V24
	// V27 drops the unknown keys of a tool.
	V27
	// V29 reads a call's arguments that are no JSON object as an empty one. Earlier
	// releases refuse those that are not JSON.
	V29
	// V32 drops the first line of a system text that begins with billingHeader.
	V32

	// Newest is the dialect of unknown releases.
	Newest = V32
)

// DialectOf returns the dialect of vLLM 0.minor; a negative minor means an unknown release.
func DialectOf(minor int) Dialect {
	if minor < 0 {
		return Newest
	}
	found := V12
	for _, d := range [...]struct {
		minor   int
		dialect Dialect
	}{{21, V21}, {23, V23}, {24, V24}, {27, V27}, {29, V29}, {32, V32}} {
		if minor >= d.minor {
			found = d.dialect
		}
	}
	return found
}

// billingHeader begins a line that Claude Code puts into system texts. The line differs in
// each request, so it would spoil the prefix cache.
const billingHeader = "x-anthropic-billing-header"

// appendTool renders a tool as the dialect dumps it. A tool begins with type and function.
// A function begins with name, description and parameters; a missing one of the last two
// is null. The other keys that the release knows follow, and, if it keeps them, the
// unknown ones.
func (d Dialect) appendTool(dst, raw []byte) ([]byte, error) {
	if d == Template {
		return appendValue(dst, raw)
	}
	rest, err := uniqueMembers(raw)
	if err != nil {
		return nil, errors.New("must be an object")
	}
	rest, kind := cutMember(rest, "type")
	if kind == nil {
		kind = []byte(`"function"`)
	}
	if name, ok := str(kind); !ok || name != "function" {
		return nil, errors.New(`type must be "function"`)
	}
	rest, function := cutMember(rest, "function")
	inner, err := uniqueMembers(function)
	if err != nil {
		return nil, errors.New("function must be an object")
	}
	known := []member{{[]byte("type"), kind}, {[]byte("function"), nil}}
	rest, known, err = d.moveFlag(rest, known, "defer_loading", V21)
	if err != nil {
		return nil, err
	}
	var deferred []byte // defer_loading of the tool, which its function inherits
	if len(known) > 2 {
		deferred = known[2].value
	}
	if known[1].value, err = d.appendFunction(nil, inner, deferred); err != nil {
		return nil, err
	}
	return d.appendMembers(dst, known, rest)
}

// appendFunction renders a function whose members are rest. deferred is the value of
// defer_loading that it inherits from its tool, or nil.
func (d Dialect) appendFunction(dst []byte, rest []member, deferred []byte) ([]byte, error) {
	var known []member
	for _, field := range [...]struct {
		key, kind string
		first     byte // first byte of a value of that kind
	}{{"name", "a string", '"'}, {"description", "a string or null", '"'}, {"parameters", "an object or null", '{'}} {
		var value []byte
		rest, value = cutMember(rest, field.key)
		missing := jsonwalk.IsNothing(value)
		if missing && field.key == "name" || !missing && value[0] != field.first {
			return nil, fmt.Errorf("function.%s must be %s", field.key, field.kind)
		}
		known = append(known, member{[]byte(field.key), value})
	}
	rest, known, err := d.moveFlag(rest, known, "strict", V24)
	if err != nil {
		return nil, fmt.Errorf("function.%w", err)
	}
	count := len(known)
	if rest, known, err = d.moveFlag(rest, known, "defer_loading", V21); err != nil {
		return nil, fmt.Errorf("function.%w", err)
	}
	if len(known) == count && deferred != nil {
		known = append(known, member{[]byte("defer_loading"), deferred})
	}
	return d.appendMembers(dst, known, rest)
}

// appendMembers renders an object of the known members. It adds the unknown ones if the
// release keeps them.
func (d Dialect) appendMembers(dst []byte, known, unknown []member) ([]byte, error) {
	list := known
	if d < V27 {
		list = append(list, unknown...)
	}
	dst = append(dst, '{')
	for i, m := range list {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		var err error
		if dst, err = appendMember(dst, string(m.key), m.value); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

// moveFlag moves a key that is known since a release from list to the known members. Its
// value must be true, false or null; null is left out.
func (d Dialect) moveFlag(list, known []member, key string, release Dialect) (rest, moved []member, err error) {
	if d < release {
		return list, known, nil
	}
	rest, value := cutMember(list, key)
	switch {
	case jsonwalk.IsNothing(value):
		return rest, known, nil
	case string(value) != "true" && string(value) != "false":
		return nil, nil, fmt.Errorf("%s must be true, false or null", key)
	}
	return rest, append(known, member{[]byte(key), value}), nil
}
