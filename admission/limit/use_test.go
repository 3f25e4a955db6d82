package limit

import (
	"slices"
	"testing"
	"time"
)

// TestUse: what running requests have reserved is used for whoever asks what is left,
// and not for whoever watches the quota.
func TestUse(t *testing.T) {
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	set, err := Compile(nil, []QuotaRule{
		{Name: "daily", Scope: "user", Units: 200, Every: "day", Zone: "Asia/Shanghai", AlertAt: []int{30, 90}},
		{Name: "pair", Scope: "user,model", Tokens: 1000, Every: "hour"},
		{Name: "all", Scope: "global", Tokens: 100000, Every: "month"},
	}, map[string]Weights{"m": {Input: 1000, Cached: 1000, Output: 2000, Reasoning: 2000}})
	if err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return now }
	l := New(set, Options{Store: NewMemory(clock), Now: clock})
	who := Subjects{Department: "d", Project: "p", User: "ada: {x}", Key: "k", Model: "m"}
	use := func() map[string]QuotaUse {
		t.Helper()
		all, err := l.Use(t.Context(), who)
		if err != nil || len(all) != 3 {
			t.Fatalf("%+v, %v", all, err)
		}
		out := map[string]QuotaUse{}
		for _, u := range all {
			out[u.Name] = u
		}
		return out
	}
	grant := func(id string) *Grant {
		g, err := l.Admit(t.Context(), Request{ID: id, Subjects: who, Prompt: 20, MaxTokens: 30})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	first := grant("a")
	if s, _ := l.Status(t.Context(), Request{Subjects: who}); s.Quotas[0].Used == 0 {
		t.Error("a reservation is to be shown as used")
	}
	first.Progress(Usage{Input: 20, Output: 30})
	l.beat(t.Context()) // what it has used so far is charged, and may still be given back
	if u := use()["daily"]; u.Used != 0 || len(u.AlertsCrossed) > 0 {
		t.Errorf("while it runs %+v", u)
	}
	if err := first.Settle(Usage{Input: 20, Output: 20}, ""); err != nil {
		t.Fatal(err)
	}
	second := grant("b")
	u := use()
	if d := u["daily"]; d.Used != 60 || !slices.Equal(d.AlertsCrossed, []int{30}) || d.Subject != "ada: {x}" || d.ResetsAt.Hour() != 0 || !slices.Equal(d.AlertAt, []int{30, 90}) {
		t.Errorf("daily: %+v", d)
	}
	if u["pair"].Used != 40 || u["pair"].Subject != "ada: {x}, m" || u["all"].Subject != "" || u["pair"].Counter == u["all"].Counter {
		t.Errorf("%+v", u)
	}
	if err := second.Cancel(); err != nil {
		t.Fatal(err)
	}
	if u := use()["daily"]; u.Used != 60 {
		t.Errorf("after a cancel %+v", u)
	}
}
