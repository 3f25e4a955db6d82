package exchange

import (
	"bytes"
	"errors"
	"io"
	"net/http"
)

var (
	errFraming = errors.New("malformed framing of the answer")
	errHead    = errors.New("malformed head of the answer")
)

// framing finds the end of a body (RFC 9112 §6 and §7.1). net/http has parsed the head.
// framing reads the body through the connection's own buffer, since net/http's reader of
// chunks would need a second one.
type framing struct {
	state framingState
	left  int64 // bytes left of the body or the chunk
	close bool  // whether the connection ends with the body
	// bytes of the framing itself beyond those that a server needs. A bound on them ends
	// a body that consists of nothing else (net/http counts them likewise).
	excess int64
}

// maxExcess bounds framing.excess.
const maxExcess = 16 << 10

type framingState int

const (
	whole      framingState = iota // a body of known length
	untilClose                     // a body that ends with the connection
	chunkSize                      // the line before a chunk
	chunkBody
	chunkEnd // the empty line behind a chunk
	trailer  // the lines behind the last chunk
	ended
	broken // the framing is malformed
)

func framingOf(resp *http.Response) framing {
	f := framing{state: whole, left: resp.ContentLength, close: resp.Close}
	switch {
	case len(resp.TransferEncoding) > 0:
		f.state, f.left = chunkSize, 0
	case resp.ContentLength < 0:
		f.state, f.close = untilClose, true
	case resp.ContentLength == 0:
		f.state = ended
	}
	return f
}

// read copies available bytes of the body to p and waits only if there are none.
func (f *framing) read(c *conn, p []byte) (n int, err error) {
	for n < len(p) && f.state != ended && f.state != broken {
		moved, need := f.step(c, p[n:])
		if n += moved; !need {
			continue
		}
		if n > 0 {
			return n, nil
		}
		if err := c.fill(); err != nil {
			return 0, f.endOf(err)
		}
	}
	switch {
	case n > 0 || len(p) == 0:
		return n, nil
	case f.state == broken:
		return 0, errFraming
	}
	return 0, io.EOF
}

// endOf converts an end of file: it may be the end of the body.
func (f *framing) endOf(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	if f.state == untilClose {
		f.state = ended
		return io.EOF
	}
	return io.ErrUnexpectedEOF
}

// step consumes one piece of the buffer; need reports that more must be read.
func (f *framing) step(c *conn, p []byte) (n int, need bool) {
	unread := c.unread()
	switch f.state {
	case whole, chunkBody:
		n = copy(p[:min(int64(len(p)), f.left)], unread)
		if f.left -= int64(n); f.left == 0 && f.state == whole {
			f.state = ended
		} else if f.left == 0 {
			f.state = chunkEnd
		}
	case untilClose:
		n = copy(p, unread)
	default:
		end := bytes.IndexByte(unread, '\n')
		if end < 0 {
			return 0, true
		}
		line := unread[:end]
		if end > 0 && line[end-1] == '\r' {
			line = line[:end-1]
		}
		f.line(line)
		c.skip(end + 1)
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	if f.state == chunkEnd && len(unread) >= n+2 && unread[n] == '\r' && unread[n+1] == '\n' {
		f.state = chunkSize // the usual case, without another step
		c.skip(n + 2)
		return n, false
	}
	c.skip(n)
	return n, false
}

// line consumes one line of the framing itself.
func (f *framing) line(line []byte) {
	switch f.state {
	case chunkEnd:
		f.state = chunkSize
		if len(line) > 0 {
			f.state = broken
		}
	case trailer:
		f.excess += int64(len(line)) + 2
		if len(line) == 0 {
			f.state = ended
		} else if f.excess > maxExcess {
			f.state = broken
		}
	case chunkSize:
		size, ok := hex(line)
		f.excess = max(f.excess+int64(len(line))-2*min(size, maxExcess)-16, 0)
		switch f.left = size; {
		case !ok, f.excess > maxExcess:
			f.state = broken
		case size == 0:
			f.state = trailer
		default:
			f.state = chunkBody
		}
	}
}

// hex parses the size of a chunk, which an extension may follow.
func hex(line []byte) (size int64, ok bool) {
	const maxDigits = 15 // digits that fit
	for i, c := range line {
		digit := int64(-1)
		switch lower := c | 0x20; {
		case c >= '0' && c <= '9':
			digit = int64(c - '0')
		case lower >= 'a' && lower <= 'f':
			digit = int64(lower-'a') + 10
		}
		if digit < 0 {
			rest := bytes.TrimLeft(line[i:], " \t")
			return size, i > 0 && (len(rest) == 0 || rest[0] == ';')
		}
		if i == maxDigits {
			return 0, false
		}
		size = size<<4 | digit
	}
	return size, len(line) > 0
}
