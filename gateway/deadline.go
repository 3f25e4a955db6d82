package gateway

import (
	"errors"
	"net/http"
	"sync"
	"time"
)

// This file bounds the time that a caller may take to read what it is sent, in two
// layers. The listener's connections (listener.go) bound every write to the socket, so
// that no byte of any answer, handshake or HTTP/2 frame waits for ever. The
// deadlineWriter bounds what a handler writes, since an HTTP/2 stream whose window is
// closed writes nothing to the socket at all.

// deadlineWriter carries every answer's body to its caller. The caller must read what is
// written within limit, or the write fails and the stream or connection ends. One
// goroutine may use it.
type deadlineWriter struct {
	http.ResponseWriter
	limit    time.Duration // time in which a write must be read
	deadline time.Time     // deadline of writes that is set; zero before the first
}

// extend moves the deadline, seldom: a stream asks for each event.
func (w *deadlineWriter) extend() error {
	now := time.Now()
	if w.deadline.Sub(now) > w.limit/2 {
		return nil
	}
	w.deadline = now.Add(w.limit)
	err := setWriteDeadline(w.ResponseWriter, w.deadline)
	if errors.Is(err, http.ErrNotSupported) { // it is no connection, so nothing waits
		return nil
	}
	return err
}

// setWriteDeadline does what http.ResponseController does, without an allocation where
// w is net/http's own.
func setWriteDeadline(w http.ResponseWriter, t time.Time) error {
	if direct, ok := w.(interface{ SetWriteDeadline(t time.Time) error }); ok {
		return direct.SetWriteDeadline(t)
	}
	return http.NewResponseController(w).SetWriteDeadline(t)
}

// Write writes a part of the body.
func (w *deadlineWriter) Write(p []byte) (int, error) {
	if err := w.extend(); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// FlushError sends what was written, and waits until the connection has taken it.
func (w *deadlineWriter) FlushError() error {
	if err := w.extend(); err != nil {
		return err
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush implements http.Flusher.
func (w *deadlineWriter) Flush() { _ = w.FlushError() } // the next write fails as well

// Unwrap returns the writer below, for http.ResponseController.
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// withDeadlines gives a handler a deadlineWriter with the write timeout of the time.
func withDeadlines(h http.Handler, writeTimeout func() time.Duration) http.Handler {
	var writers sync.Pool // of *deadlineWriter
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, ok := writers.Get().(*deadlineWriter)
		if !ok {
			out = new(deadlineWriter)
		}
		*out = deadlineWriter{ResponseWriter: w, limit: writeTimeout()}
		h.ServeHTTP(out, r)
		if r.ProtoMajor == 1 && !out.deadline.IsZero() {
			// The next request on the connection must not inherit it. An HTTP/2 stream
			// keeps it: what is buffered is sent after the handler has returned.
			_ = setWriteDeadline(w, time.Time{})
		}
		*out = deadlineWriter{}
		writers.Put(out)
	})
}
