package openai

import (
	"bytes"
	"errors"
	"io"
)

// Sizes of a Scanner's buffer in bytes. It rules the memory of thousands of open
// streams; an event that does not fit lets it grow, and so does a stream that is
// always ahead.
const (
	scanBuffer = 1 << 10
	fastBuffer = 16 << 10 // to which a stream that fills it at each read lets it grow
	keepBuffer = 64 << 10
	maxEvent   = 16 << 20
)

// ErrEventTooLong says that one event of a stream is longer than 16 MiB.
var ErrEventTooLong = errors.New("a stream event is longer than 16 MiB")

// Scanner reads server-sent events (the event-stream format of WHATWG HTML
// §9.2) out of r, however its bytes are split over reads: lines end in LF, CRLF
// or CR, comments and other fields than data are passed over, the data lines of
// one event are joined by LF. Memory is constant: one buffer of 1 KiB, or
// as much as the events are long (above 64 KiB only while one is in it).
type Scanner struct {
	r     io.Reader
	buf   []byte
	start int  // first byte of the event under way
	pos   int  // first byte not yet looked at
	end   int  // first byte not yet read
	cr    bool // the last line ended in CR: an LF that follows belongs to it
	multi []byte
	err   error
}

// NewScanner reads from r.
func NewScanner(r io.Reader) *Scanner {
	return &Scanner{r: r, buf: make([]byte, scanBuffer)}
}

// Next returns the data of the next event that has any. It is valid until the
// following call. The error is io.EOF where the stream ended between events,
// io.ErrUnexpectedEOF where it ended inside one, else the reader's own.
func (s *Scanner) Next() ([]byte, error) {
	s.begin()
	var from, to, lines int // where the data stands, counted from start
	for {
		lineFrom, lineTo, err := s.line()
		if err != nil {
			if errors.Is(err, io.EOF) && (lines > 0 || s.end > s.pos) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		line := s.buf[s.start+lineFrom : s.start+lineTo]
		if len(line) == 0 && lines == 1 {
			return s.buf[s.start+from : s.start+to], nil
		}
		if len(line) == 0 && lines > 1 {
			return s.multi, nil
		}
		skip, ok := dataField(line)
		switch {
		case !ok && lines == 0:
			s.start = s.pos // nothing of this line need be kept
		case !ok:
		case lines == 0:
			from, to, lines = lineFrom+skip, lineTo, 1
		default:
			if lines == 1 {
				s.multi = append(s.multi[:0], s.buf[s.start+from:s.start+to]...)
			}
			s.multi = append(append(s.multi, '\n'), line[skip:]...)
			lines++
		}
	}
}

// dataField reports whether line is a data field and where its value begins.
func dataField(line []byte) (skip int, ok bool) {
	if !bytes.HasPrefix(line, []byte("data")) {
		return 0, false
	}
	switch {
	case len(line) == 4:
		return 4, true
	case line[4] != ':':
		return 0, false
	case len(line) > 5 && line[5] == ' ':
		return 6, true
	}
	return 5, true
}

// begin starts an event; a buffer that a long one has left is given back.
func (s *Scanner) begin() {
	s.start = s.pos
	if len(s.buf) > keepBuffer && s.end-s.pos <= scanBuffer {
		small := make([]byte, scanBuffer)
		s.end = copy(small, s.buf[s.pos:s.end])
		s.buf, s.start, s.pos, s.multi = small, 0, 0, nil
	}
}

// line passes over one line and says where it stands, counted from start, its
// end excluded.
func (s *Scanner) line() (from, to int, err error) {
	seen := s.pos
	for {
		if s.cr && s.pos < s.end {
			s.cr = false
			if s.buf[s.pos] == '\n' {
				s.pos++
			}
			seen = s.pos
		}
		if i := lineEnd(s.buf[seen:s.end]); i >= 0 {
			from, to = s.pos-s.start, seen+i-s.start
			s.cr = s.buf[seen+i] == '\r'
			s.pos = seen + i + 1
			return from, to, nil
		}
		looked := s.end - s.start
		if err := s.more(); err != nil {
			return 0, 0, err
		}
		seen = s.start + looked
	}
}

func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	if lf >= 0 {
		b = b[:lf]
	}
	if cr := bytes.IndexByte(b, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

// more reads once, after making room.
func (s *Scanner) more() error {
	if s.err != nil {
		return s.err
	}
	if s.start > 0 {
		copy(s.buf, s.buf[s.start:s.end])
		s.pos, s.end, s.start = s.pos-s.start, s.end-s.start, 0
	}
	if s.end == len(s.buf) {
		if len(s.buf) >= maxEvent {
			return ErrEventTooLong
		}
		s.grow()
	}
	for range 100 {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		s.err = err
		if n > 0 {
			s.quicken()
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// quicken grows the buffer of a stream that has just filled it: more is there
// than was taken.
func (s *Scanner) quicken() {
	if s.end == len(s.buf) && len(s.buf) < fastBuffer {
		s.grow()
	}
}

func (s *Scanner) grow() {
	grown := make([]byte, 2*len(s.buf))
	copy(grown, s.buf[:s.end])
	s.buf = grown
}
