package gateway

import (
	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
)

// cannedModel is the name under which L4 answers: no model does.
const cannedModel = "tidegate-canned"

// plan describes what is sent for a request at the level that it was admitted at. planFor
// makes it. Only permitted changes it, where a reload replaced the model by one of the same
// name. A fallback after a failure makes a new plan.
type plan struct {
	model  *backend.Model // model that answers; nil for a canned answer
	served string         // name of what answers, for the ledger and the caller
	level  degrade.Level
	reason string // signal or rule that asked for the level

	stream       bool // the backend streams; the caller's wish may differ
	stopThinking bool // the level switches thinking off
	noThinking   bool // the template is told not to think, by wish or by the level
	oneChoice    bool // one choice per prompt
	choices      int  // choices of all prompts together
	limit        int  // tokens that a choice may have
	prompt       int  // tokens of all prompts, as the backend renders them
	longest      int  // tokens of the longest prompt
}

// planFor returns what a request becomes at the permit's level, with the level's effect, on
// a model with a context of so many tokens; 0 where that is not known. It is pure.
func planFor(q *request, permit *admission.Permit, effect degrade.Effect, m *backend.Model, contextLength int) plan {
	p := plan{level: permit.Level, reason: permit.Reason, model: m}
	if permit.Level == degrade.Canned {
		p.served, p.choices, p.limit, p.stream = cannedModel, q.prompts(), q.limit, q.Wish.Stream // nothing is read
		return p
	}
	p.served, p.stream, p.choices, p.limit = p.model.Name, q.Wish.Stream, q.choices, q.limit
	p.prompt, p.longest, p.noThinking = q.prompt, q.longest, q.Wish.NoThinking
	if !effect.Stream {
		p.stream, p.oneChoice, p.choices = false, true, q.prompts()
		p.limit = min(effect.MaxTokens, p.limit)
	}
	growth := q.growth()
	if !effect.Thinking && (contextLength == 0 || p.longest+growth < contextLength) {
		p.stopThinking, p.noThinking = true, true
		p.prompt, p.longest = p.prompt+growth, p.longest+growth
		if permit.ReservedLevel < degrade.ThinkingOff && p.limit > growth {
			p.limit -= growth // keeps prompt and answer within the reservation
		}
	}
	if left := contextLength - p.longest; contextLength > 0 && left < p.limit {
		p.limit = min(p.limit, q.room(max(left, 1))) // a request that does not fit is told so by the backend
	}
	return p
}

// edits returns what the plan writes into the body for one backend.
func (p *plan) edits(q *request, b *backend.Backend, priority int64) door.Edits {
	facts := b.Facts()
	e := door.Edits{
		Model: facts.Serves, Priority: priority, HasPriority: b.ByPriority(), Stream: p.stream, OneChoice: p.oneChoice,
		StopThinking: p.stopThinking, Truncates: q.Wish.Truncate != 0, Truncate: q.truncate,
		Known: facts.Capabilities.Known, ReasoningEffort: facts.Capabilities.ReasoningEffort, OnlyReasoningField: facts.Capabilities.OnlyReasoning,
	}
	if p.oneChoice || p.limit != q.Wish.MaxTokens {
		e.Limit = p.limit
	}
	return e
}

// estimate returns the usage of a request before any of its answer has arrived: its prompt,
// and where it is not streamed what all its choices have by now, by an estimate of one.
func (p *plan) estimate(tokens int) openai.Usage {
	u := openai.Usage{Input: p.prompt}
	if !p.stream {
		if p.limit > 0 {
			tokens = min(tokens, p.limit)
		}
		u.Output = openai.Times(tokens, p.choices)
	}
	return u
}
