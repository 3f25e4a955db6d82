// Package refusal holds the errors that callers see: their codes, the HTTP status
// and OpenAI type of each, and when to try again. It is a leaf: it knows no wire
// format. How a Refusal is written is its door's concern.
package refusal

import (
	"net/http"
	"time"
)

// Code identifies the kind of a refusal to clients. docs/api.md has the table.
type Code string

// The codes of the table in docs/api.md.
const (
	InvalidAPIKey       Code = "invalid_api_key"
	AccessDenied        Code = "access_denied"
	ModelNotAllowed     Code = "model_not_allowed"
	ModelNotFound       Code = "model_not_found"
	InvalidRequest      Code = "invalid_request"
	ContextLength       Code = "context_length_exceeded"
	RequestTooLarge     Code = "request_too_large"
	UnsupportedEncoding Code = "unsupported_encoding"
	UnknownURL          Code = "unknown_url"
	MethodNotAllowed    Code = "method_not_allowed"
	NotFound            Code = "not_found"
	Conflict            Code = "conflict"
	TooLargeForLimit    Code = "request_too_large_for_limit"
	RateLimit           Code = "rate_limit_exceeded"
	InsufficientQuota   Code = "insufficient_quota"
	Overloaded          Code = "overloaded"
	StoreUnavailable    Code = "store_unavailable"
	NoBackend           Code = "no_backend"
	UpstreamError       Code = "upstream_error"
	Timeout             Code = "timeout"
	Internal            Code = "internal_error"
)

// Status returns the HTTP status and OpenAI's error type of the code. An unknown code
// is an internal error.
func (c Code) Status() (status int, kind string) {
	switch c {
	case InvalidAPIKey:
		return http.StatusUnauthorized, "authentication_error"
	case ModelNotAllowed, AccessDenied:
		return http.StatusForbidden, "permission_error"
	case ModelNotFound, UnknownURL, NotFound:
		return http.StatusNotFound, "invalid_request_error"
	case MethodNotAllowed:
		return http.StatusMethodNotAllowed, "invalid_request_error"
	case RateLimit:
		return http.StatusTooManyRequests, "rate_limit_error"
	case InsufficientQuota: // not 429, which clients would retry
		return http.StatusForbidden, "insufficient_quota"
	case InvalidRequest, ContextLength, TooLargeForLimit:
		return http.StatusBadRequest, "invalid_request_error"
	case Conflict:
		return http.StatusConflict, "invalid_request_error"
	case RequestTooLarge:
		return http.StatusRequestEntityTooLarge, "invalid_request_error"
	case UnsupportedEncoding:
		return http.StatusUnsupportedMediaType, "invalid_request_error"
	case Overloaded, NoBackend, StoreUnavailable:
		return http.StatusServiceUnavailable, "server_error"
	case UpstreamError:
		return http.StatusBadGateway, "server_error"
	case Timeout:
		return http.StatusGatewayTimeout, "server_error"
	}
	return http.StatusInternalServerError, "server_error"
}

// MaxAutomaticRetry is the longest wait after which a client's own retry makes sense. A
// refusal with a longer one tells SDKs not to retry.
const MaxAutomaticRetry = time.Minute

// Refusal is an error that the caller sees as it stands. Its message must be fit for the
// caller's eyes. It is not safe for concurrent use while it is being built.
type Refusal struct {
	Code       Code
	Status     int           // HTTP status of the answer
	Type       string        // OpenAI's type of the error
	Param      string        // parameter at fault; empty where none is
	Message    string        // text for the caller
	RetryAfter time.Duration // wait before the next try; 0 where none helps or none is known
	NoRetry    bool          // automatic retries are pointless
	Rule       string        // name of the limit or quota that rejected; empty where none did
	HangUp     bool          // the connection ends after the answer
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

// New returns a refusal with the status and the type of its code.
func New(c Code, param, message string) *Refusal {
	status, kind := c.Status()
	return &Refusal{Code: c, Status: status, Type: kind, Param: param, Message: message}
}

// After sets how long the caller should wait before it tries again, and returns r.
func (r *Refusal) After(wait time.Duration) *Refusal {
	r.RetryAfter = wait
	return r
}

// AtLeast raises the wait to at least the given one.
func (r *Refusal) AtLeast(wait time.Duration) {
	r.RetryAfter = max(r.RetryAfter, wait)
	r.NoRetry = r.NoRetry || wait > MaxAutomaticRetry
}

// RetryStore is the wait after which a store that did not answer may be asked again: it
// is probed every second.
const RetryStore = 2 * time.Second
