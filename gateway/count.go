package gateway

import (
	"context"
	"time"

	"tidegate/gateway/ledger"
)

// writing is how long the end of an answer may wait for its record. It is written
// in some 15 µs; a disk that takes nothing must not stop answers.
const writing = 100 * time.Millisecond

// countFirst enters a whole answer into the ledger before its caller is given the
// end of it, so that what a caller has is counted even if this process is killed the
// next moment.
func (g *Gateway) countFirst(c *call) {
	g.count(c)
	ctx, cancel := context.WithTimeout(context.Background(), writing)
	defer cancel()
	// Where the disk takes it later, only a kill before then would lose it.
	_ = g.Ledger.Written(ctx)
}

// count enters a request that held a place on a backend into the ledger, once, with
// the engine's own numbers, or, of an answer that was cut before it gave any, what is
// known. One that failed before its first token is entered without tokens.
func (g *Gateway) count(c *call) {
	if c.permit == nil || c.counted {
		return
	}
	c.counted = true
	r := ledger.Record{
		ID: c.id, Time: c.began, Department: c.who.Department, Project: c.who.Project, User: c.who.User, Key: c.who.Key, Asked: c.wish.Model, Model: c.model.Name,
		Level: int(c.level), Status: c.status, Took: time.Since(c.began), GPU: c.permit.GPU(),
	}
	if c.charged {
		r.Usage, r.Estimated, r.Units = c.usage, c.estimated, c.model.Weights.Units(charge(c.usage))
		g.metrics.used(c.model.Name, c.usage)
	}
	if !c.firstToken.IsZero() {
		r.TTFT = c.firstToken.Sub(c.began)
	}
	g.Ledger.Add(r)
}

// own is the filter of the caller's own use.
func (c *call) own() ledger.Filter { return ledger.Filter{User: c.who.User} }
