package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/backend/exchange/exchangetest"
)

// TestBodies sends bodies on both sides of the size up to which they are copied.
func TestBodies(t *testing.T) {
	got := make(chan string, 1)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		for q := p.Request(); q != nil; q = p.Request() {
			raw, _ := io.ReadAll(q.Body)
			got <- string(raw)
			p.Say(exchangetest.OK)
		}
	})
	b := clientOf(t, s.Addr)
	for _, size := range []int{0, 1, maxJoined - 1, maxJoined, maxJoined + 1, 100_000, 4 << 20} {
		q := post()
		q.Body = []byte(strings.Repeat("0123456789abcdef", size/16+1)[:size])
		if _, body, err := send(b, q); err != nil || body != "ok" {
			t.Fatalf("%d bytes: %q, %v", size, body, err)
		}
		if <-got != string(q.Body) {
			t.Errorf("%d bytes did not arrive as sent", size)
		}
	}
	if n := s.Conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		status       int
		body         string
		length       int64
		kept         bool
	}{
		{"length", exchangetest.OK, 200, "ok", 2, true},
		{"no body", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", 0, true},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", 0, true},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, "ok", -1, true},
		{"chunks, extension and trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0;z\r\nA: b\r\n\r\n", 200, "ok", -1, true},
		{"until close", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", 200, "ok", -1, false},
		{"until close, not said", "HTTP/1.1 200 OK\r\n\r\nok", 200, "ok", -1, false},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", 2, false},
		{"connection: close", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", 200, "ok", 2, false},
		{"100 before", "HTTP/1.1 100 Continue\r\n\r\n" + exchangetest.OK, 200, "ok", 2, true},
		{"several 1xx before", "HTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + exchangetest.OK, 200, "ok", 2, true},
		{"a refusal", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nX: y\r\n\r\nbusy", 503, "busy", 4, true},
		{"more than the answer", exchangetest.OK + "junk", 200, "ok", 2, false},
		{"a long head", "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", largeBuffer-100) + "\r\nContent-Length: 2\r\n\r\nok", 200, "ok", 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, split := range []bool{false, true} {
				if split && (len(c.answer) > 1000 || strings.HasSuffix(c.answer, "junk")) {
					continue // slow; and what comes after the answer was read is not seen by it
				}
				s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
					for p.Request() != nil {
						if !split {
							p.Say(c.answer)
						} else {
							for i := range c.answer {
								p.Say(c.answer[i : i+1])
							}
						}
						if strings.HasPrefix(c.name, "until close") {
							return // else it is the client that must not use the connection again
						}
					}
				})
				b := clientOf(t, s.Addr)
				for range 2 {
					a, body, err := send(b, post())
					if err != nil || a.Status != c.status || body != c.body || a.Length() != c.length {
						t.Fatalf("%+v, %q, %v", a, body, err)
					}
				}
				if n := s.Conns.Load(); (n == 1) != c.kept {
					t.Errorf("%d connections for two requests", n)
				}
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	for name, answer := range map[string]string{
		"closed":                  "",
		"cut in the head":         "HTTP/1.1 200 OK\r\nContent-Le",
		"not HTTP":                "SSH-2.0-OpenSSH_9.6\r\n\r\n",
		"a bad status":            "HTTP/1.1 abc OK\r\n\r\n",
		"a bad length":            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
		"a head too long":         "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
		"a head of too many":      "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1<<16),
		"1xx and then the end":    "HTTP/1.1 100 Continue\r\n\r\n",
		"1xx without end":         strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim+1) + exchangetest.OK,
		"an encoding not chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
				p.Request()
				p.Say(answer)
			})
			b := clientOf(t, s.Addr)
			_, _, err := send(b, post())
			if !isBroken(err) {
				t.Errorf("%v", err)
			}
			if n := s.Conns.Load(); n != 1 {
				t.Errorf("sent %d times", n)
			}
			if b.seen.failures() != 1 {
				t.Error("one failed answer is one failure")
			}
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	for name, c := range map[string]struct{ answer, body string }{
		"length, cut":      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", "ok"},
		"chunks, cut":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "ok"},
		"chunk, cut":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", "ok"},
		"no chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n", "ok"},
		"a size too long":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + strings.Repeat("x", 1<<20), ""},
		"cut before it":    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", ""},
		"a trailer, cut":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b", "ok"},
		"endless trailer":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + strings.Repeat("A: b\r\n", maxExcess/4) + "\r\n", "ok"},
		"long extensions":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n" + strings.Repeat("0;"+strings.Repeat("x", maxExcess)+"\r\n", 2), "ok"},
		"behind the chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokk\r\n0\r\n\r\n", "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
				p.Request()
				p.Say(c.answer)
			})
			b := clientOf(t, s.Addr)
			_, body, err := send(b, post())
			if body != c.body || !isBroken(err) || b.seen.failures() != 1 {
				t.Errorf("%q, %v", body, err)
			}
			if len(b.pool.idle) != 0 {
				t.Error("the connection is kept")
			}
		})
	}
}

