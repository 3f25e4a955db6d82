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

// maxHead bounds the header of an answer, in bytes.
const maxHead = 16 << 10

// page is one address that is requested repeatedly over a connection of its own. One goroutine
// uses it, and it starts no other: net/http's Transport would add two for each of hundreds of
// sources, and double the work of each request. Answers are parsed by net/http's ReadResponse.
type page struct {
	dial       func(ctx context.Context) (net.Conn, error)
	request    *http.Request
	rawRequest []byte // the request on the wire
	fault      error  // reason why the page can never be requested; nil: there is none
	limit      int64  // maximum size of an answer, in bytes

	nc        net.Conn    // open connection; nil: there is none
	stopWatch func() bool // ends the watch that closes nc with the context
	input     io.LimitedReader
	br        *bufio.Reader
	body      []byte // body of the last answer
}

// newPage returns the page at an address with the route appended. For a socket, unix:///path,
// the route is the whole path of the request.
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
			if config.RootCAs, p.fault = readCertificates(c.CAFile); p.fault != nil {
				return p
			}
		}
		plain := p.dial
		p.dial = func(ctx context.Context) (net.Conn, error) { return secured(ctx, plain, config) }
	}
	p.request = &http.Request{Method: http.MethodGet}
	token := ""
	if c.Token != "" {
		token = "Authorization: Bearer " + c.Token + "\r\n"
	}
	p.rawRequest = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: tidegate\r\nAccept: */*\r\n%s\r\n", u.RequestURI(), u.Host, token)
	return p
}

// secured dials and makes a TLS connection.
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

// readCertificates reads the certificates of the authority that a source is trusted by.
func readCertificates(file string) (*x509.CertPool, error) {
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

// close closes the connection; the next request opens another.
func (p *page) close() {
	if p.nc != nil {
		p.stopWatch()
		p.nc.Close()
		p.nc = nil
	}
}

// get requests the page and calls read with the body and the time of its arrival, until the
// deadline at most. The connection ends with ctx; get opens a new one where the other side has
// closed it meanwhile. A redirect is an error, so that a token goes nowhere else.
func (p *page) get(ctx context.Context, deadline time.Time, read func(body io.Reader, arrived time.Time) error) error {
	if p.fault != nil {
		return p.fault
	}
	for {
		reused := p.nc != nil
		if !reused {
			if err := p.open(ctx, deadline); err != nil {
				return explain(err)
			}
		}
		resp, err := p.exchange(deadline) //nolint:bodyclose // the connection is ours: the rest of a body ends with it
		answered := err == nil
		if answered {
			err = p.deliver(resp, read)
		}
		if err != nil {
			p.close()
		}
		if reused && !answered && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil && p.input.N <= 0 {
			return fmt.Errorf("the answer is longer than %d bytes", p.limit)
		}
		return explain(err)
	}
}

func (p *page) open(ctx context.Context, deadline time.Time) error {
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	nc, err := p.dial(limited)
	if err != nil {
		return err
	}
	p.nc, p.input.R = nc, nc
	p.stopWatch = context.AfterFunc(ctx, func() { nc.Close() })
	if p.br == nil {
		p.br = bufio.NewReader(&p.input)
	}
	p.br.Reset(&p.input)
	return nil
}

// exchange sends the request and reads the header of the answer.
func (p *page) exchange(deadline time.Time) (*http.Response, error) {
	if err := p.nc.SetDeadline(deadline); err != nil {
		return nil, err
	}
	p.input.N = p.limit + maxHead
	if _, err := p.nc.Write(p.rawRequest); err != nil {
		return nil, err
	}
	return http.ReadResponse(p.br, p.request)
}

// deliver reads the body to its end, so that the connection can be used again.
func (p *page) deliver(resp *http.Response, read func(body io.Reader, arrived time.Time) error) error {
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

// readAll reads a whole body into p.body.
func (p *page) readAll(body io.Reader) error {
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

// explain returns a plain error in place of one of the deadline.
func explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no whole answer in time")
	}
	return err
}
