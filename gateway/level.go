package gateway

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// cannedModel is who answers at L4: no model does.
const cannedModel = "tidegate-canned"

// leastAnswer is how many tokens a smaller model must have left for an answer, or as
// many as the caller asked for.
const leastAnswer = 256

// accept reads how small an answer the caller takes: what its key says, or less.
func (c *call) accept() error {
	c.most = degrade.Level(c.who.MaxLevel)
	for _, text := range c.r.Header["X-Tidegate-Max-Level"] {
		if text == "" {
			continue
		}
		level, ok := degrade.ParseLevel(text)
		if !ok {
			return refusal.New(refusal.InvalidRequest, "", "x-tidegate-max-level must be L0, L1, L2, L3 or L4, not "+quote(text))
		}
		c.most = min(c.most, level)
	}
	return nil
}

// Fits reports whether the servers of a smaller model can answer the request.
func (c *call) Fits(smaller *admission.Pool) bool {
	m := c.fallback(smaller)
	if m == nil {
		return false
	}
	answer := min(leastAnswer, c.limit)
	if context := m.Context(); context > 0 && c.longest+c.growth()+answer > context {
		return false
	}
	_, constrained := c.body.Raw("structured_outputs")
	return (m.AutoTools || !c.body.Needs().AutoTools) && (!constrained || m.Constrains())
}

// fallback finds the model of a pool among those that may answer in place of the one
// asked for.
func (c *call) fallback(pool *admission.Pool) *backend.Model {
	for m := c.asked; m != nil; m = m.Fallback {
		if m.Pool == pool {
			return m
		}
	}
	return nil
}

// Waits keeps a stream alive while its request waits for a place.
func (c *call) Waits(p *admission.Permit) (next time.Duration, told bool) {
	if !c.wish.Stream {
		return time.Minute, false
	}
	next, due := c.out.due(c.now())
	if due {
		c.stand(p.Level, p.Reason)
		c.tell(p.Headers)
		c.out.model = p.Pool().Name
		next = c.out.silence(c.now())
	}
	return next, c.sent
}

// descend makes the request what it is at the permit's level.
func (g *Gateway) descend(c *call, permit *admission.Permit) error {
	c.permit = permit // from here on the ledger has it
	if permit.Level == degrade.Canned {
		c.served, c.out.model, c.prompt = cannedModel, cannedModel, 0 // nothing is read
		return nil
	}
	m := c.fallback(permit.Pool())
	if m == nil {
		return admission.ErrNoBackend // a reload made another model the smaller one meanwhile
	}
	c.model, c.served, c.out.model = m, m.Name, m.Name
	effect := g.Ladder.Effect(permit.Level)
	if !effect.Stream {
		c.streamed, c.wish.N, c.answers = false, 1, c.answers/c.wish.N
		c.limit = c.body.Whole(min(effect.MaxTokens, c.limit))
	}
	context := c.model.Context() // 0: not known, and then nothing is cut
	if !effect.Thinking && (context == 0 || c.longest+c.growth() < context) {
		grown := c.growth()
		c.body.StopThinking()
		c.wish.NoThinking, c.wish.ThinkingOpen, c.noThinking = true, false, true
		c.prompt, c.longest = c.prompt+grown, c.longest+grown
		if permit.Reserved < degrade.ThinkingOff && c.limit > grown {
			c.limit = c.body.LimitTokens(c.limit - grown) // the limits have reserved for no more in all
		}
	}
	if left := context - c.longest; context > 0 && left < c.limit {
		c.limit = c.body.LimitTokens(c.room(max(left, 1))) // who does not fit is told so by the server
	}
	return nil
}

// growth is by how many tokens the prompt grows where thinking is switched off: by none
// where it is off already, or cut to a number of tokens.
func (c *call) growth() int {
	if c.truncated {
		return 0
	}
	return c.body.Growth()
}

// canned answers without any model. A cache of answers, once there is one, is asked
// here first. Where a program reads the answer, no text is one: it would be stored or
// acted upon as if a model had said it.
func (g *Gateway) canned(c *call) error {
	answer, needs := g.Ladder.Canned(), c.body.Needs()
	text := answer.Text[openai.Language(c.r.Header.Get("Accept-Language"), c.body, slices.Collect(maps.Keys(answer.Text)))]
	status, constrained := answer.Status, needs.Constrained()
	if constrained && status == http.StatusOK {
		status = answer.ConstrainedStatus
	}
	if status != http.StatusOK {
		e := &admission.Overloaded{Why: admission.ShedLevel, Level: degrade.Canned, Reason: c.permit.Reason, RetryAfter: c.permit.Retry}
		r := g.explain(c, e)
		r.Message, r.Status = text, status
		if constrained {
			r.Message = fmt.Sprintf("%s (%s is at level L4, %s: no model answers, and a canned text is neither the tool call nor the format that this request demands; try again in %s)",
				text, c.asked.Name, c.reason, soon(r.RetryAfter))
		}
		return r
	}
	c.charged = true // with nothing but the request
	return g.give(c, openai.Canned(c.kind, c.out.answerID(), cannedModel, c.began, c.answers/c.wish.N, needs.Structured, text))
}

// announced is an answer in one piece that says at which level it was given; at L0 it is
// left as it is.
func (c *call) announced(answer []byte) []byte {
	if c.level == degrade.Full {
		return answer
	}
	return openai.Announce(answer, openai.Notice{Level: c.level.String(), Reason: c.reason, Served: c.served})
}
