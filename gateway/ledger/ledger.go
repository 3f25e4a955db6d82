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

// Bounds and pauses of the shipper.
const (
	batchRecords = 500
	shipEvery    = time.Second      // wait of a batch that is not full
	shipTimeout  = 10 * time.Second // bound for one batch
	drainGrace   = 5 * time.Second  // time to ship the rest once Run's context ended
	closeTimeout = 2 * time.Second  // bound for the last query of Close
	maxReports   = 2                // reports at a time: each may read everything that is not shipped
	backOffFirst = 250 * time.Millisecond
	backOffLast  = 15 * time.Second
	pruneEvery   = 24 * time.Hour
	pruneFirst   = 5 * time.Minute // after the start, and again after a failure; up to twice that
)

// Parts holds the settings of a ledger and the things it uses.
type Parts struct {
	Dir       string        // directory of the journal; created where it is missing
	DB        *bun.DB       // database with the tables of Migrate; the caller closes it after the ledger
	Retention time.Duration // age at which single records are deleted from the database, at least MinRetention; 0: never. Sums stay
	Log       *slog.Logger
	Registry  prometheus.Registerer
}

// Ledger stores records of usage and reports on them. It is safe for concurrent use.
type Ledger struct {
	Parts
	metrics *metrics
	journal *journal
	reports chan struct{} // holds an element for each report under way

	// State of the shipper.
	shipMu         sync.Mutex
	current        *segment // segment that is being shipped
	file           *os.File // open file of current
	offset         atomic.Int64
	shippedRecords atomic.Int64           // records of current before offset
	failure        atomic.Pointer[string] // error of the last attempt to ship; nil: it worked
}

// Open returns a ledger over a journal directory, which no other gateway may have open.
// It starts nothing: until Run runs, records wait in memory. It queries the database only
// after an earlier process was killed.
func Open(p Parts) (*Ledger, error) {
	l := &Ledger{Parts: p, reports: make(chan struct{}, maxReports)}
	l.metrics = newMetrics(p.Registry, l)
	j, err := openJournal(p.Dir, p.Log, l.metrics)
	if err != nil {
		return nil, err
	}
	l.journal = j
	if err := l.recoverFlights(); err != nil {
		j.lock.Close()
		return nil, err
	}
	return l, nil
}

