package gateway

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/door"
	"tidegate/gateway/refusal"
)

// clientClosed is the status in logs and metrics of a request whose caller left.
const clientClosed = 499

// fail answers with an error: as a body where nothing has been sent yet, else as an event
// of the stream that has begun. cut reports that the connection must be cut: a client that
// does not read the event has no other way to know that the answer is not whole, and a
// caller that is gone gets no answer at all.
func (g *Gateway) fail(c *call, err error) (cut bool) {
	if errors.Is(err, exchange.ErrLeft) || errors.Is(err, context.Canceled) {
		c.outcome.status = clientClosed
		return true
	}
	r := explain(err, c.facts())
	g.applyRefusal(c, err)
	if r.Status >= http.StatusInternalServerError {
		r.AtLeast(c.outcome.retryAfter)
	}
	c.outcome.refuse(r)
	if c.outcome.backend == "" {
		g.metrics.refused(c.asked(), r)
		g.countRefused(c)
	}
	if c.writer.sent {
		if c.door != nil { // only a door has streams
			c.writer.endWithEvent(c.door.ErrorEvent(r))
		}
		return true
	}
	// The server waits for the rest of a body before it answers, but not for ever.
	_ = http.NewResponseController(c.writer.w).SetReadDeadline(time.Now().Add(c.settings.BodyTimeout))
	h := c.writer.w.Header()
	setRetryHeaders(h, r)
	if r.Status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", "Bearer") // RFC 9110, 15.5.2; browsers ask nobody for a Bearer key
	}
	if r.HangUp && c.r.ProtoMajor < 2 { // an HTTP/2 connection may be a proxy's, with others' requests on it
		h.Set("Connection", "close")
	}
	write := func() { writeJSON(c.writer.w, r.Status, c.errorBody(r)) }
	if c.caller.User == "" {
		return g.unread.write(c.writer.w, c.r, write)
	}
	write()
	return false
}

// applyRefusal sets the level and the headers that a refusal by admission brings, and
// alerts of a quota that is used up.
func (g *Gateway) applyRefusal(c *call, err error) {
	var (
		rejected *limit.Rejection
		shed     *admission.Overloaded
	)
	switch {
	case errors.As(err, new(*refusal.Refusal)):
	case errors.As(err, &rejected):
		if rejected.UsedUp() {
			g.Alerts.Refused(c.limitSubjects(), rejected.Rule)
		}
		c.writer.setRateLimitHeaders(rejected.Headers)
		if small := rejected.Shrunk; small.Factor != 0 && !rejected.Quota {
			c.writer.setLevel(degrade.Level(small.Level), small.Reason)
			c.writer.header("X-Tidegate-Limit-Factor", small.Factor.String())
		}
	case errors.As(err, &shed):
		c.writer.setLevel(shed.Level, shed.Reason)
	}
}

// setRetryHeaders sets the headers by which clients know when to try again.
func setRetryHeaders(h http.Header, r *refusal.Refusal) {
	if r.RetryAfter > 0 {
		ms := r.RetryAfter.Milliseconds()
		h.Set("Retry-After", strconv.FormatInt(max((ms+999)/1000, 1), 10))
		h.Set("Retry-After-Ms", strconv.FormatInt(max(ms, 1), 10))
	}
	if r.NoRetry {
		h.Set("X-Should-Retry", "false")
	}
}

// errorBody returns the body of a refusal in the form of the route's API.
func (c *call) errorBody(r *refusal.Refusal) []byte {
	if c.door == nil {
		return door.OpenAIError(r)
	}
	return c.door.Error(r)
}
