package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Config configures a client.
type Config struct {
	Address string      // host and port
	TLS     *tls.Config // nil for plain connections
	Prefix  string      // path before /v1
	Header  string      // header lines of every request, each with its CRLF
}

// Client sends requests to one backend, over connections that it keeps. It is safe for
// concurrent use.
type Client struct {
	config   Config
	dialer   dialer
	pool     pool
	post     *http.Request // request that gives ReadResponse the method
	observer Observer
}

// NewClient returns a client whose exchanges the observer follows. It connects when it is
// first used.
func NewClient(c Config, o Observer) *Client {
	return &Client{config: c, dialer: dialer{addr: c.Address, tls: c.TLS}, post: &http.Request{Method: http.MethodPost}, observer: o}
}

// Prune closes idle connections shortly before the backend does. Call it every second or
// so.
func (cl *Client) Prune(now time.Time) { cl.pool.prune(now) }

// Close closes the idle connections, and later those still in use.
func (cl *Client) Close() { cl.pool.close() }

// Closed reports whether Close was called.
func (cl *Client) Closed() bool { return cl.pool.isClosed() }

// Observer follows the exchanges of a client, and judges the silence of its backend. Its
// methods are called on the goroutines of the exchanges.
type Observer interface {
	// Begin and End enclose each exchange; answered means that the backend has sent an
	// answer, be it a refusal.
	Begin(now time.Time)
	End(answered bool)

	// Sign records a sign of work. It is called for each piece of each stream.
	Sign(now time.Time)

	// Suspect records the failure of an exchange.
	Suspect(err error)

	// QueuedSince returns the time of the last report of waiting or preempted requests;
	// zero before the first.
	QueuedSince() time.Time

	// Silent reports whether the backend has shown no sign of work since start, for long
	// enough to be confirmed; SilentFor, whether it has been silent for d.
	Silent(start, now time.Time) bool
	SilentFor(d time.Duration, start, now time.Time) bool

	// Unavailable reports whether an answer may never come.
	Unavailable() bool

	// Predict returns the expected time of an answer in one piece with so many tokens.
	Predict(prompt, answer int, now time.Time) time.Duration
}

// Send sends q and returns after the head of the answer, whatever its status. The end of
// ctx cancels the request at the backend.
func (cl *Client) Send(ctx context.Context, q *Request) (*Answer, error) {
	now := time.Now()
	c := cl.pool.acquire(now)
	for {
		fresh := c == nil
		if fresh {
			var err error
			if c, err = cl.dialer.dial(ctx, q.Limits.Connect); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				cl.observer.Suspect(err)
				return nil, err
			}
		}
		a := &Answer{client: cl, c: c, q: q, ctx: ctx, began: now, silentSince: now}
		err := a.exchange()
		if err == nil && !fresh && a.Status == http.StatusRequestTimeout && time.Since(now) < staleWithin {
			// The server says that it has waited for a request for too long (RFC 9110
			// §15.5.9), which crossed this one on the way.
			a.Close()
			c = nil
			continue
		}
		if err == nil {
			return a, nil
		}
		silent := !c.received
		a.Close()
		switch {
		case a.left || ctx.Err() != nil:
			return nil, ErrLeft
		case !fresh && silent && stale(err) && time.Since(now) < staleWithin:
			c = nil // the server had closed the idle connection; nobody has seen the request
		case errors.As(err, new(*TimeoutError)):
			return nil, err
		default:
			cl.observer.Suspect(err)
			return nil, &BrokenError{"no answer", err}
		}
	}
}

// staleWithin is the longest time from sending to the failure of a reused connection
// that the backend had closed as idle. A later failure means that the request was being
// served: an answer in one piece has no head until it is complete.
const staleWithin = time.Second

// maxJoined is the largest body in bytes that is copied behind its head, which costs
// less than a second buffer in the system call.
const maxJoined = 16 << 10

// write sends the request in one system call.
func (cl *Client) write(c *conn, q *Request) error {
	buf, ok := cl.dialer.buffers.out.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	defer cl.dialer.buffers.out.Put(buf)
	head := append(append((*buf)[:0], "POST "...), cl.config.Prefix...)
	head = append(append(append(head, q.Path...), " HTTP/1.1\r\n"...), cl.config.Header...)
	if q.Stream {
		head = append(head, "Accept: text/event-stream\r\n"...)
	}
	head = append(append(head, "X-Request-Id: "...), q.ID...)
	head = append(head, "\r\n"...)
	head = append(append(head, q.Header...), "Content-Length: "...)
	head = append(strconv.AppendInt(head, int64(len(q.Body)), 10), "\r\n\r\n"...)
	if len(q.Body) <= maxJoined {
		head = append(head, q.Body...)
		*buf = head
		_, err := c.nc.Write(head)
		return err
	}
	*buf = head
	_, err := (&net.Buffers{head, q.Body}).WriteTo(c.nc)
	return err
}
