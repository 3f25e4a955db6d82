package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Stats counts what the mock has seen.
type Stats struct {
	Requests   int64 `json:"requests"`    // completions begun, streams included
	Streams    int64 `json:"streams"`     // streams begun
	Finished   int64 `json:"finished"`    // completions written to the end
	Aborted    int64 `json:"aborted"`     // completions whose client left before the end
	Active     int64 `json:"active"`      // completions under way
	ActivePeak int64 `json:"active_peak"` // most completions under way at once
	Events     int64 `json:"events"`      // stream events written
	Conns      int64 `json:"conns"`       // connections accepted
}

// Abort is a completion whose client left before its end.
type Abort struct {
	Number int64     `json:"number"` // of the request: see ChatBody
	Seen   time.Time `json:"seen"`
}

type counters struct {
	requests, streams, finished, aborted, active, peak, events, conns atomic.Int64
}

func (c *counters) values() []*atomic.Int64 {
	return []*atomic.Int64{&c.requests, &c.streams, &c.finished, &c.aborted, &c.active, &c.peak, &c.events, &c.conns}
}

// Mock is a fast imitation of vLLM's OpenAI-compatible server.
//
// It speaks just enough HTTP/1.1 by hand (one goroutine, one read buffer and
// prepared response bytes for each connection), so that it takes little of the
// processor time that a benchmark wants to give to what stands in front of it.
// Every stream event is one write, as vLLM's server does it. Requests are not
// parsed as JSON, and answers do not depend on them.
//
// Under /mock it tells and takes: GET /mock/stats and /mock/aborts, POST
// /mock/reset, and POST /mock/config?chunks=20&delay=100ms, which changes what
// Behaviour.With knows from the next request on.
type Mock struct {
	behaviour atomic.Pointer[Behaviour]
	count     counters

	mu     sync.Mutex
	aborts []Abort // since the last reset
}

// NewMock returns a mock that answers as b says.
func NewMock(b Behaviour) *Mock {
	m := &Mock{}
	m.behaviour.Store(b.render())
	return m
}

// Stats reads the counters.
func (m *Mock) Stats() Stats {
	c := &m.count
	return Stats{
		Requests: c.requests.Load(), Streams: c.streams.Load(), Finished: c.finished.Load(), Aborted: c.aborted.Load(),
		Active: c.active.Load(), ActivePeak: c.peak.Load(), Events: c.events.Load(), Conns: c.conns.Load(),
	}
}

// Serve answers connections of l until it is closed.
func (m *Mock) Serve(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			return err
		}
		m.count.conns.Add(1)
		go m.serveConn(nc)
	}
}

type mockRequest struct {
	method, path string
	query        string
	length       int64 // -1: chunked
	expect       bool
	close        bool
}

type mockConn struct {
	net.Conn
	br   *bufio.Reader
	body []byte // reused for each request
}

func (m *Mock) serveConn(nc net.Conn) {
	defer nc.Close()
	c := &mockConn{Conn: nc, br: bufio.NewReader(nc)}
	for {
		req, err := readRequest(c.br)
		if err != nil {
			return
		}
		if req.expect {
			if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
				return
			}
		}
		if err := c.readBody(req.length); err != nil {
			return
		}
		if !m.answer(c, req) || req.close {
			return
		}
	}
}

// answer writes one response; false ends the connection.
func (m *Mock) answer(c *mockConn, req mockRequest) bool {
	switch {
	case req.method == "POST" && (strings.HasSuffix(req.path, "/chat/completions") || strings.HasSuffix(req.path, "/completions")):
		return m.complete(c)
	case req.path == "/v1/models":
		model := m.behaviour.Load().Model
		return c.send(httpResponse(200, compact(object{"object": "list", "data": []object{
			{"id": model, "object": "model", "created": created, "owned_by": "vllm", "root": model, "max_model_len": 32768},
		}})))
	case req.path == "/health", req.path == "/ping", req.path == "/":
		return c.send(httpResponse(200, ""))
	case req.path == "/version":
		return c.send(httpResponse(200, `{"version":"0.0.0-mock"}`))
	case req.path == "/mock/stats":
		raw, _ := json.Marshal(m.Stats())
		return c.send(httpResponse(200, string(raw)))
	case req.path == "/mock/aborts":
		m.mu.Lock()
		raw, _ := json.Marshal(m.aborts)
		m.mu.Unlock()
		return c.send(httpResponse(200, string(raw)))
	case req.path == "/mock/config" && req.method == "POST":
		q, _ := url.ParseQuery(req.query)
		b, err := m.behaviour.Load().Parse(q)
		if err != nil {
			return c.send(httpResponse(400, compact(object{"message": err.Error()})))
		}
		m.behaviour.Store(b.render())
		return c.send(httpResponse(200, "{}"))
	case req.path == "/mock/reset" && req.method == "POST":
		for _, n := range m.count.values() {
			if n != &m.count.active {
				n.Store(0)
			}
		}
		m.mu.Lock()
		m.aborts = nil
		m.mu.Unlock()
		return c.send(httpResponse(200, "{}"))
	}
	return c.send(httpResponse(404, compact(object{"object": "error", "message": "no such path: " + req.path})))
}

