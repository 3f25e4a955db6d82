package qwen

import (
	"encoding/binary"
	"sync"
	"unsafe"
)

// A Counter counts the prompt tokens of conversations and remembers the counts of single
// messages, so that a conversation's next turn costs little more than the new messages.
// Safe for concurrent use; it starts no goroutine.
//
// What it remembers of a message does not depend on its place: of an assistant's the count
// with kept thoughts and the one without, of a tool result's the count without what begins
// and ends a group of them, which is a fixed number of tokens. Each of these pieces is
// bounded by added tokens, so counts add up (see the package comment).
type Counter struct {
	tokens  *Tokenizer
	cache   *cache
	scratch sync.Pool // of *conversation

	groupBegin    int // tokens that begin a group of tool results
	groupEnd      int // tokens that end one
	generation    int // tokens of the generation prompt
	emptyThinking int // tokens that turn thinking off
}

// An entry is what is known of one message, or of one block of tools, whose count is plain.
type entry struct {
	plain    int32 // tokens; of an assistant's message those without thoughts
	thinking int32 // tokens of an assistant's message with its thoughts, if only empty ones
	role     role
	query    bool // it is a real user query
	reasoned bool // it is an assistant's with thoughts that are not empty
}

// uncounted stands for a count of an assistant's message that nobody has asked for yet.
const uncounted = -1

// keptMessages is the scratch memory kept for the next call, in messages of 64 bytes.
const keptMessages = 4096

// conversation is the scratch memory of one call.
type conversation struct {
	messages []located
	text     []byte
}

// A located message is one with its place in the request body.
type located struct {
	raw   []byte
	key   key
	entry entry
}

// NewCounter returns a counter that remembers about the given number of messages, each for
// some 100 bytes; with none or fewer it remembers nothing.
func NewCounter(t *Tokenizer, entries int) *Counter {
	c := &Counter{tokens: t, cache: newCache(entries)}
	c.scratch.New = func() any { return new(conversation) }
	c.groupBegin = t.Count(toolGroup+resultBegin) - t.Count(resultBegin)
	c.groupEnd = t.Count(closing)
	c.generation = t.Count(generation)
	c.emptyThinking = t.Count(emptyThinking)
	return c
}

// Text returns the number of tokens of text. It remembers nothing.
func (c *Counter) Text(text string) int { return c.tokens.Count(text) }

// Chat returns the number of tokens of the prompt that [Render] makes of chat, or its
// error. It does not keep chat's bytes.
func (c *Counter) Chat(chat Chat) (int, error) {
	if chat.Continue { // rare, and its end lies within a message: nothing is remembered of it
		prompt, err := Render(chat)
		return c.tokens.Count(prompt), err
	}
	s := c.scratch.Get().(*conversation)
	defer c.release(s)
	err := elements(chat.Messages, func(i int, raw []byte) error {
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
		rest = rest[1:] // it is part of the tools' block
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

// entry is what is to be remembered of m.
func (c *Counter) entry(s *conversation, m *message) entry {
	e := entry{role: m.role, query: m.isQuery(), plain: uncounted, thinking: uncounted}
	switch m.role {
	case assistant: // counted when it is known with or without thoughts
		reasoning, _ := m.thoughts()
		e.reasoned = reasoning != ""
	case tool:
		e.plain = c.count(s, m.appendResult(s.text[:0], false, false))
	default:
		e.plain = c.count(s, m.append(s.text[:0], false, false))
	}
	return e
}

// assistant returns the count of an assistant's message with or without its thoughts.
func (c *Counter) assistant(s *conversation, d Dialect, l *located, thinking bool) int {
	n := &l.entry.plain
	if thinking {
		n = &l.entry.thinking
	}
	if *n == uncounted {
		m, err := d.parseMessage(l.raw)
		if err != nil {
			return 0 // not reached: it has been parsed before
		}
		*n = c.count(s, m.append(s.text[:0], thinking, thinking))
		c.cache.store(l.key, l.entry)
	}
	return int(*n)
}

// tools returns the count of the block of tools with the system message before it; some is
// false if there is none.
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

// count counts text, which lies in s.text if that had room, and keeps its memory there.
func (c *Counter) count(s *conversation, text []byte) int32 {
	s.text = text[:0]
	return int32(c.tokens.Count(unsafe.String(unsafe.SliceData(text), len(text))))
}