// recoverFlights appends the generations that a killed process had under way, with their
// usage so far, and those that had ended and were not written yet. It leaves out those
// that were written, so that no report counts them twice. Should the database not answer
// now, it would still insert them only once.
func (l *Ledger) recoverFlights() error {
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
	if err := l.findWritten(written); err != nil {
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

// findWritten sets the ids that are in the journal's segments or in the database to true.
func (l *Ledger) findWritten(written map[string]bool) error {
	for _, s := range l.journal.segments.all {
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

// Begin returns the flight of a generation that begins, for Add. If this process is
// killed, the next one adds its record, with status 500 and as an estimate. Begin takes
// less than a microsecond.
func (l *Ledger) Begin(r Record) *Flight {
	r.clean()
	return l.journal.flights.begin(&r)
}

// Add adds a record and ends its flight, which may be nil. The record's texts must be
// those it began with. Add returns at once: it waits for no disk and no database, unless
// the disk of the journal hangs. A crash of the machine in the next 20 ms or so loses the
// record. Add reports whether a crash of this process no longer does; if not, Written
// waits for that.
func (l *Ledger) Add(r Record, f *Flight) (kept bool) {
	if r.ID == "" {
		r.ID = rand.Text()
	}
	r.clean()
	kept = f.end(&r)
	return l.journal.append(&r, f) && kept
}

// Written waits until every record added before is written to a file, where it outlives
// this process, or until ctx ends. That takes some milliseconds. It waits for the disk
// only where its cache is full. Run must be running.
func (l *Ledger) Written(ctx context.Context) error { return l.journal.waitWritten(ctx) }

// Run writes records to the disk and to the database until ctx ends, and once a day
// deletes records older than Parts.Retention. Then it syncs the rest, tries for five
// seconds to ship it, and returns nil: losing the disk or the database is no reason to
// stop. Only one Run may run at a time.
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

// Close writes the records added since Run ended and unlocks the directory. Records added
// later are lost and counted as such. Its error gives the number of records that could not
// be written. Run must have ended.
func (l *Ledger) Close() error {
	l.shipMu.Lock()
	defer l.shipMu.Unlock()
	removed, err := l.journal.close(func(live *segment) bool {
		return live == l.current && l.offset.Load() >= live.size
	})
	l.closeSegment()
	if l.failure.Load() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		l.deleteNotes(ctx, removed)
	}
	return err
}

// shipLoop ships whole batches as they come, and smaller ones once a second.
func (l *Ledger) shipLoop(ctx context.Context) {
	backOff := backOffFirst
	for {
		n, err := l.ship(ctx)
		pause, ripe := shipEvery, l.journal.signals.ship
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

// ship inserts the next batch into the database and returns its number of records; 0 if
// there are no more.
func (l *Ledger) ship(ctx context.Context) (n int, err error) {
	l.shipMu.Lock()
	defer l.shipMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, shipTimeout)
	defer cancel()
	n, err = l.shipBatch(ctx)
	if err == nil {
		l.failure.Store(nil)
	} else if !errors.Is(err, context.Canceled) {
		text := err.Error()
		l.failure.Store(&text)
	}
	return n, err
}

func (l *Ledger) shipBatch(ctx context.Context) (int, error) {
	for {
		now, s := l.journal.next()
		if s == nil {
			l.removeShipped(ctx)
			return 0, nil
		}
		batch := make([]Record, 0, batchRecords)
		var end int64
		err := l.openSegment(ctx, s)
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
			l.shippedRecords.Add(int64(len(batch)))
			l.metrics.written.Add(float64(len(batch)))
			return len(batch), nil
		}
		if now.live {
			if err != nil { // the journal must first begin another segment
				l.journal.markCorrupt(s)
			}
			l.removeShipped(ctx)
			return 0, nil
		}
		l.warnDamage(now, end, err)
		l.closeSegment()
		l.journal.markShipped(s, errors.Is(err, errCorrupt))
	}
}

// openSegment opens the segment to be shipped and sets offset to its first byte that is
// not in the database. Its error is errMissing where the file does not exist.
func (l *Ledger) openSegment(ctx context.Context, s *segment) error {
	if l.current == s {
		return nil
	}
	l.closeSegment()
	var shipped int64
	if !s.created {
		var err error
		if shipped, err = shippedBytes(ctx, l.DB, s.id); err != nil {
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
	l.current, l.file = s, f
	l.offset.Store(shipped)
	if shipped > 0 {
		l.shippedRecords.Store(int64(countFrames(s.path, shipped)))
	}
	return nil
}

func (l *Ledger) closeSegment() {
	if l.file != nil {
		l.file.Close()
	}
	l.current, l.file = nil, nil
	l.offset.Store(0)
	l.shippedRecords.Store(0)
}

// warnDamage logs and counts the damage at which the reading of a segment ended.
func (l *Ledger) warnDamage(s segment, offset int64, damage error) {
	switch {
	case errors.Is(damage, errTorn):
		l.metrics.torn.Inc()
		l.Log.Warn("cut a segment of the journal after its last whole record, as after a kill", "path", s.path, "bytes", s.size-offset)
	case errors.Is(damage, errCorrupt):
		l.metrics.corrupt.Inc()
		l.Log.Error("a segment of the journal is corrupt: what follows the damage is not counted, and the file is kept",
			"path", s.path+aside, "damaged_at_byte", offset, "bytes", s.size-offset)
	case errors.Is(damage, errMissing):
		l.metrics.missing.Inc()
		l.Log.Error("a segment of the journal is missing: what was not shipped of it is not counted", "path", s.path)
	}
}

// removeShipped removes shipped segments and their notes in the database.
func (l *Ledger) removeShipped(ctx context.Context) {
	l.deleteNotes(ctx, l.journal.remove())
}

// deleteNotes deletes the database's notes of segments whose file was removed.
func (l *Ledger) deleteNotes(ctx context.Context, ids []string) {
	if len(ids) == 0 {
		return
	}
	if err := deleteSegmentNotes(ctx, l.DB, ids); err != nil {
		// A note too many does no harm; pruning deletes it.
		l.Log.Debug("cannot drop the note of a shipped segment", "error", err.Error())
	}
}

// Report answers a query from the database and from the records of this gateway that are
// not there yet, so it counts every record added here before. Records that other gateways
// added in the last second may be missing. The rows are in the order of the groups, of
// which none may occur twice. It fails while the database is down. While two other reports
// run it waits for one to end, or for ctx.
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
	defer l.journal.beginReport()()
	shipped, err := t.addDatabase(ctx, l.DB)
	if err == nil {
		// Records shipped since the query of the database are still in their segment.
		segments, memory := l.journal.snapshot()
		err = t.addSegments(ctx, segments, shipped)
		for _, frames := range memory {
			if err == nil {
				err = t.addMemory(ctx, frames)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("report of usage: %w", err)
	}
	return t.sortedRows(), nil
}

// MinRetention is the shortest retention of single records in the database. A batch that
// may or may not have arrived is sent again, and must find its records there.
const MinRetention = 7 * 24 * time.Hour

// pruneLoop deletes single records older than the retention from the database.
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

// sleep waits for a time and reports whether it passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Status is the state of a ledger.
type Status struct {
	Pending int    `json:"pending_records"`           // records that are not in the database
	Backlog int64  `json:"backlog_bytes"`             // bytes of the journal that are not in the database
	Buffer  int64  `json:"buffer_bytes"`              // bytes that are not synced, and so kept in memory
	Failure string `json:"failure,omitempty"`         // error of the last attempt to reach the database; empty if it worked
	Journal string `json:"journal_failure,omitempty"` // error of the last attempt to write the journal; empty if it worked
	Lost    int64  `json:"lost_records"`              // records lost since the start because the journal's disk failed
}

// Status returns the state of the ledger, at once.
func (l *Ledger) Status() (s Status) {
	segments, memory := l.journal.sizes()
	s.Backlog, s.Buffer = max(segments-l.offset.Load(), 0), memory
	s.Pending = max(l.journal.records()-int(l.shippedRecords.Load()), 0)
	if f := l.failure.Load(); f != nil {
		s.Failure = *f
	}
	if f := cmp.Or(l.journal.health.write.Load(), l.journal.health.sync.Load()); f != nil {
		s.Journal = *f
	}
	s.Lost = l.journal.health.lost.Load()
	return s
}
