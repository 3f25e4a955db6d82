package gateway

import (
	"time"

	"tidegate/gateway/ledger"
)

// count enters a request that held a place on a backend into the ledger, with the
// engine's own numbers, or, of an answer that was cut before it gave any, what is
// known. One that failed before its first token is entered without tokens.
func (g *Gateway) count(c *call, took time.Duration) {
	if !c.admitted {
		return
	}
	r := ledger.Record{
		ID: c.id, Time: c.began, Department: c.who.Department, Project: c.who.Project, User: c.who.User, Key: c.who.Key, Asked: c.wish.Model, Model: c.model.Name,
		Level: int(c.level), Status: c.status, Took: took, GPU: c.gpu,
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
