package ledger

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/openai"
	"tidegate/nvml/poll"
)

func TestEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := func(name string) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, name)) }
		n := func(name string) int { return rapid.Int().Draw(t, name) }
		d := func(name string) time.Duration { return time.Duration(n(name)) }
		r := Record{
			ID: text("id"), Time: time.Unix(int64(rapid.Int32().Draw(t, "time")), 0), Department: text("d"), Project: text("p"), User: text("u"), Key: text("k"),
			Asked: text("a"), Model: text("m"), Level: n("l"), Status: n("s"), Usage: openai.Usage{Input: n("i"), Cached: n("c"), Output: n("o"), Reasoning: n("r")},
			Estimated: rapid.Bool().Draw(t, "e"), Units: int64(n("units")),
			Queue: d("q") % time.Hour, TTFT: d("f") % time.Hour, Took: d("t") % time.Hour, GPU: d("g") % time.Hour,
		}
		r.clean()
		again, err := decode(r.encode(nil))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%v\n%+v\n%+v", err, r, again)
		}
		for _, s := range r.texts() {
			if !utf8.ValidString(s) || strings.Contains(s, "\x00") || len(s) > maxText {
				t.Fatalf("%q", s)
			}
		}
		if f := appendFrame(nil, &r); len(f) > maxFrame {
			t.Fatalf("%d bytes", len(f))
		}
	})
}

// value is what a counter stands at.
func value(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

// segmentOf is the bytes of a segment with these records.
func segmentOf(records ...Record) (b []byte) {
	for i := range records {
		b = appendFrame(b, &records[i])
	}
	return b
}

func read(b []byte, from int64) (ids []string, at int64, err error) {
	at, err = scan(bytes.NewReader(b), from, int64(len(b)), func(r Record, _ int64) bool {
		ids = append(ids, r.ID)
		return true
	})
	return ids, at, err
}

// FuzzScan reads any bytes as a segment. What it gives is a beginning of the
// bytes that can be written and read again.
func FuzzScan(f *testing.F) {
	whole := segmentOf(records(0, 3)...)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(make([]byte, 100), whole...))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []Record
		at, err := scan(bytes.NewReader(b), 0, int64(len(b)), func(r Record, end int64) bool {
			got = append(got, r)
			return true
		})
		switch {
		case err == nil && at != int64(len(b)):
			t.Fatalf("stopped at %d of %d without an error", at, len(b))
		case err != nil && !errors.Is(err, errTorn) && !errors.Is(err, errCorrupt):
			t.Fatal(err)
		}
		again, _, err := read(segmentOf(got...), 0)
		if err != nil || len(again) != len(got) {
			t.Fatalf("%v: %d of %d are read again", err, len(again), len(got))
		}
	})
}

// TestDamage cuts a segment at every byte, flips every byte, and reads on from
// every record.
func TestDamage(t *testing.T) {
	all := records(0, 4)
	whole := segmentOf(all...)
	ends := []int{0}
	for i := range all {
		ends = append(ends, len(segmentOf(all[:i+1]...)))
	}
	before := func(at int) int { // records that end at or before a byte
		n := 0
		for n < len(all) && ends[n+1] <= at {
			n++
		}
		return n
	}
	for at := range whole {
		ids, end, err := read(whole[:at], 0)
		want := errTorn
		if slices.Contains(ends, at) {
			want = nil
		}
		if len(ids) != before(at) || int(end) != ends[before(at)] || !errors.Is(err, want) {
			t.Fatalf("cut at %d: %d records up to %d: %v", at, len(ids), end, err)
		}
		flipped := slices.Clone(whole)
		flipped[at] ^= 0x10
		ids, _, err = read(flipped, 0)
		want = errCorrupt
		if at >= ends[3] { // nothing follows the last record, so it may as well be torn
			want = errTorn
		}
		if len(ids) != before(at) || !errors.Is(err, want) {
			t.Fatalf("flipped at %d: %d records: %v", at, len(ids), err)
		}
	}
	for n, end := range ends {
		if ids, _, err := read(whole, int64(end)); err != nil || len(ids) != len(all)-n {
			t.Errorf("from %d: %d records, %v", end, len(ids), err)
		}
	}
	if ids, _, err := read(append(slices.Clone(whole), make([]byte, 4096)...), 0); len(ids) != 4 || !errors.Is(err, errTorn) {
		t.Errorf("with zeros behind: %d records, %v", len(ids), err)
	}
}

