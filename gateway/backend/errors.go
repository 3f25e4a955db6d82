package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
)

// StatusError is an answer with a status other than 200.
type StatusError struct {
	Status int
	Body   []byte
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d", e.Status) }

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
	var timeout *exchange.TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == exchange.Connect || timeout.Phase == exchange.FirstByte
	}
	var broken *exchange.BrokenError
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
	if errors.As(err, new(*exchange.BrokenError)) {
		return false // a connection that did not hold is no fault of a request
	}
	var timeout *exchange.TimeoutError
	if errors.As(err, &timeout) {
		return timeout.Phase == exchange.FirstByte && !timeout.Silent
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
		timeout *exchange.TimeoutError
		broken  *exchange.BrokenError
	)
	status := statusOf(err)
	switch {
	case errors.Is(err, exchange.ErrLeft), errors.Is(err, context.Canceled):
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
