package bench

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

const (
	copyBuffer  = 32 << 10
	maxBareBody = 32 << 20
)

// copyBuffers lends the copy buffers of httputil.ReverseProxy.
type copyBuffers struct{ pool sync.Pool }

func (b *copyBuffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, copyBuffer)
}

func (b *copyBuffers) Put(p []byte) { b.pool.Put(&p) }

// NewBare returns the base of comparison, the least reverse proxy that the standard library
// gives. It flushes each write, and it reads a request's whole body before it
// forwards it. A gateway must do so anyway to learn the model; it also avoids a
// race of net/http: a server that begins to answer closes the request body, and a
// transport that is just about to look for the body's end then drops the backend's
// connection in mid-stream.
func NewBare(backend *url.URL) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(backend)
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{
			MaxIdleConns: 0, MaxIdleConnsPerHost: 4096, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
		},
		FlushInterval: -1,
		BufferPool:    &copyBuffers{},
		// Its own logs each client that leaves.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		if n := r.ContentLength; n > 0 && n <= 1<<20 {
			body.Grow(int(n) + bytes.MinRead) // io.ReadAll's growing doubles the cost at 32 KiB
		}
		if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, maxBareBody)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.ContentLength = int64(body.Len())
		r.Body = io.NopCloser(&body)
		proxy.ServeHTTP(w, r)
	})
}
