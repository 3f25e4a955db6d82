package qwen

import (
	"errors"
	"fmt"
	"strings"

	"tidegate/gateway/jsonwalk"
)

// A role is the author of a message, as far as the template distinguishes authors.
type role uint8

const (
	unknown role = iota // its messages are left out of the prompt
	system
	user
	assistant
	tool
)

// A message is one message as the template sees it, after vLLM's own changes.
type message struct {
	role      role
	content   string
	reasoning string // reasoning of an assistant
	reasoned  bool   // whether reasoning came apart from content, if only as ""
	calls     []byte // rendered tool calls, separated by newlines
}

// parseMessage reads one element of the messages array. The last of repeated keys counts.
func (d Dialect) parseMessage(raw []byte) (message, error) {
	var roleValue, content, reasoning, reasoningContent, calls []byte
	err := jsonwalk.EachMember(raw, func(key, value []byte) error {
		switch string(key) {
		case "role":
			roleValue = value
		case "content":
			content = value
		case "reasoning":
			reasoning = value
		case "reasoning_content":
			reasoningContent = value
		case "tool_calls":
			calls = value
		}
		return nil
	})
	if err != nil {
		return message{}, errors.New("must be an object")
	}
	name, ok := str(roleValue)
	if !ok {
		return message{}, errors.New("role must be a string")
	}
	m := message{role: roleOf(name)}
	if m.content, err = d.parseContent(m.role, content); err != nil {
		return message{}, err
	}
	if m.role != assistant {
		return m, nil
	}
	if jsonwalk.IsNothing(reasoning) {
		reasoning = reasoningContent
	}
	// vLLM accepts any value as reasoning. The template ignores one that is no string, such
	// as a list of parts, and looks for reasoning in the content.
	m.reasoning, m.reasoned = str(reasoning)
	m.calls, err = d.parseCalls(calls)
	return m, err
}

func roleOf(name string) role {
	switch name {
	case "system":
		return system
	case "user":
		return user
	case "assistant":
		return assistant
	case "tool":
		return tool
	}
	return unknown
}

