package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Target is the address and path of requests.
type Target struct {
	Addr string // host:port to dial
	Host string // Host header
	Path string // request target
}

// ParseTarget reads an http:// URL.
func ParseTarget(raw string) (Target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Target{}, err
	}
	if u.Scheme != "http" || u.Host == "" {
		return Target{}, fmt.Errorf("%q is not a plain http URL", raw)
	}
	t := Target{Addr: u.Host, Host: u.Host, Path: u.RequestURI()}
	if u.Port() == "" {
		t.Addr = net.JoinHostPort(u.Hostname(), "80")
	}
	return t, nil
}

// Request renders one whole request.
func (t Target) Request(method string, body []byte) []byte {
	var w bytes.Buffer
	fmt.Fprintf(&w, "%s %s HTTP/1.1\r\nHost: %s\r\nAccept: */*\r\nUser-Agent: bench\r\n", method, t.Path, t.Host)
	if body != nil {
		fmt.Fprintf(&w, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	w.WriteString("\r\n")
	w.Write(body)
	return w.Bytes()
}

// Events follows a stream as it arrives.
type Events struct {
	N      int       // data events so far, [DONE] included
	First  time.Time // arrival of the first data event
	Last   time.Time // arrival of the latest one
	Done   bool      // data: [DONE] was seen
	Usage  bool      // an event with a usage object was seen
	StopAt int       // give up (ErrStopped) after this many events; 0: never

	// OnEvent, if set, is called for each data event; gap is the time since
	// the one before, and zero for the first.
	OnEvent func(now time.Time, gap time.Duration)
}

// Response is the answer to one request.
type Response struct {
	Status int
	Bytes  int64  // body bytes, decoded
	Stream bool   // the content type was text/event-stream
	Sample []byte // start of the body, kept only when asked for or not 2xx
}

// ErrStopped says that Events.StopAt was reached; the connection is closed.
var ErrStopped = errors.New("stopped by the client")

// Conn is one client connection. It dials when needed. It is a small client of
// HTTP/1.1: prepared request bytes, and a body reader that counts server-sent
// events without keeping them, at a fraction of net/http's cost.
type Conn struct {
	target  Target
	nc      net.Conn
	br      *bufio.Reader
	lines   *bufio.Reader // over the decoded body of a stream
	Dials   int
	Keep    int // bytes of a body to keep in Response.Sample
	Timeout time.Duration
}

// NewConn prepares a connection without dialling.
func NewConn(t Target, timeout time.Duration) *Conn {
	return &Conn{target: t, Timeout: timeout, br: bufio.NewReader(nil), lines: bufio.NewReader(nil)}
}

// Close drops the connection; the next Do dials again.
func (c *Conn) Close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// Do sends one prepared request and reads the whole answer. ev may be nil.
func (c *Conn) Do(request []byte, ev *Events) (Response, error) {
	if c.nc == nil {
		nc, err := net.DialTimeout("tcp", c.target.Addr, c.Timeout)
		if err != nil {
			return Response{}, err
		}
		c.nc = nc
		c.br.Reset(nc)
		c.Dials++
	}
	// A connection that takes no deadline is broken, and the writing says so.
	_ = c.nc.SetDeadline(time.Now().Add(c.Timeout))
	if _, err := c.nc.Write(request); err != nil {
		c.Close()
		return Response{}, err
	}
	resp, keep, err := c.read(ev)
	if err != nil || !keep {
		c.Close()
	}
	return resp, err
}

func (c *Conn) read(ev *Events) (resp Response, keepAlive bool, err error) {
	head, err := c.readHead()
	if err != nil {
		return resp, false, err
	}
	resp.Status, resp.Stream = head.status, head.stream
	var body io.Reader
	switch {
	case head.status == 204 || head.status == 304:
		return resp, !head.close, nil
	case head.chunked:
		body = httputil.NewChunkedReader(c.br)
	case head.length >= 0:
		body = &exactly{r: c.br, left: head.length}
	default:
		body, head.close = c.br, true
	}
	if head.stream && ev != nil {
		err = c.readEvents(body, ev, &resp)
	} else {
		err = c.discard(body, &resp)
	}
	if err == nil && head.chunked {
		err = c.skipTrailers()
	}
	return resp, !head.close, err
}

type responseHead struct {
	status                 int
	length                 int64
	chunked, stream, close bool
}

func (c *Conn) readHead() (h responseHead, err error) {
	for h.status < 200 { // skips 1xx
		h = responseHead{length: -1}
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			return h, err
		}
		if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
			return h, fmt.Errorf("malformed status line %q", line)
		}
		if h.status, err = strconv.Atoi(string(line[9:12])); err != nil {
			return h, err
		}
		h.close = line[7] == '0'
		for {
			line, err := c.br.ReadSlice('\n')
			if err != nil {
				return h, err
			}
			line = bytes.TrimRight(line, "\r\n")
			if len(line) == 0 {
				break
			}
			key, value, _ := bytes.Cut(line, []byte(":"))
			value = bytes.TrimSpace(value)
			switch len(key) { // cheap filter before the folding compare
			case len("content-length"):
				if strings.EqualFold(string(key), "content-length") {
					if h.length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
						return h, err
					}
				}
			case len("transfer-encoding"):
				h.chunked = h.chunked || strings.EqualFold(string(key), "transfer-encoding")
			case len("content-type"):
				if strings.EqualFold(string(key), "content-type") {
					h.stream = bytes.HasPrefix(value, []byte("text/event-stream"))
				}
			case len("connection"):
				if strings.EqualFold(string(key), "connection") {
					h.close = strings.EqualFold(string(value), "close")
				}
			}
		}
	}
	return h, nil
}

func (c *Conn) discard(body io.Reader, resp *Response) error {
	keep := c.Keep
	if resp.Status/100 != 2 {
		keep = max(keep, 512)
	}
	if keep > 0 {
		sample, err := io.ReadAll(io.LimitReader(body, int64(keep)))
		resp.Sample, resp.Bytes = sample, int64(len(sample))
		if err != nil {
			return err
		}
	}
	n, err := io.Copy(io.Discard, body)
	resp.Bytes += n
	return err
}

func (c *Conn) readEvents(body io.Reader, ev *Events, resp *Response) error {
	c.lines.Reset(body)
	lineStart := true
	for {
		line, err := c.lines.ReadSlice('\n')
		resp.Bytes += int64(len(line))
		if lineStart && bytes.HasPrefix(line, []byte("data:")) {
			now := time.Now()
			var gap time.Duration
			if ev.N == 0 {
				ev.First = now
			} else {
				gap = now.Sub(ev.Last)
			}
			if ev.OnEvent != nil {
				ev.OnEvent(now, gap)
			}
			ev.Last = now
			ev.N++
			data := bytes.TrimSpace(line[len("data:"):])
			ev.Done = bytes.Equal(data, []byte("[DONE]"))
			ev.Usage = ev.Usage || bytes.Contains(data, []byte(`"usage":{`))
			if len(resp.Sample) < c.Keep {
				resp.Sample = append(resp.Sample, line...)
			}
			if ev.StopAt > 0 && ev.N >= ev.StopAt {
				return ErrStopped
			}
		}
		lineStart = !errors.Is(err, bufio.ErrBufferFull)
		switch {
		case err == nil || !lineStart:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

func (c *Conn) skipTrailers() error {
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil || len(bytes.TrimRight(line, "\r\n")) == 0 {
			return err
		}
	}
}

// exactly reads exactly left bytes and calls a shorter body an error.
type exactly struct {
	r    io.Reader
	left int64
}

func (f *exactly) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	if errors.Is(err, io.EOF) && f.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
