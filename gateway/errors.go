package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// clientClosed is the status in logs and metrics of a request whose caller left.
const clientClosed = 499

// overflow refuses what does not fit the context. The code stands in the message
// too, by which alone LangChain knows the case.
func (c *call) overflow(message string) *refusal.Refusal {
	param := "messages"
	if c.kind == openai.Completions {
		param = "prompt"
	}
	return refusal.New(refusal.ContextLength, param, message+" ("+string(refusal.ContextLength)+")")
}

// fail tells the caller of an error, as a body where nothing has been sent yet,
// else as an event of the stream that has begun. cut says that the connection
// must be cut: a client that does not read the event has no other way to know
// that the answer is not whole, and a caller that is gone gets no answer at all.
func (g *Gateway) fail(c *call, err error) (cut bool) {
	if errors.Is(err, backend.ErrLeft) || errors.Is(err, context.Canceled) {
		c.status = clientClosed
		return true
	}
	r := g.explain(c, err)
	if r.Status >= http.StatusInternalServerError {
		r.AtLeast(c.retry)
	}
	c.status, c.code, c.param, c.rule = r.Status, string(r.Code), r.Param, r.Rule
	if c.backend == "" {
		g.metrics.refused(c, r)
		g.turnedAway(c)
	}
	if c.sent {
		event := append([]byte("data: "), errorBody(r)...)
		// The caller may be gone; the cut that follows says the same.
		_, _ = c.w.Write(append(event, '\n', '\n'))
		_ = http.NewResponseController(c.w).Flush()
		return true
	}
	// The server waits for the rest of a body before it answers, but not for ever.
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(c.set.BodyTimeout))
	h := c.w.Header()
	if r.RetryAfter > 0 {
		ms := r.RetryAfter.Milliseconds()
		h.Set("Retry-After", strconv.FormatInt(max((ms+999)/1000, 1), 10))
		h.Set("Retry-After-Ms", strconv.FormatInt(max(ms, 1), 10))
	}
	if r.NoRetry {
		h.Set("X-Should-Retry", "false")
	}
	if r.Status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", "Bearer") // RFC 9110, 15.5.2; browsers ask nobody for a Bearer key
	}
	if r.HangUp && c.r.ProtoMajor < 2 { // an HTTP/2 connection may be a proxy's, with others' requests on it
		h.Set("Connection", "close")
	}
	write := func() { writeJSON(c.w, r.Status, errorBody(r)) }
	if c.who.User == "" {
		return g.toStranger(c.w, c.r, write)
	}
	write()
	return false
}

// errorBody is a refusal in OpenAI's form.
func errorBody(r *refusal.Refusal) []byte {
	e := openai.Error{Message: r.Message, Type: r.Type, Param: r.Param, Code: string(r.Code)}
	return e.Body()
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// A caller that is gone will not miss it.
	_, _ = w.Write(body)
}

// explain is the error map: what a caller is told of what went wrong. The text
// of an inner error never reaches it, but for what a server says of the request.
func (g *Gateway) explain(c *call, err error) *refusal.Refusal {
	var (
		r        *refusal.Refusal
		request  *openai.Error
		wrong    *account.Fault
		timeout  *backend.TimeoutError
		status   *backend.StatusError
		stream   *openai.StreamError
		guessing *account.GuessingError
		denied   *limit.Denied
		shed     *admission.Overloaded
		many     *admission.TooMany
	)
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &request):
		return refusal.New(refusal.InvalidRequest, request.Param, request.Message)
	case errors.Is(err, account.ErrUnknownKey), errors.Is(err, account.ErrIPNotAllowed):
		return c.keyRefused(err)
	case errors.As(err, &guessing):
		r := refusal.New(refusal.RateLimit, "", fmt.Sprintf("too many requests with keys that are not good came from your address %v, so this key was not looked at: check the key, then try again in %v",
			c.from(), max(guessing.RetryAfter.Round(100*time.Millisecond), 100*time.Millisecond))).After(guessing.RetryAfter)
		r.HangUp = true
		return r
	case errors.As(err, &denied):
		if denied.UsedUp() {
			g.Alerts.Refused(c.subjects(), denied.Rule)
		}
		return c.overLimit(denied)
	case errors.As(err, &many) && many.Temporary:
		return refusal.New(refusal.Overloaded, "", fmt.Sprintf("this request asks for %d sequences (prompts x n), and the servers of %s that are available at the moment take %d at a time (max_in_flight): send fewer prompts at a time or a smaller n, or try again in %v",
			many.Sequences, c.asked.Name, many.Most, retryNoBackend)).After(retryNoBackend)
	case errors.As(err, &many):
		return refusal.New(refusal.TooLargeForLimit, "", fmt.Sprintf("this request asks for %d sequences (prompts x n), and a server of %s takes %d at a time (max_in_flight): send fewer prompts at a time or a smaller n", many.Sequences, c.asked.Name, many.Most))
	case errors.As(err, &shed):
		return c.overloaded(shed)
	case errors.Is(err, limit.ErrStore):
		return refusal.New(refusal.StoreUnavailable, "", "the limits cannot be checked at the moment; please try again").After(retryStore)
	case errors.Is(err, account.ErrUnavailable):
		return refusal.New(refusal.StoreUnavailable, "", "the gateway cannot look this up at the moment, since its store does not answer; please try again").After(retryStore)
	case errors.As(err, &wrong):
		return explainFault(wrong)
	case errors.Is(err, admission.ErrNoBackend):
		return refusal.New(refusal.NoBackend, "", fmt.Sprintf("no server of %s is available at the moment; please try again", c.model.Name)).After(retryNoBackend)
	case errors.As(err, &timeout):
		return c.timedOut(timeout)
	case errors.As(err, &status):
		return serverRefusal(c, status.Status, openai.ReadError(status.Body))
	case errors.As(err, &stream):
		return serverRefusal(c, stream.Status, stream.Err)
	case errors.Is(err, errPanic):
		return refusal.New(refusal.Internal, "", "something went wrong in the gateway (request id "+c.id+")")
	}
	return refusal.New(refusal.UpstreamError, "", "the model server failed before the answer was whole; please try again (request id "+c.id+")")
}

