package openai

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// Sizes of a Scanner's buffer in bytes.
const (
	scanBuffer = 16 << 10 // acquired while there is something to read
	keepBuffer = 64 << 10 // a larger buffer is kept only for its event
	maxEvent   = 16 << 20
	maxNoise   = 1 << 20 // bytes allowed between two events
)

// Errors of a stream that would take unbounded memory or time.
var (
	ErrEventTooLong = errors.New("a stream event is longer than 16 MiB")
	ErrNoEvents     = errors.New("the stream carries more than 1 MiB of comments and empty events between two events")
)

// A Scanner reads server-sent events (the event-stream format of WHATWG HTML §9.2)
// from r, for any splitting of the bytes over reads. Lines end in LF, CRLF or CR.
// Comments and fields other than data are skipped, and the data lines of one event
// are joined by LF. Events whose data is empty or white space are skipped too:
// proxies send them as keep-alives. Memory is constant. Between two events, while r
// has nothing, it is none; otherwise it is one buffer of 16 KiB, or of the length of
// the event (above 64 KiB only for that event).
//
// A read that returns only an error other than io.EOF is not the end: the next call
// continues where the last one stopped. So r may be a reader that reports that it
// has nothing yet.
type Scanner struct {
	r       io.Reader
	buffers *Buffers
	buf     []byte
	start   int  // first byte of the current event
	pos     int  // first byte of the current line
	seen    int  // first byte that was not searched yet
	end     int  // first byte that was not read yet
	hasCR   bool // whether the buffer may contain a CR
	lastCR  bool // whether the last line ended in CR, to which a following LF belongs
	event   struct {
		start, end int // range of its data, relative to Scanner.start
		lines      int // number of its data lines
	}
	done  bool   // whether the event was returned and the next call begins another
	noise int    // bytes since the last event that belong to none
	multi []byte // data of an event with several data lines
	err   error  // error of the last read
}

// Buffers is a pool of the buffers of scanners, so that thousands of waiting streams
// share a few. The zero value is ready to use, and it is safe for concurrent use.
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

// NewScanner returns a scanner of r that acquires its memory from buffers.
func NewScanner(r io.Reader, buffers *Buffers) *Scanner {
	return &Scanner{r: r, buffers: buffers, done: true}
}

// Next returns the data of the next event that has any. It is valid until the next call.
// The error is io.EOF if the stream ended between events, io.ErrUnexpectedEOF if it ended
// inside one, ErrEventTooLong, ErrNoEvents, or the reader's error.
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
			s.start = s.pos // the line is not needed
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

// blank reports whether data is empty or white space. Other data begins with a letter or a
// bracket and is not searched.
func blank(data []byte) bool {
	return len(data) == 0 || data[0] <= ' ' && len(bytes.TrimSpace(data)) == 0
}

// dataField reports whether line is a data field, and returns the offset of its value.
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

// begin begins an event. It replaces a large buffer, which a long event left, by a small one.
func (s *Scanner) begin() {
	s.start, s.seen, s.event.lines, s.done = s.pos, s.pos, 0, false
	if len(s.buf) > keepBuffer && s.end-s.pos <= scanBuffer {
		small := s.buffers.acquire()
		s.end = copy(small, s.buf[s.pos:s.end])
		s.buf, s.start, s.pos, s.seen, s.multi = small, 0, 0, 0, nil
	}
}

// line reads one line and returns its range without its end, relative to s.start.
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

// lineEnd returns the end of the current line, relative to s.seen, or -1.
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

// fill makes room in the buffer and reads once.
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
