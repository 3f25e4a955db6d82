package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/uptrace/bun"
)

// What the shipper keeps to.
const (
	batchRecords = 500
	shipEvery    = time.Second      // a smaller batch waits so long
	shipTimeout  = 10 * time.Second // of one batch
	drainGrace   = 5 * time.Second  // for the rest, after Run has been told to end
	closeTimeout = 2 * time.Second  // for what a closed ledger still asks of the database
	backOffFirst = 250 * time.Millisecond
	backOffLast  = 15 * time.Second
)

// Parts are what a ledger is made of.
type Parts struct {
	Dir      string  // of the journal; made where it is missing
	DB       *bun.DB // nil: there is none, and records stay in the journal. The caller closes it, after the ledger
	Log      *slog.Logger
	Registry prometheus.Registerer
}

// Ledger takes records and answers what was used. It is safe for concurrent use.
type Ledger struct {
	Parts
	metrics *metrics
	journal *journal

	migrating sync.Mutex
	migrated  atomic.Bool

	// Of the shipper.
	shipping sync.Mutex
	at       *segment // that is being shipped
	file     *os.File // it
	offset   atomic.Int64
	failure  atomic.Pointer[string] // of the last attempt to ship; nil: it worked
}

// Open makes a ledger over a journal directory, which no other gateway may have
// open. It starts nothing and asks the database nothing: until Run runs, records
// wait in memory.
func Open(p Parts) (*Ledger, error) {
	l := &Ledger{Parts: p}
	l.metrics = newMetrics(p.Registry, l)
	j, err := openJournal(p.Dir, p.Log, l.metrics)
	if err != nil {
		return nil, err
	}
	l.journal = j
	return l, nil
}

// Add takes a record. It returns at once: no disk and no database is waited for.
// What a crash of the machine in the next few milliseconds would lose is what Flush
// waits for, and what one of this process would lose is what Written waits for.
func (l *Ledger) Add(r Record) {
	if r.ID == "" {
		r.ID = rand.Text()
	}
	r.clean()
	l.journal.append(&r)
}

// Written waits until every record added before is written to a file, where it
// outlives this process, or ctx ends. That takes some 15 µs, and no disk is waited
// for unless its cache is full. Run must be running.
func (l *Ledger) Written(ctx context.Context) error {
	return l.journal.await(ctx, &l.journal.written, &l.journal.writers)
}

// Flush waits until every record added before is on the disk, or ctx ends. Run
// must be running.
func (l *Ledger) Flush(ctx context.Context) error { return l.journal.flush(ctx) }

// Run brings records to the disk and to the database until ctx ends. Then it
// syncs what is left, tries for five seconds to ship it, and returns nil: losing
// the disk or the database is no reason to stop. It may run once at a time.
func (l *Ledger) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	loops.Go(func() { l.journal.run(ctx) })
	loops.Go(func() { l.shipLoop(ctx) })
	loops.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainGrace)
	defer cancel()
	if err := l.journal.drain(); err != nil {
		l.Log.Error("cannot write the journal of usage; Close will try once more", "error", err.Error())
	}
	for {
		n, err := l.ship(end)
		if err != nil {
			l.Log.Warn("usage stays in the journal until the next start", "bytes", l.Status().Backlog, "error", err.Error())
		}
		if err != nil || n == 0 {
			return nil
		}
	}
}

// Close writes what was added since Run ended and gives the directory to others.
// What is added later is lost, and counted as such. An error says how many records
// could not be written. Run must have ended.
func (l *Ledger) Close() error {
	l.shipping.Lock()
	defer l.shipping.Unlock()
	gone, err := l.journal.close(func(live *segment) bool {
		return live == l.at && l.offset.Load() >= live.size
	})
	l.leave()
	if l.DB != nil && l.failure.Load() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		l.forget(ctx, gone)
	}
	return err
}

// shipLoop ships whole batches as they come, and smaller ones once a second.
func (l *Ledger) shipLoop(ctx context.Context) {
	backOff := backOffFirst
	for {
		n, err := l.ship(ctx)
		pause, ripe := shipEvery, l.journal.ripe
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.metrics.shipFailures.Inc()
			l.Log.Warn("cannot ship usage to the database; it waits in the journal", "error", err.Error(), "again_in", backOff,
				"backlog_bytes", l.Status().Backlog)
			// Gateways that lost the same database come back one by one.
			pause, ripe = backOff/2+mathrand.N(backOff/2), nil
			backOff = min(2*backOff, backOffLast)
		default:
			backOff = backOffFirst
			if n == batchRecords {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ripe:
		case <-time.After(pause):
		}
	}
}

// ship brings the next batch into the database and returns how many records it
// had; 0: all is there.
func (l *Ledger) ship(ctx context.Context) (n int, err error) {
	if l.DB == nil {
		return 0, nil
	}
	l.shipping.Lock()
	defer l.shipping.Unlock()
	ctx, cancel := context.WithTimeout(ctx, shipTimeout)
	defer cancel()
	n, err = l.batch(ctx)
	if err == nil {
		l.failure.Store(nil)
	} else if !errors.Is(err, context.Canceled) {
		text := err.Error()
		l.failure.Store(&text)
	}
	return n, err
}

