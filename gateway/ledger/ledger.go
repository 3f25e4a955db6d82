package ledger

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"slices"
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
	maxReports   = 2                // at a time: each may read all that is not shipped
	backOffFirst = 250 * time.Millisecond
	backOffLast  = 15 * time.Second
	pruneEvery   = 24 * time.Hour
	pruneFirst   = 5 * time.Minute // after the start, and again after a failure; up to twice that
)

// Parts are what a ledger is made of.
type Parts struct {
	Dir       string        // of the journal; made where it is missing
	DB        *bun.DB       // brought up to date by Migrate. The caller closes it, after the ledger
	Retention time.Duration // of single records in the database, MinRetention at least; 0: for good. Sums stay
	Log       *slog.Logger
	Registry  prometheus.Registerer
}

// Ledger takes records and answers what was used. It is safe for concurrent use.
type Ledger struct {
	Parts
	metrics *metrics
	journal *journal
	reports chan struct{} // has one for each report under way

	// Of the shipper.
	shipping sync.Mutex
	at       *segment // that is being shipped
	file     *os.File // it
	offset   atomic.Int64
	entered  atomic.Int64           // records before offset
	failure  atomic.Pointer[string] // of the last attempt to ship; nil: it worked
}

// Open makes a ledger over a journal directory, which no other gateway may have
// open. It starts nothing: until Run runs, records wait in memory. The database is
// asked only where a process before this was killed.
func Open(p Parts) (*Ledger, error) {
	l := &Ledger{Parts: p, reports: make(chan struct{}, maxReports)}
	l.metrics = newMetrics(p.Registry, l)
	j, err := openJournal(p.Dir, p.Log, l.metrics)
	if err != nil {
		return nil, err
	}
	l.journal = j
	if err := l.recover(); err != nil {
		j.lock.Close()
		return nil, err
	}
	return l, nil
}

// recover enters what was under way when a process before this was killed, as far as
// it had come, and what had ended and was not written yet. What was written all the
// same is left out, so that no report counts it twice; the database, should it not
// answer now, would take it once.
func (l *Ledger) recover() error {
	var left []*Flight
	l.journal.flights, left = openFlights(l.Dir, l.Log)
	if len(left) == 0 {
		return nil
	}
	records := make([]Record, len(left))
	written := map[string]bool{}
	for i, f := range left {
		records[i], _ = f.record()
		written[records[i].ID] = false
	}
	if err := l.lookUp(written); err != nil {
		return err
	}
	entered := 0
	for i, f := range left {
		if written[records[i].ID] {
			l.journal.flights.release(f)
			continue
		}
		l.journal.append(&records[i], f)
		entered++
	}
	if entered > 0 {
		l.Log.Warn("entered generations that a killed gateway had under way, as far as they had come", "records", entered)
	}
	return nil
}

// lookUp finds out which ids stand in the journal's segments or in the database.
func (l *Ledger) lookUp(written map[string]bool) error {
	for _, s := range l.journal.segments {
		f, err := os.Open(s.path)
		if err != nil {
			return fmt.Errorf("journal directory: %w", err)
		}
		_, err = scan(f, 0, s.size, func(r Record, _ int64) bool {
			if _, asked := written[r.ID]; asked {
				written[r.ID] = true
			}
			return true
		})
		f.Close()
		if err != nil && !damaged(err) {
			return fmt.Errorf("journal directory: %w", err)
		}
	}
	if l.DB == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), shipTimeout)
	defer cancel()
	known, err := stored(ctx, l.DB, slices.Collect(maps.Keys(written)))
	if err != nil {
		l.Log.Warn("cannot look up what a killed gateway had under way; reports may count some of it twice until it is shipped", "error", err.Error())
	}
	for _, id := range known {
		written[id] = true
	}
	return nil
}

// Begin notes a record of a generation that is under way, so that the next process
// enters it if this one is killed, with the status 500 and as an estimate. It costs
// less than a microsecond. The flight is given to Add.
func (l *Ledger) Begin(r Record) *Flight {
	r.clean()
	return l.journal.flights.take(&r)
}

// Add takes a record and ends its flight, which may be nil; its texts are those that
// it began with. It returns at once: no disk and no database is waited for, unless
// the disk of the journal hangs. A crash of the machine in the next 20 ms or so loses
// the record. It reports whether a crash of this process no longer does; else Written
// waits for that.
func (l *Ledger) Add(r Record, f *Flight) (kept bool) {
	if r.ID == "" {
		r.ID = rand.Text()
	}
	r.clean()
	kept = f.land(&r)
	return l.journal.append(&r, f) && kept
}

// Written waits until every record added before is written to a file, where it
// outlives this process, or ctx ends. That takes some milliseconds, and no disk is
// waited for unless its cache is full. Run must be running.
func (l *Ledger) Written(ctx context.Context) error { return l.journal.await(ctx) }

// Run brings records to the disk and to the database, and once a day deletes there
// those beyond Parts.Retention, until ctx ends. Then it syncs what is left, tries for
// five seconds to ship it, and returns nil: losing
// the disk or the database is no reason to stop. It may run once at a time.
func (l *Ledger) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	loops.Go(func() { l.journal.run(ctx) })
	loops.Go(func() { l.shipLoop(ctx) })
	loops.Go(func() { l.pruneLoop(ctx) })
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
	if l.failure.Load() == nil {
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
		batch := make([]Record, 0, batchRecords)
		var end int64
		err := l.enter(ctx, s)
		if err == nil {
			end, err = scan(l.file, l.offset.Load(), now.size, func(r Record, _ int64) bool {
				batch = append(batch, r)
				return len(batch) < batchRecords
			})
		}
		if err != nil && !damaged(err) {
			return 0, err
		}
		if len(batch) > 0 {
			if err := insert(ctx, l.DB, s.id, end, batch); err != nil {
				return 0, fmt.Errorf("insert usage: %w", err)
			}
			l.offset.Store(end)
			l.entered.Add(int64(len(batch)))
			l.metrics.written.Add(float64(len(batch)))
			return len(batch), nil
		}
		if now.live {
			if err != nil { // first the journal must leave it
				l.journal.spoil(s)
			}
			l.sweep(ctx)
			return 0, nil
		}
		l.end(now, end, err)
		l.leave()
		l.journal.shipped(s, errors.Is(err, errCorrupt))
	}
}

