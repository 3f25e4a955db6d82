package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
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
		var a activities
		ada := &account.Identity{Department: "d", Project: "p", User: "ada", Key: "laptop"}
		one := a.find(ada, "m", time.Now())
		one.add(time.Now(), useCount{requests: 1}, 1, 0)
		one.add(time.Now(), useCount{input: 100}, -1, 1)
		for range 200 { // for 20 s
			one.add(time.Now(), useCount{output: 5}, 0, 0)
			time.Sleep(100 * time.Millisecond)
		}
		a.find(&account.Identity{}, "", time.Now()).add(time.Now(), useCount{refused: 3}, 0, 0)
		rows := a.top(time.Now()).Rows
		slices.SortFunc(rows, func(a, b TopRow) int { return strings.Compare(b.User, a.User) })
		if len(rows) != 2 || rows[1].Refused != 3 || rows[1].User != "" {
			t.Fatalf("%+v", rows)
		}
		if r := rows[0]; r.Output < 49 || r.Output > 51 || r.Input != 0 || r.Running != 1 || r.Waiting != 0 || r.Requests != 1 || r.Department != "d" || r.Project != "p" || r.User != "ada" || r.Key != "laptop" || r.Model != "m" {
			t.Errorf("%+v", r)
		}
		time.Sleep(2 * time.Minute)
		if rows := a.top(time.Now()).Rows; len(rows) != 1 || rows[0].Running != 1 || rows[0].Output != 0 || rows[0].Requests != 0 {
			t.Errorf("what runs is forgotten, or what is over is not: %+v", rows)
		}
		one.add(time.Now(), useCount{}, 0, -1)
		time.Sleep(2 * time.Minute)
		if rows := a.top(time.Now()).Rows; len(rows) != 0 || len(a.byName) != 0 {
			t.Errorf("%+v, %d are remembered", rows, len(a.byName))
		}
	})
}

// TestActivitiesAreBounded: whoever comes, memory is bounded, and nothing of those who run
// is lost.
func TestActivitiesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a activities
		var some []*activity
		for i := range 3 * maxActivities {
			one := a.find(&account.Identity{User: fmt.Sprint("user", i)}, "m", time.Now())
			one.add(time.Now(), useCount{requests: 1}, 0, 1)
			some = append(some, one)
		}
		rows := a.top(time.Now()).Rows
		running := 0
		for _, r := range rows {
			running += r.Running
		}
		if len(rows) != maxActivities+1 || running != 3*maxActivities {
			t.Errorf("%d rows, %d running", len(rows), running)
		}
		for _, one := range some {
			one.add(time.Now(), useCount{}, 0, -1)
		}
		time.Sleep(2 * time.Minute)
		if one := a.find(&account.Identity{User: "late"}, "m", time.Now()); one == a.overflow || len(a.byName) != 1 {
			t.Errorf("who comes later has no line of its own among %d", len(a.byName))
		}
	})
}

// TestActivityCostsNothing: on the path of a request nothing is allocated for it.
func TestActivityCostsNothing(t *testing.T) {
	var a activities
	who := &account.Identity{User: "ada", Key: "laptop"}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		one := a.find(who, "m", now)
		one.add(now, useCount{requests: 1}, 1, 0)
		one.add(now, useCount{input: 5}, -1, 1)
		one.add(now, useCount{output: 5}, 0, -1)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkActivity measures what a request costs of it.
func BenchmarkActivity(b *testing.B) {
	var a activities
	who := &account.Identity{User: "ada", Key: "laptop"}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		one := a.find(who, "m", now)
		one.add(now, useCount{requests: 1}, 1, 0)
		one.add(now, useCount{input: 5}, -1, 1)
		one.add(now, useCount{output: 5}, 0, -1)
	}
}

// TestTopPage: refusals are those of their callers, and of strangers those without a user.
func TestTopPage(t *testing.T) {
	g, _ := bare(t, nil)
	g.Reload(Default(), account.New(account.Config{Mode: account.Keys, Keys: []account.KeyConfig{{Name: "all", KeyEnv: "B", Key: "bob's own key, which the file names", User: "bob"}}}, nil))
	front, ops := g.Handler(), g.OpsHandler(nil)
	for _, key := range []string{"bob's own key, which the file names", "nobody's key"} {
		r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(`{"model":"gone","messages":[{"role":"user","content":"hi"}]}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		front.ServeHTTP(deadlines{httptest.NewRecorder()}, r)
	}
	w := httptest.NewRecorder()
	ops.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9090/top", nil))
	var top Top
	if err := json.Unmarshal(w.Body.Bytes(), &top); err != nil || w.Code != http.StatusOK {
		t.Fatal(w.Code, err, w.Body)
	}
	slices.SortFunc(top.Rows, func(a, b TopRow) int { return strings.Compare(b.User, a.User) })
	if len(top.Rows) != 2 || top.Rows[0].User != "bob" || top.Rows[0].Key != "all" || top.Rows[0].Refused != 1 || top.Rows[1].User != "" || top.Rows[1].Refused != 1 {
		t.Errorf("%+v", top.Rows)
	}
}
