package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// facts holds what the text of a refusal may name of its request.
type facts struct {
	id          string
	now         time.Time
	addr        netip.Addr
	header      http.Header                    // of the request
	asked       string                         // model that the caller named; empty before it is known
	served      string                         // model that answers, or was to
	maxLevel    degrade.Level                  // smallest answer that the caller accepts
	promptParam string                         // parameter that holds the prompt
	retryAfter  time.Duration                  // longest wait that a refusing backend asked for
	readError   func(body []byte) openai.Error // of the door; nil: no backend was asked
}

// facts returns what the text of a refusal may name of the request.
func (c *call) facts() *facts {
	f := &facts{
		id: c.id, now: time.Now(), addr: c.clientAddr(), header: c.r.Header, asked: c.asked(), served: c.asked(), maxLevel: c.request.maxLevel,
		promptParam: c.request.PromptParam, retryAfter: c.outcome.retryAfter,
	}
	if c.door != nil {
		f.readError = c.door.BackendError
	}
	if c.plan.model != nil {
		f.served = c.plan.model.Name
	}
	return f
}

// explain maps an error to the refusal that the caller sees. It is pure. The text of an
// inner error never reaches the caller, but for what a backend says of the request.
func explain(err error, f *facts) *refusal.Refusal {
	var (
		r         *refusal.Refusal
		request   *openai.Error
		wrong     *account.Fault
		timeout   *exchange.TimeoutError
		status    *backend.StatusError
		stream    *openai.StreamError
		guessing  *account.GuessingError
		rejection *limit.Rejection
		shed      *admission.Overloaded
		tooMany   *admission.TooMany
	)
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &request):
		return refusal.New(refusal.InvalidRequest, request.Param, request.Message)
	case errors.Is(err, account.ErrUnknownKey), errors.Is(err, account.ErrIPNotAllowed):
		return f.keyRefused(err)
	case errors.As(err, &guessing):
		r := refusal.New(refusal.RateLimit, "", fmt.Sprintf("too many requests with invalid keys came from your address %v, so this key was not looked at: check the key, then try again in %v",
			f.addr, max(guessing.RetryAfter.Round(100*time.Millisecond), 100*time.Millisecond))).After(guessing.RetryAfter)
		r.HangUp = true
		return r
	case errors.As(err, &rejection):
		return f.rejected(rejection)
	case errors.As(err, &tooMany) && tooMany.Temporary:
		return refusal.New(refusal.Overloaded, "", fmt.Sprintf("this request asks for %d sequences (prompts x n), and the servers of %s that are available at the moment take %d at a time (max_in_flight): send fewer prompts at a time or a smaller n, or try again in %v",
			tooMany.Sequences, f.asked, tooMany.Max, retryNoBackend)).After(retryNoBackend)
	case errors.As(err, &tooMany):
		return refusal.New(refusal.TooLargeForLimit, "", fmt.Sprintf("this request asks for %d sequences (prompts x n), and a server of %s takes %d at a time (max_in_flight): send fewer prompts at a time or a smaller n", tooMany.Sequences, f.asked, tooMany.Max))
	case errors.As(err, &shed):
		return f.overloaded(shed)
	case errors.Is(err, limit.ErrStore):
		return refusal.New(refusal.StoreUnavailable, "", "the limits cannot be checked at the moment; please try again").After(refusal.RetryStore)
	case errors.Is(err, account.ErrUnavailable):
		return refusal.New(refusal.StoreUnavailable, "", "the gateway cannot look this up at the moment, since its store does not answer; please try again").After(refusal.RetryStore)
	case errors.As(err, &wrong):
		return explainFault(wrong)
	case errors.Is(err, admission.ErrNoBackend):
		return refusal.New(refusal.NoBackend, "", fmt.Sprintf("no server of %s is available at the moment; please try again", f.served)).After(retryNoBackend)
	case errors.As(err, &timeout):
		return f.timedOut(timeout)
	case errors.As(err, &status):
		return f.backendRefusal(status.Status, f.readError(status.Body))
	case errors.As(err, &stream):
		return f.backendRefusal(stream.Status, stream.Err)
	case errors.Is(err, errPanic):
		return refusal.New(refusal.Internal, "", "something went wrong in the gateway (request id "+f.id+")")
	}
	return refusal.New(refusal.UpstreamError, "", "the model server failed before the answer was whole; please try again (request id "+f.id+")")
}

