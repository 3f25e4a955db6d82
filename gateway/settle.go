package gateway

import (
	"context"
	"time"

	"tidegate/gateway/ledger"
)

// ledgerWait bounds how long the end of an answer waits for its record where the ledger
// does not know that it was under way; a disk that takes nothing must not stop answers.
const ledgerWait = 100 * time.Millisecond

// settle charges the limits with what the request used and gives its place back, once.
// Where the end of an answer is known it is called before that is sent: no place waits for
// a reader.
func (g *Gateway) settle(c *call) {
	if c.settlement.settled {
		return
	}
	c.settlement.settled = true
	if err := c.permit.Settle(limitUsage(c.outcome.usage), c.served()); err != nil {
		g.Log.Warn("the limits' store did not take a request's usage; it will be asked again", "id", c.id, "error", err.Error())
	}
	g.Alerts.Touch(c.subjects)
}

// beginFlight notes a request that is sent to a backend, with its prompt: should this
// process be killed, the next one charges it.
func (g *Gateway) beginFlight(c *call) {
	r := c.ledgerRecord()
	r.Usage.Input = c.plan.prompt
	if c.plan.model != nil {
		r.Units = c.plan.model.Weights.Units(limitUsage(r.Usage))
	}
	c.settlement.flight = g.Ledger.Begin(r)
}

// recordFirst enters a whole answer into the ledger before its caller gets the end of it,
// so that what a caller has is counted even if this process is killed the next moment.
func (g *Gateway) recordFirst(c *call) {
	if g.record(c) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), ledgerWait)
	defer cancel()
	// Where the disk takes it later, only a kill before then would lose it.
	_ = g.Ledger.Written(ctx)
}

// record enters a request that was admitted into the ledger, once, with the engine's own
// numbers, or, of an answer that was cut before it gave any, what is known. One that failed
// before its first token is entered without tokens. It reports whether the record outlives
// this process.
func (g *Gateway) record(c *call) (kept bool) {
	if c.permit == nil || c.settlement.recorded {
		return true
	}
	c.settlement.recorded = true
	out, r := &c.outcome, c.ledgerRecord()
	r.Status, r.Took, r.Queue, r.GPU = out.status, time.Since(c.began), c.permit.Wait, c.permit.GPU()
	if out.charged {
		r.Usage, r.Estimated = out.usage, out.estimated
		if c.plan.model != nil {
			r.Units = c.plan.model.Weights.Units(limitUsage(out.usage))
			g.metrics.used(c.plan.served, c.caller.User, out.usage)
		}
	}
	if !out.firstToken.IsZero() {
		r.TTFT = out.firstToken.Sub(c.began)
	}
	kept = g.Ledger.Add(r, c.settlement.flight)
	c.settlement.flight = nil
	return kept
}

// record returns what is known of the request from the beginning.
func (c *call) ledgerRecord() ledger.Record {
	return ledger.Record{
		ID: c.id, Time: c.began, Department: c.caller.Department, Project: c.caller.Project, User: c.caller.User, Key: c.caller.Key,
		Asked: c.request.Wish.Model, Model: c.served(), Level: int(c.plan.level),
	}
}
