package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/uptrace/bun"
	"go.uber.org/goleak"

	"tidegate/gateway/database"
	"tidegate/gateway/openai"
	"tidegate/nvml/poll"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LEDGER_TEST_VICTIM"); dir != "" {
		victim(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of these tests; it is for loaded machines.
const patience = time.Minute

// noon is a moment in the middle of everything.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// one is a record like many.
func one(n int) Record {
	return Record{
		ID: fmt.Sprintf("id-%08d", n), Time: noon(), Department: "sales", Project: "bot", User: "ann", Key: "laptop", Asked: "qwen3",
		Model: "Qwen3-1.7B", Status: 200, Usage: openai.Usage{Input: 10 + n%7, Cached: n % 5, Output: 100 + n%11, Reasoning: n % 50},
		Units: 110_000, TTFT: 80 * time.Millisecond, Took: 2 * time.Second,
	}
}

// always is the time that holds all records of these tests.
func always(f Filter, by ...Group) Query {
	return Query{Filter: f, GroupBy: by, Start: noon().AddDate(-1, 0, 0), End: noon().AddDate(1, 0, 0)}
}

// quiet is a log for what is meant to go wrong.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openDB(t testing.TB, dsn string) *bun.DB {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	db, err := database.Open(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := Migrate(ctx, db); err != nil {
		t.Fatal(err)
	}
	return db
}

// open opens a ledger that is closed with the test, unless it was crashed.
func open(t testing.TB, dir string, db *bun.DB) *Ledger {
	t.Helper()
	l, err := Open(Parts{Dir: dir, DB: db, Log: quiet(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// crash leaves a ledger as a kill would: what is on the disk stays, and no more.
func (l *Ledger) crash() {
	l.journal.mu.Lock()
	l.journal.closed = true
	if l.journal.live.segment != nil {
		l.journal.live.close()
	}
	l.journal.mu.Unlock()
	l.closeSegment()
	l.journal.lock.Close()
}

// run runs a ledger until stop is called or the test ends.
func run(t testing.TB, l *Ledger) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// shipAll ships until nothing is left.
func shipAll(t testing.TB, l *Ledger) {
	t.Helper()
	for {
		n, err := l.ship(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

func total(t testing.TB, l *Ledger, f Filter) Sums {
	t.Helper()
	rows, err := l.Report(t.Context(), always(f))
	if err != nil {
		t.Fatal(err)
	}
	return rows[0].Sums
}

// flush waits until all that was added is on the disk.
func flush(t testing.TB, l *Ledger) {
	t.Helper()
	poll.Await(t, "the disk", func() bool { return l.Status().Buffer == 0 })
}

func sumOf(records ...Record) (s Sums) {
	for i := range records {
		s.count(&records[i])
	}
	return s
}

func records(from, n int) (out []Record) {
	for i := range n {
		out = append(out, one(from+i))
	}
	return out
}
