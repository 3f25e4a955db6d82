package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// BufferBytes bounds what records that wait for the journal's disk hold in memory, about
// 200,000 of them; those that come after are lost.
const BufferBytes = 32 << 20

// Bounds of a journal.
const (
	segmentBytes = 64 << 20 // after which a new segment is begun
	bufferBytes  = BufferBytes
	writeEvery   = 2 * time.Millisecond   // between two writes, so that records share them
	groupEvery   = 20 * time.Millisecond  // between two syncs, likewise
	retryFirst   = 100 * time.Millisecond // after a failed write, then doubled
	retryLast    = 5 * time.Second
)

// journal is the records of this gateway that the database does not have yet, and
// some that it has. Any goroutine may append. One goroutine writes to the live
// segment as records come, so that they outlive the process; another syncs it, so
// that they outlive the machine. Nothing that is written waits for a sync.
type journal struct {
	dir     string
	segment int64 // segmentBytes, or less in tests
	buffer  int   // bufferBytes, or less in tests
	log     *slog.Logger
	metrics *metrics
	lock    *os.File
	wake    chan struct{} // something waits to be written
	dirty   chan struct{} // something waits to be synced
	ripe    chan struct{} // a whole batch waits for the shipper

	mu       sync.Mutex
	pending  []byte    // frames that came after the last write began
	count    int       // of records in pending
	landed   []*Flight // of records in pending
	writing  []byte    // frames that are written, or are to be, and not synced
	group    int       // of records in writing
	appended uint64    // records, ever
	written  uint64    // of them in a file
	durable  uint64    // of them on the disk
	unripe   int       // records made durable since the shipper was told
	saidFull time.Time
	closed   bool
	writers  []waiter   // for written
	segments []*segment // oldest first; only the last may be live
	last     uint64     // number of the youngest segment ever seen
	reports  uint64     // begun, ever
	reading  []uint64   // the numbers of those under way

	syncing  sync.Mutex // held by a sync; taken before files
	files    sync.Mutex // held while the live segment is written to or changes; taken before mu
	live     *segment   // nil: none is begun
	file     *os.File
	put      int       // bytes of writing that are in the file
	puts     int       // records of them
	landing  []*Flight // of records in writing
	landings int       // of them in the file
	flights  *flights
	sync     func(*os.File) error // of a file; another one in tests

	lost atomic.Int64 // records

	writeFailure, syncFailure atomic.Pointer[string] // of the last try; nil: it worked
}

// waiter waits for a record to be written.
type waiter struct {
	upTo uint64
	done chan struct{}
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
		dir: dir, segment: segmentBytes, buffer: bufferBytes, log: log, metrics: m, lock: lock,
		wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), ripe: make(chan struct{}, 1), sync: (*os.File).Sync,
	}
	taken, err := take(lock)
	switch {
	case err != nil:
		err = fmt.Errorf("lock the journal directory: %w", err)
	case !taken:
		owner := make([]byte, 32)
		n, _ := lock.ReadAt(owner, 0) // it is only told
		err = fmt.Errorf("the journal directory %s is in use by another gateway (process %s): stop it, or give each gateway a store.journal_dir of its own",
			dir, strings.TrimSpace(string(owner[:n])))
	default:
		if err = lock.Truncate(0); err == nil {
			_, err = lock.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
		}
		if err == nil {
			j.segments, j.last, err = listSegments(dir)
		}
		if err != nil {
			err = fmt.Errorf("journal directory: %w", err)
		}
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	for _, s := range j.segments {
		s.frames = countFrames(s.path, s.size)
	}
	return j, nil
}

// append takes a clean record, and the note of it while it was under way. It waits
// for no disk: where the buffer is full, or the journal closed, the record is lost,
// counted and logged, and that is false. After the close the next process still finds
// it where it was noted.
func (j *journal) append(r *Record, f *Flight) bool {
	j.mu.Lock()
	full := len(j.pending)+len(j.writing) >= j.buffer
	if j.closed || full {
		say := time.Since(j.saidFull) > retryLast
		if say {
			j.saidFull = time.Now()
		}
		j.mu.Unlock()
		if full && f != nil {
			j.flights.release(f)
		}
		j.lost.Add(1)
		j.metrics.lost.Inc()
		if say {
			j.log.Error("usage records are lost: the journal is closed, or its disk takes nothing and the buffer is full", "dir", j.dir, "record", r.ID)
		}
		return false
	}
	j.pending = appendFrame(j.pending, r)
	j.count++
	j.appended++
	if f != nil {
		j.landed = append(j.landed, f)
	}
	j.mu.Unlock()
	j.metrics.records.Inc()
	signal(j.wake)
	return true
}

