package qwen

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"tidegate/gateway/jsonwalk"
)

// A Counter counts the prompt tokens of conversations and remembers the counts of single
// messages, so that a conversation's next turn costs little more than the new messages.
// Safe for concurrent use; it starts no goroutine.
//
// A remembered count does not depend on the message's place. An assistant's message has two
// counts, with and without its reasoning. A tool result is counted without the beginning
// and the end of its group, which are a fixed number of tokens. Each of these pieces is
// bounded by added tokens, so counts add up (see the package comment).
type Counter struct {
	tokens  *Tokenizer
	cache   *cache
	scratch sync.Pool // of *conversation

	groupBegin    int // tokens at the beginning of a group of tool results
	groupEnd      int // tokens at its end
	generation    int // tokens of the generation prompt
	emptyThinking int // tokens that turn thinking off
}

// An entry holds the counts of one message, or of one block of tools, which has only plain.
type entry struct {
	plain    int32 // tokens; of an assistant's message without its reasoning
	thinking int32 // tokens of an assistant's message with its reasoning, even if empty
	role     role
	query    bool // whether it is a user's own turn
	reasoned bool // whether it is an assistant's message with reasoning that is not empty
}

// uncounted marks a count of an assistant's message that was not needed yet.
const uncounted = -1

// keptMessages bounds the scratch memory kept for the next call, in messages of 64 bytes.
const keptMessages = 4096

// A conversation is the scratch memory of one call.
type conversation struct {
	messages []located
	text     []byte
}

// A located message is a message with its raw JSON, its cache key and its counts.
type located struct {
	raw   []byte
	key   key
	entry entry
}

// NewCounter returns a counter that remembers about the given number of messages, at some
// 100 bytes each. With 0 or less it remembers nothing.
func NewCounter(t *Tokenizer, entries int) *Counter {
	c := &Counter{tokens: t, cache: newCache(entries)}
	c.scratch.New = func() any { return new(conversation) }
	c.groupBegin = t.Count(toolGroup+resultBegin) - t.Count(resultBegin)
	c.groupEnd = t.Count(closing)
	c.generation = t.Count(generation)
	c.emptyThinking = t.Count(emptyThinking)
	return c
}

// Text returns the number of tokens of text, which it does not remember.
func (c *Counter) Text(text string) int { return c.tokens.Count(text) }

// Chat returns the number of tokens of the prompt that [Render] makes of chat, or its
// error. It does not keep chat's bytes.
func (c *Counter) Chat(chat Chat) (int, error) {
	if chat.Continue { // rare, and it ends within a message: nothing is remembered
		prompt, err := Render(chat)
		return c.tokens.Count(prompt), err
	}
	s := c.scratch.Get().(*conversation)
	defer c.release(s)
	err := jsonwalk.EachElement(chat.Messages, func(i int, raw []byte) error {
		if i == MaxMessages {
			return errMessages
		}
		l := located{raw: raw, key: c.cache.key(raw).withDialect(chat.Dialect)}
		var ok bool
		if l.entry, ok = c.cache.load(l.key); !ok {
			m, err := chat.Dialect.parseMessage(raw)
			if err != nil {
				return messageError(i, err)
			}
			l.entry = c.entry(s, &m)
			c.cache.store(l.key, l.entry)
		}
		s.messages = append(s.messages, l)
		return nil
	})
	if err != nil || len(s.messages) == 0 {
		return 0, messagesError(err)
	}
	total, withTools, err := c.tools(s, chat)
	if err != nil {
		return 0, err
	}
	rest := s.messages
	if withTools && rest[0].entry.role == system {
		rest = rest[1:] // the tools' block has it
	}
	query := len(rest) - 1
	for i := query; i >= 0; i-- {
		if rest[i].entry.query {
			query = i
			break
		}
	}
	for i := range rest {
		n := int(rest[i].entry.plain)
		switch rest[i].entry.role {
		case tool:
			if i == 0 || rest[i-1].entry.role != tool {
				n += c.groupBegin
			}
			if i == len(rest)-1 || rest[i+1].entry.role != tool {
				n += c.groupEnd
			}
		case assistant:
			n = c.assistant(s, chat.Dialect, &rest[i], i > query && (i == len(rest)-1 || rest[i].entry.reasoned))
		}
		total += n
	}
	if !chat.NoGenerationPrompt {
		total += c.generation
		if chat.NoThinking {
			total += c.emptyThinking
		}
	}
	return total, nil
}

func (c *Counter) release(s *conversation) {
	clear(s.messages) // they point into the request's body
	s.messages = s.messages[:0]
	if cap(s.messages) > keptMessages || cap(s.text) > keptText {
		*s = conversation{}
	}
	c.scratch.Put(s)
}

// entry returns the cache entry of m.
func (c *Counter) entry(s *conversation, m *message) entry {
	e := entry{role: m.role, query: m.isQuery(), plain: uncounted, thinking: uncounted}
	switch m.role {
	case assistant: // counted later, once its place decides about the reasoning
		reasoning, _ := m.thoughts()
		e.reasoned = reasoning != ""
	case tool:
		e.plain = c.count(s, m.appendResult(s.text[:0], false, false))
	default:
		e.plain = c.count(s, m.append(s.text[:0], false, false))
	}
	return e
}

// assistant returns the count of an assistant's message with or without its reasoning.
func (c *Counter) assistant(s *conversation, d Dialect, l *located, thinking bool) int {
	n := &l.entry.plain
	if thinking {
		n = &l.entry.thinking
	}
	if *n == uncounted {
		m, err := d.parseMessage(l.raw)
		if err != nil {
			return 0 // unreachable: the message was parsed before
		}
		*n = c.count(s, m.append(s.text[:0], thinking, thinking))
		c.cache.store(l.key, l.entry)
	}
	return int(*n)
}

// tools returns the count of the block of tools, which includes the system message. present
// is false if there are no tools.
func (c *Counter) tools(s *conversation, chat Chat) (n int, present bool, err error) {
	if !hasTools(chat.Tools) {
		return 0, false, nil
	}
	// The block's key is the hash of the keys of its parts.
	parts := make([]byte, 0, 2*16+1)
	k := c.cache.key(chat.Tools)
	parts = binary.LittleEndian.AppendUint64(parts, k.a)
	parts = binary.LittleEndian.AppendUint64(parts, k.b)
	parts = append(parts, byte(chat.Dialect))
	var first *message
	if s.messages[0].entry.role == system {
		parts = binary.LittleEndian.AppendUint64(parts, s.messages[0].key.a)
		parts = binary.LittleEndian.AppendUint64(parts, s.messages[0].key.b)
		first = new(message)
	}
	k = c.cache.key(parts)
	if e, ok := c.cache.load(k); ok {
		return int(e.plain), true, nil
	}
	if first != nil {
		if *first, err = chat.Dialect.parseMessage(s.messages[0].raw); err != nil {
			return 0, false, err
		}
	}
	text, _, err := appendTools(s.text[:0], chat, first)
	if err != nil {
		return 0, false, err
	}
	e := entry{plain: c.count(s, text)}
	c.cache.store(k, e)
	return int(e.plain), true, nil
}

// count returns the number of tokens of text and keeps its memory in s.text for reuse.
func (c *Counter) count(s *conversation, text []byte) int32 {
	s.text = text[:0]
	return int32(c.tokens.Count(unsafe.String(unsafe.SliceData(text), len(text))))
}