// complete answers one completion and counts how it ended.
func (m *Mock) complete(c *mockConn) bool {
	b := m.behaviour.Load()
	stream := b.Status == 200 && flagTrue(c.body, "stream")
	m.count.requests.Add(1)
	raise(&m.count.peak, m.count.active.Add(1))
	defer m.count.active.Add(-1)

	ok := b.TTFT == 0 || c.pause(b.TTFT)
	if ok && stream {
		m.count.streams.Add(1)
		ok = m.stream(c, b, flagTrue(c.body, "include_usage"))
	} else if ok {
		ok = c.send(b.answer)
	}
	if ok {
		m.count.finished.Add(1)
	} else {
		seen := time.Now()
		m.count.aborted.Add(1)
		m.mu.Lock()
		m.aborts = append(m.aborts, Abort{numberIn(c.body), seen})
		m.mu.Unlock()
	}
	return ok
}

// raise sets peak to v if v is larger.
func raise(peak *atomic.Int64, v int64) {
	for {
		if old := peak.Load(); v <= old || peak.CompareAndSwap(old, v) {
			return
		}
	}
}

func (m *Mock) stream(c *mockConn, b *Behaviour, usage bool) bool {
	if !c.send(b.head) {
		return false
	}
	for i, e := range b.events {
		// The role event and the first content event come together.
		if i > 1 && b.Delay > 0 && !c.pause(b.Delay) {
			return false
		}
		if !c.send(e) {
			return false
		}
		m.count.events.Add(1)
	}
	if usage {
		if !c.send(b.usage) {
			return false
		}
		m.count.events.Add(1)
	}
	m.count.events.Add(1)
	return c.send(b.done)
}

func (c *mockConn) send(p []byte) bool {
	_, err := c.Write(p)
	return err == nil
}

// pause waits for d and returns false as soon as the client has gone. It waits
// by reading with a deadline, so a client's leaving is seen at once and no
// second goroutine is needed.
func (c *mockConn) pause(d time.Duration) bool {
	if c.br.Buffered() > 0 { // a pipelined request: nothing to learn by reading
		time.Sleep(d)
		return true
	}
	// A connection that takes no deadline is broken, and the reading says so.
	_ = c.SetReadDeadline(time.Now().Add(d))
	start := time.Now()
	_, err := c.br.Peek(1)
	_ = c.SetReadDeadline(time.Time{})
	if err == nil {
		time.Sleep(d - time.Since(start))
		return true
	}
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func readRequest(br *bufio.Reader) (mockRequest, error) {
	var req mockRequest
	line, err := readLine(br)
	if err != nil {
		return req, err
	}
	method, rest, ok := strings.Cut(line, " ")
	target, _, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 {
		return req, errors.New("malformed request line")
	}
	req.method = method
	req.path, req.query, _ = strings.Cut(target, "?")
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return req, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return req, nil
		}
		key, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case asciiEqualFold(key, "content-length"):
			if req.length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return req, err
			}
		case asciiEqualFold(key, "transfer-encoding"):
			req.length = -1
		case asciiEqualFold(key, "connection"):
			req.close = asciiEqualFold(value, "close")
		case asciiEqualFold(key, "expect"):
			req.expect = true
		}
	}
}

func readLine(br *bufio.Reader) (string, error) {
	line, err := br.ReadSlice('\n')
	return string(bytes.TrimRight(line, "\r\n")), err
}

func asciiEqualFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		ch := b[i]
		if 'A' <= ch && ch <= 'Z' {
			ch |= 0x20
		}
		if ch != lower[i] {
			return false
		}
	}
	return true
}

// maxMockBody bounds a request, in bytes.
const maxMockBody = 64 << 20

func (c *mockConn) readBody(length int64) error {
	c.body = c.body[:0]
	switch {
	case length > maxMockBody:
		return errors.New("body too large")
	case length >= 0:
		if int64(cap(c.body)) < length {
			c.body = make([]byte, length)
		}
		c.body = c.body[:length]
		_, err := io.ReadFull(c.br, c.body)
		return err
	}
	buf := bytes.NewBuffer(c.body)
	if _, err := io.Copy(buf, io.LimitReader(httputil.NewChunkedReader(c.br), maxMockBody)); err != nil {
		return err
	}
	c.body = buf.Bytes()
	for { // trailers
		line, err := c.br.ReadSlice('\n')
		if err != nil || len(bytes.TrimRight(line, "\r\n")) == 0 {
			return err
		}
	}
}

// flagTrue reports whether the JSON text has "name": true, ignoring the same
// letters inside a JSON string (there the quotes are escaped).
func flagTrue(body []byte, name string) bool {
	key := []byte(`"` + name + `"`)
	for start := 0; ; {
		i := bytes.Index(body[start:], key)
		if i < 0 {
			return false
		}
		i += start
		start = i + len(key)
		if i > 0 && body[i-1] == '\\' {
			continue
		}
		rest := bytes.TrimLeft(body[start:], " \t\r\n")
		if len(rest) == 0 || rest[0] != ':' {
			continue
		}
		return bytes.HasPrefix(bytes.TrimLeft(rest[1:], " \t\r\n"), []byte("true"))
	}
}
