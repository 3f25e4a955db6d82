package qwen

import (
	"bytes"
	"errors"
	"fmt"

	"tidegate/gateway/jsonwalk"
)

// appendTools renders the block of tools. It includes first, the system message at the
// beginning of the conversation, or nil. present is false if there are no tools.
func appendTools(dst []byte, c Chat, first *message) (out []byte, present bool, err error) {
	if !hasTools(c.Tools) {
		return dst, false, nil
	}
	dst = append(dst, opening+"system\n"...)
	if first != nil {
		dst = append(dst, first.content...)
		dst = append(dst, "\n\n"...)
	}
	dst = append(dst, toolsBegin...)
	err = jsonwalk.EachElement(c.Tools, func(i int, raw []byte) error {
		dst = append(dst, '\n')
		var err error
		if dst, err = c.Dialect.appendTool(dst, raw); err != nil {
			return fmt.Errorf("tools[%d]: %w", i, err)
		}
		return nil
	})
	if errors.Is(err, jsonwalk.ErrNotJSON) {
		return nil, false, errors.New("tools must be an array or null")
	}
	if err != nil {
		return nil, false, err
	}
	return append(dst, toolsEnd...), true, nil
}

// hasTools reports whether tools is anything but absent, null or an empty array.
func hasTools(tools []byte) bool {
	tools = bytes.TrimSpace(tools)
	if jsonwalk.IsNothing(tools) {
		return false
	}
	return tools[0] != '[' || string(tools[jsonwalk.SkipSpace(tools, 1):]) != "]"
}

// appendValue appends value as Python dumps it.
func appendValue(dst, value []byte) ([]byte, error) {
	dst, ok := appendPython(dst, value)
	if !ok {
		return nil, fmt.Errorf("must be JSON, at most %d levels deep", maxDepth)
	}
	return dst, nil
}

// A member is one unescaped key of an object and the raw JSON of its value.
type member struct{ key, value []byte }

// cutMember returns list without the member that has the key, and the value of that
// member, or nil.
func cutMember(list []member, key string) (rest []member, value []byte) {
	for i, m := range list {
		if string(m.key) == key {
			return append(list[:i:i], list[i+1:]...), m.value
		}
	}
	return list, nil
}

// uniqueMembers returns the members of the object raw. A repeated key keeps its first
// place and its last value.
func uniqueMembers(raw []byte) ([]member, error) {
	var list []member
	index := map[string]int{}
	err := jsonwalk.EachMember(raw, func(key, value []byte) error {
		if i, ok := index[string(key)]; ok {
			list[i].value = value
			return nil
		}
		index[string(key)] = len(list)
		list = append(list, member{key, value})
		return nil
	})
	return list, err
}

// appendMember appends a key and its value; nil becomes null.
func appendMember(dst []byte, key string, value []byte) ([]byte, error) {
	dst = appendPythonString(dst, []byte(key))
	dst = append(dst, ": "...)
	if value == nil {
		return append(dst, "null"...), nil
	}
	return appendValue(dst, value)
}
