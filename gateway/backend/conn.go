package backend

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

const (
	idleLife   = 4 * time.Second // below the 5 s after which vLLM's server closes
	maxIdle    = 4096            // connections kept per backend
	drainAfter = 50 * time.Millisecond
	maxHead    = 1 << 20 // bytes of an answer's head
)

// conn is one connection. While an exchange runs on it, reading waits as long as
// the exchange allows.
type conn struct {
	nc    net.Conn
	br    *bufio.Reader // over the conn itself
	used  bool          // it has carried an exchange before
	since time.Time     // idle since
	x     *Answer
	read  int // bytes read in this exchange
}

// Read reads from the network. When the deadline passes, the exchange is asked
// whether to wait on.
func (c *conn) Read(p []byte) (int, error) {
	c.x.waiting = time.Now()
	for {
		n, err := c.nc.Read(p)
		if n > 0 {
			c.read += n
			if !c.x.headed && c.read > maxHead {
				return n, errHead
			}
			return n, nil
		}
		if err == nil || !isTimeout(err) {
			return 0, err
		}
		if err := c.x.waitOn(); err != nil {
			return 0, err
		}
	}
}

// closeWrite says that nothing more will be sent, which servers of one answer
// per request take for the caller's leaving.
func (c *conn) closeWrite() error {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.nc.Close()
}

// dialer makes connections to one server.
type dialer struct {
	addr string
	tls  *tls.Config // nil: plain
}

func (d *dialer) dial(ctx context.Context, limit time.Duration) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", d.addr)
	if err == nil && d.tls != nil {
		t := tls.Client(nc, d.tls)
		if err = t.HandshakeContext(ctx); err != nil {
			nc.Close()
		}
		nc = t
	}
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded || isTimeout(err) {
			return nil, &TimeoutError{Connect}
		}
		return nil, &brokenError{"connect", err}
	}
	c := &conn{nc: nc}
	c.br = bufio.NewReader(c)
	return c, nil
}

// pool keeps idle connections, the youngest on top.
type pool struct {
	mu     sync.Mutex
	idle   []*conn
	closed bool
}

func (p *pool) take(now time.Time) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	last := len(p.idle) - 1
	c := p.idle[last]
	if now.Sub(c.since) > idleLife { // and it is the youngest
		p.drop(len(p.idle))
		return nil
	}
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return c
}

func (p *pool) give(c *conn, now time.Time) {
	c.used, c.since, c.x, c.read = true, now, nil, 0
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= maxIdle {
		c.nc.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// prune closes connections that the server is about to close.
func (p *pool) prune(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := 0
	for old < len(p.idle) && now.Sub(p.idle[old].since) > idleLife {
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

// drop closes the n oldest.
func (p *pool) drop(n int) {
	for _, c := range p.idle[:n] {
		c.nc.Close()
	}
	rest := copy(p.idle, p.idle[n:])
	clear(p.idle[rest:])
	p.idle = p.idle[:rest]
}
