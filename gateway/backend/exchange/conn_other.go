//go:build !unix

package exchange

import "net"

// socket is unused here: it needs the read call of Unix, and elsewhere every read may wait.
type socket struct{}

func newSocket(net.Conn) *socket { return nil }

func (e *socket) read(*conn) error { return net.ErrClosed }

func (e *socket) follow(*conn, func() error) (result, err error) { return nil, net.ErrClosed }

func (e *socket) drain(*conn, func() error) (result error) { return ErrNothing }

// quiet returns false: it cannot be known here, so that a connection carries one request.
func (e *socket) quiet() bool { return false }