// signal tells a loop that there is something to do, if it has not been told.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// await waits until all that was appended before is written.
func (j *journal) await(ctx context.Context) error {
	j.mu.Lock()
	if j.written >= j.appended {
		j.mu.Unlock()
		return nil
	}
	w := waiter{j.appended, make(chan struct{})}
	j.writers = append(j.writers, w)
	j.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.writers = slices.DeleteFunc(j.writers, func(o waiter) bool { return o.done == w.done })
	return fmt.Errorf("wait for the journal: %w", ctx.Err())
}

// run writes and syncs what comes until ctx ends.
func (j *journal) run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { j.loop(ctx, j.wake, noted(j.write, &j.writeFailure), j.dirty, writeEvery) })
	loops.Go(func() { j.loop(ctx, j.dirty, noted(j.settle, &j.syncFailure), nil, groupEvery) })
	loops.Wait()
}

// noted returns a step that keeps how it failed in failure, until it works again.
func noted(step func() error, failure *atomic.Pointer[string]) func() error {
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

// loop does one step each time it is told to, and tells the next. What was written
// before a step failed has to be written again.
func (j *journal) loop(ctx context.Context, told chan struct{}, step func() error, next chan struct{}, pause time.Duration) {
	retry := retryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-told:
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
			signal(j.wake)
		}
	}
}

// commit brings on the disk what waits for it. After an error the same records
// are tried again by the next call.
func (j *journal) commit() error {
	if err := j.write(); err != nil {
		return err
	}
	return j.settle()
}

// write puts into the live segment what is not there yet.
func (j *journal) write() error {
	j.files.Lock()
	err := j.writeLive()
	j.files.Unlock()
	if err == nil {
		return nil
	}
	j.syncing.Lock() // nobody syncs the file that is given up
	defer j.syncing.Unlock()
	j.files.Lock()
	defer j.files.Unlock()
	j.abandon()
	return err
}

// writeLive appends to the live segment, beginning one where there is none. A full
// one takes no more: it ends with its next sync. The caller holds files.
func (j *journal) writeLive() error {
	j.mu.Lock()
	if l := j.live; l != nil && (l.spoilt || l.size+int64(j.put) >= j.segment) {
		if j.put > 0 {
			j.mu.Unlock()
			return nil
		}
		j.finish()
	}
	j.writing, j.group = append(j.writing, j.pending...), j.group+j.count
	if cap(j.pending) > keptBuffer || len(j.reading) > 0 { // a report may be reading it
		j.pending = nil
	}
	j.pending, j.count = j.pending[:0], 0
	j.landing, j.landed = append(j.landing, j.landed...), j.landed[:0]
	frames, records, upTo := j.writing[j.put:], j.group, j.appended
	j.mu.Unlock()
	if len(frames) == 0 {
		return nil
	}
	if j.live == nil {
		s, f, err := newSegment(j.dir, j.last+1)
		if err != nil {
			return err
		}
		j.live, j.file = s, f
		j.mu.Lock()
		j.last++
		j.segments = append(j.segments, s)
		j.mu.Unlock()
	}
	// The size is the end of what is durable, so what failed is written over.
	if _, err := j.file.WriteAt(frames, j.live.size+int64(j.put)); err != nil {
		return err
	}
	j.put, j.puts = j.put+len(frames), records
	j.landings = len(j.landing)
	j.mu.Lock()
	j.written = upTo
	j.writers = slices.DeleteFunc(j.writers, func(w waiter) bool {
		if w.upTo > upTo {
			return false
		}
		close(w.done)
		return true
	})
	j.mu.Unlock()
	return nil
}

// keptBuffer is up to how many bytes a buffer is kept for the next group: what one
// bad moment needed is not kept for ever.
const keptBuffer = 1 << 20