// TestChunks reads a segment that is larger than what is read at a time.
func TestChunks(t *testing.T) {
	all := records(0, 3*chunk/100)
	whole := segmentOf(all...)
	if ids, _, err := read(whole, 0); err != nil || len(ids) != len(all) || len(whole) < 2*chunk {
		t.Errorf("%d of %d records in %d bytes: %v", len(ids), len(all), len(whole), err)
	}
}

// TestCorruptIsKept damages the middle of a segment: what stands before is
// counted, the next segments too, and the file stays for people.
func TestCorruptIsKept(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	dir := t.TempDir()
	l := open(t, dir, db)
	add := func(from, n int) {
		for i := range n {
			l.Add(one(from+i), nil)
		}
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
	}
	add(0, 10)
	path := l.journal.live.segment.path
	l.crash()
	l = open(t, dir, db)
	add(10, 5)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(segmentOf(records(0, 6)...))+20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the same before it is shipped and after
		if got, want := total(t, l, Filter{}), sumOf(append(records(0, 6), records(10, 5)...)...); got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		shipAll(t, l)
	}
	if _, err := os.Stat(path + aside); err != nil {
		t.Error(err)
	}
	if n := value(t, l.metrics.corrupt); n != 1 {
		t.Errorf("%v segments are counted", n)
	}
	l.crash()
	if l = open(t, dir, db); len(l.journal.segments.all) != 1 {
		t.Errorf("%d segments after the next start", len(l.journal.segments.all))
	}
}

// TestLiveIsDamaged damages the segment that is written to: what stood before the
// damage is counted and so is all that comes after it was found, in another file.
func TestLiveIsDamaged(t *testing.T) {
	whole := len(segmentOf(records(0, 6)...))
	for _, c := range []struct {
		name   string
		damage func(path string) error
		counts func(*metrics) prometheus.Counter
		before int // records that are still counted
		kept   bool
	}{
		{"flipped", func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[whole+20] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		}, func(m *metrics) prometheus.Counter { return m.corrupt }, 6, true},
		{"cut", func(path string) error { return os.Truncate(path, int64(whole+20)) }, func(m *metrics) prometheus.Counter { return m.torn }, 6, false},
		{"taken away", os.Remove, func(m *metrics) prometheus.Counter { return m.missing }, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := open(t, t.TempDir(), openDB(t, databasetest.SQLite(t)))
			commit := func(all []Record) {
				for _, r := range all {
					l.Add(r, nil)
				}
				if err := l.journal.commit(); err != nil {
					t.Fatal(err)
				}
			}
			commit(records(0, 10))
			path := l.journal.live.segment.path
			if err := c.damage(path); err != nil {
				t.Fatal(err)
			}
			for range 2 { // finding it twice is finding it once
				shipAll(t, l)
			}
			commit(records(10, 5))
			want := sumOf(append(records(0, c.before), records(10, 5)...)...)
			for range 2 { // the same before it is shipped and after
				if got := total(t, l, Filter{}); got != want {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
				shipAll(t, l)
			}
			if n := value(t, c.counts(l.metrics)); n != 1 {
				t.Errorf("%v segments are counted", n)
			}
			if _, err := os.Stat(path + aside); (err == nil) != c.kept {
				t.Errorf("kept: %v", err)
			}
			if left, _, err := listSegments(l.Dir); err != nil || len(left) != 1 {
				t.Errorf("%d segments: %v", len(left), err)
			}
		})
	}
}

