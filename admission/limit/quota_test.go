package limit

import (
	"testing"
	"testing/synctest"
)

// TestQuotaIsUsedUp: what is left of a quota is its owner's although more is expected of
// the answer; one answer may pass the quota, and two at once may not.
func TestQuotaIsUsedUp(t *testing.T) {
	quotas := compile(t, nil, []QuotaRule{
		{Name: "day", Per: "user", Tokens: 500, Every: "day"},
		{Name: "month", Per: "user", Tokens: 510, Every: "month"},
	}, nil)
	q := alice()
	q.Prompt, q.MaxTokens = 9, 300
	used := func(r *rig) int64 {
		s, err := r.Status(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return s.Quotas[0].Used
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, quotas)
		for used(r)+q.Prompt <= 500 {
			g := r.in(q)
			if left := 500 - used(r); left < 0 {
				t.Fatalf("reserved %d more than is left", -left)
			}
			if used(r) == 500 { // the rest is reserved
				r.out(q)
			}
			r.settle(g, Usage{Input: 9, Output: 50})
		}
		if got := used(r); got < 500-q.Prompt || got > 500+59 {
			t.Errorf("%d of 500 used", got)
		}
		if denied := r.out(q); !denied.Quota {
			t.Errorf("%+v", denied)
		}
	})
}
