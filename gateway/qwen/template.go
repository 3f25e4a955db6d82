package qwen

import (
	"errors"
	"fmt"
	"strings"

	"tidegate/gateway/jsonwalk"
)

// The fixed texts of the template.
const (
	opening        = "<|im_start|>"
	closing        = "<|im_end|>\n"
	toolGroup      = opening + "user" // begins a group of consecutive tool results
	generation     = opening + "assistant\n"
	emptyThinking  = "<think>\n\n</think>\n\n"
	thoughtsBegin  = "<think>\n"
	thoughtsEnd    = "\n</think>\n\n"
	resultBegin    = "\n<tool_response>\n"
	resultEnd      = "\n</tool_response>"
	toolsBegin     = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>"
	toolsEnd       = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" + closing
	thinkEndMarker = "</think>"
	continueTag    = "CONTINUE_FINAL_MESSAGE_TAG " // the marker of the library transformers
)

// MaxMessages bounds the messages of a conversation. Each needs memory, however short it
// is. A message of a known role has at least 5 tokens, so this many exceed Qwen3's context
// of 131,072 tokens more than twice.
const MaxMessages = 1 << 16

var errMessages = fmt.Errorf("messages: there are more than %d, the most that one conversation may have: leave out the oldest", MaxMessages)

// A Chat is a conversation from the body of an OpenAI request.
type Chat struct {
	Messages []byte // JSON array of the messages
	Tools    []byte // JSON array of the tools; nil for none

	NoThinking         bool // enable_thinking is false, which adds 4 tokens at the end
	NoGenerationPrompt bool // add_generation_prompt is false: 3 tokens less, and not those 4

	// Continue is continue_final_message: the prompt ends within the last message, and the
	// model continues it.
	Continue bool

	Dialect Dialect // release whose changes to messages and tools apply
}

// Render returns the exact prompt text that vLLM makes of c for Qwen3. The error names the
// part of c that the API does not allow, such as "messages[2]: content must be a string, an
// array of parts or null". Of the conversation it quotes only the type of a part that is
// not text. Memory is linear in c.
func Render(c Chat) (string, error) {
	var messages []message
	err := jsonwalk.EachElement(c.Messages, func(i int, raw []byte) error {
		if i == MaxMessages {
			return errMessages
		}
		m, err := c.Dialect.parseMessage(raw)
		if err != nil {
			return messageError(i, err)
		}
		messages = append(messages, m)
		return nil
	})
	if err != nil {
		return "", messagesError(err)
	}
	if len(messages) == 0 {
		return "", messagesError(nil)
	}
	unfinished := ""
	if c.Continue {
		last := &messages[len(messages)-1]
		unfinished = strings.TrimSpace(last.content)
		last.content += continueTag
	}
	var first *message
	if messages[0].role == system {
		first = &messages[0]
	}
	out, withTools, err := appendTools(make([]byte, 0, len(c.Messages)+len(c.Tools)), c, first)
	if err != nil {
		return "", err
	}
	query := len(messages) - 1
	for i := query; i >= 0; i-- {
		if messages[i].isQuery() {
			query = i
			break
		}
	}
	for i := range messages {
		if i == 0 && withTools && first != nil {
			continue // the tools' block has it
		}
		m := &messages[i]
		last := i == len(messages)-1
		if m.role == tool {
			begins := i == 0 || messages[i-1].role != tool
			ends := last || messages[i+1].role != tool
			out = m.appendResult(out, begins, ends)
			continue
		}
		out = m.append(out, i > query, last)
	}
	if c.Continue {
		return cutToContinue(string(out), unfinished, len(messages)-1)
	}
	return string(c.appendEnd(out)), nil
}

// cutToContinue cuts a rendered prompt at the tag that ends the last message, as
// apply_chat_template of the library transformers does.
func cutToContinue(prompt, unfinished string, last int) (string, error) {
	end := strings.LastIndex(prompt, continueTag)
	if end < 0 || !strings.Contains(prompt, unfinished) {
		return "", messageError(last, errors.New("continue_final_message is set, but the chat template changes the content of this message or leaves it out"))
	}
	return prompt[:end], nil
}

func messageError(i int, err error) error { return fmt.Errorf("messages[%d]: %w", i, err) }

// messagesError returns the error of an array of messages: err in the caller's words, or,
// if err is nil, that the array is empty.
func messagesError(err error) error {
	if err == nil {
		return errors.New("messages must not be empty")
	}
	if errors.Is(err, jsonwalk.ErrNotJSON) {
		return errors.New("messages must be an array")
	}
	return err
}

// appendEnd appends the end of the prompt, behind the last message.
func (c *Chat) appendEnd(dst []byte) []byte {
	if c.NoGenerationPrompt {
		return dst
	}
	dst = append(dst, generation...)
	if c.NoThinking {
		dst = append(dst, emptyThinking...)
	}
	return dst
}

// append renders m, which is no tool result. recent means that m comes after the user's
// last own turn, where reasoning is kept; last means that no message follows.
func (m *message) append(dst []byte, recent, last bool) []byte {
	switch m.role {
	case system:
		dst = append(dst, opening+"system\n"...)
	case user:
		dst = append(dst, opening+"user\n"...)
	case assistant:
		return m.appendAssistant(dst, recent, last)
	default:
		return dst
	}
	dst = append(dst, m.content...)
	return append(dst, closing...)
}

func (m *message) appendAssistant(dst []byte, recent, last bool) []byte {
	reasoning, content := m.thoughts()
	dst = append(dst, generation...)
	if recent && (last || reasoning != "") {
		dst = append(dst, thoughtsBegin...)
		dst = append(dst, strings.Trim(reasoning, "\n")...)
		dst = append(dst, thoughtsEnd...)
		dst = append(dst, strings.TrimLeft(content, "\n")...)
	} else {
		dst = append(dst, content...)
	}
	if len(m.calls) > 0 {
		if content != "" {
			dst = append(dst, '\n')
		}
		dst = append(dst, m.calls...)
	}
	return append(dst, closing...)
}

// thoughts returns an assistant's reasoning and its answer. If both came as content, it
// separates them at the think markers.
func (m *message) thoughts() (reasoning, content string) {
	if m.reasoned {
		return m.reasoning, m.content
	}
	head, _, ok := strings.Cut(m.content, thinkEndMarker)
	if !ok {
		return "", m.content
	}
	head = strings.TrimRight(head, "\n")
	if i := strings.LastIndex(head, "<think>"); i >= 0 {
		head = head[i+len("<think>"):]
	}
	tail := m.content[strings.LastIndex(m.content, thinkEndMarker)+len(thinkEndMarker):]
	return strings.TrimLeft(head, "\n"), strings.TrimLeft(tail, "\n")
}

// appendResult renders m, a tool result. begins and ends mark the first and the last of a
// group of consecutive ones.
func (m *message) appendResult(dst []byte, begins, ends bool) []byte {
	if begins {
		dst = append(dst, toolGroup...)
	}
	dst = append(dst, resultBegin...)
	dst = append(dst, m.content...)
	dst = append(dst, resultEnd...)
	if ends {
		dst = append(dst, closing...)
	}
	return dst
}
