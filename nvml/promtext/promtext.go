// Package promtext reads the few samples that are wanted out of a page in the
// Prometheus text format.
//
// A page of vLLM has hundreds of lines, of which a dozen matter, and it is read
// four times a second from each server. So a Scanner looks for the ends of lines,
// compares how each begins, and parses the rest of a line only when it is asked to.
// It reads through one buffer of its own and allocates nothing once it has it.
package promtext

import (
	"bytes"
	"errors"
	"io"
	"strconv"
)

// bufferSize bounds a line, in bytes; a longer one is skipped.
const bufferSize = 32 << 10

// ErrTooLong says that a page has more bytes than it may.
var ErrTooLong = errors.New("the page is too long")

// Scanner reads one page after another. Its zero value is ready for Reset. One
// goroutine may use it. What its methods return is good until the next call of Next.
type Scanner struct {
	from   io.Reader
	prefix string
	left   int64 // bytes that may still be read
	buf    []byte
	r, w   int  // buf[r:w] is unread
	skip   bool // the rest of a line that is too long for the buffer
	ended  bool
	err    error

	name, rest []byte // of the current sample; rest is what follows the name
	labels     []byte // between the braces
	value      []byte
	parsed     bool
	ok         bool // labels and value could be parsed
}

// Reset begins a page. Next finds the samples whose names begin with prefix; a page
// of more than limit bytes is an error.
func (s *Scanner) Reset(from io.Reader, prefix string, limit int64) {
	if s.buf == nil {
		s.buf = make([]byte, bufferSize)
	}
	*s = Scanner{from: from, prefix: prefix, left: limit, buf: s.buf}
}

// Next moves to the next sample; false: the page has ended, or Err says why not.
func (s *Scanner) Next() bool {
	for {
		line, ok := s.line()
		if !ok {
			return false
		}
		if len(line) <= len(s.prefix) || string(line[:len(s.prefix)]) != s.prefix {
			continue
		}
		end := bytes.IndexAny(line, "{ \t")
		if end < len(s.prefix) || line[0] == '#' {
			continue
		}
		s.name, s.rest, s.parsed = line[:end], line[end:], false
		return true
	}
}

// Err is why the page could not be read to its end; nil: it was.
func (s *Scanner) Err() error { return s.err }

// Name is the name of the sample.
func (s *Scanner) Name() []byte { return s.name }

// Value is the sample's number; false: there is none, or it is NaN.
func (s *Scanner) Value() (float64, bool) {
	if s.parse(); !s.ok {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(s.value), 64)
	return v, err == nil && v == v
}

// Label is the value of a label as it stands on the page, backslashes included;
// nil: there is none.
func (s *Scanner) Label(name string) []byte {
	if s.parse(); !s.ok {
		return nil
	}
	for rest := s.labels; ; {
		n, v, after, ok := label(rest)
		if !ok {
			return nil
		}
		if string(n) == name {
			return v
		}
		rest = after
	}
}

// line is the next whole line without its end.
func (s *Scanner) line() ([]byte, bool) {
	for {
		if n := bytes.IndexByte(s.buf[s.r:s.w], '\n'); n >= 0 {
			line := s.buf[s.r : s.r+n]
			s.r += n + 1
			if s.skip {
				s.skip = false
				continue
			}
			return line, true
		}
		if s.ended {
			line := s.buf[s.r:s.w]
			s.r = s.w
			return line, len(line) > 0 && !s.skip && s.err == nil
		}
		s.fill()
	}
}

// fill reads more behind what is unread.
func (s *Scanner) fill() {
	s.w, s.r = copy(s.buf, s.buf[s.r:s.w]), 0
	if s.w == len(s.buf) {
		s.w, s.skip = 0, true
	}
	n, err := s.from.Read(s.buf[s.w:])
	s.w += n
	if s.left -= int64(n); s.left < 0 {
		err = ErrTooLong
	}
	if err != nil {
		s.ended = true
		if !errors.Is(err, io.EOF) {
			s.err = err
		}
	}
}

// parse finds the labels and the value of the current sample.
func (s *Scanner) parse() {
	if s.parsed {
		return
	}
	s.parsed, s.ok, s.labels = true, false, nil
	rest := s.rest
	if len(rest) > 0 && rest[0] == '{' {
		rest = rest[1:]
		for at := rest; ; {
			at = bytes.TrimLeft(at, " ,")
			if len(at) > 0 && at[0] == '}' {
				s.labels, rest = rest[:len(rest)-len(at)], at[1:]
				break
			}
			var ok bool
			if _, _, at, ok = label(at); !ok {
				return
			}
		}
	}
	// A timestamp may follow.
	s.value = bytes.Trim(rest, " \t\r")
	if end := bytes.IndexAny(s.value, " \t"); end >= 0 {
		s.value = s.value[:end]
	}
	// Longer ones are no number, and would have to be copied.
	s.ok = len(s.value) > 0 && len(s.value) <= 30
}

// label takes the first name="value" off a list.
func label(list []byte) (name, value, after []byte, ok bool) {
	list = bytes.TrimLeft(list, " ,")
	eq := bytes.IndexByte(list, '=')
	if eq < 1 || eq+1 >= len(list) || list[eq+1] != '"' {
		return nil, nil, nil, false
	}
	name, list = bytes.TrimRight(list[:eq], " "), list[eq+2:]
	for i := 0; i < len(list); i++ {
		switch list[i] {
		case '\\':
			i++
		case '"':
			return name, list[:i], list[i+1:], true
		}
	}
	return nil, nil, nil, false
}