// enter opens the segment to be shipped, at the byte up to which it has been. Its
// error is errMissing where there is no such file.
func (l *Ledger) enter(ctx context.Context, s *segment) error {
	if l.at == s {
		return nil
	}
	l.leave()
	var shipped int64
	if !s.ours {
		var err error
		if shipped, err = shippedOf(ctx, l.DB, s.id); err != nil {
			return fmt.Errorf("look up a segment: %w", err)
		}
	}
	f, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return errMissing
	}
	if err != nil {
		return err
	}
	l.at, l.file = s, f
	l.offset.Store(shipped)
	if shipped > 0 {
		l.entered.Store(int64(countFrames(s.path, shipped)))
	}
	return nil
}

func (l *Ledger) leave() {
	if l.file != nil {
		l.file.Close()
	}
	l.at, l.file = nil, nil
	l.offset.Store(0)
	l.entered.Store(0)
}

// end says what became of a segment that was read as far as possible.
func (l *Ledger) end(s segment, at int64, damage error) {
	switch {
	case errors.Is(damage, errTorn):
		l.metrics.torn.Inc()
		l.Log.Warn("cut a segment of the journal after its last whole record, as after a kill", "path", s.path, "bytes", s.size-at)
	case errors.Is(damage, errCorrupt):
		l.metrics.corrupt.Inc()
		l.Log.Error("a segment of the journal is corrupt: what follows the damage is not counted, and the file is kept",
			"path", s.path+aside, "damaged_at_byte", at, "bytes", s.size-at)
	case errors.Is(damage, errMissing):
		l.metrics.missing.Inc()
		l.Log.Error("a segment of the journal is missing: what was not shipped of it is not counted", "path", s.path)
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
		// A note too many does no harm; pruning takes it away.
		l.Log.Debug("cannot drop the note of a shipped segment", "error", err.Error())
	}
}

// Report answers a query from the database and from what this gateway has not yet
// brought there, so it holds every record that was added here before. What other
// gateways added in the last second may be missing. The rows are in the order of
// the groups, of which each may stand once. It fails while the database is away.
// Where two reports are under way it waits for one to end, at most until ctx does.
func (l *Ledger) Report(ctx context.Context, q Query) ([]Row, error) {
	t, err := newTally(&q)
	if err != nil {
		return nil, err
	}
	select {
	case l.reports <- struct{}{}:
		defer func() { <-l.reports }()
	case <-ctx.Done():
		return nil, fmt.Errorf("report of usage: wait for others: %w", ctx.Err())
	}
	defer l.journal.begin()()
	shipped, err := t.database(ctx, l.DB)
	if err == nil {
		// What was shipped since the database was asked is still in its segment.
		segments, memory := l.journal.unread()
		err = t.unshipped(ctx, segments, shipped)
		for _, frames := range memory {
			if err == nil {
				err = t.memory(ctx, frames)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("report of usage: %w", err)
	}
	return t.sorted(), nil
}

// MinRetention is how long single records stay in the database at least: a batch
// that may or may not have arrived is sent again, and must find its records.
const MinRetention = 7 * 24 * time.Hour

// pruneLoop keeps the single records of the database to their retention.
func (l *Ledger) pruneLoop(ctx context.Context) {
	if l.Retention == 0 {
		return
	}
	// Gateways that share a database and start together prune one after another.
	pause := pruneFirst + mathrand.N(pruneFirst)
	for sleep(ctx, pause) {
		deleted, err := prune(ctx, l.DB, time.Now().Add(-l.Retention))
		pause = pruneEvery
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = pruneFirst + mathrand.N(pruneFirst)
			l.Log.Warn("cannot delete old usage records", "deleted", deleted, "error", err.Error(), "again_in", pause)
		case deleted > 0:
			l.Log.Info("deleted old usage records; their sums stay", "records", deleted, "retention", l.Retention)
		}
	}
}

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Status is how the ledger is doing.
type Status struct {
	Pending int    `json:"pending_records"`           // taken, and not in the database
	Backlog int64  `json:"backlog_bytes"`             // of the journal, not yet in the database
	Buffer  int64  `json:"buffer_bytes"`              // not yet synced, and so kept in memory
	Failure string `json:"failure,omitempty"`         // of the last try to reach the database; empty: it worked
	Journal string `json:"journal_failure,omitempty"` // of the last try to write the journal; empty: it worked
	Lost    int64  `json:"lost_records"`              // since the start, since the journal's disk took nothing
}

// Status returns at once.
func (l *Ledger) Status() (s Status) {
	segments, memory := l.journal.sizes()
	s.Backlog, s.Buffer = max(segments-l.offset.Load(), 0), memory
	s.Pending = max(l.journal.records()-int(l.entered.Load()), 0)
	if f := l.failure.Load(); f != nil {
		s.Failure = *f
	}
	if f := cmp.Or(l.journal.writeFailure.Load(), l.journal.syncFailure.Load()); f != nil {
		s.Journal = *f
	}
	s.Lost = l.journal.lost.Load()
	return s
}
