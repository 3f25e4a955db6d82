// Package promtext reads selected samples from a page in the Prometheus text format
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
//
// A page of vLLM has hundreds of lines, of which a dozen matter, and it is read four times a
// second from each backend. So a Scanner splits the page into lines, compares their prefixes,
// and parses the rest of a line only on demand. It has one buffer, and allocates nothing after
// that.
package promtext

import (
	"bytes"
	"errors"
	"io"
	"strconv"
)

// bufferSize bounds a line, in bytes; a longer one is skipped.
const bufferSize = 32 << 10

// ErrTooLong is the error of a page with more bytes than the limit.
var ErrTooLong = errors.New("the page is too long")

// Scanner reads one page after another. Its zero value is ready for Reset. It is not safe for
// concurrent use. The slices that its methods return are valid until the next call of Next.
type Scanner struct {
	reader io.Reader
	prefix string
	left   int64 // bytes left of the limit
	buf    []byte
	r, w   int  // buf[r:w] is unread
	skip   bool // the rest of the line is too long for the buffer
	ended  bool
	err    error

	name, rest []byte // name of the current sample, and the rest of its line
	labels     []byte // text between the braces
	value      []byte
	parsed     bool
	ok         bool // labels and value were parsed
}

// Reset starts a new page. Next finds the samples whose names begin with prefix. A page of
// more than limit bytes is an error.
func (s *Scanner) Reset(reader io.Reader, prefix string, limit int64) {
	if s.buf == nil {
		s.buf = make([]byte, bufferSize)
	}
	*s = Scanner{reader: reader, prefix: prefix, left: limit, buf: s.buf}
}

// Next advances to the next sample. It returns false at the end of the page or on an error.
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

// Err returns the error that ended the page; nil: it was read to its end.
func (s *Scanner) Err() error { return s.err }

// Name returns the name of the sample.
func (s *Scanner) Name() []byte { return s.name }

// Value returns the value of the sample; false: there is none, or it is NaN.
func (s *Scanner) Value() (float64, bool) {
	if s.parse(); !s.ok {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(s.value), 64)
	return v, err == nil && v == v
}

// Label returns the value of a label as it is on the page, backslashes included; nil: there is
// none.
func (s *Scanner) Label(name string) []byte {
	if s.parse(); !s.ok {
		return nil
	}
	for rest := s.labels; ; {
		n, v, remainder, ok := label(rest)
		if !ok {
			return nil
		}
		if string(n) == name {
			return v
		}
		rest = remainder
	}
}

// line returns the next whole line without its newline.
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

// fill reads more bytes behind the unread ones.
func (s *Scanner) fill() {
	s.w, s.r = copy(s.buf, s.buf[s.r:s.w]), 0
	if s.w == len(s.buf) {
		s.w, s.skip = 0, true
	}
	n, err := s.reader.Read(s.buf[s.w:])
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
		for next := rest; ; {
			next = bytes.TrimLeft(next, " ,")
			if len(next) > 0 && next[0] == '}' {
				s.labels, rest = rest[:len(rest)-len(next)], next[1:]
				break
			}
			var ok bool
			if _, _, next, ok = label(next); !ok {
				return
			}
		}
	}
	// A timestamp may follow.
	s.value = bytes.Trim(rest, " \t\r")
	if end := bytes.IndexAny(s.value, " \t"); end >= 0 {
		s.value = s.value[:end]
	}
	// A longer text is no number, and would have to be copied.
	s.ok = len(s.value) > 0 && len(s.value) <= 30
}

// label parses the first name="value" of a list and returns the remainder.
func label(list []byte) (name, value, remainder []byte, ok bool) {
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
