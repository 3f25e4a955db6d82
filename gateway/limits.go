package gateway

import (
	"fmt"
	"strconv"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// demand is what the request asks of admission.
func (g *Gateway) demand(c *call) *admission.Demand {
	capped := g.Ladder.Effect(degrade.StreamingOff).MaxTokens
	c.by = c.subjects()
	return &admission.Demand{
		Pool: c.asked.Pool, MaxLevel: c.most, Caller: c, TTFT: c.asked.Objective, Quiet: int64(c.growth()),
		Prompts: int64(c.answers / c.wish.N),
		Capped:  int64(openai.Times(min(c.limit, capped), c.answers/c.wish.N)),
		Request: limit.Request{
			ID: c.id, Subjects: c.by, Tier: string(c.who.Tier), Prompt: int64(c.prompt),
			MaxTokens: int64(openai.Times(c.limit, c.answers)), Thinking: !c.noThinking,
			Sequences: int64(c.answers),
		},
	}
}

// subjects are whom the limits count the request by.
func (c *call) subjects() limit.Subjects {
	s := limit.Subjects{Department: c.who.Department, Project: c.who.Project, User: c.who.User, Key: c.who.Key, IP: c.from()}
	if c.asked != nil {
		s.Model = c.asked.Name
	}
	return s
}

// settle charges what the request took, and gives its place back, once. Where the end
// of an answer is known it comes before that is sent: no place waits for a reader.
func (g *Gateway) settle(c *call, permit *admission.Permit) {
	if c.settled {
		return
	}
	c.settled = true
	if err := permit.Settle(charge(c.usage), c.served); err != nil {
		g.Log.Warn("the limits' store did not take a request's usage; it will be asked again", "id", c.id, "error", err.Error())
	}
	g.Alerts.Touch(c.by)
}

func charge(u openai.Usage) limit.Usage {
	return limit.Usage{Input: int64(u.Input), Cached: int64(u.Cached), Output: int64(u.Output), Reasoning: int64(u.Reasoning)}
}

// tell sets the headers that say what the limits leave, in the form of OpenAI's.
func (c *call) tell(left limit.Headers) {
	if l := left.Requests; l.Limit != 0 { // else there is no such rule
		c.header("X-Ratelimit-Limit-Requests", strconv.FormatInt(l.Limit, 10))
		c.header("X-Ratelimit-Remaining-Requests", strconv.FormatInt(l.Remaining, 10))
		c.header("X-Ratelimit-Reset-Requests", l.Reset.Round(time.Millisecond).String())
	}
	if l := left.Tokens; l.Limit != 0 {
		c.header("X-Ratelimit-Limit-Tokens", strconv.FormatInt(l.Limit, 10))
		c.header("X-Ratelimit-Remaining-Tokens", strconv.FormatInt(l.Remaining, 10))
		c.header("X-Ratelimit-Reset-Tokens", l.Reset.Round(time.Millisecond).String())
	}
	if left.Factor != 0 {
		c.header("X-Tidegate-Limit-Factor", left.Factor.String())
	}
}

// overLimit is what the caller of a request over a limit is told.
func (c *call) overLimit(d *limit.Denied) *refusal.Refusal {
	c.tell(d.Headers)
	rule := c.ruleText(d)
	var r *refusal.Refusal
	switch {
	case d.Never && (d.Metric == limit.Requests || d.Metric == limit.Concurrency):
		r = refusal.New(refusal.TooLargeForLimit, "", fmt.Sprintf("%s, and this request asks for %d sequences (prompts x n), which count as so many: send fewer prompts at a time or a smaller n", rule, d.Cost))
	case d.Never:
		r = refusal.New(refusal.TooLargeForLimit, "", fmt.Sprintf("%s, and this request alone counts as %d: shorten the prompt or lower max_tokens", rule, d.Cost))
	case d.Quota && d.Share > 0:
		r = refusal.New(refusal.StoreUnavailable, "", fmt.Sprintf("%s is not used up, but this gateway has given out its part of what is left, and the gateways cannot count together at the moment: %s; try again in %s",
			rule, storeAway, max(d.RetryAfter.Round(100*time.Millisecond), 100*time.Millisecond))).After(max(d.RetryAfter, retryStore))
	case d.Quota:
		r = refusal.New(refusal.InsufficientQuota, "", quotaText(rule, d, time.Now()))
	default:
		r = refusal.New(refusal.RateLimit, "", fmt.Sprintf("%s: try again in %s", rule+stateText(d), max(d.RetryAfter.Round(100*time.Millisecond), 100*time.Millisecond))).After(d.RetryAfter)
	}
	r.Rule = d.Rule
	r.NoRetry = d.Quota && d.Share == 0 || d.RetryAfter > refusal.MaxAutomaticRetry
	return r
}

// ruleText is the rule that refused in words, and what pressure has made of it.
func (c *call) ruleText(d *limit.Denied) string {
	if d.Quota {
		return fmt.Sprintf("the quota %s of %s", d.Rule, d.Amount())
	}
	rule := fmt.Sprintf("the limit %s allows %s", d.Rule, d.Amount())
	if small := d.Shrunk; small.Factor != 0 {
		level := degrade.Level(small.Level)
		c.stand(level, small.Reason)
		c.header("X-Tidegate-Limit-Factor", small.Factor.String())
		model := "the model"
		if c.asked != nil {
			model = c.asked.Name
		}
		rule += fmt.Sprintf(", %v of its %d, since %s stands at level %v", small.Factor, small.Whole, model, level)
		if small.Reason != "" {
			rule += " (" + small.Reason + ")"
		}
	}
	return rule
}

// stateText is how things stand under a rule that refused, for a request that may try
// again.
func stateText(d *limit.Denied) (text string) {
	if d.Share > 0 {
		text = fmt.Sprintf(", of which this gateway may give out %d while the gateways cannot count together: %s", d.Share, storeAway)
	}
	switch {
	case d.Metric == limit.Concurrency:
		if text += fmt.Sprintf("; running now: %d", d.Used); d.Waited > 0 {
			text += fmt.Sprintf("; this one has waited %v for a place", max(d.Waited.Round(100*time.Millisecond), 100*time.Millisecond))
		}
	case d.Running:
		text += ", and the requests that are running may still use the rest of it"
	case d.Metric != limit.Requests || d.Cost > 1:
		text += fmt.Sprintf("; this request reserves %d, and %d are left", d.Cost, d.Left)
	}
	return text
}

// quotaText is what a quota leaves, and what the request needs of it at least: a quota
// lets in who has enough for the prompt.
func quotaText(rule string, d *limit.Denied, now time.Time) string {
	until := now.Add(d.RetryAfter).UTC().Round(time.Second).Format(time.RFC3339)
	needs := max(d.Prompt, 1)
	if d.Left == 0 {
		return fmt.Sprintf("%s is used up until %s; this request needs %d at least: wait, or ask for more; GET /quota/status shows what is left", rule, until, needs)
	}
	return fmt.Sprintf("%s has %d left until %s, and this request needs %d at least: shorten the prompt, wait, or ask for more; GET /quota/status shows what is left", rule, d.Left, until, needs)
}

// storeAway says why a gateway counts alone.
const storeAway = "their store (Redis) does not answer, or was emptied a moment ago"

// quotaStatus reports the caller's own limits: GET /quota/status.
func (g *Gateway) quotaStatus(c *call) error {
	if name := c.r.URL.Query().Get("model"); name != "" {
		m, err := g.pickModel(c, name)
		if err != nil {
			return err
		}
		c.asked = m
	}
	worst := g.hottest(c)
	s, err := g.Admission.Status(c.r.Context(), limit.Request{Subjects: c.subjects(), Tier: string(c.who.Tier), Level: int(worst.level), Reason: worst.Reason})
	if err != nil {
		return err
	}
	out := struct {
		Used      *int64     `json:"used,omitempty"` // of the tightest quota
		Limit     *int64     `json:"limit,omitempty"`
		Remaining *int64     `json:"remaining,omitempty"`
		ResetsAt  *time.Time `json:"resets_at,omitempty"`
		Pressure  *pressed   `json:"pressure,omitempty"` // by which limits may have shrunk
		Key       *ownKey    `json:"key,omitempty"`
		limit.Status
	}{Status: s, Key: c.ownKey()}
	if worst.level > degrade.Full {
		out.Pressure = &worst
	}
	if t, ok := s.Tightest(); ok {
		out.Used, out.Limit, out.Remaining, out.ResetsAt = &t.Used, &t.Limit, &t.Remaining, &t.ResetsAt
	}
	return c.reply(out)
}

// ownKey is the caller's key.
type ownKey struct {
	Name    string     `json:"name"`
	ID      string     `json:"id,omitempty"` // of a key of the store
	Expires *time.Time `json:"expires_at"`   // null: never
}

// ownKey returns what the caller may know of its key; nil: it has none.
func (c *call) ownKey() *ownKey {
	if c.who.Key == account.Open && c.who.KeyID == "" {
		return nil
	}
	k := &ownKey{Name: c.who.Key, ID: c.who.KeyID}
	if !c.who.Expires.IsZero() {
		k.Expires = &c.who.Expires
	}
	return k
}

// pressed is a model under pressure.
type pressed struct {
	Model  string `json:"model"`
	Level  string `json:"level"`
	Reason string `json:"reason"`
	level  degrade.Level
}

// hottest returns the model that the caller named, or of those that it may use the one
// at the highest level for it: the limits that it sees are those for this one.
func (g *Gateway) hottest(c *call) (worst pressed) {
	for _, m := range g.Fleet.Models() {
		if c.asked != nil && c.asked != m || !c.mayUse(m) {
			continue
		}
		if level, reason := m.Pool.Standing(string(c.who.Tier)); worst.Model == "" || level > worst.level {
			worst = pressed{m.Name, level.String(), reason, level}
		}
	}
	return worst
}