// TestMissing takes a file of an earlier process away: it is counted as missing,
// and what comes behind it is shipped.
func TestMissing(t *testing.T) {
	db, dir := openDB(t, databasetest.SQLite(t)), t.TempDir()
	l := open(t, dir, db)
	l.journal.segment = 1 // byte: a segment for each commit
	for _, r := range records(0, 3) {
		l.Add(r, nil)
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
	}
	l.crash()
	l = open(t, dir, db)
	if err := os.Remove(l.journal.segments.all[1].path); err != nil {
		t.Fatal(err)
	}
	shipAll(t, l)
	if got, want := total(t, l, Filter{}), sumOf(one(0), one(2)); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if n := value(t, l.metrics.missing); n != 1 || l.Status() != (Status{}) {
		t.Errorf("%v segments are counted: %+v", n, l.Status())
	}
}

func TestOneGatewayPerDirectory(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	again := func() error {
		other, err := Open(Parts{Dir: dir, Log: quiet(), Registry: prometheus.NewRegistry()})
		if err == nil {
			other.Close()
		}
		return err
	}
	if err := again(); err == nil || !strings.Contains(err.Error(), "store.journal_dir") || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("%v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Parts{Dir: file, Log: quiet(), Registry: prometheus.NewRegistry()}); err == nil {
		t.Error("a file is no directory")
	}
}

// TestDiskFails lets syncs fail for a while: nothing is lost while the buffer
// lasts, what comes after is counted, and all that was kept arrives once.
func TestDiskFails(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	l := open(t, t.TempDir(), db)
	j := l.journal
	works := j.sync
	for i := range 10 {
		l.Add(one(i), nil)
	}
	if err := j.commit(); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no space left on device")
	j.sync = func(*os.File) error { return broken }
	for i := range 10 {
		l.Add(one(10+i), nil)
		if err := j.commit(); !errors.Is(err, broken) {
			t.Fatal(err)
		}
	}
	// What was not synced is in no file, where the next process would take it for
	// written while this one writes it again.
	for i, s := range j.segments.all {
		if at, err := os.Stat(s.path); err != nil || at.Size() != s.size || i > 0 {
			t.Errorf("segment %d: %+v, %v", i, s, err)
		}
	}
	if got, want := total(t, l, Filter{}), sumOf(records(0, 20)...); got != want {
		t.Errorf("while it fails:\ngot  %+v\nwant %+v", got, want)
	}
	j.buffer = int(l.Status().Buffer)
	l.Add(one(20), nil)
	if n := value(t, l.metrics.lost); n != 1 {
		t.Errorf("%v are counted as lost", n)
	}
	j.sync, j.buffer = works, BufferBytes
	if err := j.drain(); err != nil { // the group that failed, and what came after
		t.Fatal(err)
	}
	if n := l.Status().Buffer; n != 0 {
		t.Errorf("%d bytes wait", n)
	}
	shipAll(t, l)
	if got, want := total(t, l, Filter{}), sumOf(records(0, 20)...); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Add(one(21), nil)
	if n := value(t, l.metrics.lost); n != 2 {
		t.Errorf("%v are counted as lost", n)
	}
	if left, _, _ := listSegments(l.Dir); len(left) > 0 {
		t.Errorf("%d segments are left", len(left))
	}
}

// TestNoDirectory takes the directory away under a running ledger.
func TestNoDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := open(t, dir, openDB(t, databasetest.SQLite(t)))
	run(t, l)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	l.Add(one(0), nil)
	poll.Await(t, "the failure to be counted", func() bool { return value(t, l.metrics.writeFailures) > 0 })
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	flush(t, l)
	if got := total(t, l, Filter{}); got != sumOf(one(0)) {
		t.Errorf("%+v", got)
	}
}

// victim is the process that TestKill kills: it adds records for ever and prints
// the number of those that it knows to be on the disk.
func victim(dir string) {
	l, err := Open(Parts{Dir: dir, Log: quiet(), Registry: prometheus.NewRegistry()})
	if err != nil {
		fmt.Println(err)
		return
	}
	l.journal.segment = 20_000
	for n := 0; ; n++ {
		r := one(n)
		r.ID = fmt.Sprintf("%d-%d", os.Getpid(), n)
		l.Add(r, nil)
		if n%20 == 19 {
			if err := l.journal.commit(); err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println(n + 1)
		}
	}
}

