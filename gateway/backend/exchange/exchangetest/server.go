// Package exchangetest has a server that tests script byte by byte, for what no real one
// does on demand.
package exchangetest

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// Peer is the server's side of one connection. A script reads and writes its bytes by
// hand.
type Peer struct {
	net.Conn
	br *bufio.Reader
	N  int // number of the connection, from 1
}

// Request reads a request with its body; nil if the connection ended.
func (p *Peer) Request() *http.Request {
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

// ReadByte reads one byte of what the client sends.
func (p *Peer) ReadByte() (byte, error) { return p.br.ReadByte() }

// ReadString reads what the client sends, up to a delimiter.
func (p *Peer) ReadString(delim byte) (string, error) { return p.br.ReadString(delim) }

// Say writes a text; false if the connection ended.
func (p *Peer) Say(s string) bool {
	_, err := io.WriteString(p, s)
	return err == nil
}

// AwaitEnd waits until the client ends the connection, at least its half.
func (p *Peer) AwaitEnd() { _, _ = io.Copy(io.Discard, p.br) }

// Server is a scripted server.
type Server struct {
	Addr  string
	Conns atomic.Int32 // connections so far
}

// Serve runs script for each connection, on a goroutine of its own, and closes
// the connection when it returns.
func Serve(t testing.TB, config *tls.Config, script func(p *Peer)) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: l.Addr().String()}
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
			n := int(s.Conns.Add(1))
			running.Go(func() {
				defer raw.Close()
				nc := raw
				if config != nil {
					nc = tls.Server(raw, config)
				}
				script(&Peer{Conn: nc, br: bufio.NewReader(nc), N: n})
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

// TLSPair returns a server's configuration and that of a client which trusts it.
func TLSPair(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	transport, ok := s.Client().Transport.(*http.Transport)
	if !ok {
		t.Fatal("a test server without its transport")
	}
	return &tls.Config{Certificates: s.TLS.Certificates, MinVersion: tls.VersionTLS12}, &tls.Config{RootCAs: transport.TLSClientConfig.RootCAs, ServerName: "example.com", MinVersion: tls.VersionTLS12}
}

// OK is an answer of two bytes.
const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// Answering answers every request of a connection with the same text.
func Answering(text string) func(*Peer) {
	return func(p *Peer) {
		for p.Request() != nil && p.Say(text) {
		}
	}
}
