package activity

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/gateway/account"
)

// TestActivities: what was used in the last minute is told by key and model, rates are of
// the last seconds, and what is over is forgotten.
func TestActivities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a Tracker
		ada := &account.Identity{Department: "d", Project: "p", User: "ada", Key: "laptop"}
		one := a.Find(ada, "m", time.Now())
		one.add(time.Now(), counts{requests: 1}, 1, 0)
		one.add(time.Now(), counts{input: 100}, -1, 1)
		for range 200 { // for 20 s
			one.add(time.Now(), counts{output: 5}, 0, 0)
			time.Sleep(100 * time.Millisecond)
		}
		a.Find(&account.Identity{}, "", time.Now()).add(time.Now(), counts{refused: 3}, 0, 0)
		rows := a.Top(time.Now()).Rows
		slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(b.User, a.User) })
		if len(rows) != 2 || rows[1].Refused != 3 || rows[1].User != "" {
			t.Fatalf("%+v", rows)
		}
		if r := rows[0]; r.Output < 49 || r.Output > 51 || r.Input != 0 || r.Running != 1 || r.Waiting != 0 || r.Requests != 1 || r.Department != "d" || r.Project != "p" || r.User != "ada" || r.Key != "laptop" || r.Model != "m" {
			t.Errorf("%+v", r)
		}
		time.Sleep(2 * time.Minute)
		if rows := a.Top(time.Now()).Rows; len(rows) != 1 || rows[0].Running != 1 || rows[0].Output != 0 || rows[0].Requests != 0 {
			t.Errorf("what runs is forgotten, or what is over is not: %+v", rows)
		}
		one.add(time.Now(), counts{}, 0, -1)
		time.Sleep(2 * time.Minute)
		if rows := a.Top(time.Now()).Rows; len(rows) != 0 || len(a.byName) != 0 {
			t.Errorf("%+v, %d are remembered", rows, len(a.byName))
		}
	})
}

// TestActivitiesAreBounded: whoever comes, memory is bounded, and nothing of those who run
// is lost.
func TestActivitiesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a Tracker
		var some []*Line
		for i := range 3 * maxLines {
			one := a.Find(&account.Identity{User: fmt.Sprint("user", i)}, "m", time.Now())
			one.add(time.Now(), counts{requests: 1}, 0, 1)
			some = append(some, one)
		}
		rows := a.Top(time.Now()).Rows
		running := 0
		for _, r := range rows {
			running += r.Running
		}
		if len(rows) != maxLines+1 || running != 3*maxLines {
			t.Errorf("%d rows, %d running", len(rows), running)
		}
		for _, one := range some {
			one.add(time.Now(), counts{}, 0, -1)
		}
		time.Sleep(2 * time.Minute)
		if one := a.Find(&account.Identity{User: "late"}, "m", time.Now()); one == a.overflow || len(a.byName) != 1 {
			t.Errorf("who comes later has no line of its own among %d", len(a.byName))
		}
	})
}

// TestActivityCostsNothing: on the path of a request nothing is allocated for it.
func TestActivityCostsNothing(t *testing.T) {
	var a Tracker
	who := &account.Identity{User: "ada", Key: "laptop"}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		one := a.Find(who, "m", now)
		one.add(now, counts{requests: 1}, 1, 0)
		one.add(now, counts{input: 5}, -1, 1)
		one.add(now, counts{output: 5}, 0, -1)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkActivity measures what a request costs of it.
func BenchmarkActivity(b *testing.B) {
	var a Tracker
	who := &account.Identity{User: "ada", Key: "laptop"}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		one := a.Find(who, "m", now)
		one.add(now, counts{requests: 1}, 1, 0)
		one.add(now, counts{input: 5}, -1, 1)
		one.add(now, counts{output: 5}, 0, -1)
	}
}
