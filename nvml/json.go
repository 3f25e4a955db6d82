package nvml

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// cursor reads JSON once, from the front to the back. A fault makes it bad, and
// everything that it reads from then on empty.
type cursor struct {
	rest  []byte
	bad   bool
	depth int
	texts texts
}

// texts are those read before: most of a report is the same every second.
type texts map[string]string

const (
	maxDepth = 64
	maxTexts = 1 << 14
)

func (t texts) of(raw []byte) string {
	if s, ok := t[string(raw)]; ok {
		return s
	}
	s := string(raw)
	if t != nil && len(s) <= maxText {
		if len(t) >= maxTexts {
			clear(t) // an agent that never says the same twice
		}
		t[s] = s
	}
	return s
}

// peek is the next byte that is no space; 0: there is none.
func (c *cursor) peek() byte {
	if len(c.rest) > 0 && c.rest[0] > ' ' {
		return c.rest[0]
	}
	return c.peekOn()
}

func (c *cursor) peekOn() byte {
	for i, b := range c.rest {
		if b != ' ' && b != '\n' && b != '\t' && b != '\r' {
			c.rest = c.rest[i:]
			return b
		}
	}
	c.rest = nil
	return 0
}

// eat takes the next byte if it is b.
func (c *cursor) eat(b byte) bool {
	if c.bad || c.peek() != b {
		return false
	}
	c.rest = c.rest[1:]
	return true
}

func (c *cursor) fail() {
	c.bad, c.rest = true, nil
}

// items reads a list or an object between its brackets; one reads an item of it.
func (c *cursor) items(end byte, one func()) {
	c.rest = c.rest[1:]
	if c.depth++; c.depth > maxDepth {
		c.fail()
	}
	for first := true; !c.eat(end); first = false {
		if c.bad || !first && !c.eat(',') {
			c.fail()
			break
		}
		one()
	}
	c.depth--
}

// object has member read the value of each member. What is no object is read over.
func (c *cursor) object(member func(key []byte)) {
	if c.peek() != '{' {
		c.skip()
		return
	}
	c.items('}', func() {
		key := c.quoted()
		if !c.eat(':') {
			c.fail()
			return
		}
		member(key)
	})
}

// list has one read each item. What is no list is read over; false.
func (c *cursor) list(one func()) bool {
	if c.peek() != '[' {
		c.skip()
		return false
	}
	c.items(']', one)
	return !c.bad
}

// quoted reads a text, of which the quotes are not a part. Without escapes it is a
// piece of what is read.
func (c *cursor) quoted() []byte {
	if !c.eat('"') {
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

// escaped is quoted for a text with a backslash in it.
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

// text reads a text. What is none is read over and empty.
func (c *cursor) text() string {
	if c.peek() != '"' {
		c.skip()
		return ""
	}
	return c.texts.of(c.quoted())
}

// skip reads over any value.
func (c *cursor) skip() {
	switch c.peek() {
	case '{':
		c.object(func([]byte) { c.skip() })
	case '[':
		c.list(c.skip)
	case '"':
		c.quoted()
	default:
		c.bare()
	}
}

// bare reads what stands without quotes and brackets: a number, true, false or null.
func (c *cursor) bare() []byte {
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

// plainNumber reports whether b is a number of digits alone, as nearly all are.
func plainNumber(b []byte) bool {
	for _, d := range b {
		if d < '0' || d > '9' {
			return false
		}
	}
	return len(b) == 1 || len(b) > 1 && b[0] != '0'
}

// amount reads a whole number from 0 on; false: it is something else, or too large.
func (c *cursor) amount() (n uint64, ok bool) {
	if b := c.peek(); b == '"' || b == '{' || b == '[' {
		c.skip()
		return 0, false
	}
	n, err := strconv.ParseUint(string(c.bare()), 10, 64) // without a copy: it is short
	return n, err == nil && !c.bad
}

// whole reads a whole number likewise.
func (c *cursor) whole() (n int64, ok bool) {
	if b := c.peek(); b == '"' || b == '{' || b == '[' {
		c.skip()
		return 0, false
	}
	n, err := strconv.ParseInt(string(c.bare()), 10, 64)
	return n, err == nil && !c.bad
}

// flag reads true or false; ok is false for all else.
func (c *cursor) flag() (v, ok bool) {
	if b := c.peek(); b != 't' && b != 'f' {
		c.skip()
		return false, false
	}
	word := string(c.bare())
	return word == "true", !c.bad
}
