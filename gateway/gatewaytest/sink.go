package gatewaytest

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/http"
)

// sink writes events, and spoils the bytes where a fault asks for it.
type sink struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	crlf     bool
	comments bool
	split    bool
	buf      []byte
	body     []byte
}

func (s strike) sink(w http.ResponseWriter) *sink {
	return &sink{w: w, control: http.NewResponseController(w), crlf: s.crlf, comments: s.comments, split: s.split}
}

// scratch returns a buffer for the next event's payload.
func (o *sink) scratch() []byte { return o.body[:0] }

// event sends one data event. Nothing else may be between the lines: vLLM
// sends neither "event:" nor comments.
func (o *sink) event(payload []byte) error {
	o.body = payload
	o.buf = o.buf[:0]
	if o.comments {
		o.buf = append(o.buf, ": keep-alive\n\n"...)
	}
	o.buf = append(o.buf, "data: "...)
	o.buf = append(o.buf, payload...)
	o.buf = append(o.buf, '\n', '\n')
	if o.crlf {
		return o.write(bytes.ReplaceAll(o.buf, []byte("\n"), []byte("\r\n")))
	}
	return o.write(o.buf)
}

// write sends the bytes at once, or in random pieces, each flushed.
func (o *sink) write(b []byte) error {
	for len(b) > 0 {
		n := len(b)
		if o.split {
			n = 1 + rand.IntN(min(n, 40))
		}
		if _, err := o.w.Write(b[:n]); err != nil {
			return err
		}
		if err := o.flush(); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (o *sink) flush() error { return o.control.Flush() }

// reset cuts the connection with an RST, as a dying process does.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // no socket to reset: net/http cuts it
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