func TestKeepAlive(t *testing.T) {
	s := exchangetest.Serve(t, nil, exchangetest.Answering(exchangetest.OK))
	b := clientOf(t, s.Addr)
	for range 20 {
		if _, body, err := send(b, post()); err != nil || body != "ok" {
			t.Fatal(body, err)
		}
	}
	// One that is not read to its end is not used again.
	a, err := b.Send(context.Background(), post())
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, _, err := send(b, post()); err != nil || s.Conns.Load() != 2 {
		t.Error(err, s.Conns.Load())
	}
}

// TestStaleConnection: the server ends the connection after its answer, in either
// way. Nobody has seen the next request, so it is sent again on a new connection.
func TestStaleConnection(t *testing.T) {
	for name, linger := range map[string]int{"closed": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			read := make(chan bool)
			s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
				p.Request()
				p.Say(exchangetest.OK)
				<-read
				p.Conn.(*net.TCPConn).SetLinger(linger)
			})
			b := clientOf(t, s.Addr)
			for i := range 20 {
				if _, body, err := send(b, post()); err != nil || body != "ok" {
					t.Fatalf("request %d: %q, %v", i, body, err)
				}
				read <- true
			}
			if n := s.Conns.Load(); n != 20 {
				t.Errorf("%d connections for 20 requests", n)
			}
		})
	}
}

func TestStaleConnectionOnce(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		if p.N == 1 {
			p.Say(exchangetest.OK)
		}
	})
	b := clientOf(t, s.Addr)
	if _, _, err := send(b, post()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := send(b, post()); !isBroken(err) || !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if n := s.Conns.Load(); n != 2 {
		t.Errorf("%d connections: the request was sent more than once again", n)
	}
}

// TestUnaskedAnswer: what a server sends on an idle connection is nobody's answer, and
// the end of the connection is seen before a request is sent on it.
func TestUnaskedAnswer(t *testing.T) {
	server, client := exchangetest.TLSPair(t)
	server.DynamicRecordSizingDisabled = true // what is said at once is one record
	const theirs = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntheirs"
	const head = "HTTP/1.1 200 OK\r\nContent-Length: %04d\r\n\r\n"
	body := strings.Repeat("x", smallBuffer-len(head)) // what is sent with four digits of length is as long as the pattern
	fills := fmt.Sprintf(head, len(body)) + body       // a buffer to its end
	for _, c := range []struct {
		name          string
		secure        bool
		first, second string // what is sent with the answer, and once that has been read
	}{
		{"an answer", false, exchangetest.OK, theirs},
		{"an answer, TLS", true, exchangetest.OK, theirs},
		{"an answer in the same record", true, fills + theirs, ""},
		{"a byte", false, exchangetest.OK, "\n"},
		{"the end", false, exchangetest.OK, "FIN"},
		{"the end, TLS", true, exchangetest.OK, "FIN"},
		{"the end after an answer", false, exchangetest.OK, theirs + "FIN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			read, sent := make(chan bool), make(chan bool)
			var reused atomic.Bool
			var config *tls.Config
			if c.secure {
				config = server
			}
			s := exchangetest.Serve(t, config, func(p *exchangetest.Peer) {
				p.Request()
				if p.N > 1 {
					p.Say(exchangetest.OK)
					p.AwaitEnd()
					return
				}
				p.Say(c.first)
				<-read
				text, ends := strings.CutSuffix(c.second, "FIN")
				if text != "" {
					p.Say(text)
				}
				if ends {
					p.Close()
				}
				close(sent)
				if !ends && p.Request() != nil {
					reused.Store(true)
				}
			})
			b := clientOf(t, s.Addr)
			if c.secure {
				b = clientWith(t, Config{Address: s.Addr, TLS: client})
			}
			if _, _, err := send(b, post()); err != nil {
				t.Fatal(err)
			}
			close(read)
			<-sent
			if _, body, err := send(b, post()); err != nil || body != "ok" {
				t.Errorf("the next caller gets %q, %v", body, err)
			}
			if n := s.Conns.Load(); n != 2 || reused.Load() {
				t.Errorf("%d connections; the request was sent on the first: %v", n, reused.Load())
			}
		})
	}
}

