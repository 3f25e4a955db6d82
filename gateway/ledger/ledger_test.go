package ledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"pgregory.net/rapid"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/openai"
	"tidegate/nvml/poll"
)

// TestBoth runs on both databases what is true of both. Each part has a department
// of its own, since the tables are shared.
func TestBoth(t *testing.T) {
	databasetest.Run(t, func(t *testing.T, dsn string) {
		db := openDB(t, dsn)
		for _, part := range []struct {
			name string
			test func(*testing.T, *bun.DB)
		}{
			{"report", testReport}, {"periods", testPeriods}, {"twice", testTwice}, {"crashes", testCrashes},
			{"together", testTogether}, {"runs", testRuns}, {"odd texts", testOddTexts}, {"prune", testPrune}, {"elsewhere", testElsewhere}, {"calendar", testCalendar},
		} {
			t.Run(part.name, func(t *testing.T) { part.test(t, db) })
		}
	})
}

func testReport(t *testing.T, db *bun.DB) {
	l := open(t, t.TempDir(), db)
	n := 0
	add := func(day int, user, key, model string, input, output, status int, estimated bool) {
		n++
		l.Add(Record{
			ID: fmt.Sprint("report", n), Time: noon().AddDate(0, 0, day), Department: "report", Project: "p-" + user, User: user, Key: key, Model: model,
			Status: status, Estimated: estimated, Units: 7, GPU: time.Second,
			Usage: openai.Usage{Input: input, Cached: input / 2, Output: output, Reasoning: output / 2},
		}, nil)
	}
	// A third is in the database, a third in the journal and a third in memory.
	add(0, "ann", "k1", "big", 10, 4, 200, false)
	add(0, "ann", "k1", "big", 20, 6, 499, true)
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	add(0, "ann", "k2", "small", 2, 2, 200, false)
	add(2, "ann", "k1", "small", 4, 0, 502, false)
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	add(1, "bob", "k1", "big", 100, 100, 200, false)
	sums := func(requests, failed, input, output, estimated int64) Sums {
		return Sums{
			Requests: requests, Failed: failed, Input: input, Cached: input / 2, Output: output, Reasoning: output / 2, Total: input + output,
			Estimated: estimated, Milliunits: Milliunits(7 * requests), GPUMillis: 1000 * requests,
		}
	}
	for _, c := range []struct {
		name     string
		filter   Filter
		by       []Group
		from, to int
		want     []Row
	}{
		{"by day", Filter{User: "ann"}, []Group{ByDay}, 0, 3, []Row{
			{Day: "2026-03-01", Sums: sums(3, 0, 32, 12, 1)}, {Day: "2026-03-03", Sums: sums(1, 1, 4, 0, 0)},
		}},
		{"by model", Filter{User: "ann"}, []Group{ByModel}, 0, 3, []Row{
			{Model: "big", Sums: sums(2, 0, 30, 10, 1)}, {Model: "small", Sums: sums(2, 1, 6, 2, 0)},
		}},
		{"by key", Filter{User: "ann"}, []Group{ByKey}, 0, 3, []Row{
			{Key: "k1", Sums: sums(3, 1, 34, 10, 1)}, {Key: "k2", Sums: sums(1, 0, 2, 2, 0)},
		}},
		{"by user and model", Filter{}, []Group{ByUser, ByModel}, 0, 3, []Row{
			{User: "ann", Model: "big", Sums: sums(2, 0, 30, 10, 1)}, {User: "ann", Model: "small", Sums: sums(2, 1, 6, 2, 0)},
			{User: "bob", Model: "big", Sums: sums(1, 0, 100, 100, 0)},
		}},
		{"by project", Filter{}, []Group{ByProject, ByDepartment}, 1, 2, []Row{{Project: "p-bob", Department: "report", Sums: sums(1, 0, 100, 100, 0)}}},
		{"one day", Filter{User: "ann"}, []Group{ByModel}, 2, 3, []Row{{Model: "small", Sums: sums(1, 1, 4, 0, 0)}}},
		{"no day", Filter{User: "ann"}, []Group{ByDay}, 1, 2, []Row{}},
		{"the wrong way round", Filter{User: "ann"}, []Group{ByDay}, 2, 0, []Row{}},
		{"nobody", Filter{User: "eve"}, []Group{ByDay}, 0, 3, []Row{}},
		{"all filters", Filter{Project: "p-ann", User: "ann", Key: "k1", Model: "small"}, nil, 0, 3, []Row{{Sums: sums(1, 1, 4, 0, 0)}}},
		{"nothing at all", Filter{User: "eve"}, nil, 0, 3, []Row{{}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.filter.Department = "report"
			day := func(n int) time.Time { return noon().Add(-12*time.Hour).AddDate(0, 0, n) }
			q := Query{Filter: c.filter, GroupBy: c.by, Start: day(c.from), End: day(c.to)}
			got, err := l.Report(t.Context(), q)
			if err != nil || got == nil || !slices.Equal(got, c.want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, c.want)
			}
		})
	}
	for _, by := range [][]Group{{"status"}, {ByDay, ByDay}} {
		if _, err := l.Report(t.Context(), always(Filter{}, by...)); err == nil {
			t.Errorf("by %v: no error", by)
		}
	}
}

