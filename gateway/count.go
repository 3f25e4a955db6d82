package gateway

import "tidegate/gateway/ledger"

// count enters what the request took into the ledger: the engine's own numbers,
// or, of an answer that was cut before it gave any, what is known.
func (g *Gateway) count(c *call) {
	if !c.charged {
		return
	}
	g.Ledger.Add(ledger.Record{
		Time: c.began, User: c.who.User, Key: c.who.Key, Model: c.model.Name, Usage: c.usage, Estimated: c.estimated,
	})
	g.metrics.used(c.model.Name, c.usage)
}
