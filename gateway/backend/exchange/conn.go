package exchange

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// IdleLife is the time for which an idle connection is kept: less than the 5 s after which
// vLLM's server closes it.
const IdleLife = 4 * time.Second

// MaxHead bounds the head of an answer, in bytes.
const MaxHead = largeBuffer

const (
	maxIdle = 4096 // connections kept per backend
	// A server that is busy notices late that the caller has left, and what it makes
	// until then is counted. One that never does is cut off after this.
	drainAfter = 500 * time.Millisecond
)

// Sizes of a connection's buffer in bytes. It also bounds the head of an answer.
const (
	largeBuffer = 32 << 10 // borrowed while there is something to read
	smallBuffer = 4 << 10  // kept by a connection that cannot wait without one (TLS)
)

// conn is one connection. While an exchange runs on it, reading waits as long as
// the exchange allows.
//
// A plain socket is waited on without a buffer: one is borrowed when there is
// something to read and given back when that is used up. So thousands of waiting
// streams share a few buffers, which can be large, and a fast stream is read and
// passed on in large pieces.
type conn struct {
	nc        net.Conn
	direct    *socket // reader without a buffer; nil if reading waits with one
	socket    *socket // socket below nc; nil if it cannot be inspected
	buffers   *buffers
	buf       []byte // nil if none is held
	r, w      int    // buf[r:w] is unread
	used      bool   // whether it has carried an exchange before
	idleSince time.Time
	received  bool // whether something was read in this exchange
	x         *Answer

	followed bool  // whether reading does not wait: see Answer.Follow
	failed   error // error of the last read in Follow
}

// buffers pools what an exchange needs for a short time. The zero value is ready.
type buffers struct {
	large sync.Pool // of *[largeBuffer]byte
	heads sync.Pool // of *headReader
	out   sync.Pool // of *[]byte
}

// headReader parses an answer's head out of bytes.
type headReader struct {
	src bytes.Reader
	br  *bufio.Reader
}

func (c *conn) unread() []byte { return c.buf[c.r:c.w] }

// skip drops n unread bytes and releases the buffer if it is empty.
func (c *conn) skip(n int) {
	if c.r += n; c.r == c.w {
		c.release()
	}
}

func (c *conn) release() {
	c.r, c.w = 0, 0
	if len(c.buf) == largeBuffer {
		c.buffers.large.Put((*[largeBuffer]byte)(c.buf))
		c.buf = nil
	}
}

// space returns the free part of the buffer; empty if the buffer is full.
func (c *conn) space() []byte {
	if c.r > 0 {
		c.w, c.r = copy(c.buf, c.unread()), 0
	}
	if c.buf == nil && c.direct == nil {
		c.buf = make([]byte, smallBuffer)
	}
	if c.buf == nil {
		if b, ok := c.buffers.large.Get().(*[largeBuffer]byte); ok {
			c.buf = b[:]
		} else {
			c.buf = make([]byte, largeBuffer)
		}
	}
	return c.buf[c.w:]
}

// fill waits for more bytes and reads them. At the deadline it asks the exchange whether
// to continue.
func (c *conn) fill() error {
	if c.followed && c.failed == nil {
		return ErrNothing
	}
	if c.followed {
		return c.failed
	}
	if !c.x.q.Stream && c.x.started {
		c.x.silentSince = time.Now()
	}
	for {
		err := c.fetch()
		if err == nil || !isTimeout(err) {
			return err
		}
		if err := c.x.deadlinePassed(); err != nil {
			return err
		}
	}
}

// fetch waits and reads once.
func (c *conn) fetch() error {
	if c.direct != nil {
		return c.direct.read(c)
	}
	return c.advance(c.nc.Read(c.space()))
}

// advance records the result of one read.
func (c *conn) advance(n int, err error) error {
	switch {
	case n > 0:
		c.w += n
		c.received = true
		return nil
	case err != nil:
		return err
	case c.w == len(c.buf):
		return errFraming // what is there needs more room than there is
	}
	return io.ErrNoProgress
}

// follow waits and calls consume for each piece, or for an error.
func (c *conn) follow(consume func() error) error {
	var err error
	if c.direct != nil {
		var ended error
		if ended, err = c.direct.follow(c, consume); err == nil {
			return ended
		}
	} else {
		c.x.beforeWait()
		err = c.fetch()
	}
	if isTimeout(err) {
		if err = c.x.deadlinePassed(); err == nil {
			return ErrNothing
		}
		if c.x.left && c.direct != nil {
			if ended := c.direct.drain(c, consume); ended != ErrNothing { //nolint:errorlint // as in Answer.Follow
				return ended
			}
		}
	}
	c.failed = err
	return consume()
}