// testPeriods sums calendar periods of zones at odd distances from UTC, from the
// database, and compares with a sum over the records themselves.
func testPeriods(t *testing.T, db *bun.DB) {
	l := open(t, t.TempDir(), db)
	var all []Record
	for i := range 2000 {
		r := one(i)
		r.ID, r.Department, r.Time = fmt.Sprint("periods", i), "periods", noon().Add(time.Duration(i)*7*time.Minute)
		l.Add(r, nil)
		all = append(all, r)
	}
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	for _, name := range []string{"UTC", "Asia/Shanghai", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Europe/Berlin"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range [][2]time.Time{
			{time.Date(2026, 3, 2, 0, 0, 0, 0, zone), time.Date(2026, 3, 3, 0, 0, 0, 0, zone)},
			{time.Date(2026, 3, 3, 13, 0, 0, 0, zone), time.Date(2026, 3, 3, 14, 0, 0, 0, zone)},
			{time.Date(2026, 3, 1, 0, 0, 0, 0, zone), time.Date(2026, 4, 1, 0, 0, 0, 0, zone)},
		} {
			var want Sums
			for i := range all {
				if at := all[i].Time; !at.Before(p[0]) && at.Before(p[1]) {
					want.count(&all[i])
				}
			}
			rows, err := l.Report(t.Context(), Query{Filter: Filter{Department: "periods"}, Start: p[0], End: p[1]})
			if err != nil || rows[0].Sums != want || want.Requests == 0 {
				t.Errorf("%v to %v: %v\ngot  %+v\nwant %+v", p[0], p[1], err, rows, want)
			}
		}
	}
}

// testTwice ships the same records over and over: under the same segment, as
// after an unknown end of a commit, and under another one.
func testTwice(t *testing.T, db *bun.DB) {
	l := open(t, t.TempDir(), db)
	var batch []Record
	for i := range 700 {
		r := one(i % 600)
		r.ID, r.Department, r.User = fmt.Sprint("twice", i%600), "twice", fmt.Sprint("u", i%600%20) // a hundred of them twice in the batch
		r.Usage.Input = 1 + i%600
		batch = append(batch, r)
	}
	want := sumOf(batch[:600]...)
	for i := range 3 {
		if err := insert(t.Context(), db, fmt.Sprint("twice", i/2), 1000, slices.Clone(batch)); err != nil {
			t.Fatal(err)
		}
		if got := total(t, l, Filter{Department: "twice"}); got != want {
			t.Fatalf("time %d:\ngot  %+v\nwant %+v", i, got, want)
		}
	}
}

// model is a ledger under testCrashes and what it must say.
type model struct {
	t            *testing.T
	db           *bun.DB
	department   string
	dir          string
	l            *Ledger
	n            int
	kept, memory []Record // on the disk or further; in memory only
}

func (m *model) open() {
	m.l = open(m.t, m.dir, m.db)
	m.l.journal.segment = 2000 // bytes: about ten records
}

func (m *model) add(rt *rapid.T) {
	for range rapid.IntRange(1, 30).Draw(rt, "n") {
		r := one(m.n)
		r.ID, r.Department, r.User = fmt.Sprint(m.department, "-", m.n), m.department, fmt.Sprint(m.n%3)
		r.Time = noon().Add(time.Duration(m.n) * time.Minute)
		m.n++
		m.l.Add(r, nil)
		m.memory = append(m.memory, r)
	}
}

func (m *model) commit(rt *rapid.T) {
	if err := m.l.journal.commit(); err != nil {
		rt.Fatal(err)
	}
	m.kept, m.memory = append(m.kept, m.memory...), nil
}

func (m *model) ship(rt *rapid.T) {
	if _, err := m.l.ship(m.t.Context()); err != nil {
		rt.Fatal(err)
	}
}

// shipUnheard ships, and does not hear that it worked.
func (m *model) shipUnheard(rt *rapid.T) {
	at, before := m.l.current, m.l.offset.Load()
	m.ship(rt)
	if m.l.current == at && at != nil {
		m.l.offset.Store(before)
	}
}

func (m *model) crash(*rapid.T) {
	m.l.crash()
	m.memory = nil
	m.open()
}

