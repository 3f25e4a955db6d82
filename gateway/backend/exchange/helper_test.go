package exchange

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is an observer that counts, and thinks nothing of a silence.
type recorder struct {
	mu          sync.Mutex
	suspected   int  // failures
	refused     bool // whether one of them was a refused connection
	queuedSince time.Time
}

func (r *recorder) Begin(time.Time) {}
func (r *recorder) End(bool)        {}
func (r *recorder) Sign(time.Time)  {}
func (r *recorder) Suspect(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspected++
	r.refused = r.refused || errors.Is(err, syscall.ECONNREFUSED)
}
func (r *recorder) QueuedSince() time.Time                             { return r.queuedSince }
func (r *recorder) Silent(_, _ time.Time) bool                         { return false }
func (r *recorder) SilentFor(time.Duration, time.Time, time.Time) bool { return false }
func (r *recorder) Unavailable() bool                                  { return false }
func (r *recorder) Predict(int, int, time.Time) time.Duration          { return 0 }

// failures returns how many exchanges have failed.
func (r *recorder) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.suspected
}

// client is a client with its observer.
type client struct {
	*Client
	seen *recorder
}

// clientOf returns a client of an address whose connections are closed when the test ends.
func clientOf(t testing.TB, addr string) client { return clientWith(t, Config{Address: addr}) }

// clientWith returns a client with a configuration, to which the usual head is added.
func clientWith(t testing.TB, c Config) client {
	t.Helper()
	c.Header = "Host: " + c.Address + "\r\nUser-Agent: tidegate-test\r\nContent-Type: application/json\r\n" + c.Header
	seen := &recorder{}
	cl := NewClient(c, seen)
	t.Cleanup(cl.Close)
	return client{cl, seen}
}

// isBroken reports whether an error is the failure of a connection.
func isBroken(err error) bool { return errors.As(err, new(*BrokenError)) }

// post is a small request with limits that no test reaches but those about limits.
func post() *Request {
	const long = 30 * time.Second
	return &Request{Path: "/v1/completions", ID: "id-1", Body: []byte(`{"a":1}`), Limits: Timeouts{long, long, long, long, long}}
}

// send sends q and reads the answer to its end.
func send(cl client, q *Request) (a *Answer, body string, err error) {
	a, err = cl.Send(context.Background(), q)
	if err != nil {
		return nil, "", err
	}
	defer a.Close()
	raw, err := io.ReadAll(events{a})
	return a, string(raw), err
}

// events is an answer of which each piece that is read is an event, if it is a stream.
type events struct{ *Answer }

func (e events) Read(p []byte) (int, error) {
	n, err := e.Answer.Read(p)
	if n > 0 && e.q.Stream {
		e.Progress()
	}
	return n, err
}

func wantPhase(t *testing.T, err error, want Phase) {
	t.Helper()
	var timeout *TimeoutError
	if !errors.As(err, &timeout) || timeout.Phase != want {
		t.Errorf("%v; want the timeout %s", err, want)
	}
}
