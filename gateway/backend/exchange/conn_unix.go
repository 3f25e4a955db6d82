//go:build unix

package exchange

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// socket reads without waiting first. So work is deferred to the moment of a wait, and
// no buffer is held during one.
type socket struct {
	raw               syscall.RawConn
	readOnce, readAll func(fd uintptr) bool // closures made once, so that a read allocates nothing
	look              func(fd uintptr)
	c                 *conn
	reads             int // reads since the last wait
	consume           func() error
	result            error // result of consume
	err               error // error of the read
	empty             bool  // whether peek found nothing to read
}

// newSocket returns nil for a connection that is no plain socket.
func newSocket(nc net.Conn) *socket {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	e := &socket{raw: raw}
	e.readOnce, e.readAll, e.look = e.tryOnce, e.tryAll, e.peek
	return e
}

// quiet reports whether nothing can be read: no byte, no end, no error.
func (e *socket) quiet() bool {
	e.empty = false
	return e.raw.Control(e.look) == nil && e.empty
}

func (e *socket) peek(fd uintptr) {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK) // Go's sockets do not block
	e.empty = errors.Is(err, syscall.EAGAIN)
}

// read waits for bytes and reads them.
func (e *socket) read(c *conn) error {
	e.c, e.err = c, nil
	if err := e.raw.Read(e.readOnce); err != nil {
		return err
	}
	return e.err
}

// follow waits and calls consume for each piece until consume returns a result, or
// reading fails with err.
func (e *socket) follow(c *conn, consume func() error) (ended, err error) {
	e.c, e.consume, e.err = c, consume, nil
	if err := e.raw.Read(e.readAll); err != nil {
		return nil, err
	}
	return e.result, e.err
}

// tryOnce tries one read; false means that nothing is there yet.
func (e *socket) tryOnce(fd uintptr) (done bool) {
	if e.err = e.try(int(fd)); errors.Is(e.err, syscall.EAGAIN) {
		e.releaseEmpty()
		return false
	}
	return true
}

// tryAll reads and calls consume until nothing is left. A piece that left space may
// still not be the last one: the end of the stream may have come with it, without
// another event.
func (e *socket) tryAll(fd uintptr) (done bool) {
	for e.reads = 1; ; e.reads++ {
		if e.reads%readsPerCheck == 0 && e.c.x.overdue() {
			e.err = os.ErrDeadlineExceeded
			return true
		}
		if e.err = e.try(int(fd)); errors.Is(e.err, syscall.EAGAIN) {
			e.err = nil
			e.releaseEmpty()
			e.c.x.beforeWait()
			return false
		}
		if e.err != nil {
			return true
		}
		if e.result = e.consume(); e.result != ErrNothing { //nolint:errorlint // as in Answer.Follow
			return true
		}
	}
}

// readsPerCheck is the number of reads in a row after which the clock is read, which otherwise
// only waiting does: a server that floods is never waited for.
const readsPerCheck = 16

// drainReads bounds the reads of a backend that keeps sending.
const drainReads = 64

// drain calls consume for what has arrived before the deadline passed. On a starved
// machine the deadline passes before anybody has looked.
func (e *socket) drain(c *conn, consume func() error) (ended error) {
	e.c, e.result = c, ErrNothing
	if c.nc.SetReadDeadline(time.Time{}) != nil {
		return ErrNothing
	}
	err := e.raw.Read(func(fd uintptr) (done bool) {
		for n := 0; n < drainReads && e.result == ErrNothing && e.try(int(fd)) == nil; n++ { //nolint:errorlint // as in Answer.Follow
			e.result = consume()
		}
		return true
	})
	if err != nil {
		return ErrNothing
	}
	return e.result
}

// try reads available bytes.
func (e *socket) try(fd int) error {
	room := e.c.space()
	for {
		n, err := syscall.Read(fd, room)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case n == 0 && err == nil && len(room) > 0:
			err = io.EOF
		}
		return e.c.advance(n, err)
	}
}

// releaseEmpty releases an empty buffer.
func (e *socket) releaseEmpty() {
	if len(e.c.unread()) == 0 {
		e.c.release()
	}
}