// crashWriting leaves a part of a record at the end of the live segment.
func (m *model) crashWriting(rt *rapid.T) {
	m.commit(rt)
	live := m.l.journal.live.segment
	m.l.crash()
	if live != nil {
		r := one(m.n)
		r.Department = m.department
		whole := appendFrame(nil, &r)
		f, err := os.OpenFile(live.path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			rt.Fatal(err)
		}
		f.Write(whole[:rapid.IntRange(0, len(whole)-1).Draw(rt, "bytes")])
		f.Close()
	}
	m.open()
}

func (m *model) restart(rt *rapid.T) {
	if err := m.l.Close(); err != nil {
		rt.Fatal(err)
	}
	m.kept, m.memory = append(m.kept, m.memory...), nil
	m.open()
}

func (m *model) check(rt *rapid.T) {
	want := sumOf(append(slices.Clone(m.kept), m.memory...)...)
	if got := total(m.t, m.l, Filter{Department: m.department}); got != want {
		rt.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// testCrashes adds, commits, ships, kills and reopens at random, damages what a
// kill may damage, and asks for the sum after every step.
func testCrashes(t *testing.T, db *bun.DB) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &model{t: t, db: db, department: fmt.Sprint("crashes", run), dir: filepath.Join(t.TempDir(), "journal")}
		m.open()
		rt.Repeat(map[string]func(*rapid.T){
			"add": m.add, "commit": m.commit, "ship": m.ship, "ship unheard": m.shipUnheard,
			"crash": m.crash, "crash writing": m.crashWriting, "restart": m.restart, "": m.check,
		})
		m.commit(rt)
		shipAll(t, m.l)
		if err := m.l.Close(); err != nil {
			rt.Fatal(err)
		}
		if left, _, err := listSegments(m.dir); err != nil || len(left) > 0 {
			rt.Fatalf("%v: %d segments are left though all is shipped", err, len(left))
		}
		rows, err := Report(t.Context(), db, m.dir, always(Filter{Department: m.department}))
		if err != nil || rows[0].Sums != sumOf(m.kept...) {
			rt.Fatalf("%v: at last %+v", err, rows)
		}
	})
}

// testTogether lets two gateways ship at once into the same sums.
func testTogether(t *testing.T, db *bun.DB) {
	const each = 1200 // few enough that a slow machine keeps within SQLite's wait for its lock
	var work sync.WaitGroup
	ledgers := []*Ledger{open(t, t.TempDir(), db), open(t, t.TempDir(), db)}
	for g, l := range ledgers {
		for i := range each {
			r := one(i)
			// They meet the same sums in opposite orders.
			k := i
			if g == 1 {
				k = each - i
			}
			r.ID, r.Department, r.User = fmt.Sprint("together", g, "-", i), "together", fmt.Sprint(k%97)
			l.Add(r, nil)
		}
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			for {
				n, err := l.ship(t.Context())
				if err != nil {
					t.Error(err)
				}
				if n == 0 || err != nil {
					return
				}
			}
		})
	}
	work.Wait()
	for _, l := range ledgers {
		if got := total(t, l, Filter{Department: "together"}); got.Requests != 2*each {
			t.Errorf("%d requests; want %d", got.Requests, 2*each)
		}
	}
}

