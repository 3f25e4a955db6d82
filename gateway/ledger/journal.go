package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// BufferBytes bounds the memory of the records that wait for the journal's disk, about
// 200,000 of them. Records that come after are lost.
const BufferBytes = 32 << 20

// Bounds of a journal.
const (
	segmentBytes = 64 << 20               // size after which a new segment is begun
	writeEvery   = 2 * time.Millisecond   // pause between two writes, so that records share them
	groupEvery   = 20 * time.Millisecond  // pause between two syncs, likewise
	retryFirst   = 100 * time.Millisecond // pause after a failed write, then doubled
	retryLast    = 5 * time.Second        // longest such pause
)

// journal holds the records of this gateway that the database does not have yet, and
// some that it has. Any goroutine may append. One goroutine writes to the live
// segment as records come, so that they outlive the process. Another syncs it, so
// that they outlive the machine. Nothing that is written waits for a sync.
//
// The locks are taken in the order syncing, files, mu.
type journal struct {
	dir     string
	segment int64 // size of a full segment: segmentBytes, or less in tests
	buffer  int   // bound of the queue in bytes: BufferBytes, or less in tests
	log     *slog.Logger
	metrics *metrics
	lock    *os.File
	flights *flights
	sync    func(*os.File) error // syncs a file; another one in tests
	signals signals
	health  health

	mu       sync.Mutex
	queue    queue
	segments segmentList
	fullLog  time.Time // time of the last log line about lost records
	closed   bool

	syncing sync.Mutex // held during a sync
	files   sync.Mutex // held while the live segment is written to or changes
	live    liveFile
}

// signals wake the loops of the journal and of the shipper.
type signals struct {
	write chan struct{} // a record waits to be written
	sync  chan struct{} // a record waits to be synced
	ship  chan struct{} // a whole batch waits for the shipper
}

// health holds the state of the journal's disk for Status.
type health struct {
	lost  atomic.Int64           // records lost since the start
	write atomic.Pointer[string] // error of the last write; nil: it worked
	sync  atomic.Pointer[string] // error of the last sync; nil: it worked
}

// openJournal locks the directory, making it where it is missing, and finds what
// earlier processes left in it.
func openJournal(dir string, log *slog.Logger, m *metrics) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal directory: %w", err)
	}
	j := &journal{
		dir: dir, segment: segmentBytes, buffer: BufferBytes, log: log, metrics: m, lock: lock, sync: (*os.File).Sync,
		signals: signals{write: make(chan struct{}, 1), sync: make(chan struct{}, 1), ship: make(chan struct{}, 1)},
	}
	locked, err := lockFile(lock)
	switch {
	case err != nil:
		err = fmt.Errorf("lock the journal directory: %w", err)
	case !locked:
		owner := make([]byte, 32)
		n, _ := lock.ReadAt(owner, 0) // only for the message
		err = fmt.Errorf("the journal directory %s is in use by another gateway (process %s): stop it, or give each gateway a store.journal_dir of its own",
			dir, strings.TrimSpace(string(owner[:n])))
	default:
		if err = lock.Truncate(0); err == nil {
			_, err = lock.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
		}
		if err == nil {
			j.segments.all, j.segments.last, err = listSegments(dir)
		}
		if err != nil {
			err = fmt.Errorf("journal directory: %w", err)
		}
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	for _, s := range j.segments.all {
		s.frames = countFrames(s.path, s.size)
	}
	return j, nil
}

// append queues a clean record, with its flight if it had one. It waits for no disk.
// Where the buffer is full or the journal is closed, the record is lost, counted and
// logged, and append returns false. After a close the next process still finds the
// record in its flight.
func (j *journal) append(r *Record, f *Flight) bool {
	j.mu.Lock()
	full := j.queue.size() >= j.buffer
	if j.closed || full {
		warn := time.Since(j.fullLog) > retryLast
		if warn {
			j.fullLog = time.Now()
		}
		j.mu.Unlock()
		if full && f != nil {
			j.flights.release(f)
		}
		j.health.lost.Add(1)
		j.metrics.lost.Inc()
		if warn {
			j.log.Error("usage records are lost: the journal is closed, or its disk takes nothing and the buffer is full", "dir", j.dir, "record", r.ID)
		}
		return false
	}
	j.queue.push(r, f)
	j.mu.Unlock()
	j.metrics.records.Inc()
	signal(j.signals.write)
	return true
}

