package openai

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// Sizes of a Scanner's buffer in bytes.
const (
	scanBuffer = 16 << 10 // lent while there is something in it
	keepBuffer = 64 << 10 // a larger one is kept only while its event is there
	maxEvent   = 16 << 20
	maxNoise   = 1 << 20 // what may stand between two events
)

// Errors of a stream whose memory or time would have no end.
var (
	ErrEventTooLong = errors.New("a stream event is longer than 16 MiB")
	ErrNoEvents     = errors.New("the stream carries more than 1 MiB of comments and empty events between two events")
)

// Scanner reads server-sent events (the event-stream format of WHATWG HTML
// §9.2) out of r, however its bytes are split over reads: lines end in LF, CRLF
// or CR, comments and other fields than data are passed over, the data lines of
// one event are joined by LF. Events whose data is empty or white space are passed
// over, too: proxies send them as keep-alives. Memory is constant: none between two
// events for which r has nothing yet, else one buffer of 16 KiB, or as much as the
// events are long (above 64 KiB only while one is in it).
//
// A read that brings only an error other than io.EOF is not the end: the next call
// goes on where the last one stopped, so r may be a reader that says when there is
// nothing yet.
type Scanner struct {
	r       io.Reader
	buffers *Buffers
	buf     []byte
	start   int  // first byte of the event under way
	pos     int  // first byte of the line under way
	seen    int  // first byte not yet looked at
	end     int  // first byte not yet read
	hasCR   bool // there may be a CR in what is buffered
	lastCR  bool // the last line ended in CR: an LF that follows belongs to it
	event   struct {
		start, end int // where its data stands, counted from start
		lines      int // of data
	}
	done  bool // the event was returned: the next call begins another
	noise int  // bytes since the last event that belong to none
	multi []byte
	err   error
}

// Buffers lends scanners what they read into, so that thousands of streams that
// wait share a few. The zero value is ready; it is safe for concurrent use.
type Buffers struct{ pool sync.Pool } // of *[scanBuffer]byte

func (b *Buffers) acquire() []byte {
	if buf, ok := b.pool.Get().(*[scanBuffer]byte); ok {
		return buf[:]
	}
	return make([]byte, scanBuffer)
}

func (b *Buffers) release(buf []byte) {
	if len(buf) == scanBuffer {
		b.pool.Put((*[scanBuffer]byte)(buf))
	}
}

// NewScanner reads from r into buffers that are lent.
func NewScanner(r io.Reader, buffers *Buffers) *Scanner {
	return &Scanner{r: r, buffers: buffers, done: true}
}

// Next returns the data of the next event that has any. It is valid until the
// following call. The error is io.EOF where the stream ended between events,
// io.ErrUnexpectedEOF where it ended inside one, ErrEventTooLong, ErrNoEvents, else the
// reader's own.
func (s *Scanner) Next() ([]byte, error) {
	if s.done {
		s.begin()
	}
	e := &s.event
	for {
		lineFrom, lineTo, err := s.line()
		if err != nil {
			if errors.Is(err, io.EOF) && (e.lines > 0 || s.end > s.pos) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		line := s.buf[s.start+lineFrom : s.start+lineTo]
		if len(line) == 0 && e.lines > 0 {
			data := s.multi
			if e.lines == 1 {
				data = s.buf[s.start+e.start : s.start+e.end]
			}
			if !blank(data) {
				s.done, s.noise = true, 0
				return data, nil
			}
			if s.noise += s.pos - s.start; s.noise > maxNoise {
				return nil, ErrNoEvents
			}
			s.begin()
			continue
		}
		skip, ok := dataField(line)
		switch {
		case !ok && e.lines == 0:
			if s.noise += len(line) + 1; s.noise > maxNoise {
				return nil, ErrNoEvents
			}
			s.start = s.pos // nothing of this line need be kept
		case !ok:
		case e.lines == 0:
			e.start, e.end, e.lines = lineFrom+skip, lineTo, 1
		default:
			if e.lines == 1 {
				s.multi = append(s.multi[:0], s.buf[s.start+e.start:s.start+e.end]...)
			}
			s.multi = append(append(s.multi, '\n'), line[skip:]...)
			e.lines++
		}
	}
}

// blank reports whether there is nothing in data. Other data begins with a letter or
// a bracket, and is not searched.
func blank(data []byte) bool {
	return len(data) == 0 || data[0] <= ' ' && len(bytes.TrimSpace(data)) == 0
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
	s.start, s.seen, s.event.lines, s.done = s.pos, s.pos, 0, false
	if len(s.buf) > keepBuffer && s.end-s.pos <= scanBuffer {
		small := s.buffers.acquire()
		s.end = copy(small, s.buf[s.pos:s.end])
		s.buf, s.start, s.pos, s.seen, s.multi = small, 0, 0, 0, nil
	}
}

// line passes over one line and says where it stands, counted from start, its
// end excluded.
func (s *Scanner) line() (start, end int, err error) {
	for {
		if s.lastCR && s.pos < s.end {
			s.lastCR = false
			if s.buf[s.pos] == '\n' {
				if s.start == s.pos {
					s.start++
				}
				s.pos++
			}
			s.seen = s.pos
		}
		if i := s.lineEnd(); i >= 0 {
			start, end = s.pos-s.start, s.seen+i-s.start
			s.lastCR = s.buf[s.seen+i] == '\r'
			s.pos = s.seen + i + 1
			s.seen = s.pos
			return start, end, nil
		}
		s.seen = s.end
		if err := s.fill(); err != nil {
			return 0, 0, err
		}
	}
}

// lineEnd is where the line under way ends, counted from seen; -1: not yet.
func (s *Scanner) lineEnd() int {
	rest := s.buf[s.seen:s.end]
	lf := bytes.IndexByte(rest, '\n')
	if !s.hasCR {
		return lf
	}
	if lf >= 0 {
		rest = rest[:lf]
	}
	if cr := bytes.IndexByte(rest, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

// fill reads once, after making room.
func (s *Scanner) fill() error {
	if s.err != nil {
		return s.err
	}
	if s.start > 0 {
		copy(s.buf, s.buf[s.start:s.end])
		s.pos, s.seen, s.end, s.start = s.pos-s.start, s.seen-s.start, s.end-s.start, 0
	}
	switch {
	case s.buf == nil:
		s.buf = s.buffers.acquire()
	case s.end == len(s.buf):
		if s.event.lines == 0 && s.end > maxNoise && !bytes.HasPrefix(s.buf[s.pos:s.end], []byte("data")) {
			return ErrNoEvents
		}
		if len(s.buf) >= maxEvent {
			return ErrEventTooLong
		}
		s.grow()
	}
	for range 100 {
		n, err := s.r.Read(s.buf[s.end:])
		s.hasCR = s.hasCR && s.end > 0 || bytes.IndexByte(s.buf[s.end:s.end+n], '\r') >= 0
		s.end += n
		if n > 0 || errors.Is(err, io.EOF) {
			s.err = err
		}
		if n > 0 {
			return nil
		}
		if err != nil {
			if s.end == 0 {
				s.buffers.release(s.buf)
				s.buf = nil
			}
			return err
		}
	}
	return io.ErrNoProgress
}

func (s *Scanner) grow() {
	grown := make([]byte, 2*len(s.buf))
	copy(grown, s.buf[:s.end])
	s.buffers.release(s.buf)
	s.buf = grown
}
