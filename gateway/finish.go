package gateway

import (
	"time"
)

// finish counts the request, enters it into the ledger and logs it, once. The outcome is
// final from here on.
func (g *Gateway) finish(c *call, err error) {
	took := time.Since(c.began)
	c.outcome.level, c.outcome.reason = c.writer.level, c.writer.reason
	c.use.End(c.writer.now())
	g.metrics.finished(c, took)
	g.record(c)
	c.tracing.end(c.spanEnd())
	g.log(c, took, err)
}

// countRefused counts in its caller's activity a request that was refused without asking a
// backend.
func (g *Gateway) countRefused(c *call) {
	now, line := c.writer.now(), c.use.Line()
	if line == nil {
		line = g.activity.Find(&c.caller, c.asked(), now)
	}
	line.Refuse(now)
}

// spanEnd returns what the request's span says of its end.
func (c *call) spanEnd() spanEnd {
	e := spanEnd{outcome: &c.outcome, user: c.caller.User, key: c.caller.Key, asked: c.asked(), served: c.served(), maxTokens: c.maxTokens()}
	if c.door != nil {
		e.operation = c.door.Operation
	}
	return e
}
