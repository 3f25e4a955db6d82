//go:build unix

package backend

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// eager reads a socket without waiting first: what is to be done before a wait is
// done only where there will be one, and no buffer is held through it.
type eager struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool // made once: a closure for each read would be garbage
	c    *conn
	n    int
	err  error
	told bool // the wait has been announced
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
	e.try = e.once
	return e
}

// once tries to read; false says that there is nothing yet.
func (e *eager) once(fd uintptr) (done bool) {
	for {
		e.n, e.err = syscall.Read(int(fd), e.c.room())
		if !errors.Is(e.err, syscall.EINTR) {
			break
		}
	}
	if !errors.Is(e.err, syscall.EAGAIN) {
		return true
	}
	if len(e.c.unread()) == 0 {
		e.c.release()
	}
	if !e.told {
		e.told = true
		e.c.x.beforeWait()
	}
	return false
}

func (e *eager) read(c *conn) (int, error) {
	e.c, e.n, e.err, e.told = c, 0, nil, false
	switch err := e.raw.Read(e.try); {
	case err != nil:
		return 0, err
	case e.err != nil:
		return 0, e.err
	case e.n <= 0:
		return 0, io.EOF
	}
	return e.n, nil
}