// testRuns runs a ledger as the gateway does: many add, all arrives, nothing is
// left in the journal.
func testRuns(t *testing.T, db *bun.DB) {
	dir := t.TempDir()
	l := open(t, dir, db)
	stop := run(t, l)
	var adding sync.WaitGroup
	for g := range 8 {
		adding.Go(func() {
			for i := range 200 {
				r := one(i)
				r.ID, r.Department = fmt.Sprint("runs", g, "-", i), "runs"
				l.Add(r, nil)
				if i%50 == 0 {
					if s := total(t, l, Filter{Department: "runs"}); s.Requests < int64(i) {
						t.Errorf("%d requests after %d were added", s.Requests, i)
					}
				}
			}
		})
	}
	adding.Wait()
	flush(t, l)
	// The reader of another process finds the rest in the journal.
	rows, err := Report(t.Context(), db, dir, always(Filter{Department: "runs"}))
	if err != nil || rows[0].Requests != 1600 {
		t.Errorf("%v: %+v", err, rows)
	}
	poll.Await(t, "all to be shipped", func() bool { return l.Status().Backlog == 0 })
	l.Add(Record{ID: "runs-last", Time: noon(), Department: "runs", Status: 200}, nil)
	stop()
	if s := l.Status(); s != (Status{}) {
		t.Errorf("after Run: %+v", s)
	}
	id := l.journal.segments.all[0].id
	if at, err := shippedBytes(t.Context(), db, id); err != nil || at == 0 {
		t.Errorf("the segment is shipped up to %d: %v", at, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if at, err := shippedBytes(t.Context(), db, id); err != nil || at != 0 {
		t.Errorf("the note of a segment that is gone stays, at %d: %v", at, err)
	}
	l = open(t, dir, db)
	l.Add(Record{ID: "runs-later", Time: noon(), Department: "runs", Status: 200}, nil)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if rows, err = Report(t.Context(), db, dir, always(Filter{Department: "runs"})); err != nil || rows[0].Requests != 1602 {
		t.Errorf("%v: %+v", err, rows)
	}
}

// testOddTexts adds what callers could make up; one text that the database does
// not take would keep the batch from ever being shipped.
func testOddTexts(t *testing.T, db *bun.DB) {
	l := open(t, t.TempDir(), db)
	odd := []string{"", "\x00", "a\x00b", "\xff\xfe", "'; DROP TABLE usage_sums; --", "?", "$1", "潮汐", string(make([]byte, 5000)), "\xe6\xbd", "a\\b", "{\"x\"}"}
	for i, s := range odd {
		l.Add(Record{ID: "odd" + fmt.Sprint(i) + s, Time: time.UnixMilli(-1 << 60), Department: "odd", Project: s, User: s, Key: s, Asked: s, Model: s,
			Level: -1, Status: 1 << 50, Usage: openai.Usage{Input: -5, Output: 1 << 62}, Units: -1, Took: -time.Hour}, nil)
	}
	l.Add(Record{Time: time.Unix(1<<40, 0), Department: "odd", Project: "late"}, nil)
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	rows, err := l.Report(t.Context(), Query{Filter: Filter{Department: "odd"}, GroupBy: []Group{ByProject}, Start: time.Unix(0, 0), End: time.UnixMilli(maxMillis)})
	var n int64
	for _, r := range rows {
		n += r.Requests
	}
	if err != nil || n != int64(len(odd))+1 {
		t.Errorf("%v: %+v", err, rows)
	}
}

func testPrune(t *testing.T, db *bun.DB) {
	l := open(t, t.TempDir(), db)
	now := time.Now()
	for i := range 20 {
		l.Add(Record{ID: fmt.Sprint("prune", i), Time: now.AddDate(0, 0, -i), Department: "prune", User: "u", Usage: openai.Usage{Input: 1}}, nil)
	}
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	if n, err := prune(t.Context(), db, now.AddDate(0, 0, -10).Add(-time.Minute)); err != nil || n < 9 {
		t.Errorf("%d deleted: %v", n, err)
	}
	var left int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM usage_records WHERE department = 'prune'").Scan(&left); err != nil || left != 11 {
		t.Errorf("%d left: %v", left, err)
	}
	rows, err := l.Report(t.Context(), Query{Filter: Filter{Department: "prune"}, Start: now.AddDate(0, 0, -30), End: now.AddDate(0, 0, 1)})
	if err != nil || rows[0].Requests != 20 {
		t.Errorf("%v: %+v", err, rows)
	}
}

// testElsewhere reads a journal that a killed gateway left, without starting one.
func testElsewhere(t *testing.T, db *bun.DB) {
	dir := t.TempDir()
	l := open(t, dir, db)
	for i := range 30 {
		r := one(i)
		r.ID, r.Department = fmt.Sprint("elsewhere", i), "elsewhere"
		l.Add(r, nil)
		if i == 9 {
			if err := l.journal.commit(); err != nil {
				t.Fatal(err)
			}
			shipAll(t, l)
		}
	}
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	l.crash()
	for _, c := range []struct {
		dir  string
		want int64
	}{{dir, 30}, {"", 10}, {filepath.Join(dir, "missing"), 10}} {
		rows, err := Report(t.Context(), db, c.dir, always(Filter{Department: "elsewhere"}))
		if err != nil || rows[0].Requests != c.want {
			t.Errorf("%q: %v: %+v", c.dir, err, rows)
		}
	}
}

// TestOutage kills the database while requests go on, and starts it again.
func TestOutage(t *testing.T) {
	server := databasetest.StartServer(t)
	db := openDB(t, server.Database(t))
	l := open(t, t.TempDir(), db)
	run(t, l)
	add := func(from, n int) {
		for i := range n {
			l.Add(one(from+i), nil)
		}
	}
	add(0, 600)
	poll.Await(t, "the first to be shipped", func() bool { return l.Status().Backlog == 0 && total(t, l, Filter{}).Requests == 600 })
	server.Stop(t)
	add(600, 3000)
	flush(t, l)
	poll.Await(t, "the outage to be seen", func() bool { return l.Status().Failure != "" })
	if s := l.Status(); s.Backlog == 0 {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := l.Report(ctx, always(Filter{})); err == nil {
		t.Error("a report without a database")
	}
	server.Start(t)
	poll.Await(t, "the backlog to be shipped", func() bool { return l.Status().Backlog == 0 })
	if got, want := total(t, l, Filter{}), sumOf(records(0, 3600)...); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if s := l.Status(); s.Failure != "" {
		t.Errorf("%+v", s)
	}
}