func (l *Ledger) batch(ctx context.Context) (int, error) {
	for {
		now, s := l.journal.next()
		if s == nil {
			l.sweep(ctx)
			return 0, nil
		}
		if err := l.enter(ctx, s); err != nil {
			return 0, err
		}
		from := l.offset.Load()
		batch := make([]Record, 0, batchRecords)
		end, damage := scan(l.file, from, now.size, func(r Record, _ int64) bool {
			batch = append(batch, r)
			return len(batch) < batchRecords
		})
		if damage != nil && !errors.Is(damage, errTorn) && !errors.Is(damage, errCorrupt) {
			return 0, damage
		}
		if len(batch) > 0 {
			if err := l.ready(ctx); err != nil {
				return 0, err
			}
			if err := insert(ctx, l.DB, s.id, end, batch); err != nil {
				return 0, fmt.Errorf("insert usage: %w", err)
			}
			l.offset.Store(end)
			l.metrics.shipped.Add(float64(len(batch)))
			return len(batch), nil
		}
		if now.live && damage == nil {
			l.sweep(ctx)
			return 0, nil
		}
		l.end(now, from, damage)
		l.leave()
		l.journal.shipped(s)
	}
}

// enter opens the segment to be shipped, at the byte up to which it has been.
func (l *Ledger) enter(ctx context.Context, s *segment) error {
	if l.at == s {
		return nil
	}
	l.leave()
	var shipped int64
	if !s.ours {
		if err := l.ready(ctx); err != nil {
			return err
		}
		var err error
		if shipped, err = shippedOf(ctx, l.DB, s.id); err != nil {
			return fmt.Errorf("look up a segment: %w", err)
		}
	}
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	l.at, l.file = s, f
	l.offset.Store(shipped)
	return nil
}

func (l *Ledger) leave() {
	if l.file != nil {
		l.file.Close()
	}
	l.at, l.file = nil, nil
	l.offset.Store(0)
}

// end says what became of a segment that was read as far as possible. A corrupt
// one is kept, under another name.
func (l *Ledger) end(s segment, at int64, damage error) {
	switch {
	case errors.Is(damage, errTorn):
		l.metrics.torn.Inc()
		l.Log.Warn("cut a segment of the journal after its last whole record, as after a kill", "path", s.path, "bytes", s.size-at)
	case errors.Is(damage, errCorrupt):
		l.metrics.corrupt.Inc()
		err := os.Rename(s.path, s.path+aside)
		l.Log.Error("a segment of the journal is corrupt: what follows the damage is not counted, and the file is kept",
			"path", s.path+aside, "damaged_at_byte", at, "bytes", s.size-at, "kept", err == nil)
	}
}

// sweep removes what is shipped, and the notes of it.
func (l *Ledger) sweep(ctx context.Context) {
	l.forget(ctx, l.journal.remove())
}

// forget drops the notes of segments that are gone.
func (l *Ledger) forget(ctx context.Context, gone []string) {
	if len(gone) == 0 {
		return
	}
	if err := forget(ctx, l.DB, gone); err != nil {
		// A note too many does no harm; Prune takes it away.
		l.Log.Debug("cannot drop the note of a shipped segment", "error", err.Error())
	}
}

// ready makes the tables, once.
func (l *Ledger) ready(ctx context.Context) error {
	if l.migrated.Load() {
		return nil
	}
	l.migrating.Lock()
	defer l.migrating.Unlock()
	if l.migrated.Load() {
		return nil
	}
	if err := Migrate(ctx, l.DB); err != nil {
		return err
	}
	l.migrated.Store(true)
	return nil
}

// Report answers a query from the database and from what this gateway has not yet
// brought there, so it holds every record that was added here before. What other
// gateways added in the last second may be missing. The rows are in the order of
// the groups, of which each may stand once. It fails while the database is away.
func (l *Ledger) Report(ctx context.Context, q Query) ([]Row, error) {
	t, err := newTally(&q)
	if err != nil {
		return nil, err
	}
	l.journal.readers.RLock()
	defer l.journal.readers.RUnlock()
	var shipped map[string]int64
	if l.DB != nil {
		if err = l.ready(ctx); err == nil {
			shipped, err = t.database(ctx, l.DB)
		}
	}
	if err == nil {
		// What was shipped since the database was asked is still in its segment.
		segments, memory := l.journal.unread()
		if err = t.unshipped(ctx, segments, shipped); err == nil {
			err = t.memory(ctx, memory)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("report of usage: %w", err)
	}
	return t.sorted(), nil
}

// Total sums what was used by those that a filter means, as Report does: with the
// begin and the end of a calendar period in any zone it is what a quota's counter
// must stand at.
func (l *Ledger) Total(ctx context.Context, f Filter, begin, end time.Time) (Sums, error) {
	rows, err := l.Report(ctx, Query{Filter: f, From: begin, To: end})
	if err != nil {
		return Sums{}, err
	}
	return rows[0].Sums, nil
}

// MinRetention is how long single records stay in the database at least: a batch
// that may or may not have arrived is sent again, and must find its records.
const MinRetention = 7 * 24 * time.Hour

// Prune deletes the single records that began before a moment; the sums stay, and
// so do reports. It refuses a moment younger than MinRetention.
func (l *Ledger) Prune(ctx context.Context, before time.Time) (deleted int64, err error) {
	if time.Since(before) < MinRetention {
		return 0, fmt.Errorf("usage records must be kept for %v at least", MinRetention)
	}
	if l.DB == nil {
		return 0, nil
	}
	if err := l.ready(ctx); err != nil {
		return 0, err
	}
	return prune(ctx, l.DB, before)
}

// Status is how the ledger is doing.
type Status struct {
	Backlog int64  `json:"backlog_bytes"` // of the journal, not yet in the database
	Buffer  int64  `json:"buffer_bytes"`  // not yet synced, and so kept in memory
	Failure string `json:"failure,omitempty"`
}

// Status returns at once.
func (l *Ledger) Status() (s Status) {
	segments, memory := l.journal.sizes()
	s.Backlog, s.Buffer = max(segments-l.offset.Load(), 0), memory
	if f := l.failure.Load(); f != nil {
		s.Failure = *f
	}
	return s
}
