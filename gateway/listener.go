package gateway

import (
	"net"
	"sync/atomic"
	"time"
)

// listener accepts connections whose writes end in time.
type listener struct {
	net.Listener
	writeTimeout func() time.Duration
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &boundConn{Conn: c, writeTimeout: l.writeTimeout}, nil
}

// boundConn is a connection whose writes end in time. It is safe for concurrent use
// as far as the connection is.
type boundConn struct {
	net.Conn
	writeTimeout func() time.Duration
	armed        atomic.Int64 // deadline that the socket has, in Unix nanoseconds; 0: none
	wanted       atomic.Int64 // deadline that the server has set, in Unix nanoseconds; 0: none
}

// Write writes within the write timeout, or until an earlier deadline that was set.
func (c *boundConn) Write(p []byte) (int, error) {
	now, limit := time.Now(), c.writeTimeout()
	if wanted := c.wanted.Load(); (wanted == 0 || c.armed.Load() != wanted) && c.armed.Load() < now.Add(limit/2).UnixNano() {
		end := now.Add(limit).UnixNano()
		if wanted != 0 {
			end = min(end, wanted)
		}
		if err := c.arm(end); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

func (c *boundConn) arm(end int64) error {
	c.armed.Store(end)
	return c.Conn.SetWriteDeadline(time.Unix(0, end))
}

// SetWriteDeadline sets an earlier end of all writes; the zero time takes it back.
func (c *boundConn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		c.wanted.Store(0)
		return nil // the next write sets its own
	}
	c.wanted.Store(t.UnixNano())
	return c.arm(t.UnixNano())
}

// SetDeadline sets both deadlines.
func (c *boundConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// CloseWrite ends the writing side, so that the peer can read the last
// answer before the connection ends.
func (c *boundConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
