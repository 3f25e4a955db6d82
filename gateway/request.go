package gateway

import (
	"fmt"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// request holds what a caller asks for. parse writes it; afterwards dropBody
// alone changes it, which releases the body.
type request struct {
	door.Parsed
	model    *backend.Model // model that the caller asked for
	maxLevel degrade.Level  // smallest answer that the caller accepts

	prompt     int  // exact tokens of all prompts together, after truncation
	longest    int  // exact tokens of the longest prompt
	choices    int  // choices of all prompts together
	limit      int  // tokens that a choice may have at L0
	noThinking bool // the prompt was counted with thinking off, by wish or by a backend's default
	truncate   int  // tokens to which the prompt is cut; 0: it fits
}

// minAnswer is the number of tokens that a smaller model must have left for an answer,
// unless the caller asked for fewer.
const minAnswer = 256

// choicesPerPrompt returns how many answers the caller asked for to each prompt, from 1.
func (q *request) choicesPerPrompt() int { return max(q.Wish.N, 1) }

// prompts returns the number of prompts.
func (q *request) prompts() int { return q.choices / q.choicesPerPrompt() }

// limitAnswer makes sure that the answer has a limit, and that the prompt and the limit fit
// the model's context: a limit that does not is lowered to what the prompt leaves. vLLM does
// that from 0.32 on, and refuses such a request before. The prompt alone must leave room
// for one token, as vLLM of all versions wants it. Where the context is not known, because
// the backends do not state it or none is in rotation, an answer without a limit gets capped:
// the engine would bound it by a number that nobody here could reserve.
func (q *request) limitAnswer(capped int) error {
	if q.Wish.ScoresPrompt && q.longest > openai.MaxScored {
		return refusal.New(refusal.InvalidRequest, "echo", fmt.Sprintf("echo asks for the log probabilities of a prompt of %d tokens, and %d is the most: shorten the prompt, or leave out echo or the log probabilities",
			q.longest, openai.MaxScored))
	}
	context, asked := q.model.Context(), q.Wish.MaxTokens
	q.limit = asked
	left := context - q.longest
	switch {
	case context == 0 && asked == 0:
		q.limit = q.limitWithin(capped)
	case context == 0:
	case asked > context:
		return refusal.New(refusal.ContextLength, q.LimitParam, fmt.Sprintf("the context of %s is %d tokens; the prompt has %d, and %s asks for %d: lower it, or leave it out (%s)",
			q.model.Name, context, q.longest, q.LimitParam, asked, refusal.ContextLength))
	case left < 1:
		return contextOverflow(q.PromptParam, fmt.Sprintf("the context of %s is %d tokens, and the prompt alone has %d, which leaves no room for an answer: shorten the prompt",
			q.model.Name, context, q.longest))
	case asked == 0, asked > left:
		q.limit = q.limitWithin(q.room(left))
	}
	return nil
}

// limitWithin returns the limit that the caller asked for, or the door's default, lowered
// to tokens.
func (q *request) limitWithin(tokens int) int {
	asked := q.Wish.MaxTokens
	if asked == 0 {
		asked = q.DefaultLimit
	}
	if asked == 0 {
		return tokens
	}
	return min(asked, tokens)
}

// room returns how many tokens an answer may have of those that a prompt leaves of a
// context, one at least.
func (q *request) room(left int) int { return max(left-q.Margin, 1) }

// growth returns by how many tokens the prompt grows where thinking is switched off: none
// where the prompt is cut to a number of tokens.
func (q *request) growth() int {
	if q.truncate > 0 {
		return 0
	}
	return q.Growth
}

// fallback returns the model of a pool among those that may answer in place of the one
// asked for; nil where there is none.
func (q *request) fallback(pool *admission.Pool) *backend.Model {
	for m := q.model; m != nil; m = m.Fallback {
		if m.Pool == pool {
			return m
		}
	}
	return nil
}

// fits reports whether the backends of a smaller model can answer the request, which needs
// what it needs of the engine.
func (q *request) fits(smaller *admission.Pool, needs door.Needs) bool {
	m := q.fallback(smaller)
	if m == nil {
		return false
	}
	answer := min(minAnswer, q.limit)
	if context := m.Context(); context > 0 && q.longest+q.growth()+answer > context {
		return false
	}
	return (m.AutoTools || !needs.AutoTools) && (!needs.Guided || m.HasStructuredOutputs())
}

// contextOverflow refuses a request that does not fit the context. The code stands in the
// message too, by which alone LangChain knows the case.
func contextOverflow(param, message string) *refusal.Refusal {
	return refusal.New(refusal.ContextLength, param, message+" ("+string(refusal.ContextLength)+")")
}
