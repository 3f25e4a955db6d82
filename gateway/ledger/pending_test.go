package ledger

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"tidegate/gateway/database/databasetest"
)

// TestPending adds, commits, ships, kills and reopens at random: the records that wait
// are those that are in the journal or in memory and not in the database. A new process
// may say more until it has asked the database for the first time, and never less.
func TestPending(t *testing.T) {
	db, runs := openDB(t, databasetest.SQLite(t)), 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		m := &model{t: t, db: db, department: fmt.Sprint("pending", runs), dir: filepath.Join(t.TempDir(), "journal")}
		m.open()
		shipped, asked := 0, false
		opens := func(action func(*rapid.T)) func(*rapid.T) {
			return func(rt *rapid.T) {
				action(rt)
				asked = false
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"add": m.add, "commit": m.commit, "crash": opens(m.crash), "crash writing": opens(m.crashWriting), "restart": opens(m.restart),
			"ship": func(rt *rapid.T) {
				n, err := m.l.ship(t.Context())
				if err != nil {
					rt.Fatal(err)
				}
				shipped, asked = shipped+n, true
			},
			"": func(rt *rapid.T) {
				want := len(m.kept) + len(m.memory) - shipped
				if got := m.l.Status().Pending; got < want || asked && got != want {
					rt.Fatalf("%d records wait, not %d; the database was asked: %t", got, want, asked)
				}
			},
		})
		if err := m.l.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

// TestPendingMetric follows the gauge through what can become of records: memory,
// disk, database, a loss, and damage.
func TestPendingMetric(t *testing.T) {
	db, dir := openDB(t, databasetest.SQLite(t)), t.TempDir()
	var l *Ledger
	var reg *prometheus.Registry
	begin := func() {
		t.Helper()
		reg = prometheus.NewRegistry()
		var err error
		if l, err = Open(Parts{Dir: dir, DB: db, Log: quiet(), Registry: reg}); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(what string, n int) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "tidegate_ledger_pending_records" {
				if got := f.GetMetric()[0].GetGauge().GetValue(); got != float64(n) {
					t.Errorf("%s: %v, not %d", what, got, n)
				}
				return
			}
		}
		t.Fatal("there is no such metric")
	}
	add := func(from, n int) {
		for _, r := range records(from, n) {
			l.Add(r, nil)
		}
	}
	commit := func() {
		t.Helper()
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	wait("at first", 0)
	add(0, 10)
	wait("in memory", 10)
	commit()
	add(10, 1)
	wait("on the disk", 11)
	buffer := l.journal.buffer
	l.journal.buffer = 1
	add(11, 5)
	wait("lost", 11)
	if n := value(t, l.metrics.lost); n != 5 {
		t.Errorf("%v are lost", n)
	}
	l.journal.buffer = buffer
	commit()
	shipAll(t, l)
	wait("in the database", 0)
	add(20, 10)
	commit()
	path := l.journal.live.segment.path
	wait("more", 10)
	l.crash()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-len(segmentOf(records(20, 4)...))+20] ^= 1 // of the last four, the first
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	begin()
	shipAll(t, l)
	wait("what can be read is in the database, and nothing waits for the rest", 0)
	if n := value(t, l.metrics.written); n != 6 {
		t.Errorf("%v are written", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
