package gateway

import (
	"net/http"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// admit asks admission for a permit, and waits for a place where the backends are full. The
// permit's only handle is the call.
func (g *Gateway) admit(c *call) (err error) {
	c.use.Begin(g.activity.Find(&c.caller, c.asked(), c.writer.now()), c.writer.now())
	start := time.Now()
	c.subjects = c.limitSubjects()
	c.demand = g.demand(c)
	permit, err := g.Admission.Admit(c.r.Context(), c.demand)
	c.tracing.admitted(c.asked(), start, permit, err)
	if err != nil {
		return err
	}
	c.permit = permit
	c.use.Run(c.writer.now(), c.request.prompt)
	return nil
}

// demand returns what the request asks of admission.
func (g *Gateway) demand(c *call) *admission.Demand {
	q, capped := &c.request, g.Ladder.Effect(degrade.StreamingOff).MaxTokens
	prompts := q.prompts()
	return &admission.Demand{
		Pool: q.model.Pool, MaxLevel: q.maxLevel, Caller: c, TTFT: q.model.Objective, ThinkingOffTokens: int64(q.growth()),
		Prompts:      int64(prompts),
		CappedTokens: int64(openai.Times(min(q.limit, capped), prompts)),
		Request: limit.Request{
			ID: c.id, Subjects: c.subjects, Tier: string(c.caller.Tier), Prompt: int64(q.prompt),
			MaxTokens: int64(openai.Times(q.limit, q.choices)), Thinking: !q.noThinking,
			Sequences: int64(q.choices),
		},
	}
}

// Fits reports whether the backends of a smaller model can answer the request.
func (c *call) Fits(smaller *admission.Pool) bool {
	return c.request.fits(smaller, c.door.Needs(c.request.Body))
}

// KeepAlive keeps a stream alive while its request waits for a place.
func (c *call) KeepAlive(p *admission.Permit) (next time.Duration, committed bool) {
	if !c.request.Wish.Stream {
		return time.Minute, false
	}
	now := c.writer.now()
	next, due := c.writer.keepAliveDue(now)
	if due {
		c.writer.announce(p.Level, p.Reason, p.Headers)
		c.writer.model = p.Pool().Name
		next = c.writer.sendKeepAlive(now, false)
	}
	return next, c.writer.sent
}

// maxLevel returns the smallest answer that a caller accepts: that of its key, or a larger
// one that a header names.
func maxLevel(h http.Header, caller *account.Identity) (degrade.Level, error) {
	highest := degrade.Level(caller.MaxLevel)
	for _, text := range h["X-Tidegate-Max-Level"] {
		if text == "" {
			continue
		}
		level, ok := degrade.ParseLevel(text)
		if !ok {
			return 0, refusal.New(refusal.InvalidRequest, "", "x-tidegate-max-level must be L0, L1, L2, L3 or L4, not "+refusal.Quote(text))
		}
		highest = min(highest, level)
	}
	return highest, nil
}
