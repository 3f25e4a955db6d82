package limit

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWorkedRate holds the worked example of a rate in docs/limits.md.
func TestWorkedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := []Rule{{Name: "user-rate", Scope: "user", Bounds: Bounds{Tokens: Rate{10_000, time.Minute}}, Reserve: ReserveP90}}
		r := newRig(t, compile(t, rules, nil, nil))
		ask := func(prompt, most int64) Request {
			q := alice()
			q.Prompt, q.MaxTokens = prompt, most
			return q
		}
		// 64 answers from which the gateway learns: nine of ten below 600.
		for i := range 64 {
			u := Usage{Input: 100, Output: 600}
			if i%10 == 9 {
				u.Output = 2000
			}
			r.settle(r.in(ask(100, 4000)), u)
			time.Sleep(2 * time.Minute)
		}
		var running []*Grant
		for range 5 {
			running = append(running, r.in(ask(1400, 1000)))
		}
		sixth := r.out(ask(1400, 1000))
		if s := sixth.RetryAfter.Seconds(); s < 60 || s > 66 {
			t.Errorf("the sixth may come again in %v s", s)
		}
		time.Sleep(8 * time.Second)
		r.settle(running[0], Usage{Input: 1400, Output: 250})
		r.out(ask(1400, 1000))
		time.Sleep(2 * time.Second)
		r.settle(running[1], Usage{Input: 1400, Output: 200})
		if left := r.rate("tokens").Remaining; left != 750 {
			t.Errorf("%d are free", left)
		}
		r.in(ask(100, 300))
		if left := r.rate("tokens").Remaining; left != 350 {
			t.Errorf("%d are free after the short question", left)
		}
	})
}

// TestWorkedQuota holds that of a quota.
func TestWorkedQuota(t *testing.T) {
	page, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"400 x 1 + 1,000 x 0.1 + 150 x 4 + 100 x 4 = 1,500 units", "498,500 are left", "2026-11-22T16:00:00Z"} {
		if !strings.Contains(string(page), says) {
			t.Errorf("docs/limits.md does not say %q", says)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		begin := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
		time.Sleep(time.Until(begin))
		weights := map[string]Weights{"qwen": {Input: 1000, Cached: 100, Output: 4000, Reasoning: 4000}}
		r := newRig(t, compile(t, nil, []QuotaRule{{Name: "daily", Scope: "user", Units: 500_000, Every: "day", Zone: "Asia/Shanghai"}}, weights))
		q := alice()
		q.Prompt, q.MaxTokens = 1400, 1000
		r.settle(r.in(q), Usage{Input: 1400, Cached: 1000, Output: 250, Reasoning: 100})
		s, err := r.Status(t.Context(), alice())
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Quotas[0]; got.Used != 1500 || got.Remaining != 498_500 || !got.ResetsAt.Equal(time.Date(2026, 11, 22, 16, 0, 0, 0, time.UTC)) {
			t.Errorf("%+v", got)
		}
	})
}
