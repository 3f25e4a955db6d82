package backend

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a server's side of one connection. A script reads and writes the bytes
// of it by hand.
type peer struct {
	net.Conn
	br *bufio.Reader
	n  int // of the server's connections, from 1 on
}

// request reads a request with its body; nil: the connection ended.
func (p *peer) request() *http.Request {
	q, err := http.ReadRequest(p.br)
	if err != nil {
		return nil
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return nil
	}
	q.Body = io.NopCloser(&bodyText{body})
	return q
}

type bodyText struct{ rest []byte }

func (b *bodyText) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// say writes a text; false: the connection ended.
func (p *peer) say(s string) bool {
	_, err := io.WriteString(p, s)
	return err == nil
}

// gone waits until the client ends the connection, at least its half.
func (p *peer) gone() { io.Copy(io.Discard, p.br) }

// server is a scripted server.
type server struct {
	addr  string
	conns atomic.Int32
}

// serve runs script for each connection, on a goroutine of its own, and closes
// the connection when it returns.
func serve(t *testing.T, config *tls.Config, script func(p *peer)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String()}
	var (
		mu      sync.Mutex
		open    []net.Conn
		running sync.WaitGroup
	)
	running.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, raw)
			mu.Unlock()
			n := int(s.conns.Add(1))
			running.Go(func() {
				defer raw.Close()
				nc := raw
				if config != nil {
					nc = tls.Server(raw, config)
				}
				script(&peer{Conn: nc, br: bufio.NewReader(nc), n: n})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, nc := range open {
			nc.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return s
}

// backendOf is a backend in rotation, its connections closed when the test ends.
func backendOf(t *testing.T, addr string) *Backend {
	t.Helper()
	b := New(Config{URL: "http://" + addr}, "tidegate-test")
	b.Seat.SetRotation(true)
	t.Cleanup(b.pool.close)
	return b
}

// tlsPair is a server's configuration and the client's that trusts it.
func tlsPair(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	transport := s.Client().Transport.(*http.Transport)
	return &tls.Config{Certificates: s.TLS.Certificates, MinVersion: tls.VersionTLS12}, &tls.Config{RootCAs: transport.TLSClientConfig.RootCAs, ServerName: "example.com", MinVersion: tls.VersionTLS12}
}

// overTLS is backendOf for a server that speaks TLS.
func overTLS(t *testing.T, addr string, client *tls.Config) *Backend {
	t.Helper()
	b := New(Config{URL: "https://" + addr}, "tidegate-test")
	b.dialer.tls = client
	t.Cleanup(b.pool.close)
	return b
}

// post is a small request with limits that no test reaches but those about limits.
func post() *Request {
	const long = 30 * time.Second
	return &Request{Path: "/v1/completions", ID: "id-1", Body: []byte(`{"a":1}`), Limits: Timeouts{long, long, long, long, long}}
}

// send sends q and reads the answer to its end.
func send(b *Backend, q *Request) (a *Answer, body string, err error) {
	a, err = b.Send(context.Background(), q)
	if err != nil {
		return nil, "", err
	}
	defer a.Close()
	raw, err := io.ReadAll(events{a})
	return a, string(raw), err
}

// events is an answer of which each piece that is read is an event, if it is a stream.
type events struct{ *Answer }

func (e events) Read(p []byte) (int, error) {
	n, err := e.Answer.Read(p)
	if n > 0 && e.q.Stream {
		e.Progress()
	}
	return n, err
}

func wantPhase(t *testing.T, err error, want Phase) {
	t.Helper()
	var timeout *TimeoutError
	if !errors.As(err, &timeout) || timeout.Phase != want {
		t.Errorf("%v; want the timeout %s", err, want)
	}
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// answering answers every request of a connection with the same text.
func answering(text string) func(*peer) {
	return func(p *peer) {
		for p.request() != nil && p.say(text) {
		}
	}
}
