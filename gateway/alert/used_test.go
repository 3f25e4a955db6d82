package alert

import (
	"fmt"
	"testing"
	"time"

	"tidegate/admission/limit"
)

// TestUsed: what departments, projects and models have used of quotas is told, never what
// users have; memory is bounded, and the fullest stay.
func TestUsed(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	u := newUsed()
	note := func(per, who string, used int64, resets time.Time) {
		u.set(&limit.QuotaUse{Subject: who, QuotaStatus: limit.QuotaStatus{Name: "day", Scope: per, Used: used, Limit: 1000, ResetsAt: resets}}, now)
	}
	end := now.Add(12 * time.Hour)
	note("department", "physics", 500, end)
	note("project, model", "p,m", 250, end)
	note("global", "", 1, end)
	note("user", "ada", 999, end)
	note("department,user", "physics,ada", 999, end)
	note("ip", "192.0.2.7", 999, end)
	note("model", "m", 900, now)
	if all := u.gather(now); len(all) != 3 {
		t.Errorf("%d series", len(all))
	}
	for _, part := range u.values {
		if part.ratio != .5 && part.ratio != .25 && part.ratio != .001 {
			t.Errorf("%v: of a user, an address or a period that is over", part)
		}
	}
	for i := range 3 * maxUsed {
		note("project", fmt.Sprint("p", i), int64(i%400), end)
	}
	if len(u.values) != maxUsed || u.values[usedKey{"day", "department", "physics"}].ratio != .5 {
		t.Errorf("%d are remembered, and the fullest is %v", len(u.values), u.values[usedKey{"day", "department", "physics"}])
	}
	if all := u.gather(now.Add(usedTTL + 1)); len(all) > 0 {
		t.Errorf("%d series of what nobody looks at", len(all))
	}
}
