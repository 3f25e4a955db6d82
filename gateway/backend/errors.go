package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"syscall"
	"time"

	"tidegate/gateway/openai"
)

// Phase names the limit that a timeout ran into.
type Phase string

// The limits of an exchange.
const (
	Connect    Phase = "connect"
	FirstToken Phase = "first_token"
	FirstByte  Phase = "first_byte"
	Idle       Phase = "idle"
	Total      Phase = "total"
)

// TimeoutError reports a limit of an exchange that has passed.
type TimeoutError struct {
	Phase  Phase
	Wait   time.Duration // length of the limit
	Silent bool          // whether the backend has shown no sign of work since the request was sent
}

func (e *TimeoutError) Error() string { return "timeout: " + string(e.Phase) }

// StatusError is an answer with a status other than 200.
type StatusError struct {
	Status int
	Body   []byte
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d", e.Status) }

// ErrLeft is the error of an answer whose caller left before it was complete.
var ErrLeft = errors.New("the caller left")

// ErrNothing is the error of Read in Follow while there is nothing to read.
var ErrNothing = errors.New("nothing to be read yet")

// brokenError is a connection that failed or broke.
type brokenError struct {
	action string
	err    error
}

func (e *brokenError) Error() string { return e.action + ": " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// errMoved is the error of a request that moves to another backend.
var errMoved = errors.New("its backend went out of rotation, and another one is asked")

// Broken marks err as the failure of a connection.
func Broken(action string, err error) error { return &brokenError{action, err} }

// statusOf returns the status of a refusal, from the head of an answer or from an answer
// of status 200; 0 if err is no refusal.
func statusOf(err error) int {
	var (
		status *StatusError
		stream *openai.StreamError
	)
	switch {
	case errors.As(err, &status):
		return status.Status
	case errors.As(err, &stream):
		return stream.Status
	}
	return 0
}

// Retryable reports whether the same request may be sent to another backend, given that
// the caller has seen nothing of an answer yet: the connection failed or broke, the
// server said that it is not available, or the failure is Doubtful.
func Retryable(err error) bool {
	switch statusOf(err) {
	case 0:
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	default:
		return Doubtful(err)
	}
	var timeout *TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == Connect || timeout.Phase == FirstByte
	}
	var broken *brokenError
	return errors.As(err, &broken) || Doubtful(err)
}

// Doubtful reports whether a failure may be the fault of the backend or of the request.
// An engine whose core is dead answers 500, and so does one that cannot process the
// request. A malformed answer may come from a proxy without a backend. A late answer in
// one piece may be a hard one, unless the backend works for nobody. Only another
// backend's answer to the same request decides: see Blame.
func Doubtful(err error) bool {
	if status := statusOf(err); status != 0 {
		return status == http.StatusInternalServerError
	}
	if errors.As(err, new(*brokenError)) {
		return false // a connection that did not hold is no fault of a request
	}
	var timeout *TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == FirstByte && !timeout.Silent
	}
	return errors.Is(err, openai.ErrNoAnswer) || errors.Is(err, openai.ErrGarbage) || errors.Is(err, openai.ErrNoEvents) || errors.Is(err, openai.ErrUnfinished)
}

// Outcomes returns all values of Outcome.
func Outcomes() []string {
	return []string{
		"ok", "client_closed", "timeout_connect", "timeout_first_token", "timeout_first_byte", "timeout_idle", "timeout_total", "refused", "status_5xx", "broken", "bad_answer",
	}
}

// Outcome returns one word for err, for metrics.
func Outcome(err error) string {
	if err == nil {
		return "ok" // before the targets below are allocated
	}
	var (
		timeout *TimeoutError
		broken  *brokenError
	)
	status := statusOf(err)
	switch {
	case errors.Is(err, ErrLeft), errors.Is(err, context.Canceled):
		return "client_closed"
	case errors.As(err, &timeout):
		return "timeout_" + string(timeout.Phase)
	case status != 0 && status < 500:
		return "refused"
	case status != 0:
		return "status_5xx"
	case errors.As(err, &broken):
		return "broken"
	}
	return "bad_answer"
}

// stale reports whether err is typical of an idle connection that the backend has
// closed.
func stale(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
