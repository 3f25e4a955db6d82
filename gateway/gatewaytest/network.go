package gatewaytest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// network is the server's port. It can be closed and opened again, so that a
// refused connection is a real one.
type network struct {
	mu       sync.Mutex
	addr     string
	http     *http.Server
	listener net.Listener
	serving  sync.WaitGroup
	open     atomic.Int64
	accepted atomic.Int64
}

// Listen serves the vLLM surface on addr until Close, and tells its URL.
func (s *Server) Listen(addr string) (string, error) {
	n := &s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.http != nil {
		return "", errors.New("gatewaytest: already listening on " + n.addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", fmt.Errorf("gatewaytest: %w", err)
	}
	n.addr = l.Addr().String()
	n.http = &http.Server{
		Handler:           s,
		IdleTimeout:       s.options.KeepAlive,
		ReadHeaderTimeout: time.Minute,
		ConnState:         n.count,
	}
	n.serve(l)
	return "http://" + n.addr, nil
}

func (n *network) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		n.open.Add(1)
		n.accepted.Add(1)
	case http.StateClosed, http.StateHijacked:
		n.open.Add(-1)
	}
}

func (n *network) serve(l net.Listener) {
	n.listener = l
	server := n.http
	n.serving.Go(func() {
		// It ends when the listener is closed, on purpose: nothing to report.
		_ = server.Serve(l)
	})
}

// refuse closes the port and the idle connections behind it.
func (n *network) refuse() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listener == nil {
		return
	}
	_ = n.listener.Close()
	n.listener = nil
	n.http.SetKeepAlivesEnabled(false)
}

// accept opens the port again.
func (n *network) accept() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.http == nil || n.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", n.addr)
	if err != nil {
		return fmt.Errorf("gatewaytest: listen again: %w", err)
	}
	n.http.SetKeepAlivesEnabled(true)
	n.serve(l)
	return nil
}

func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.http != nil {
		_ = n.http.Close()
	}
	if n.listener != nil {
		_ = n.listener.Close()
		n.listener = nil
	}
	n.serving.Wait()
}

// TB is the part of testing.TB that Start needs.
type TB interface {
	Helper()
	Cleanup(func())
	Fatal(args ...any)
}

// Running is a server behind a real socket.
type Running struct {
	*Server
	URL  string
	HTTP *http.Server
}

// Start serves on a free port of the loopback until the test ends.
func Start(tb TB, o Options) *Running {
	tb.Helper()
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	url, err := s.Listen("127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return &Running{Server: s, URL: url, HTTP: s.net.http}
}
