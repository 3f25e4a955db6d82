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
type eager struct {
	raw        syscall.RawConn
	once, each func(fd uintptr) bool // made here: a closure for each read would be garbage
	look       func(fd uintptr)
	c          *conn
	reads      int // without a wait between them
	take       func() error
	ended      error // what take returned
	err        error // of the read
	nothing    bool  // look found nothing to be read
}

// newEager is nil where the connection is no plain socket.
func newEager(nc net.Conn) *eager {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	e := &eager{raw: raw}
	e.once, e.each, e.look = e.tryOnce, e.takeEach, e.peek
	return e
}

// silent reports whether there is nothing to be read: no byte, no end, no error.
func (e *eager) silent() bool {
	e.nothing = false
	return e.raw.Control(e.look) == nil && e.nothing
}

func (e *eager) peek(fd uintptr) {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK) // Go's sockets do not block
	e.nothing = errors.Is(err, syscall.EAGAIN)
}

// read waits until there is something and reads it.
func (e *eager) read(c *conn) error {
	e.c, e.err = c, nil
	if err := e.raw.Read(e.once); err != nil {
		return err
	}
	return e.err
}

// follow waits and lets take have what comes, piece after piece, until take ends
// or, with err, reading does.
func (e *eager) follow(c *conn, take func() error) (ended, err error) {
	e.c, e.take, e.err = c, take, nil
	if err := e.raw.Read(e.each); err != nil {
		return nil, err
	}
	return e.ended, e.err
}

// tryOnce tries to read; false says that there is nothing yet.
func (e *eager) tryOnce(fd uintptr) (done bool) {
	if e.err = e.try(int(fd)); errors.Is(e.err, syscall.EAGAIN) {
		e.idle()
		return false
	}
	return true
}

// takeEach reads and lets take have it as long as there is more. That a piece left
// room does not say that it was all: the end of the stream may have come with it,
// and no other event would tell.
func (e *eager) takeEach(fd uintptr) (done bool) {
	for e.reads = 1; ; e.reads++ {
		if e.reads%readsToLook == 0 && e.c.x.overdue() {
			e.err = os.ErrDeadlineExceeded
			return true
		}
		if e.err = e.try(int(fd)); errors.Is(e.err, syscall.EAGAIN) {
			e.err = nil
			e.idle()
			e.c.x.beforeWait()
			return false
		}
		if e.err != nil {
			return true
		}
		if e.ended = e.take(); e.ended != ErrNothing { //nolint:errorlint // as in Answer.Follow
			return true
		}
	}
}

// readsToLook is after how many reads in a row the clock is looked at, which otherwise
// only waiting does: a server that floods is never waited for.
const readsToLook = 16

// restReads bounds what is still read of a server that goes on sending.
const restReads = 64

// rest lets take have what has come though the deadline has passed: on a machine
// that is starved it passes before anybody has looked.
func (e *eager) rest(c *conn, take func() error) (ended error) {
	e.c, e.ended = c, ErrNothing
	if c.nc.SetReadDeadline(time.Time{}) != nil {
		return ErrNothing
	}
	err := e.raw.Read(func(fd uintptr) (done bool) {
		for n := 0; n < restReads && e.ended == ErrNothing && e.try(int(fd)) == nil; n++ { //nolint:errorlint // as in Answer.Follow
			e.ended = take()
		}
		return true
	})
	if err != nil {
		return ErrNothing
	}
	return e.ended
}

// try reads what is there.
func (e *eager) try(fd int) error {
	room := e.c.room()
	for {
		n, err := syscall.Read(fd, room)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case n == 0 && err == nil && len(room) > 0:
			err = io.EOF
		}
		return e.c.received(n, err)
	}
}

// idle holds no buffer while there is nothing in it.
func (e *eager) idle() {
	if len(e.c.unread()) == 0 {
		e.c.release()
	}
}
