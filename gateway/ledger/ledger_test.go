package ledger

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/gateway/openai"
)

func day(n int) time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).AddDate(0, 0, n) }

func TestReport(t *testing.T) {
	l := New()
	add := func(n int, user, key, model string, input, output int, estimated bool) {
		l.Add(Record{Time: day(n), User: user, Key: key, Model: model, Estimated: estimated, Usage: openai.Usage{Input: input, Cached: input / 2, Output: output, Reasoning: output / 2}})
	}
	add(0, "ann", "k1", "big", 10, 4, false)
	add(0, "ann", "k1", "big", 20, 6, true)
	add(0, "ann", "k2", "small", 2, 2, false)
	add(2, "ann", "k1", "small", 4, 0, false)
	add(1, "bob", "k1", "big", 100, 100, false)
	for _, c := range []struct {
		name     string
		user     string
		from, to int
		by       Group
		want     []Row
	}{
		{"by day", "ann", 0, 2, ByDay, []Row{
			{Day: "2026-03-01", Requests: 3, Input: 32, Cached: 16, Output: 12, Reasoning: 6, Total: 44, Estimated: 1},
			{Day: "2026-03-03", Requests: 1, Input: 4, Cached: 2, Total: 4},
		}},
		{"by model", "ann", 0, 2, ByModel, []Row{
			{Model: "big", Requests: 2, Input: 30, Cached: 15, Output: 10, Reasoning: 5, Total: 40, Estimated: 1},
			{Model: "small", Requests: 2, Input: 6, Cached: 3, Output: 2, Reasoning: 1, Total: 8},
		}},
		{"by key", "ann", 0, 2, ByKey, []Row{
			{Key: "k1", Requests: 3, Input: 34, Cached: 17, Output: 10, Reasoning: 5, Total: 44, Estimated: 1},
			{Key: "k2", Requests: 1, Input: 2, Cached: 1, Output: 2, Reasoning: 1, Total: 4},
		}},
		{"one day", "ann", 2, 2, ByModel, []Row{{Model: "small", Requests: 1, Input: 4, Cached: 2, Total: 4}}},
		{"no day", "ann", 1, 1, ByDay, []Row{}},
		{"the wrong way round", "ann", 2, 0, ByDay, []Row{}},
		{"another user", "bob", 0, 2, ByDay, []Row{{Day: "2026-03-02", Requests: 1, Input: 100, Cached: 50, Output: 100, Reasoning: 50, Total: 200}}},
		{"nobody", "eve", 0, 2, ByDay, []Row{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := l.Report(c.user, day(c.from), day(c.to), c.by); got == nil || !slices.Equal(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// TestDaysAreUTC: the day is that of UTC, wherever the clock stands.
func TestDaysAreUTC(t *testing.T) {
	l := New()
	east := time.FixedZone("east", 9*3600)
	l.Add(Record{Time: time.Date(2026, 3, 2, 8, 59, 59, 0, east), User: "u"})
	l.Add(Record{Time: time.Date(2026, 3, 2, 9, 0, 0, 0, east), User: "u"})
	got := l.Report("u", time.Date(2026, 3, 2, 1, 0, 0, 0, east), time.Date(2026, 3, 2, 23, 0, 0, 0, east), ByDay)
	if len(got) != 2 || got[0].Day != "2026-03-01" || got[1].Day != "2026-03-02" {
		t.Errorf("%+v", got)
	}
}

// TestSums: whatever is grouped how, the sums are those of the records.
func TestSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := New()
		var want Row
		for range rapid.IntRange(0, 30).Draw(t, "records") {
			u := openai.Usage{Input: rapid.IntRange(0, 1<<40).Draw(t, "input"), Cached: rapid.IntRange(0, 100).Draw(t, "cached"), Output: rapid.IntRange(0, 1<<40).Draw(t, "output"), Reasoning: rapid.IntRange(0, 100).Draw(t, "reasoning")}
			r := Record{Time: day(rapid.IntRange(0, keepDays).Draw(t, "day")), User: rapid.SampledFrom([]string{"ann", "bob"}).Draw(t, "user"), Key: rapid.SampledFrom([]string{"", "k"}).Draw(t, "key"), Model: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "model"), Usage: u, Estimated: rapid.Bool().Draw(t, "estimated")}
			l.Add(r)
			if r.User != "ann" {
				continue
			}
			one := Row{Requests: 1, Input: int64(u.Input), Cached: int64(u.Cached), Output: int64(u.Output), Reasoning: int64(u.Reasoning), Total: int64(u.Input) + int64(u.Output)}
			if r.Estimated {
				one.Estimated = 1
			}
			want.add(one)
		}
		for _, by := range []Group{ByDay, ByModel, ByKey} {
			var sum Row
			rows := l.Report("ann", day(0), day(keepDays), by)
			for i, r := range rows {
				if i > 0 && rows[i-1].Day+rows[i-1].Model+rows[i-1].Key >= r.Day+r.Model+r.Key {
					t.Fatalf("out of order: %+v", rows)
				}
				sum.add(r)
			}
			if sum != want {
				t.Fatalf("by %s: %+v; want %+v", by, sum, want)
			}
		}
	})
}

func TestForgets(t *testing.T) {
	l := New()
	for n := range 3 * keepDays {
		l.Add(Record{Time: day(n), User: "u"})
		if len(l.rows) > keepDays+1 {
			t.Fatalf("%d rows after %d days", len(l.rows), n+1)
		}
	}
	got := l.Report("u", day(0), day(1000), ByDay)
	if last := 3*keepDays - 1; len(got) != keepDays+1 || got[0].Day != day(last-keepDays).Format(time.DateOnly) || got[keepDays].Day != day(last).Format(time.DateOnly) {
		t.Errorf("%d days, from %s to %s", len(got), got[0].Day, got[len(got)-1].Day)
	}
	// A record that ends late counts for its day, and forgets nothing.
	l.Add(Record{Time: day(3*keepDays - 5), User: "u"})
	if again := l.Report("u", day(0), day(1000), ByDay); len(again) != len(got) || again[len(again)-5].Requests != 2 {
		t.Errorf("%+v", again)
	}
}

// TestIsBounded: past the bound, what comes of new callers is one row a day and
// model; what has a row goes on in it, and nothing is lost.
func TestIsBounded(t *testing.T) {
	l := New()
	for i := range maxRows {
		l.Add(Record{Time: day(0), User: fmt.Sprintf("u%d", i), Model: "m"})
	}
	for i := range 1000 {
		l.Add(Record{Time: day(0), User: fmt.Sprintf("late%d", i), Key: "k", Model: "m", Usage: openai.Usage{Output: 1}})
	}
	l.Add(Record{Time: day(0), User: "u5", Model: "m"})
	l.Add(Record{Time: day(0), User: "late", Model: "n"})
	if n := len(l.rows); n != maxRows+2 {
		t.Errorf("%d rows", n)
	}
	if got := l.Report("u5", day(0), day(0), ByDay); len(got) != 1 || got[0].Requests != 2 {
		t.Errorf("%+v", got)
	}
	if got := l.Report(other, day(0), day(0), ByModel); len(got) != 2 || got[0].Requests != 1000 || got[0].Output != 1000 || got[1].Requests != 1 {
		t.Errorf("%+v", got)
	}
}

func TestConcurrent(t *testing.T) {
	l := New()
	var adding sync.WaitGroup
	for i := range 8 {
		adding.Go(func() {
			for n := range 500 {
				l.Add(Record{Time: day(n % 3), User: "u", Key: fmt.Sprint(i), Usage: openai.Usage{Input: 1}})
				if n%100 == 0 {
					l.Report("u", day(0), day(2), ByKey)
				}
			}
		})
	}
	adding.Wait()
	var n int64
	for _, r := range l.Report("u", day(0), day(2), ByDay) {
		n += r.Requests
	}
	if n != 8*500 {
		t.Errorf("%d", n)
	}
}