// settle syncs what was written before.
func (j *journal) settle() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.files.Lock()
	file, bytes, records, landed := j.file, j.put, j.puts, j.landings
	j.files.Unlock()
	if bytes == 0 {
		return nil
	}
	began := time.Now()
	err := j.sync(file)
	j.metrics.sync.Observe(time.Since(began).Seconds())
	j.files.Lock()
	defer j.files.Unlock()
	if err != nil {
		j.abandon()
		return err
	}
	for _, f := range j.landing[:landed] {
		j.flights.release(f)
	}
	j.landing, j.landings = slices.Delete(j.landing, 0, landed), j.landings-landed
	j.mu.Lock()
	defer j.mu.Unlock()
	j.live.size += int64(bytes)
	j.live.frames += records
	j.put, j.puts = j.put-bytes, j.puts-records
	j.writing, j.group = j.writing[bytes:], j.group-records
	if len(j.writing) == 0 && cap(j.writing) > keptBuffer {
		j.writing = nil
	}
	j.durable += uint64(records)
	j.unripe += records
	if j.unripe >= batchRecords {
		j.unripe = 0
		signal(j.ripe)
	}
	if (j.live.size >= j.segment || j.live.spoilt) && j.put == 0 {
		j.finish()
		signal(j.wake) // what the full segment did not take
	}
	return nil
}

// drain commits all that waits, also behind a group that had failed.
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

// abandon ends the live segment after a failed write: after a failed sync nobody
// knows what of the file is on the disk, so what is not durable goes to another one.
// The caller holds syncing and files.
func (j *journal) abandon() {
	j.put, j.puts, j.landings = 0, 0, 0
	if j.live == nil {
		return
	}
	// Where this fails, the next process finds a torn tail, or records twice, of
	// which the database takes one.
	_ = j.file.Truncate(j.live.size)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.live.size == 0 {
		_ = os.Remove(j.live.path) // an empty segment does no harm
		j.segments = slices.DeleteFunc(j.segments, func(s *segment) bool { return s == j.live })
	}
	j.finish()
}

// finish ends the live segment. The caller holds files and mu.
func (j *journal) finish() {
	j.live.live = false
	j.file.Close()
	j.live, j.file = nil, nil
}

// next is the oldest segment that is not shipped as a whole: a copy, and the
// segment itself to be given to shipped.
func (j *journal) next() (at segment, s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		if !s.done {
			return *s, s
		}
	}
	return segment{}, nil
}

// shipped notes that a segment which is not live is in the database as a whole,
// or as far as it can be read; then keep says that people may want the rest.
func (j *journal) shipped(s *segment, keep bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.done, s.keep, s.reports = true, keep, j.reports
}

// spoil says that what is written to a live segment can no longer be read: the
// next records go to another one.
func (j *journal) spoil(s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.spoilt = true
	signal(j.wake)
}

// remove removes the segments that are shipped, or sets them aside, but for those that a report may
// still have to read, since it began before they were: a later call does, however
// many reports follow. It returns the ids of those that are gone.
func (j *journal) remove() (gone []string) {
	j.mu.Lock()
	var done []*segment
	j.segments = slices.DeleteFunc(j.segments, func(s *segment) bool {
		free := s.done && !slices.ContainsFunc(j.reading, func(report uint64) bool { return report <= s.reports })
		if free {
			done = append(done, s)
		}
		return free
	})
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
		gone = append(gone, s.id)
	}
	return gone
}

// begin begins a report: until end is called, what is not shipped yet can be read.
func (j *journal) begin() (end func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reports++
	report := j.reports
	j.reading = append(j.reading, report)
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.reading = slices.DeleteFunc(j.reading, func(r uint64) bool { return r == report })
	}
}

// unread is a moment of the journal: its segments, up to where they may be read,
// and what is in memory only. It is good until the caller's report ends: memory is
// no copy, but what comes later is written behind it.
func (j *journal) unread() (segments []segment, memory [2][]byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		segments = append(segments, *s)
	}
	return segments, [2][]byte{j.writing, j.pending}
}

// sizes are those of the segments that are not done and of what is in memory, in
// bytes.
func (j *journal) sizes() (segments, memory int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		if !s.done {
			segments += s.size
		}
	}
	return segments, int64(len(j.writing) + len(j.pending))
}

// records counts those of the segments that are not done and of what is in memory.
func (j *journal) records() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		if !s.done {
			n += s.frames
		}
	}
	return n + j.group + j.count
}

// close commits what is left, removes the live segment if it has been shipped,
// and gives the directory to others. It returns the ids of the segments that are
// gone.
func (j *journal) close(shipped func(*segment) bool) (gone []string, err error) {
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
	if j.live != nil {
		s := j.live
		j.finish()
		s.done, s.reports = shipped(s), j.reports
	}
	left := j.appended - j.durable
	j.mu.Unlock()
	gone = j.remove()
	j.lock.Close()
	if err != nil {
		return gone, fmt.Errorf("%d usage records are lost: %w", left, err)
	}
	return gone, nil
}
