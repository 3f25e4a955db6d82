package gateway

import (
	"cmp"
	"fmt"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/refusal"
)

// rejected returns the refusal of a request over a limit or a quota.
func (f *facts) rejected(d *limit.Rejection) *refusal.Refusal {
	rule := f.ruleText(d)
	var r *refusal.Refusal
	switch {
	case d.TooLarge && (d.Metric == limit.Requests || d.Metric == limit.Concurrency):
		r = refusal.New(refusal.TooLargeForLimit, "", fmt.Sprintf("%s, and this request asks for %d sequences (prompts x n), which count as so many: send fewer prompts at a time or a smaller n", rule, d.Cost))
	case d.TooLarge:
		r = refusal.New(refusal.TooLargeForLimit, "", fmt.Sprintf("%s, and this request alone counts as %d: shorten the prompt or lower max_tokens", rule, d.Cost))
	case d.Quota && d.Share > 0:
		r = refusal.New(refusal.StoreUnavailable, "", fmt.Sprintf("%s is not used up, but this gateway has given out its part of what is left, and the gateways cannot count together at the moment: %s; try again in %s",
			rule, storeAway, max(d.RetryAfter.Round(100*time.Millisecond), 100*time.Millisecond))).After(max(d.RetryAfter, refusal.RetryStore))
	case d.Quota:
		r = refusal.New(refusal.InsufficientQuota, "", quotaText(rule, d, f.now))
	default:
		r = refusal.New(refusal.RateLimit, "", fmt.Sprintf("%s: try again in %s", rule+stateText(d), max(d.RetryAfter.Round(100*time.Millisecond), 100*time.Millisecond))).After(d.RetryAfter)
	}
	r.Rule = d.Rule
	r.NoRetry = d.Quota && d.Share == 0 || d.RetryAfter > refusal.MaxAutomaticRetry
	return r
}

// ruleText returns the rule that rejected in words, with what pressure has made of it.
func (f *facts) ruleText(d *limit.Rejection) string {
	if d.Quota {
		return fmt.Sprintf("the quota %s of %s", d.Rule, d.Amount())
	}
	rule := fmt.Sprintf("the limit %s allows %s", d.Rule, d.Amount())
	if small := d.Shrunk; small.Factor != 0 {
		rule += fmt.Sprintf(", %v of its %d, since %s stands at level %v", small.Factor, small.Whole, cmp.Or(f.asked, "the model"), degrade.Level(small.Level))
		if small.Reason != "" {
			rule += " (" + small.Reason + ")"
		}
	}
	return rule
}

// stateText returns the state of a rule that rejected, for a request that may try
// again.
func stateText(d *limit.Rejection) (text string) {
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

// quotaText returns what a quota leaves, and the least that the request needs of it: a quota
// lets in who has enough for the prompt.
func quotaText(rule string, d *limit.Rejection, now time.Time) string {
	resetAt := now.Add(d.RetryAfter).UTC().Round(time.Second).Format(time.RFC3339)
	needs := max(d.Prompt, 1)
	if d.Left == 0 {
		return fmt.Sprintf("%s is used up until %s; this request needs %d at least: wait, or ask for more; GET /quota/status shows what is left", rule, resetAt, needs)
	}
	return fmt.Sprintf("%s has %d left until %s, and this request needs %d at least: shorten the prompt, wait, or ask for more; GET /quota/status shows what is left", rule, d.Left, resetAt, needs)
}

// storeAway is the reason for which a gateway counts alone, for messages.
const storeAway = "their store (Redis) does not answer, or was emptied a moment ago"
