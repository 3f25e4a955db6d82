package nvml

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// web asks over HTTP. Sources share its connections; one with an authority of its
// own, or behind a socket, has a transport to itself.
type web struct {
	shared http.RoundTripper

	mu  sync.Mutex
	own []*http.Transport
}

func newWeb() *web {
	w := &web{}
	w.shared = w.transport()
	return w
}

func (w *web) transport() *http.Transport {
	t := &http.Transport{
		MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
		ReadBufferSize: 4 << 10, WriteBufferSize: 1 << 10,
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.own = append(w.own, t)
	return t
}

// close ends the idle connections; those in use end with their requests.
func (w *web) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.own {
		t.CloseIdleConnections()
	}
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

// page is one address that is asked again and again. One goroutine may use it.
type page struct {
	via   http.RoundTripper
	ask   *http.Request // nil: it could not be made
	fault error         // why
	limit int64         // bytes of an answer
	body  []byte        // of the last answer
}

func newPage(w *web, url string, c *Config, limit int64) *page {
	p := &page{via: w.shared, limit: limit}
	if path, ok := strings.CutPrefix(url, "unix://"); ok {
		path, rest, _ := strings.Cut(path, "?")
		t := w.transport()
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		p.via, url = t, "http://agent"+rest
	}
	if c.CAFile != "" {
		pool, err := authority(c.CAFile)
		t := w.transport()
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		p.via, p.fault = t, err
	}
	q, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		p.fault = err
		return p
	}
	p.ask = q
	if c.Token != "" {
		q.Header.Set("Authorization", "Bearer "+c.Token)
	}
	return p
}

// get asks and returns when the answer arrived, and a reader of it which ends with
// an error where the answer is too long. The caller closes it. A redirect is no
// answer, so that a token goes nowhere else.
func (p *page) get(ctx context.Context) (*http.Response, time.Time, error) {
	if p.fault != nil {
		return nil, time.Time{}, p.fault
	}
	resp, err := p.via.RoundTrip(p.ask.WithContext(ctx))
	at := time.Now()
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = statusError(resp.StatusCode)
	}
	return resp, at, explain(ctx, err)
}

// all asks and reads the whole answer into body.
func (p *page) all(ctx context.Context) (at time.Time, err error) {
	resp, at, err := p.get(ctx)
	if err != nil {
		return at, err
	}
	defer resp.Body.Close()
	if cap(p.body) == 0 {
		p.body = make([]byte, 0, 8<<10)
	}
	p.body = p.body[:0]
	for {
		if len(p.body) == cap(p.body) {
			p.body = append(p.body, 0)[:len(p.body)]
		}
		n, err := resp.Body.Read(p.body[len(p.body):cap(p.body)])
		p.body = p.body[:len(p.body)+n]
		switch {
		case int64(len(p.body)) > p.limit:
			return at, fmt.Errorf("the answer is longer than %d bytes", p.limit)
		case errors.Is(err, io.EOF):
			return at, nil
		case err != nil:
			return at, explain(ctx, err)
		}
	}
}

// explain says it in plain words where the time was up.
func explain(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("no whole answer in time")
	}
	return err
}