// parseContent returns content as one string. Of an array it joins the text parts that are
// not empty by newlines.
func (d Dialect) parseContent(role role, value []byte) (string, error) {
	if jsonwalk.IsNothing(value) {
		return "", nil
	}
	if s, ok := str(value); ok {
		return d.systemText(role, s), nil
	}
	if value[0] != '[' {
		return "", errors.New("content must be a string, an array of parts or null")
	}
	var b strings.Builder
	err := jsonwalk.EachElement(value, func(i int, part []byte) error {
		text, err := parsePart(part)
		if err != nil {
			return fmt.Errorf("content[%d]: %w", i, err)
		}
		text = d.systemText(role, text)
		if text == "" {
			return nil
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(text)
		return nil
	})
	if errors.Is(err, jsonwalk.ErrNotJSON) {
		return "", errors.New("content must be a string, an array of parts or null")
	}
	return b.String(), err
}

// systemText returns the text of a message, or of one part of it. It leaves out the line
// that the release removes from system messages.
func (d Dialect) systemText(role role, text string) string {
	if role != system || d < V32 || !strings.HasPrefix(text, billingHeader) {
		return text
	}
	_, text, _ = strings.Cut(text, "\n")
	return text
}

// parsePart returns the text of one content part.
func parsePart(value []byte) (string, error) {
	if s, ok := str(value); ok {
		return s, nil
	}
	var kind, text, refusal, thinking []byte
	err := jsonwalk.EachMember(value, func(key, value []byte) error {
		switch string(key) {
		case "type":
			kind = value
		case "text":
			text = value
		case "refusal":
			refusal = value
		case "thinking":
			thinking = value
		}
		return nil
	})
	if err != nil {
		return "", errors.New("must be an object or a string")
	}
	name, ok := str(kind)
	if !ok {
		return "", errors.New("type must be a string")
	}
	switch name {
	case "text", "input_text", "output_text":
	case "refusal":
		text = refusal
	case "thinking":
		text = thinking
	default:
		return "", fmt.Errorf("only text content can be counted, not %q", name)
	}
	if jsonwalk.IsNothing(text) {
		return "", nil
	}
	s, ok := str(text)
	if !ok {
		return "", errors.New("text must be a string")
	}
	return s, nil
}

// parseCalls renders an assistant's tool calls.
func (d Dialect) parseCalls(value []byte) ([]byte, error) {
	if jsonwalk.IsNothing(value) {
		return nil, nil
	}
	var out []byte
	err := jsonwalk.EachElement(value, func(i int, call []byte) error {
		if len(out) > 0 {
			out = append(out, '\n')
		}
		var err error
		if out, err = d.appendCall(out, call); err != nil {
			return fmt.Errorf("tool_calls[%d]: %w", i, err)
		}
		return nil
	})
	if errors.Is(err, jsonwalk.ErrNotJSON) {
		return nil, errors.New("tool_calls must be an array or null")
	}
	return out, err
}

// appendCall renders one call. Its name and arguments are members of "function" or, as the
// template allows, of the call itself.
func (d Dialect) appendCall(dst, call []byte) ([]byte, error) {
	var function, name, arguments []byte
	pick := func(key, value []byte) error {
		switch string(key) {
		case "function":
			function = value
		case "name":
			name = value
		case "arguments":
			arguments = value
		}
		return nil
	}
	if err := jsonwalk.EachMember(call, pick); err != nil {
		return nil, errors.New("must be an object")
	}
	if !jsonwalk.IsNothing(function) {
		call, name, arguments = function, nil, nil
		if err := jsonwalk.EachMember(call, pick); err != nil {
			return nil, errors.New("function must be an object")
		}
	}
	s, ok := str(name)
	if !ok {
		return nil, errors.New("name must be a string")
	}
	dst = append(dst, "<tool_call>\n{\"name\": \""...)
	dst = append(dst, s...)
	dst = append(dst, "\", \"arguments\": "...)
	dst, err := d.appendArguments(dst, arguments)
	if err != nil {
		return nil, err
	}
	return append(dst, "}\n</tool_call>"...), nil
}

// appendArguments renders a call's arguments. Missing ones are an empty object, and a
// string that holds JSON is dumped as that value. From V29 on, arguments that are no object
// become an empty one.
func (d Dialect) appendArguments(dst, value []byte) ([]byte, error) {
	if jsonwalk.IsNothing(value) {
		return append(dst, "{}"...), nil
	}
	begin := len(dst)
	s, quoted := str(value)
	switch {
	case quoted && s == "":
		return append(dst, "{}"...), nil
	case quoted:
		value = []byte(s)
	case value[0] != '{' && value[0] != '[':
		return nil, errors.New("arguments must be a string or an object")
	}
	dst, ok := appendPython(dst, value)
	dumped := dst[begin:]
	switch {
	case !ok && jsonwalk.Depth(value) > maxDepth:
		return nil, fmt.Errorf("arguments must be at most %d levels deep", maxDepth)
	case !ok && d == Template:
		return append(dst, s...), nil
	case !ok && d < V29:
		return nil, errors.New("arguments must be JSON: the release of vLLM that answers here refuses others")
	case !ok, d >= V29 && dumped[0] != '{', d >= V23 && quoted && jsonwalk.IsNull(dumped), !quoted && string(dumped) == "[]":
		return append(dst[:begin], "{}"...), nil
	case dumped[0] == '"':
		// The string held another string, which the template writes without quotes.
		text, _ := str(dumped)
		return append(dst[:begin], text...), nil
	}
	return dst, nil
}

// isQuery reports whether m is a user's own turn and not a tool's result in a user's name.
// The template keeps the assistant's reasoning after the last such turn.
func (m *message) isQuery() bool {
	return m.role == user &&
		!(strings.HasPrefix(m.content, "<tool_response>") && strings.HasSuffix(m.content, "</tool_response>"))
}