// signal wakes a loop. A loop that has a signal already gets no second one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// waitWritten waits until all records appended before are written, or ctx ends.
func (j *journal) waitWritten(ctx context.Context) error {
	j.mu.Lock()
	if j.queue.written >= j.queue.appended {
		j.mu.Unlock()
		return nil
	}
	w := waiter{j.queue.appended, make(chan struct{})}
	j.queue.waiters = append(j.queue.waiters, w)
	j.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue.removeWaiter(w.done)
	return fmt.Errorf("wait for the journal: %w", ctx.Err())
}

// run writes and syncs records as they come, until ctx ends.
func (j *journal) run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() {
		j.loop(ctx, j.signals.write, withFailure(j.write, &j.health.write), j.signals.sync, writeEvery)
	})
	loops.Go(func() { j.loop(ctx, j.signals.sync, withFailure(j.syncLive, &j.health.sync), nil, groupEvery) })
	loops.Wait()
}

// withFailure returns a step that also stores its error in failure, and nil once it works.
func withFailure(step func() error, failure *atomic.Pointer[string]) func() error {
	return func() error {
		err := step()
		if err == nil {
			failure.Store(nil)
			return nil
		}
		text := err.Error()
		failure.Store(&text)
		return err
	}
}

// loop runs a step at each signal and then signals the next loop. After a failed step
// everything written before it has to be written again.
func (j *journal) loop(ctx context.Context, wake chan struct{}, step func() error, next chan struct{}, pause time.Duration) {
	retry := retryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		wait := pause
		err := step()
		if err != nil {
			j.metrics.writeFailures.Inc()
			j.log.Error("cannot write the journal of usage; records wait in memory", "error", err.Error(), "again_in", retry)
			wait, retry = retry, min(2*retry, retryLast)
		} else {
			retry = retryFirst
			if next != nil {
				signal(next)
			}
		}
		if wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
		if err != nil {
			signal(j.signals.write)
		}
	}
}

// commit writes and syncs all records that wait. After an error the next call tries the
// same records again.
func (j *journal) commit() error {
	if err := j.write(); err != nil {
		return err
	}
	return j.syncLive()
}

// write appends the waiting records to the live segment.
func (j *journal) write() error {
	j.files.Lock()
	err := j.writeLive()
	j.files.Unlock()
	if err == nil {
		return nil
	}
	j.syncing.Lock() // nobody may sync the abandoned file
	defer j.syncing.Unlock()
	j.files.Lock()
	defer j.files.Unlock()
	j.abandon()
	return err
}

// writeLive appends to the live segment and begins one where there is none. A full
// segment takes no more: it ends with its next sync. The caller holds files.
func (j *journal) writeLive() error {
	j.mu.Lock()
	if j.live.segment != nil && j.live.ended(j.segment) {
		if j.live.bytes > 0 {
			j.mu.Unlock()
			return nil
		}
		j.live.close()
	}
	j.live.flights = j.queue.advance(j.live.flights, len(j.segments.reading) > 0)
	frames, records, appended := j.queue.writing[j.live.bytes:], j.queue.group, j.queue.appended
	j.mu.Unlock()
	if len(frames) == 0 {
		return nil
	}
	if j.live.segment == nil {
		s, f, err := newSegment(j.dir, j.segments.last+1)
		if err != nil {
			return err
		}
		j.live.segment, j.live.file = s, f
		j.mu.Lock()
		j.segments.add(s)
		j.mu.Unlock()
	}
	if err := j.live.write(frames, records); err != nil {
		return err
	}
	j.mu.Lock()
	j.queue.setWritten(appended)
	j.mu.Unlock()
	return nil
}

// syncLive syncs the records that were written before.
func (j *journal) syncLive() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.files.Lock()
	file, bytes, records, landed := j.live.file, j.live.bytes, j.live.records, j.live.landed
	j.files.Unlock()
	if bytes == 0 {
		return nil
	}
	start := time.Now()
	err := j.sync(file)
	j.metrics.sync.Observe(time.Since(start).Seconds())
	j.files.Lock()
	defer j.files.Unlock()
	if err != nil {
		j.abandon()
		return err
	}
	j.live.releaseFlights(j.flights, landed)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.live.grow(bytes, records)
	if j.queue.release(bytes, records) {
		signal(j.signals.ship)
	}
	if j.live.bytes == 0 && j.live.ended(j.segment) {
		j.live.close()
		signal(j.signals.write) // for the records that the full segment did not take
	}
	return nil
}

