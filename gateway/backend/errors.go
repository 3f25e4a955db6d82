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

// TimeoutError says which limit was reached.
type TimeoutError struct {
	Phase  Phase
	Wait   time.Duration // that was waited, or between two signs of an answer
	Silent bool          // the backend has shown no sign of work at all since the request was sent
}

func (e *TimeoutError) Error() string { return "timeout: " + string(e.Phase) }

// StatusError is an answer other than 200. Body is the start of it.
type StatusError struct {
	Status int
	Body   []byte
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d", e.Status) }

// ErrLeft says that the caller left before the answer was whole.
var ErrLeft = errors.New("the caller left")

// ErrNothing says that an answer that is followed has nothing to be read yet.
var ErrNothing = errors.New("nothing to be read yet")

// brokenError is a connection that could not be made or did not hold.
type brokenError struct {
	action string
	err    error
}

func (e *brokenError) Error() string { return e.action + ": " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// errWentOut says that a request was not waited for any more.
var errMoved = errors.New("its backend went out of rotation, and another one is asked")

// Broken marks err as a connection that did not hold.
func Broken(action string, err error) error { return &brokenError{action, err} }

// statusOf is the status by which a server refused, in the head of its answer or in one
// of status 200; 0: err is no refusal.
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

// Doubtful reports whether a failure may be the backend's fault or the request's: a 500
// is what an engine says whose core is dead, and what it says of a request that it
// cannot stand; and something that is no answer may come from a proxy whose server is
// gone; and a whole answer that is late may be a hard one, unless the backend does nothing
// for anybody. Only another backend's answer to the same request tells: see Blame.
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

// Outcomes are all words of Outcome.
func Outcomes() []string {
	return []string{
		"ok", "client_closed", "timeout_connect", "timeout_first_token", "timeout_first_byte", "timeout_idle", "timeout_total", "refused", "status_5xx", "broken", "bad_answer",
	}
}

// Outcome is err in one word, for metrics.
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

// stale reports whether err is what a server's closing of an idle connection
// looks like.
func stale(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
