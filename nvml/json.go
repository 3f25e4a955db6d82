package nvml

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// cursor reads JSON once, from front to back. After a fault it is bad, and reads only empty
// values.
type cursor struct {
	rest  []byte
	bad   bool
	depth int
	texts texts
}

// texts interns strings: most of a report is the same every second.
type texts map[string]string

const (
	maxDepth = 64
	maxTexts = 1 << 14
)

// intern returns the string of raw, without a copy where it was read before.
func (t texts) intern(raw []byte) string {
	if s, ok := t[string(raw)]; ok {
		return s
	}
	s := string(raw)
	if t != nil && len(s) <= maxText {
		if len(t) >= maxTexts {
			clear(t) // the agent never repeats a text
		}
		t[s] = s
	}
	return s
}

// peek returns the next byte that is no space; 0: there is none.
func (c *cursor) peek() byte {
	if len(c.rest) > 0 && c.rest[0] > ' ' {
		return c.rest[0]
	}
	return c.skipSpace()
}

// skipSpace is the slow path of peek.
func (c *cursor) skipSpace() byte {
	for i, b := range c.rest {
		if b != ' ' && b != '\n' && b != '\t' && b != '\r' {
			c.rest = c.rest[i:]
			return b
		}
	}
	c.rest = nil
	return 0
}

// consume skips the next byte if it is b, and reports whether it was.
func (c *cursor) consume(b byte) bool {
	if c.bad || c.peek() != b {
		return false
	}
	c.rest = c.rest[1:]
	return true
}

func (c *cursor) fail() {
	c.bad, c.rest = true, nil
}

// items reads a list or an object between its brackets; item reads one item of it.
func (c *cursor) items(end byte, item func()) {
	c.rest = c.rest[1:]
	if c.depth++; c.depth > maxDepth {
		c.fail()
	}
	for first := true; !c.consume(end); first = false {
		if c.bad || !first && !c.consume(',') {
			c.fail()
			break
		}
		item()
	}
	c.depth--
}

// object calls member to read the value of each member. It skips a value that is no object.
func (c *cursor) object(member func(key []byte)) {
	if c.peek() != '{' {
		c.skip()
		return
	}
	c.items('}', func() {
		key := c.quoted()
		if !c.consume(':') {
			c.fail()
			return
		}
		member(key)
	})
}

// list calls item to read each item. It skips a value that is no list, and returns false.
func (c *cursor) list(item func()) bool {
	if c.peek() != '[' {
		c.skip()
		return false
	}
	c.items(']', item)
	return !c.bad
}

// quoted reads a string without its quotes. Without escapes the result is a part of the
// input.
func (c *cursor) quoted() []byte {
	if !c.consume('"') {
		c.fail()
		return nil
	}
	end := bytes.IndexByte(c.rest, '"')
	if end >= 0 && bytes.IndexByte(c.rest[:end], '\\') < 0 {
		raw := c.rest[:end]
		c.rest = c.rest[end+1:]
		return raw
	}
	return c.escaped()
}

// escaped is quoted for a string with a backslash in it.
func (c *cursor) escaped() []byte {
	for i := 0; i < len(c.rest); i++ {
		switch c.rest[i] {
		case '"':
			var text string
			if json.Unmarshal([]byte(`"`+string(c.rest[:i])+`"`), &text) != nil {
				c.fail()
				return nil
			}
			c.rest = c.rest[i+1:]
			return []byte(text)
		case '\\':
			i++
		}
	}
	c.fail()
	return nil
}

// text reads a string. It skips a value that is none, and returns "".
func (c *cursor) text() string {
	if c.peek() != '"' {
		c.skip()
		return ""
	}
	return c.texts.intern(c.quoted())
}

// skip skips any value.
func (c *cursor) skip() {
	switch c.peek() {
	case '{':
		c.object(func([]byte) { c.skip() })
	case '[':
		c.list(c.skip)
	case '"':
		c.quoted()
	default:
		c.literal()
	}
}

// literal reads a number, true, false or null.
func (c *cursor) literal() []byte {
	c.peek()
	n := 0
	for n < len(c.rest) && (c.rest[n] >= '0' && c.rest[n] <= '9' || c.rest[n] >= 'a' && c.rest[n] <= 'z' || c.rest[n] == '-' || c.rest[n] == '+' || c.rest[n] == '.' || c.rest[n] == 'E') {
		n++
	}
	word := c.rest[:n]
	if !plainNumber(word) && !json.Valid(word) {
		c.fail()
		return nil
	}
	c.rest = c.rest[n:]
	return word
}

// plainNumber reports whether b is a number of digits alone, as nearly all numbers are.
func plainNumber(b []byte) bool {
	for _, d := range b {
		if d < '0' || d > '9' {
			return false
		}
	}
	return len(b) == 1 || len(b) > 1 && b[0] != '0'
}

// unsigned reads a whole number of 0 or more; false: it is something else, or too large.
func (c *cursor) unsigned() (n uint64, ok bool) {
	if b := c.peek(); b == '"' || b == '{' || b == '[' {
		c.skip()
		return 0, false
	}
	n, err := strconv.ParseUint(string(c.literal()), 10, 64) // without a copy: it is short
	return n, err == nil && !c.bad
}

// signed reads a whole number; false: it is something else, or too large.
func (c *cursor) signed() (n int64, ok bool) {
	if b := c.peek(); b == '"' || b == '{' || b == '[' {
		c.skip()
		return 0, false
	}
	n, err := strconv.ParseInt(string(c.literal()), 10, 64)
	return n, err == nil && !c.bad
}

// boolean reads true or false; ok is false for other values.
func (c *cursor) boolean() (v, ok bool) {
	if b := c.peek(); b != 't' && b != 'f' {
		c.skip()
		return false, false
	}
	word := string(c.literal())
	return word == "true", !c.bad
}