// TestKill kills a process again and again at random moments while it writes:
// what it knew to be on the disk is there, each once, in order.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, databasetest.SQLite(t))
	known := 0
	for range 5 {
		c := exec.CommandContext(t.Context(), os.Args[0])
		c.Env = append(os.Environ(), "LEDGER_TEST_VICTIM="+dir)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		said := 0
		lines := bufio.NewScanner(out)
		for stop := 1 + rand.IntN(20); lines.Scan(); {
			n := 0
			if _, err := fmt.Sscan(lines.Text(), &n); err != nil {
				t.Fatal(lines.Text())
			}
			said = n
			if stop--; stop == 0 {
				c.Process.Kill()
			}
		}
		c.Wait() // says that it was killed
		known += said
	}
	l := open(t, dir, db)
	inJournal := total(t, l, Filter{}).Requests
	if inJournal < int64(known) {
		t.Errorf("%d records in the journal; %d were known to be on the disk", inJournal, known)
	}
	shipAll(t, l)
	l.journal.remove()
	if got := total(t, l, Filter{}).Requests; got != inJournal {
		t.Errorf("%d records in the database; %d were in the journal", got, inJournal)
	}
	t.Logf("%d records were known, %d found", known, inJournal)
}

// TestWritten lets a disk take long to sync: what was added is in the file all the
// same, where another process finds it after a kill of this one.
func TestWritten(t *testing.T) {
	l := open(t, t.TempDir(), openDB(t, "sqlite://"+filepath.Join(t.TempDir(), "x.db")))
	syncs, release := make(chan struct{}, 100), make(chan struct{})
	l.journal.sync = func(f *os.File) error {
		syncs <- struct{}{}
		<-release
		return f.Sync()
	}
	run(t, l)
	t.Cleanup(func() { close(release) }) // before run's
	within, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range 20 {
		l.Add(one(i), nil)
		if err := l.Written(within); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			<-syncs // and it hangs
		}
		segments, _, err := listSegments(l.Dir)
		if err != nil || len(segments) != 1 {
			t.Fatalf("%d segments, %v", len(segments), err)
		}
		f, err := os.Open(segments[0].path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if _, err := scan(f, 0, segments[0].size, func(r Record, _ int64) bool { got = append(got, r.ID); return true }); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if len(got) != i+1 || got[i] != one(i).ID {
			t.Fatalf("after %d records the file holds %v", i+1, got)
		}
	}
	if n := l.Status().Buffer; n == 0 {
		t.Error("what is not synced is not kept")
	}
}

// TestFullWhileSyncing fills segments while syncs go on: none is ended before all of
// it is durable, and everything is there once.
func TestFullWhileSyncing(t *testing.T) {
	db := openDB(t, "sqlite://"+filepath.Join(t.TempDir(), "x.db"))
	l := open(t, t.TempDir(), db)
	l.journal.segment = 2 << 10
	run(t, l)
	const n = 2000
	within, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range n {
		l.Add(one(i), nil)
		if i%100 == 99 { // more than a segment takes
			if err := l.Written(within); err != nil {
				t.Fatal(err)
			}
		}
	}
	poll.Await(t, "the disk", func() bool { return l.Status().Buffer == 0 })
	if l.journal.segments.last < 3 {
		t.Errorf("only %d segments were begun: the test does not test it", l.journal.segments.last)
	}
	if got, want := total(t, l, Filter{}), sumOf(records(0, n)...); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestStatusTellsOfTheJournal: while the journal's disk takes nothing the status says
// why, and no longer when it does again.
func TestStatusTellsOfTheJournal(t *testing.T) {
	l := open(t, t.TempDir(), openDB(t, "sqlite://"+filepath.Join(t.TempDir(), "x.db")))
	var broken atomic.Bool
	broken.Store(true)
	l.journal.sync = func(f *os.File) error {
		if broken.Load() {
			return errors.New("no space left on device")
		}
		return f.Sync()
	}
	run(t, l)
	l.Add(one(1), nil)
	poll.Await(t, "the failure", func() bool { return l.Status().Journal == "no space left on device" })
	broken.Store(false)
	l.Add(one(2), nil)
	poll.Await(t, "its end", func() bool { return l.Status().Journal == "" && l.Status().Buffer == 0 })
}
