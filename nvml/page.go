package nvml

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// maxHead bounds the head of an answer, in bytes.
const maxHead = 16 << 10

// page is one address that is asked again and again over a connection of its own.
// One goroutine uses it, and it has no other: net/http's Transport would add two
// for each of hundreds of sources and as much work again for each question. What
// is read of HTTP/1.1 is read by net/http's ReadResponse.
type page struct {
	dial  func(ctx context.Context) (net.Conn, error)
	ask   *http.Request
	text  []byte // of the request
	fault error  // why it cannot be asked at all
	limit int64  // bytes of an answer

	nc   net.Conn    // nil: none is open
	free func() bool // ends the watch that closes nc with its context
	in   io.LimitedReader
	br   *bufio.Reader
	body []byte // of the last answer
}

// newPage makes the page at an address; route is appended to it. Of a socket,
// unix:///path, route is what is asked for.
func newPage(address, route string, c *Config, limit int64) *page {
	p := &page{limit: limit}
	u, err := url.Parse(address)
	if err != nil {
		p.fault = err
		return p
	}
	network, target := "tcp", u.Host
	if u.Scheme == "unix" {
		network, target, u = "unix", u.Path, &url.URL{Scheme: "http", Host: "agent"}
	} else if u.Port() == "" {
		target = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + route
	p.dial = func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, network, target) }
	if u.Scheme == "https" {
		config := &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
		if c.CAFile != "" {
			if config.RootCAs, p.fault = authority(c.CAFile); p.fault != nil {
				return p
			}
		}
		plain := p.dial
		p.dial = func(ctx context.Context) (net.Conn, error) { return secured(ctx, plain, config) }
	}
	p.ask = &http.Request{Method: http.MethodGet}
	token := ""
	if c.Token != "" {
		token = "Authorization: Bearer " + c.Token + "\r\n"
	}
	p.text = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: tidegate\r\nAccept: */*\r\n%s\r\n", u.RequestURI(), u.Host, token)
	return p
}

func secured(ctx context.Context, dial func(context.Context) (net.Conn, error), config *tls.Config) (net.Conn, error) {
	nc, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	t := tls.Client(nc, config)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return t, nil
}

// authority reads the certificates that a source is to be trusted by.
func authority(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// close ends the connection; the next question makes another.
func (p *page) close() {
	if p.nc != nil {
		p.free()
		p.nc.Close()
		p.nc = nil
	}
}

// get asks and lets read have the body, and when it arrived, until a moment at most.
// ctx outlives the connection, which is made anew where the server has closed it
// meanwhile. A redirect is no answer, so that a token goes nowhere else.
func (p *page) get(ctx context.Context, until time.Time, read func(body io.Reader, arrived time.Time) error) error {
	if p.fault != nil {
		return p.fault
	}
	for {
		used := p.nc != nil
		if !used {
			if err := p.open(ctx, until); err != nil {
				return explain(err)
			}
		}
		resp, err := p.exchange(until) //nolint:bodyclose // the connection is ours: what is left of a body ends with it
		heard := err == nil
		if heard {
			err = p.take(resp, read)
		}
		if err != nil {
			p.close()
		}
		if used && !heard && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil && p.in.N <= 0 {
			return fmt.Errorf("the answer is longer than %d bytes", p.limit)
		}
		return explain(err)
	}
}

func (p *page) open(ctx context.Context, until time.Time) error {
	limited, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	nc, err := p.dial(limited)
	if err != nil {
		return err
	}
	p.nc, p.in.R = nc, nc
	p.free = context.AfterFunc(ctx, func() { nc.Close() })
	if p.br == nil {
		p.br = bufio.NewReader(&p.in)
	}
	p.br.Reset(&p.in)
	return nil
}

// exchange sends the question and reads the head of the answer.
func (p *page) exchange(until time.Time) (*http.Response, error) {
	if err := p.nc.SetDeadline(until); err != nil {
		return nil, err
	}
	p.in.N = p.limit + maxHead
	if _, err := p.nc.Write(p.text); err != nil {
		return nil, err
	}
	return http.ReadResponse(p.br, p.ask)
}

// take reads the body to its end, so that the connection can be used again.
func (p *page) take(resp *http.Response, read func(body io.Reader, arrived time.Time) error) error {
	arrived := time.Now()
	if resp.StatusCode != http.StatusOK {
		p.close()
		return statusError(resp.StatusCode)
	}
	if err := read(resp.Body, arrived); err != nil {
		return err
	}
	if n, err := resp.Body.Read(make([]byte, 1)); resp.Close || n > 0 || !errors.Is(err, io.EOF) {
		p.close()
	}
	return nil
}

// all reads a whole body into p.body.
func (p *page) all(body io.Reader) error {
	if cap(p.body) == 0 {
		p.body = make([]byte, 0, 8<<10)
	}
	p.body = p.body[:0]
	for {
		if len(p.body) == cap(p.body) {
			p.body = append(p.body, 0)[:len(p.body)]
		}
		n, err := body.Read(p.body[len(p.body):cap(p.body)])
		p.body = p.body[:len(p.body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// explain says it in plain words where the time was up.
func explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no whole answer in time")
	}
	return err
}
