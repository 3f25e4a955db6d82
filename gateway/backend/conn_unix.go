//go:build unix

package backend

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// eager reads a socket without waiting first: what is to be done before a wait is
// done only where there will be one, and no buffer is held through it.
type socket struct {
	raw               syscall.RawConn
	readOnce, readAll func(fd uintptr) bool // made here: a closure for each read would be garbage
	look              func(fd uintptr)
	c                 *conn
	reads             int // without a wait between them
	consume           func() error
	result            error // what take returned
	err               error // of the read
	empty             bool  // look found nothing to be read
}

// newEager is nil where the connection is no plain socket.
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

// silent reports whether there is nothing to be read: no byte, no end, no error.
func (e *socket) quiet() bool {
	e.empty = false
	return e.raw.Control(e.look) == nil && e.empty
}

func (e *socket) peek(fd uintptr) {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK) // Go's sockets do not block
	e.empty = errors.Is(err, syscall.EAGAIN)
}

// read waits until there is something and reads it.
func (e *socket) read(c *conn) error {
	e.c, e.err = c, nil
	if err := e.raw.Read(e.readOnce); err != nil {
		return err
	}
	return e.err
}

// follow waits and lets take have what comes, piece after piece, until take ends
// or, with err, reading does.
func (e *socket) follow(c *conn, consume func() error) (ended, err error) {
	e.c, e.consume, e.err = c, consume, nil
	if err := e.raw.Read(e.readAll); err != nil {
		return nil, err
	}
	return e.result, e.err
}

// tryOnce tries to read; false says that there is nothing yet.
func (e *socket) tryOnce(fd uintptr) (done bool) {
	if e.err = e.try(int(fd)); errors.Is(e.err, syscall.EAGAIN) {
		e.releaseEmpty()
		return false
	}
	return true
}

// takeEach reads and lets take have it as long as there is more. That a piece left
// room does not say that it was all: the end of the stream may have come with it,
// and no other event would tell.
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

// drainReads bounds what is still read of a server that goes on sending.
const drainReads = 64

// rest lets take have what has come though the deadline has passed: on a machine
// that is starved it passes before anybody has looked.
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

// try reads what is there.
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

// idle holds no buffer while there is nothing in it.
func (e *socket) releaseEmpty() {
	if len(e.c.unread()) == 0 {
		e.c.release()
	}
}
