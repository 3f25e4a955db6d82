package gateway

import (
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/door"
)

// parse finds out who calls, reads the body once, and counts the prompt exactly.
func (g *Gateway) parse(c *call) error {
	if err := c.identify(); err != nil {
		return err
	}
	if known := g.Admission.Rejection(limit.Request{Subjects: c.limitSubjects(), Tier: string(c.caller.Tier)}); known != nil {
		return known // before anything is read of those who hammer
	}
	raw, err := c.readBody()
	if err != nil {
		return err
	}
	q := &c.request
	bodyLimits := door.Limits{MaxN: c.settings.MaxN, MaxPrompts: c.settings.MaxPrompts}
	if q.Parsed, err = c.door.Read(raw, bodyLimits); err != nil {
		return err
	}
	if q.model, err = g.askedModel(c); err != nil {
		return err
	}
	if q.maxLevel, err = maxLevel(c.r.Header, &c.caller); err != nil {
		return err
	}
	q.noThinking = q.Wish.NoThinking
	if q.Wish.ThinkingOpen && q.model.NoThinking() {
		q.noThinking, q.Growth = true, 0
	}
	prompt, err := c.door.Prompt(q.Body, bodyLimits)
	if err != nil {
		return err
	}
	if err := q.count(g.Counter, prompt); err != nil {
		return err
	}
	if err := q.limitAnswer(g.Ladder.Effect(degrade.StreamingOff).MaxTokens); err != nil {
		return err
	}
	held := q.Body.Compact() // a request that waits for a place holds no more
	if held <= cap(raw) {
		held = min(held, len(raw))
	}
	c.writer.door, c.writer.model, c.writer.attempt = c.door, q.model.Name, attemptID(c.id, 1)
	return c.hold(held)
}
