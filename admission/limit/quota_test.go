package limit

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestQuotaIsUsedUp: what is left of a quota is its owner's although more is expected of
// the answer; one answer may pass the quota, and two at once may not.
func TestQuotaIsUsedUp(t *testing.T) {
	quotas := compile(t, nil, []QuotaRule{
		{Name: "day", Scope: "user", Tokens: 500, Every: "day"},
		{Name: "month", Scope: "user", Tokens: 510, Every: "month"},
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

// forgetful refuses all, and takes back what it may have let in.
type forgetful struct {
	Store
	asked int
}

func (f *forgetful) Reserve(_ context.Context, r Reservation) (Decision, error) {
	f.asked++
	states := make([]State, len(r.Dims))
	for i := range states {
		states[i] = State{Limit: r.Dims[i].Limit, Remaining: r.Dims[i].Cost - 1, Exceeded: true}
	}
	return Decision{Forgotten: true, Binding: 0, RetryAfterMs: 1000, States: states}, nil
}

// TestForgottenIsNotAskedAgain: what is being settled to nothing must not be let in.
func TestForgottenIsNotAskedAgain(t *testing.T) {
	store := &forgetful{}
	l := New(compile(t, nil, []QuotaRule{{Name: "day", Scope: "user", Tokens: 500, Every: "day"}}, nil), Options{Store: store})
	q := alice()
	q.ID, q.Prompt, q.MaxTokens = "a", 9, 300
	if _, err := l.Admit(t.Context(), q); err == nil || store.asked != 1 {
		t.Errorf("%v after %d questions", err, store.asked)
	}
}