// drain commits all waiting records, also those behind a group that had failed.
func (j *journal) drain() error {
	for {
		if err := j.commit(); err != nil {
			return err
		}
		if _, memory := j.sizes(); memory == 0 {
			return nil
		}
	}
}

// abandon ends the live segment after a failed write. After a failed sync nobody knows
// which part of the file is on the disk, so all records that are not durable go to
// another file. The caller holds syncing and files.
func (j *journal) abandon() {
	j.live.rewind()
	s := j.live.segment
	if s == nil {
		return
	}
	// Where this fails, the next process finds a torn tail, or records twice, of
	// which the database takes one.
	_ = j.live.file.Truncate(s.size)
	j.mu.Lock()
	defer j.mu.Unlock()
	if s.size == 0 {
		_ = os.Remove(s.path) // an empty segment does no harm
		j.segments.drop(s)
	}
	j.live.close()
}

// next returns the oldest segment that is not shipped as a whole: a copy of it, and the
// segment itself for markShipped. The segment is nil where all are shipped.
func (j *journal) next() (view segment, s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments.all {
		if !s.done {
			return *s, s
		}
	}
	return segment{}, nil
}

// markShipped notes that a segment which is not live is in the database, as a whole or
// as far as it can be read. keep sets the file aside for people, who may want the rest.
func (j *journal) markShipped(s *segment, keep bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.keep = keep
	j.segments.markDone(s)
}

// markCorrupt notes that a live segment can no longer be read: the next records go to
// another one.
func (j *journal) markCorrupt(s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.corrupt = true
	signal(j.signals.write)
}

// remove deletes the files of shipped segments, or sets them aside. A segment that a
// report may still read stays for a later call, however many reports follow. It returns
// the ids of the segments whose file is no longer there.
func (j *journal) remove() (removed []string) {
	j.mu.Lock()
	done := j.segments.removeDone()
	j.mu.Unlock()
	for _, s := range done {
		var err error
		if s.keep {
			err = os.Rename(s.path, s.path+aside)
		} else {
			err = os.Remove(s.path)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			// The next process ships it again, which changes nothing.
			j.log.Warn("cannot remove a shipped segment or set it aside", "path", s.path, "error", err.Error())
			continue
		}
		removed = append(removed, s.id)
	}
	return removed
}

// beginReport keeps all records that are not shipped yet readable until end is called.
func (j *journal) beginReport() (end func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	report := j.segments.beginReport()
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.segments.endReport(report)
	}
}

// snapshot returns copies of the segments, with the sizes up to which they may be read,
// and the frames that are in memory only. It is valid until the caller's report ends:
// memory is not copied, but later frames are written behind it.
func (j *journal) snapshot() (segments []segment, memory [2][]byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments.all {
		segments = append(segments, *s)
	}
	return segments, [2][]byte{j.queue.writing, j.queue.pending}
}

// sizes returns the bytes of the segments that are not done and of the frames in memory.
func (j *journal) sizes() (segments, memory int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	segments, _ = j.segments.backlog()
	return segments, int64(j.queue.size())
}

// records returns the number of records in memory and in the segments that are not done.
func (j *journal) records() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, n := j.segments.backlog()
	return n + j.queue.records()
}

// close commits all waiting records, removes the live segment if shipped reports that it
// has been, and unlocks the directory. It returns the ids of the removed segments.
func (j *journal) close(shipped func(*segment) bool) (removed []string, err error) {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil, nil
	}
	j.closed = true
	j.mu.Unlock()
	err = j.drain()
	j.files.Lock()
	defer j.files.Unlock()
	j.mu.Lock()
	if s := j.live.segment; s != nil {
		j.live.close()
		if shipped(s) {
			j.segments.markDone(s)
		}
	}
	left := j.queue.appended - j.queue.durable
	j.mu.Unlock()
	removed = j.remove()
	j.lock.Close()
	if err != nil {
		return removed, fmt.Errorf("%d usage records are lost: %w", left, err)
	}
	return removed, nil
}