// overloaded returns the refusal of a request without a place.
func (f *facts) overloaded(e *admission.Overloaded) *refusal.Refusal {
	wait := roundWait(e.RetryAfter)
	var message string
	switch e.Cause {
	case admission.ShedLevel:
		message = fmt.Sprintf("%s is under pressure (%s): it would answer at level %v, and this request accepts %v at most; try again in %s, or accept a higher level", f.asked, e.Reason, e.Level, f.maxLevel, wait)
	case admission.ShedWaited:
		message = fmt.Sprintf("the servers of %s were busy for as long as this request could wait; try again in %s", f.asked, wait)
	default:
		message = fmt.Sprintf("the servers of %s are busy, and this request would have to wait for too long; try again in %s", f.asked, wait)
	}
	r := refusal.New(refusal.Overloaded, "", message).After(e.RetryAfter)
	r.NoRetry = e.RetryAfter > refusal.MaxAutomaticRetry
	return r
}

// roundWait rounds a wait for a message: to tenths of seconds, at least one.
func roundWait(d time.Duration) time.Duration {
	return max(d.Round(100*time.Millisecond), 100*time.Millisecond)
}

// How long to wait before trying again, at least.
const (
	retryNoBackend  = 2 * time.Second // the health probe's rhythm
	retryOverloaded = time.Second
)

// explainFault maps a fault of the administration.
func explainFault(fault *account.Fault) *refusal.Refusal {
	switch {
	case errors.Is(fault, account.ErrNotFound):
		return refusal.New(refusal.NotFound, fault.Field, fault.Text)
	case errors.Is(fault, account.ErrConflict):
		return refusal.New(refusal.Conflict, fault.Field, fault.Text)
	}
	return refusal.New(refusal.InvalidRequest, fault.Field, fault.Text)
}

// timedOut returns the refusal where a backend took too long.
func (f *facts) timedOut(e *exchange.TimeoutError) *refusal.Refusal {
	limit := e.Wait.Round(time.Millisecond)
	if limit > time.Minute {
		limit = limit.Round(time.Second)
	}
	fault := "took longer than the " + string(e.Phase) + " limit of"
	if e.Phase == exchange.FirstByte && e.Silent {
		fault = "hangs: it has made nothing, for this request or any other, within the first_byte limit of"
	}
	return refusal.New(refusal.Timeout, "", fmt.Sprintf("the model server %s %v; please try again (request id %s)", fault, limit, f.id))
}

// backendRefusal turns a vLLM server's refusal into ours. What it says of the
// request is passed on; that it wants another key or knows no such model is a
// fault of the configuration, not of the caller. Nothing is passed on of what is no
// engine's error, such as a proxy's page of HTML: said is empty then.
func (f *facts) backendRefusal(status int, engine openai.Error) *refusal.Refusal {
	switch {
	case (status == http.StatusBadRequest || status == http.StatusUnprocessableEntity) && engine.Overflows():
		r := contextOverflow(f.promptParam, cmp.Or(engine.Message, "the request does not fit the context of "+f.served+": shorten the prompt, or lower max_tokens"))
		if engine.Param == "max_tokens" || engine.Param == "max_completion_tokens" {
			r.Param = engine.Param
		}
		return r
	case status == http.StatusRequestEntityTooLarge:
		return refusal.New(refusal.RequestTooLarge, engine.Param, cmp.Or(engine.Message,
			"the request is larger than what stands before the model server lets through: shorten it, or have that limit raised (request id "+f.id+")"))
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity, status == http.StatusNotImplemented:
		return refusal.New(refusal.InvalidRequest, engine.Param, cmp.Or(engine.Message, fmt.Sprintf(
			"the request was refused with status %d before the model server or by it, without an error that can be read (request id %s)", status, f.id)))
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		wait := max(retryOverloaded, f.retryAfter)
		return refusal.New(refusal.Overloaded, "", fmt.Sprintf("the servers of %s are busy; try again in %v", f.served, wait.Round(100*time.Millisecond))).After(wait)
	}
	return refusal.New(refusal.UpstreamError, "", "the model server failed; please try again (request id "+f.id+")")
}
