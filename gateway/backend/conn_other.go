//go:build !unix

package backend

import "net"

// eager needs the read call of Unix; elsewhere every read may wait.
type eager struct{}

func newEager(net.Conn) *eager { return nil }

func (e *eager) read(*conn) error { return net.ErrClosed }

func (e *eager) follow(*conn, func() error) (ended, err error) { return nil, net.ErrClosed }

func (e *eager) rest(*conn, func() error) (ended error) { return ErrNothing }

// silent is never known here, so that a connection carries one request.
func (e *eager) silent() bool { return false }