// head reads the head of an answer; net/http parses it and decides its framing.
func (c *conn) head(post *http.Request) (*http.Response, error) {
	for seen := 0; ; {
		end := bytes.Index(c.unread()[seen:], []byte("\n\r\n"))
		if end >= 0 {
			end += seen + 3
			resp, err := c.buffers.parse(c.unread()[:end], post)
			c.skip(end)
			return resp, err
		}
		seen = max(len(c.unread())-2, 0)
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

func (b *buffers) parse(head []byte, post *http.Request) (*http.Response, error) {
	h, ok := b.heads.Get().(*headReader)
	if !ok {
		h = &headReader{}
		h.br = bufio.NewReader(&h.src)
	}
	defer b.heads.Put(h)
	h.src.Reset(head)
	h.br.Reset(&h.src)
	resp, err := http.ReadResponse(h.br, post)
	if err != nil && !stale(err) {
		err = errHead // what net/http says quotes the server, and errors are logged
	}
	return resp, err
}

// closeWrite half-closes the connection. Servers of one answer per request take that for
// a disconnect.
func (c *conn) closeWrite() error {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.nc.Close()
}

// close ends the connection.
func (c *conn) close() {
	c.release()
	c.nc.Close()
}

// dialer makes connections to one server.
type dialer struct {
	addr    string
	tls     *tls.Config // nil for plain connections
	buffers buffers
}

func (d *dialer) dial(ctx context.Context, limit time.Duration) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", d.addr)
	var sock, reading *socket
	if err == nil {
		sock = newSocket(nc)
		reading = sock
	}
	if err == nil && d.tls != nil {
		t := tls.Client(nc, d.tls)
		if err = t.HandshakeContext(ctx); err != nil {
			nc.Close()
		}
		nc, reading = t, nil
	}
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded || isTimeout(err) {
			return nil, &TimeoutError{Phase: Connect, Wait: limit}
		}
		return nil, &BrokenError{"connect", err}
	}
	return &conn{nc: nc, direct: reading, socket: sock, buffers: &d.buffers}, nil
}

// drained reports whether nothing is left to read after the end of an answer. TLS may
// hold decrypted bytes: a read with a passed deadline returns them, or a timeout.
func (c *conn) drained() bool {
	if len(c.unread()) > 0 {
		return false
	}
	if c.direct != nil {
		return true
	}
	if c.nc.SetReadDeadline(time.Unix(1, 0)) != nil {
		return false
	}
	n, err := c.nc.Read(make([]byte, 1))
	return n == 0 && isTimeout(err)
}

// reusable reports whether an idle connection may carry a request: the backend has
// neither closed it nor sent unexpected bytes, which would be taken for the next answer.
func (c *conn) reusable() bool { return c.socket != nil && c.socket.quiet() }

// pool keeps idle connections, the youngest on top. Bytes from the backend on an idle
// connection end it.
type pool struct {
	mu     sync.Mutex
	idle   []*conn
	closed bool
}

// acquire returns a reusable idle connection; nil if there is none.
func (p *pool) acquire(now time.Time) *conn {
	for {
		c := p.pop(now)
		if c == nil || c.reusable() {
			return c
		}
		c.close()
	}
}

// pop removes and returns the youngest connection; nil if none is young enough.
func (p *pool) pop(now time.Time) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	last := len(p.idle) - 1
	c := p.idle[last]
	if now.Sub(c.idleSince) > IdleLife { // and it is the youngest
		p.drop(len(p.idle))
		return nil
	}
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return c
}

func (p *pool) release(c *conn, now time.Time) {
	c.used, c.idleSince, c.x = true, now, nil
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= maxIdle {
		c.close()
		return
	}
	p.idle = append(p.idle, c)
}

// prune closes connections shortly before the backend does.
func (p *pool) prune(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := 0
	for old < len(p.idle) && now.Sub(p.idle[old].idleSince) > IdleLife {
		old++
	}
	p.drop(old)
}

// close closes the idle connections and, later, those still in use.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.drop(len(p.idle))
}

// isClosed reports whether the pool is closed.
func (p *pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// drop closes the n oldest.
func (p *pool) drop(n int) {
	for _, c := range p.idle[:n] {
		c.close()
	}
	rest := copy(p.idle, p.idle[n:])
	clear(p.idle[rest:])
	p.idle = p.idle[:rest]
}
