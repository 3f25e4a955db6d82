package exchange

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
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

// ErrLeft is the error of an answer whose caller left before it was complete.
var ErrLeft = errors.New("the caller left")

// ErrNothing is the error of Read in Follow while there is nothing to read.
var ErrNothing = errors.New("nothing to be read yet")

// BrokenError is a connection that failed or broke.
type BrokenError struct {
	Action string // attempted step
	Err    error
}

func (e *BrokenError) Error() string { return e.Action + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *BrokenError) Unwrap() error { return e.Err }

// errMoved is the error of a request that moves to another backend.
var errMoved = errors.New("its backend went out of rotation, and another one is asked")

// stale reports whether err is typical of an idle connection that the backend has
// closed.
func stale(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
