package ledger

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/openai"
)

// found is what a ledger over the same directory finds after a kill.
func found(t *testing.T, l *Ledger) []Record {
	t.Helper()
	l.crash()
	l = open(t, l.Dir, l.DB)
	var all []Record
	segments, memory := l.journal.snapshot()
	for _, s := range segments {
		f, err := os.Open(s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := scan(f, 0, s.size, func(r Record, _ int64) bool { all = append(all, r); return true }); err != nil {
			t.Fatal(err)
		}
	}
	for _, frames := range memory {
		if _, err := scan(strings.NewReader(string(frames)), 0, int64(len(frames)), func(r Record, _ int64) bool { all = append(all, r); return true }); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// begun is a record as it begins.
func begun(n int) Record {
	r := one(n)
	r.Status, r.TTFT, r.Took = 0, 0, 0
	r.Usage, r.Units = openai.Usage{Input: 7}, 7000
	return r
}

// killed is what a kill makes of it.
func killed(n int, u openai.Usage, units int64) Record {
	r := begun(n)
	r.Status, r.Estimated, r.Usage, r.Units = 500, true, u, units
	return r
}

// TestFlights: what is under way when a process is killed is entered as far as it had
// come, what had ended is entered as it ended, and nothing is twice.
func TestFlights(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	l := open(t, t.TempDir(), db)
	stop := run(t, l)
	l.Begin(begun(0))
	far := l.Begin(begun(1))
	far.Progress(openai.Usage{Input: 7, Cached: 1, Output: 3, Reasoning: 2}, 10_000)
	far.Progress(openai.Usage{Input: 8, Cached: 2, Output: 30, Reasoning: 20}, 38_000)
	ended := l.Begin(begun(2))
	ended.Progress(openai.Usage{Input: 7, Output: 3}, 10_000)
	if !l.Add(one(2), ended) {
		t.Error("a kill would lose it")
	}
	within, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := l.Written(within); err != nil {
		t.Fatal(err)
	}
	stop()
	late := l.Begin(begun(3)) // nobody writes any more
	if !l.Add(one(3), late) {
		t.Error("a kill would lose it")
	}
	got := found(t, l)
	slices.SortFunc(got, func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
	want := []Record{
		killed(0, openai.Usage{Input: 7}, 7000), killed(1, openai.Usage{Input: 8, Cached: 2, Output: 30, Reasoning: 20}, 38_000),
		one(2), one(3),
	}
	if !slices.EqualFunc(got, want, func(a, b Record) bool { return a.Time.Equal(b.Time) && same(a, b) }) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func same(a, b Record) bool {
	a.Time = b.Time
	return a == b
}

// TestFlightsTwiceKilled: what was found is found again where the next process is
// killed before it has written it, and not after.
func TestFlightsTwiceKilled(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	l := open(t, t.TempDir(), db)
	l.Begin(begun(0))
	for range 2 {
		if got := found(t, l); len(got) != 1 || got[0].ID != one(0).ID {
			t.Fatalf("%+v", got)
		}
		l = open(t, copied(t, l.Dir), db)
	}
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	if got := total(t, l, Filter{}); got.Requests != 1 || got.Failed != 1 || got.Estimated != 1 || got.Input != 7 {
		t.Errorf("%+v", got)
	}
	if got := found(t, l); len(got) != 1 { // in its segment, not in the air
		t.Errorf("%+v", got)
	}
}

// TestFlightsAndSegments: a record is in its slot until it is synced, since a failed
// sync takes it back from the segment; and what is in both, or in the database, is
// found once.
func TestFlightsAndSegments(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	l := open(t, t.TempDir(), db)
	shipped := one(7)
	l.Add(shipped, nil)
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	l.Begin(begun(7)) // as after a crash of the machine, which kept an old page
	l.Add(one(0), l.Begin(begun(0)))
	l.journal.sync = func(*os.File) error { return os.ErrInvalid }
	if l.journal.commit() == nil {
		t.Fatal("it was synced")
	}
	l.Add(one(1), l.Begin(begun(1)))
	if err := l.journal.write(); err != nil {
		t.Fatal(err)
	}
	got := found(t, l)
	ids := map[string]int{}
	for _, r := range got {
		ids[r.ID]++
	}
	if len(ids) != 3 || ids[shipped.ID] != 1 || ids[one(0).ID] != 1 || ids[one(1).ID] != 1 {
		t.Error(ids) // 7 is in the segment from which it was shipped
	}
}

// TestFlightsDiskFull: where the file cannot grow, what has a slot is noted all the
// same, and more again when it can.
func TestFlightsDiskFull(t *testing.T) {
	l := open(t, t.TempDir(), openDB(t, databasetest.SQLite(t)))
	book := l.journal.flights
	var last *Flight
	for i := range blockBytes / slotBytes {
		last = l.Begin(begun(i))
	}
	whole := book.file
	var err error
	if book.file, err = os.Open(whole.Name()); err != nil { // only to be read
		t.Fatal(err)
	}
	if l.Begin(begun(1000)) != nil {
		t.Error("a slot out of nothing")
	}
	book.file.Close()
	book.file, book.growFailed = whole, time.Time{}
	last.Progress(openai.Usage{Input: 7, Output: 5}, 1)
	if l.Begin(begun(1001)) == nil {
		t.Error("no slot, though there is room again")
	}
	got := found(t, l)
	if len(got) != blockBytes/slotBytes+1 || !slices.ContainsFunc(got, func(r Record) bool { return r.Usage.Output == 5 }) {
		t.Error(len(got))
	}
}

// copied is a directory as another process would find it.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "journal")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestManyFlights: slots are used again, and more are made when there are too few.
func TestManyFlights(t *testing.T) {
	l := open(t, t.TempDir(), openDB(t, databasetest.SQLite(t)))
	for round := range 3 {
		all := make([]*Flight, 600)
		for i := range all {
			if all[i] = l.Begin(begun(1000*round + i)); all[i] == nil {
				t.Fatal("no slot")
			}
		}
		if round == 2 {
			break
		}
		for i, f := range all {
			l.Add(one(1000*round+i), f)
		}
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(l.Dir, flightsFile))
	if err != nil || info.Size() != 3*blockBytes {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
	if got := len(found(t, l)); got != 1800 {
		t.Error(got)
	}
}

// TestOddFlights: a record that does not fit is not noted, and a file that is not
// there, or is taken away under its mapping, costs notes and nothing else.
func TestOddFlights(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	l := open(t, t.TempDir(), db)
	long := begun(0)
	long.Department, long.Project, long.User, long.Key, long.Model = strings.Repeat("a", 256), strings.Repeat("b", 256), strings.Repeat("c", 256), strings.Repeat("d", 256), strings.Repeat("e", 256)
	if f := l.Begin(long); f != nil || l.Add(long, f) {
		t.Error("it is noted nowhere")
	}
	if got := found(t, l); len(got) != 0 {
		t.Errorf("%+v", got)
	}

	l = open(t, t.TempDir(), db)
	f, unused := l.Begin(begun(1)), l.Begin(begun(2))
	if err := os.Truncate(filepath.Join(l.Dir, flightsFile), 0); err != nil {
		t.Fatal(err)
	}
	f.Progress(openai.Usage{Input: 1}, 1)
	unused.Progress(openai.Usage{Input: 1}, 1)
	if l.Begin(begun(3)) != nil {
		t.Error("a flight without a file")
	}
	if l.Add(one(1), f) {
		t.Error("it is kept nowhere")
	}
	l.Add(one(3), nil)
	if err := l.journal.commit(); err != nil {
		t.Fatal(err)
	}
	if got := found(t, l); len(got) != 2 {
		t.Errorf("%+v", got)
	}

	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, flightsFile), 0o700); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, db)
	if f := l.Begin(begun(4)); f != nil || l.Add(one(4), f) {
		t.Error("a flight without a file")
	}
}

// FuzzFlights: whatever the file holds, opening it does no harm, and what it finds is
// a record that a database takes.
func FuzzFlights(f *testing.F) {
	whole := make([]byte, frameAt)
	r := begun(1)
	f.Add(appendFrame(whole, &r))
	f.Add([]byte{})
	f.Add([]byte(strings.Repeat("\xff", 2*slotBytes)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, flightsFile), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_, left := openFlights(dir, quiet())
		for _, f := range left {
			r, ok := f.record()
			again := r
			again.clean()
			if !ok || !same(r, again) {
				t.Errorf("%+v", r)
			}
		}
	})
}

func BenchmarkFlight(b *testing.B) {
	l := open(b, b.TempDir(), nil)
	r := begun(0)
	r.clean()
	book := l.journal.flights
	b.Run("begin", func(b *testing.B) {
		for b.Loop() {
			book.release(book.begin(&r))
		}
	})
	b.Run("progress", func(b *testing.B) {
		f := book.begin(&r)
		for n := 0; b.Loop(); n++ {
			f.Progress(openai.Usage{Input: 1, Output: n}, int64(n))
		}
	})
}