// TestTimeoutOfAnIdleConnection: a proxy's 408, sent because no request came for a
// while, crosses a request on the way. It is no answer to that.
func TestTimeoutOfAnIdleConnection(t *testing.T) {
	const late = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(exchangetest.OK)
		if p.N == 1 && p.Request() != nil {
			p.Say(late)
		}
		p.AwaitEnd()
	})
	b := clientOf(t, s.Addr)
	for range 2 {
		if a, body, err := send(b, post()); err != nil || body != "ok" {
			t.Errorf("%+v, %q, %v", a, body, err)
		}
	}
	if n := s.Conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	always := exchangetest.Serve(t, nil, exchangetest.Answering(late))
	if a, _, err := send(clientOf(t, always.Addr), post()); err != nil || a.Status != http.StatusRequestTimeout || always.Conns.Load() != 1 {
		t.Errorf("on a new connection: %+v, %v", a, err)
	}
}

// TestRefusedBeforeItIsSent: a proxy refuses a body by its length, reads none of it and
// ends the connection. That is an answer, not a server that broke.
func TestRefusedBeforeItIsSent(t *testing.T) {
	const refusal = "HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\nContent-Length: 8\r\n\r\ntoo long"
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.ReadString('\n')
		p.Say(refusal)
	})
	b := clientOf(t, s.Addr)
	for range 3 {
		q := post()
		q.Body = make([]byte, 16<<20)
		a, body, err := send(b, q)
		if a == nil || a.Status != http.StatusRequestEntityTooLarge || err == nil && body != "too long" {
			t.Fatalf("%+v, %q, %v", a, body, err)
		}
	}
	if n := s.Conns.Load(); n != 3 || len(b.pool.idle) != 0 {
		t.Errorf("%d connections, %d kept", n, len(b.pool.idle))
	}
}

// TestNoResendAfterAByte: once the server has said anything, the request may have
// been worked on.
func TestNoResendAfterAByte(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(exchangetest.OK)
		p.Request()
		p.Say("H")
	})
	b := clientOf(t, s.Addr)
	if _, _, err := send(b, post()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := send(b, post()); !isBroken(err) {
		t.Errorf("%v", err)
	}
	if n := s.Conns.Load(); n != 1 {
		t.Errorf("%d connections: the request was sent again", n)
	}
}

// TestConnectTimeout: a server that accepts and then does not shake hands.
func TestConnectTimeout(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) { p.AwaitEnd() })
	_, client := exchangetest.TLSPair(t)
	b := clientWith(t, Config{Address: s.Addr, TLS: client})
	q := post()
	q.Limits.Connect = 20 * time.Millisecond
	_, _, err := send(b, q)
	wantPhase(t, err, Connect)
	if b.seen.failures() != 1 {
		t.Errorf("%v", err)
	}
}

func TestTLS(t *testing.T) {
	server, client := exchangetest.TLSPair(t)
	big := strings.Repeat("x", 100_000)
	s := exchangetest.Serve(t, server, exchangetest.Answering(fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(big), big)))
	b := clientWith(t, Config{Address: s.Addr, TLS: client})
	for range 3 {
		q := post()
		q.Body = []byte(strings.Repeat("y", 2*maxJoined))
		if _, body, err := send(b, q); err != nil || body != big {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
	}
	if n := s.Conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestHeaders(t *testing.T) {
	s := exchangetest.Serve(t, nil, exchangetest.Answering("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nx-a: 1\r\nX-A: 2\r\nContent-Length: 0\r\n\r\n"))
	a, _, err := send(clientOf(t, s.Addr), post())
	if err != nil || a.Status != http.StatusTooManyRequests || a.Header.Get("Retry-After") != "7" || len(a.Header.Values("x-a")) != 2 {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestStale holds which errors are those of an idle connection that the server has closed.
func TestStale(t *testing.T) {
	for err, want := range map[error]bool{
		io.EOF: true, io.ErrUnexpectedEOF: true, syscall.ECONNRESET: true, syscall.EPIPE: true, fmt.Errorf("x: %w", syscall.EPIPE): true,
		syscall.ECONNREFUSED: false, errFraming: false, ErrLeft: false, &TimeoutError{Phase: Total}: false,
	} {
		if stale(err) != want {
			t.Errorf("%v", err)
		}
	}
}
