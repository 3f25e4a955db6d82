package gateway

import (
	"context"
	"time"

	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
	"tidegate/gateway/openai"
)

// writing is how long the end of an answer may wait for its record where it is not
// noted that it was under way; a disk that takes nothing must not stop answers.
const writing = 100 * time.Millisecond

// countFirst enters a whole answer into the ledger before its caller is given the
// end of it, so that what a caller has is counted even if this process is killed the
// next moment.
func (g *Gateway) countFirst(c *call) {
	if g.count(c) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), writing)
	defer cancel()
	// Where the disk takes it later, only a kill before then would lose it.
	_ = g.Ledger.Written(ctx)
}

// count enters a request that held a place on a backend into the ledger, once, with
// the engine's own numbers, or, of an answer that was cut before it gave any, what is
// known. One that failed before its first token is entered without tokens. It reports
// whether the record outlives this process.
func (g *Gateway) count(c *call) (kept bool) {
	if c.permit == nil || c.counted {
		return true
	}
	c.counted = true
	r := c.record()
	r.Status, r.Took, r.Queue, r.GPU = c.status, time.Since(c.began), c.permit.Waited, c.permit.GPU()
	if c.charged {
		r.Usage, r.Estimated, r.Units = c.usage, c.estimated, c.model.Weights.Units(charge(c.usage))
		g.metrics.used(c)
	}
	if !c.firstToken.IsZero() {
		r.TTFT = c.firstToken.Sub(c.began)
	}
	kept = g.Ledger.Add(r, c.flight)
	c.flight = nil
	return kept
}

// corrected notes what was wrong with the usage of one of a backend's answers. That
// nobody saw an answer is no fault of the backend's.
func (g *Gateway) corrected(b *backend.Backend, faults openai.Faults) {
	if faults == 0 {
		return
	}
	g.metrics.corrected(b.Name, faults)
	if faults &^= openai.FaultUnseen; faults != 0 && b.Doubts.Note(time.Now(), faults) {
		g.Log.Warn("a server's usage was not believed, own counts replace it", "backend", b.Name, "figures", faults.Names())
	}
}

// record is what is known of the request from the beginning.
func (c *call) record() ledger.Record {
	return ledger.Record{
		ID: c.id, Time: c.began, Department: c.who.Department, Project: c.who.Project, User: c.who.User, Key: c.who.Key, Asked: c.wish.Model, Model: c.served, Level: int(c.level),
	}
}

// takeOff notes a request that is sent to a server, with its prompt: should this
// process be killed, the next one counts it.
func (g *Gateway) takeOff(c *call) {
	r := c.record()
	r.Usage.Input = c.prompt
	r.Units = c.model.Weights.Units(charge(r.Usage))
	c.flight = g.Ledger.Begin(r)
}

// progress notes what a stream has used so far.
func (c *call) progress(u openai.Usage) {
	if c.flight != nil {
		c.flight.Progress(u, c.model.Weights.Units(charge(u)))
	}
}

// own is the filter of the caller's own use.
func (c *call) own() ledger.Filter { return ledger.Filter{User: c.who.User} }
