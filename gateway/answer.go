package gateway

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/door"
)

// answerWriter writes the answer to a request: the head with its level and rate limits, a
// JSON body, or a stream with its keep-alives. Generations write to the
// http.ResponseWriter only through it; errors and fixed routes write to w. It knows nothing
// of the request. One goroutine may use it.
type answerWriter struct {
	w         http.ResponseWriter
	values    []string // room for the values of the header, in one piece
	began     time.Time
	keepAlive KeepAlive
	buffers   *sync.Pool // of *[]byte, so that a stream that waits holds none

	sent   bool // the head is on its way
	level  degrade.Level
	reason string // signal or rule that asked for the level

	door      *door.Door
	attempt   string    // id of the attempt, of which the door makes the answer's
	model     string    // name of what answers, as far as is known
	begun     string    // id under which keep-alives were sent before the answer; empty where none was
	pending   *[]byte   // events to be written next; nil where there are none
	left      bool      // the caller reads no more
	kept      bool      // the last write was a keep-alive
	lastWrite time.Time // or the begin of the request
}

// header sets a header of the answer, whose name must be in its canonical form.
func (a *answerWriter) header(name, value string) {
	if len(a.values) == 0 {
		a.values = make([]string, 13) // as many as an answer usually has
	}
	a.values[0] = value
	a.w.Header()[name], a.values = a.values[:1:1], a.values[1:]
}

// now returns the time by one of the two clocks that time.Now reads: a stream asks for it
// at each event.
func (a *answerWriter) now() time.Time { return a.began.Add(time.Since(a.began)) }

// setLevel sets the level of the answer, with its headers while the head was not sent.
func (a *answerWriter) setLevel(level degrade.Level, reason string) {
	reason = cmp.Or(reason, "none")
	unchanged := a.level == level && a.reason == reason
	a.level, a.reason = level, reason
	if a.sent || unchanged {
		return
	}
	a.header("X-Tidegate-Level", level.String())
	a.header("X-Tidegate-Reason", reason)
}

// setRateLimitHeaders sets the headers that say what the limits leave, in OpenAI's form.
func (a *answerWriter) setRateLimitHeaders(left limit.Headers) {
	if l := left.Requests; l.Limit != 0 { // else there is no such rule
		a.header("X-Ratelimit-Limit-Requests", strconv.FormatInt(l.Limit, 10))
		a.header("X-Ratelimit-Remaining-Requests", strconv.FormatInt(l.Remaining, 10))
		a.header("X-Ratelimit-Reset-Requests", l.Reset.Round(time.Millisecond).String())
	}
	if l := left.Tokens; l.Limit != 0 {
		a.header("X-Ratelimit-Limit-Tokens", strconv.FormatInt(l.Limit, 10))
		a.header("X-Ratelimit-Remaining-Tokens", strconv.FormatInt(l.Remaining, 10))
		a.header("X-Ratelimit-Reset-Tokens", l.Reset.Round(time.Millisecond).String())
	}
	if left.Factor != 0 {
		a.header("X-Tidegate-Limit-Factor", left.Factor.String())
	}
}

// announce sets the headers of a request that was admitted.
func (a *answerWriter) announce(level degrade.Level, reason string, left limit.Headers) {
	a.setLevel(level, reason)
	a.setRateLimitHeaders(left)
}

// sendHead sends the head of a good answer.
func (a *answerWriter) sendHead() {
	a.sent = true
	a.w.WriteHeader(http.StatusOK)
}

// sendJSON sends v as a whole answer.
func (a *answerWriter) sendJSON(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	a.sent = true
	writeJSON(a.w, http.StatusOK, body)
	return nil
}

// sendBody sends a whole answer in JSON. The error says that the caller has left.
func (a *answerWriter) sendBody(body []byte) error {
	a.header("Content-Type", "application/json")
	a.header("Content-Length", strconv.Itoa(len(body)))
	a.sendHead()
	_, err := a.w.Write(body)
	return err
}

// writeJSON writes a head and a body of JSON.
func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a caller that is gone will not miss it
}

// buffer returns the events to be written next, for appending.
func (a *answerWriter) buffer() *[]byte {
	if a.pending == nil {
		var ok bool
		if a.pending, ok = a.buffers.Get().(*[]byte); !ok {
			a.pending = new([]byte)
		}
	}
	return a.pending
}

// pendingBytes returns how many bytes flush would write.
func (a *answerWriter) pendingBytes() int {
	if a.pending == nil {
		return 0
	}
	return len(*a.pending)
}

// flush writes the pending events. It reports whether the caller still reads.
func (a *answerWriter) flush() bool {
	if a.pending == nil {
		return !a.left
	}
	if len(*a.pending) > 0 && !a.left {
		a.left = a.writeEvents(*a.pending) != nil
	}
	*a.pending = (*a.pending)[:0]
	a.buffers.Put(a.pending)
	a.pending = nil
	return !a.left
}

// writeEvents writes events, behind the head where that was not sent.
func (a *answerWriter) writeEvents(events []byte) error {
	a.lastWrite, a.kept = a.now(), false
	if !a.sent {
		a.header("Content-Type", "text/event-stream; charset=utf-8")
		a.header("Cache-Control", "no-cache")
		a.header("X-Accel-Buffering", "no")
		a.sendHead()
	}
	if _, err := a.w.Write(events); err != nil {
		return err
	}
	return http.NewResponseController(a.w).Flush()
}

// endWithEvent writes the last event of a stream that ends too early. The caller may be
// gone; the cut that follows says the same.
func (a *answerWriter) endWithEvent(event []byte) {
	_, _ = a.w.Write(event)
	_ = http.NewResponseController(a.w).Flush()
}

// keepAliveDue returns the time to the next keep-alive; due reports whether it is over.
func (a *answerWriter) keepAliveDue(now time.Time) (next time.Duration, due bool) {
	silence := a.keepAlive.Silence
	if a.kept {
		silence = a.keepAlive.Every
	}
	next = silence - now.Sub(a.lastWrite)
	return next, next <= 0
}

// sendKeepAlive writes a keep-alive where one is due, and returns the time to the next. answered
// says that some of the backend's answer was written before.
func (a *answerWriter) sendKeepAlive(now time.Time, answered bool) (next time.Duration) {
	next, due := a.keepAliveDue(now)
	if !due {
		return next
	}
	events := a.buffer()
	if a.keepAlive.Form == "comment" {
		*events = append(*events, ": ping\n\n"...)
	} else {
		id := a.door.AnswerID(a.attempt)
		if !answered {
			a.begun = id
		}
		*events = append(*events, a.door.KeepAlive(id, a.model, a.began, !a.sent)...)
	}
	a.flush() // the next write notices a caller that is gone
	a.kept = true
	return a.keepAlive.Every
}
