package gateway

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
)

// generate is the path of a generation, from a request to its answer.
func (g *Gateway) generate(c *call) error {
	c.writer.setLevel(degrade.Full, "")
	if err := g.parse(c); err != nil { // caller, model, exact prompt tokens
		return err
	}
	defer c.followKey()()              // ends the request where its key is revoked meanwhile
	if err := g.admit(c); err != nil { // limits and quotas, level, queue; names the backend and holds a place on it
		return err
	}
	defer g.settle(c)                       // once, whatever happens, panics included
	if err := g.applyLevel(c); err != nil { // what the request becomes at its level
		return err
	}
	g.beginFlight(c) // the ledger knows it even if this process is killed
	c.writer.announce(c.plan.level, c.plan.reason, c.permit.Headers)
	if c.plan.level == degrade.Canned {
		return g.canned(c)
	}
	return g.forward(c) // retries before the first byte; counts tokens as they pass
}

// applyLevel makes the plan of a request from its permit. A fallback after a failure
// applies the permit's new level.
func (g *Gateway) applyLevel(c *call) error {
	var m *backend.Model
	contextLength := 0
	if level := c.permit.Level; level != degrade.Canned {
		if m = c.request.fallback(c.permit.Pool()); m == nil {
			return admission.ErrNoBackend // a reload made another model the smaller one meanwhile
		}
		contextLength = m.Context()
	}
	c.plan = planFor(&c.request, c.permit, g.Ladder.Effect(c.permit.Level), m, contextLength)
	c.writer.model = c.plan.served
	return nil
}

// errPanic stands for a panic in a handler.
var errPanic = errors.New("panic in a handler")

// answer runs a handler, answers its error, and finishes the request: the frame of every
// route.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, route string, h handler) {
	c := g.newCall(w, r, route)
	defer c.bodies.release()
	c.writer.header("X-Request-Id", c.id)
	c.tracing = g.startTrace(c)
	err := c.endCause(g.guarded(c, h))
	cut := err != nil && g.fail(c, err)
	g.finish(c, err)
	if cut {
		panic(http.ErrAbortHandler) // so that the caller notices that the answer is not whole
	}
}

// newCall returns the call of a request that begins now.
func (g *Gateway) newCall(w http.ResponseWriter, r *http.Request, route string) *call {
	c := &call{r: r, settings: g.settings.Load(), route: route, began: time.Now(), bodies: holding{budget: &g.bodies}}
	c.id, c.outcome.status = newID(c.began), http.StatusOK
	c.writer = answerWriter{w: w, began: c.began, lastWrite: c.began, keepAlive: c.settings.KeepAlive, buffers: &g.buffers}
	return c
}

// startTrace begins the span of a request.
func (g *Gateway) startTrace(c *call) *tracing {
	trusted := len(c.settings.traced) > 0 && contains(c.settings.traced, c.clientAddr())
	return startTrace(g.Tracer, c.r, c.route, c.id, c.began, trusted)
}

// guarded runs a handler and turns a panic into an error.
func (g *Gateway) guarded(c *call, h handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.Log.Error("panic", "id", c.id, "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return h(c)
}

// followKey ends the request when its key is revoked. Call release when the request has
// ended.
func (c *call) followKey() (release func()) {
	ctx, release := c.settings.accounts.Follow(c.r.Context(), &c.caller)
	c.r = c.r.WithContext(ctx)
	return release
}

// endCause returns the error of the key if its revocation ended the request, which looks as
// if the caller had left; else err.
func (c *call) endCause(err error) error {
	if cause := (*account.KeyError)(nil); err != nil && errors.As(context.Cause(c.r.Context()), &cause) {
		return cause
	}
	return err
}
