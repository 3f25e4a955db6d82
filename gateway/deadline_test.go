package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are pipes: they hold no byte that is not read.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// TestUnreadAnswersEnd checks that no answer of either listener waits for its reader
// for longer than write_timeout, whoever writes it: a handler or the HTTP server.
func TestUnreadAnswersEnd(t *testing.T) {
	g, _ := bare(t, func(c *Config) { c.WriteTimeout = 7 * time.Second })
	post := func(path, body string, more string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + more + "Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
	}
	front, ops := g.Handler(), g.OpsHandler(nil)
	for _, c := range []struct {
		name    string
		handler http.Handler
		request string
	}{
		{"list", front, "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"unknown URL", front, "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"refusal", front, post("/v1/chat/completions", "{", "")},
		{"tokens", front, post("/tokenize", `{"prompt":"`+strings.Repeat("word ", 10_000)+`"}`, "")},
		{"probe", front, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"bad head", front, "GET /\r\n\r\n"},
		{"continue", front, post("/tokenize", "{}", "Expect: 100-continue\r\n")},
		{"metrics", ops, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"probe of operators", ops, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipes{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
				ended := make(chan time.Time, 1)
				server := &http.Server{Handler: c.handler, ConnState: func(_ net.Conn, s http.ConnState) {
					if s == http.StateClosed {
						ended <- time.Now()
					}
				}}
				go func() { _ = server.Serve(g.Listener(l)) }() // ends with ErrServerClosed
				defer server.Close()
				caller, served := net.Pipe()
				defer caller.Close()
				l.conns <- served
				began := time.Now()
				if _, err := io.WriteString(caller, c.request); err != nil {
					t.Fatal(err)
				}
				select {
				case at := <-ended:
					// The HTTP server may try a last time to say why it ends.
					if took := at.Sub(began); took < 7*time.Second || took > 15*time.Second {
						t.Errorf("the connection ended after %v", took)
					}
				case <-time.After(time.Hour):
					t.Error("the connection holds its answer for ever")
				}
			})
		})
	}
}

// TestDeadlineIsNotInherited checks that a request finds its connection good however
// long ago the answer before it was written.
func TestDeadlineIsNotInherited(t *testing.T) {
	g, _ := bare(t, func(c *Config) { c.WriteTimeout = time.Second })
	handler := g.Handler()
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
		server := &http.Server{Handler: handler}
		go func() { _ = server.Serve(g.Listener(l)) }() // ends with ErrServerClosed
		defer server.Close()
		caller, served := net.Pipe()
		defer caller.Close()
		l.conns <- served
		in := bufio.NewReader(caller)
		for i := range 3 {
			if _, err := io.WriteString(caller, "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body) // ReadResponse has seen its head
			resp.Body.Close()
			time.Sleep(time.Minute)
		}
	})
}
