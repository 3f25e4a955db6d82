package limit

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestRestore: a quota is raised to what is known of it, never lowered, and not
// twice for two gateways that know the same.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := compile(t, nil, []QuotaRule{{Name: "daily", Scope: "user", Tokens: 1000, Every: "day"}, {Name: "units", Scope: "user", Units: 1000, Every: "day"}}, nil)
		r := newRig(t, set)
		other := New(set, Options{Store: r.store})
		who := alice().Subjects
		used := func(want int64) {
			t.Helper()
			s, err := r.Status(t.Context(), alice())
			if err != nil {
				t.Fatal(err)
			}
			if s.Quotas[0].Used != want || s.Quotas[1].Used != 0 {
				t.Errorf("%d and %d are used, want %d and 0", s.Quotas[0].Used, s.Quotas[1].Used, want)
			}
		}
		for _, step := range []struct {
			tokens, want int64
			fails        error
			after        time.Duration
		}{
			{tokens: 300, want: 300}, {tokens: 300, want: 300}, {tokens: 200, want: 300},
			{tokens: 310, want: 300, fails: ErrRestoring}, {tokens: 310, want: 310, after: restoreEvery},
		} {
			time.Sleep(step.after)
			for _, l := range []*Limiter{r.Limiter, other} {
				recorded, ok := l.Recorded("daily", who, step.tokens, 0)
				if !ok {
					t.Fatal("the quota does not count its own user")
				}
				if err := l.Restore(t.Context(), recorded); !errors.Is(err, step.fails) {
					t.Errorf("%+v: %v", step, err)
				}
			}
			used(step.want)
		}
	})
}
