package gateway

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// This file bounds how long a caller may take for what it is sent. Two bounds lie
// over each other. The listener's connections bound every write to the socket, so
// that no byte of any answer, handshake or HTTP/2 frame waits for ever. The
// answerWriter bounds what a handler writes, since an HTTP/2 stream whose window is
// closed writes nothing to the socket at all.

// answerWriter is the way of every answer's body to its caller. What is written must
// be taken within limit, or the write fails and the stream or connection ends. One
// goroutine may use it.
type answerWriter struct {
	http.ResponseWriter
	limit    time.Duration
	deadline time.Time // of the writes; zero: not set
}

// extend moves the deadline, seldom: a stream asks for each event.
func (w *answerWriter) extend() error {
	now := time.Now()
	if w.deadline.Sub(now) > w.limit/2 {
		return nil
	}
	w.deadline = now.Add(w.limit)
	err := setWriteDeadline(w.ResponseWriter, w.deadline)
	if errors.Is(err, http.ErrNotSupported) { // it is no connection, so nothing waits
		return nil
	}
	return err
}

// setWriteDeadline does what http.ResponseController does, without an allocation where
// w is net/http's own.
func setWriteDeadline(w http.ResponseWriter, t time.Time) error {
	if own, ok := w.(interface{ SetWriteDeadline(t time.Time) error }); ok {
		return own.SetWriteDeadline(t)
	}
	return http.NewResponseController(w).SetWriteDeadline(t)
}

// Write writes a part of the body.
func (w *answerWriter) Write(p []byte) (int, error) {
	if err := w.extend(); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// FlushError sends what was written, and waits until the connection has taken it.
func (w *answerWriter) FlushError() error {
	if err := w.extend(); err != nil {
		return err
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush is http.Flusher's.
func (w *answerWriter) Flush() { _ = w.FlushError() } // the next write fails as well

// Unwrap is for http.ResponseController.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// bounded gives a handler an answerWriter.
func (g *Gateway) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, ok := g.writers.Get().(*answerWriter)
		if !ok {
			out = new(answerWriter)
		}
		*out = answerWriter{ResponseWriter: w, limit: g.settings.Load().WriteTimeout}
		h.ServeHTTP(out, r)
		if r.ProtoMajor == 1 && !out.deadline.IsZero() {
			// The next request on the connection must not inherit it. An HTTP/2 stream
			// keeps it: what is buffered is sent after the handler has returned.
			_ = setWriteDeadline(w, time.Time{})
		}
		*out = answerWriter{}
		g.writers.Put(out)
	})
}

// Listener returns l with a bound on the time that each write to one of its
// connections takes: write_timeout as it is configured at the time.
func (g *Gateway) Listener(l net.Listener) net.Listener { return &listener{l, g} }

type listener struct {
	net.Listener
	gateway *Gateway
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &boundConn{Conn: c, gateway: l.gateway}, nil
}

// boundConn is a connection whose writes end in time. It is safe for concurrent use
// as far as the connection is.
type boundConn struct {
	net.Conn
	gateway *Gateway
	armed   atomic.Int64 // deadline that the socket has, in Unix nanoseconds; 0: none
	until   atomic.Int64 // deadline that the server has set, in Unix nanoseconds; 0: none
}

// Write writes within the write timeout, or until an earlier deadline that was set.
func (c *boundConn) Write(p []byte) (int, error) {
	now, limit := time.Now(), c.gateway.settings.Load().WriteTimeout
	if until := c.until.Load(); (until == 0 || c.armed.Load() != until) && c.armed.Load() < now.Add(limit/2).UnixNano() {
		end := now.Add(limit).UnixNano()
		if until != 0 {
			end = min(end, until)
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
		c.until.Store(0)
		return nil // the next write sets its own
	}
	c.until.Store(t.UnixNano())
	return c.arm(t.UnixNano())
}

// SetDeadline sets both deadlines.
func (c *boundConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// CloseWrite says that nothing more will come, so that the peer can read the last
// answer before the connection ends.
func (c *boundConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// maxUnread bounds how many answers one HTTP/2 connection of callers without a good
// key may leave unread. A well-behaved client reads each at once.
const maxUnread = 8

// unread counts, by connection, the answers to strangers that wait to be read. It is
// safe for concurrent use.
type unread struct {
	mu     sync.Mutex
	byConn map[string]int // by remote address and port
}

// enter counts one more; false: the connection has too many already.
func (u *unread) enter(conn string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byConn[conn] >= maxUnread {
		return false
	}
	if u.byConn == nil {
		u.byConn = map[string]int{}
	}
	u.byConn[conn]++
	return true
}

func (u *unread) leave(conn string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byConn[conn]--; u.byConn[conn] <= 0 {
		delete(u.byConn, conn)
	}
}

// toStranger lets write answer a caller who has shown no good key. On HTTP/2 it waits
// until the caller has taken the answer, and of too many that wait on one connection
// the rest are dropped; dropped says that the stream must be cut. HTTP/1 needs no
// count: a connection has one answer at a time.
func (g *Gateway) toStranger(w http.ResponseWriter, r *http.Request, write func()) (dropped bool) {
	if r.ProtoMajor < 2 {
		write()
		return false
	}
	if !g.unread.enter(r.RemoteAddr) {
		return true
	}
	defer g.unread.leave(r.RemoteAddr)
	write()
	return http.NewResponseController(w).Flush() != nil
}
