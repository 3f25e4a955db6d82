package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/gateway/database/databasetest"
)

// TestReportsDoNotHold lets reports overlap without a gap: shipped segments go all
// the same, but not those that a report under way may have to read.
func TestReportsDoNotHold(t *testing.T) {
	db := openDB(t, databasetest.SQLite(t))
	l := open(t, t.TempDir(), db)
	l.journal.segment = 1 // byte: a segment for each commit
	n := 0
	ship := func() (left int) {
		l.Add(one(n), nil)
		n++
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
		shipAll(t, l)
		all, _, err := listSegments(l.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	end := l.journal.beginReport()
	for range 20 {
		if left := ship(); left != 1 {
			t.Fatalf("%d segments while one is read", left)
		}
		next := l.journal.beginReport()
		end()
		end = next
	}
	end()
	if left := ship(); left != 0 {
		t.Errorf("%d segments that nobody reads", left)
	}
}

// TestReportsWait asks for more reports than may run at a time.
func TestReportsWait(t *testing.T) {
	l := open(t, t.TempDir(), openDB(t, databasetest.SQLite(t)))
	for range maxReports {
		l.reports <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Report(ctx, always(Filter{})); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	answer := make(chan error)
	go func() {
		_, err := l.Report(t.Context(), always(Filter{}))
		answer <- err
	}()
	<-l.reports
	if err := <-answer; err != nil {
		t.Error(err)
	}
	<-l.reports
	if len(l.reports)+len(l.journal.segments.reading) > 0 {
		t.Error("a report that ended is still counted")
	}
}

// TestReportReadsTheBuffer reads what waits for the disk while commits go on: what
// is read is no copy and must not be written over.
func TestReportReadsTheBuffer(t *testing.T) {
	l := open(t, t.TempDir(), openDB(t, databasetest.SQLite(t)))
	add := func(n int) {
		for i := range n {
			l.Add(one(i), nil)
		}
	}
	commit := func() {
		if err := l.journal.commit(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // leaves two buffers to be used again
		add(10)
		commit()
	}
	l.Add(one(77), nil)
	end := l.journal.beginReport()
	_, memory := l.journal.snapshot()
	for range 3 {
		commit()
		add(1)
	}
	if ids, _, err := read(slices.Concat(memory[:]...), 0); err != nil || !slices.Equal(ids, []string{one(77).ID}) {
		t.Errorf("%q, %v", ids, err)
	}
	end()
}

// TestRetention lets a ledger run for a day on a clock that only moves when all
// wait: records go soon after the start and then once a day, in several pieces;
// their sums stay. Without a retention they stay.
func TestRetention(t *testing.T) {
	for _, keep := range []time.Duration{0, 90 * 24 * time.Hour} {
		t.Run(fmt.Sprint(keep), func(t *testing.T) {
			dsn, dir := databasetest.SQLite(t), t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				db := openDB(t, dsn)
				l := open(t, dir, db)
				l.Retention = keep
				const old, edge, young = 2*prunePiece + 5, 7, 3
				began := time.Now()
				for i := range old + edge + young {
					r := one(i)
					switch {
					case i < old:
						r.Time = began.Add(-91 * 24 * time.Hour)
					case i < old+edge:
						r.Time = began.Add(-90*24*time.Hour + 12*time.Hour)
					default:
						r.Time = began
					}
					l.Add(r, nil)
				}
				if err := l.journal.commit(); err != nil {
					t.Fatal(err)
				}
				shipAll(t, l)
				if err := insert(t.Context(), db, "lost", 1, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := db.ExecContext(t.Context(), "UPDATE usage_segments SET at = 0 WHERE id = 'lost'"); err != nil {
					t.Fatal(err)
				}
				stop := run(t, l)
				check := func(after time.Duration, want int) {
					t.Helper()
					time.Sleep(time.Until(began.Add(after)))
					synctest.Wait()
					var left int
					if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM usage_records").Scan(&left); err != nil {
						t.Fatal(err)
					}
					if keep == 0 {
						want = old + edge + young
					}
					if left != want {
						t.Errorf("after %v: %d records are left; want %d", after, left, want)
					}
				}
				check(pruneFirst/2, old+edge+young)
				check(2*pruneFirst+time.Minute, edge+young)
				stop()
				ctx, cancel := context.WithCancel(t.Context())
				go l.pruneLoop(ctx) // alone, since Run wakes every second of the day
				check(pruneEvery, edge+young)
				check(pruneEvery+4*pruneFirst+2*time.Minute, young)
				cancel()
				synctest.Wait()
				if at, err := shippedBytes(t.Context(), db, "lost"); err != nil || (at == 0) != (keep > 0) {
					t.Errorf("the note of a machine that never came back is at %d: %v", at, err)
				}
				rows, err := l.Report(t.Context(), Query{Start: began.AddDate(0, -4, 0), End: began.AddDate(0, 0, 1)})
				if err != nil || rows[0].Requests != old+edge+young {
					t.Errorf("%v: %+v", err, rows)
				}
			})
		})
	}
}
