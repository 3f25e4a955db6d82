package backend

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/gateway/backend/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backendOf is a backend in rotation, its connections closed when the test ends.
func backendOf(t *testing.T, addr string) *Backend {
	t.Helper()
	b := New(Config{URL: "http://" + addr}, "tidegate-test")
	b.Seat.SetRotation(true)
	t.Cleanup(b.Close)
	return b
}

// post is a small request with limits that no test reaches but those about limits.
func post() *exchange.Request {
	const long = 30 * time.Second
	return &exchange.Request{Path: "/v1/completions", ID: "id-1", Body: []byte(`{"a":1}`), Limits: exchange.Timeouts{Connect: long, FirstToken: long, FirstByte: long, Idle: long, Total: long}}
}

// send sends q and reads the answer to its end. Each piece of a stream is an event.
func send(b *Backend, q *exchange.Request) (body string, err error) {
	a, err := b.Send(context.Background(), q)
	if err != nil {
		return "", err
	}
	defer a.Close()
	buf := make([]byte, 1<<10)
	for {
		n, err := a.Read(buf)
		body += string(buf[:n])
		if n > 0 && q.Stream {
			a.Progress()
		}
		if errors.Is(err, io.EOF) {
			return body, nil
		}
		if err != nil {
			return body, err
		}
	}
}
