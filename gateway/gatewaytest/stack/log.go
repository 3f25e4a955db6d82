package stack

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log collects the output of a process. It is safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	text    []byte
	written chan struct{} // of capacity 1: there is more text
}

// NewLog returns an empty log.
func NewLog() *Log { return &Log{written: make(chan struct{}, 1)} }

// Write appends p and never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text = append(l.text, p...)
	l.mu.Unlock()
	select {
	case l.written <- struct{}{}:
	default:
	}
	return len(p), nil
}

// shownLog bounds what a failed test shows of the log, in bytes.
const shownLog = 4 << 10

// String returns the end of the log, for the message of a failure.
func (l *Log) String() string {
	text := l.Text()
	return text[max(0, len(text)-shownLog):]
}

// Text returns the whole log.
func (l *Log) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// Await waits until ok accepts the whole log. The process sends its exit code on ended;
// event names in a failure what never came.
func (l *Log) Await(t *testing.T, ended chan int, event string, ok func(text string) bool) {
	t.Helper()
	deadline := time.After(Patience)
	for !ok(l.Text()) {
		select {
		case <-l.written:
		case code := <-ended:
			ended <- code // for the cleanup
			t.Fatalf("the process ended with code %d before it said %q:\n%s", code, event, l)
		case <-deadline:
			t.Fatalf("the process never said %q:\n%s", event, l)
		}
	}
}

// Address waits for the line with the message msg and returns the address in it.
func (l *Log) Address(t *testing.T, msg string, ended chan int) (address string) {
	t.Helper()
	l.Await(t, ended, msg, func(text string) bool {
		for line := range strings.Lines(text) {
			var entry struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == msg {
				address = entry.Address
				return true
			}
		}
		return false
	})
	return address
}