// overloaded is what the caller of a request without a place is told.
func (c *call) overloaded(e *admission.Overloaded) *refusal.Refusal {
	c.stand(e.Level, e.Reason)
	in := soon(e.RetryAfter)
	var message string
	switch e.Why {
	case admission.ShedLevel:
		message = fmt.Sprintf("%s is under pressure (%s): it would answer at level %v, and this request accepts %v at most; try again in %s, or accept a higher level", c.asked.Name, e.Reason, e.Level, c.most, in)
	case admission.ShedWaited:
		message = fmt.Sprintf("the servers of %s were busy for as long as this request could wait; try again in %s", c.asked.Name, in)
	default:
		message = fmt.Sprintf("the servers of %s are busy, and this request would have to wait for too long; try again in %s", c.asked.Name, in)
	}
	r := refusal.New(refusal.Overloaded, "", message).After(e.RetryAfter)
	r.NoRetry = e.RetryAfter > refusal.MaxAutomaticRetry
	return r
}

// soon is a time to wait as a message says it: in tenths of seconds, at least one.
func soon(d time.Duration) time.Duration {
	return max(d.Round(100*time.Millisecond), 100*time.Millisecond)
}

// How long to wait before trying again, at least.
const (
	retryNoBackend  = 2 * time.Second // the health probe's rhythm
	retryOverloaded = time.Second
	retryStore      = 2 * time.Second // it is tried every second
)

func explainFault(f *account.Fault) *refusal.Refusal {
	switch {
	case errors.Is(f, account.ErrNotFound):
		return refusal.New(refusal.NotFound, f.Field, f.Text)
	case errors.Is(f, account.ErrConflict):
		return refusal.New(refusal.Conflict, f.Field, f.Text)
	}
	return refusal.New(refusal.InvalidRequest, f.Field, f.Text)
}

// timedOut is what the caller is told of a server that took too long.
func (c *call) timedOut(e *backend.TimeoutError) *refusal.Refusal {
	after := e.After.Round(time.Millisecond)
	if after > time.Minute {
		after = after.Round(time.Second)
	}
	did := "took longer than the " + string(e.Phase) + " limit of"
	if e.Phase == backend.FirstByte && e.Silent {
		did = "hangs: it has made nothing, for this request or any other, within the first_byte limit of"
	}
	return refusal.New(refusal.Timeout, "", fmt.Sprintf("the model server %s %v; please try again (request id %s)", did, after, c.id))
}

// serverRefusal turns a vLLM server's refusal into ours. What it says of the
// request is passed on; that it wants another key or knows no such model is a
// fault of the configuration, not of the caller. Nothing is passed on of what is no
// engine's error, such as a proxy's page of HTML: said is empty then.
func serverRefusal(c *call, status int, said openai.Error) *refusal.Refusal {
	switch {
	case (status == http.StatusBadRequest || status == http.StatusUnprocessableEntity) && said.Overflows():
		r := c.overflow(cmp.Or(said.Message, "the request does not fit the context of "+c.model.Name+": shorten the prompt, or lower max_tokens"))
		if said.Param == "max_tokens" || said.Param == "max_completion_tokens" {
			r.Param = said.Param
		}
		return r
	case status == http.StatusRequestEntityTooLarge:
		return refusal.New(refusal.RequestTooLarge, said.Param, cmp.Or(said.Message,
			"the request is larger than what stands before the model server lets through: shorten it, or have that limit raised (request id "+c.id+")"))
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity, status == http.StatusNotImplemented:
		return refusal.New(refusal.InvalidRequest, said.Param, cmp.Or(said.Message, fmt.Sprintf(
			"the request was refused with status %d before the model server or by it, without an error that can be read (request id %s)", status, c.id)))
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		in := max(retryOverloaded, c.retry)
		return refusal.New(refusal.Overloaded, "", fmt.Sprintf("the servers of %s are busy; try again in %v", c.model.Name, in.Round(100*time.Millisecond))).After(in)
	}
	return refusal.New(refusal.UpstreamError, "", "the model server failed; please try again (request id "+c.id+")")
}
