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
	"time"
)

// Bounds of a journal.
const (
	segmentBytes = 64 << 20               // after which a new segment is begun
	bufferBytes  = 32 << 20               // of records that wait for the disk, about 200,000
	groupEvery   = 5 * time.Millisecond   // between two syncs, so that records share them
	retryFirst   = 100 * time.Millisecond // after a failed write, then doubled
	retryLast    = 5 * time.Second
)

// journal is the records of this gateway that the database does not have yet, and
// some that it has. Any goroutine may append; one at a time may commit.
type journal struct {
	dir     string
	segment int64 // segmentBytes, or less in tests
	buffer  int   // bufferBytes, or less in tests
	log     *slog.Logger
	metrics *metrics
	lock    *os.File
	wake    chan struct{} // something waits for the disk
	ripe    chan struct{} // a whole batch waits for the shipper

	mu       sync.Mutex
	pending  []byte // frames that came after the last commit began
	count    int    // of records in pending
	writing  []byte // frames of the commit under way, or of one that failed
	appended uint64 // records, ever
	durable  uint64 // of them on the disk
	unripe   int    // records made durable since the shipper was told
	saidFull time.Time
	closed   bool
	segments []*segment // oldest first; only the last may be live
	last     uint64     // number of the youngest segment ever seen
	reports  uint64     // begun, ever
	reading  []uint64   // the numbers of those under way

	// Only of the goroutine that commits.
	group int      // records in writing
	live  *segment // nil: none is begun
	file  *os.File
	spare []byte
	sync  func(*os.File) error // of a file; another one in tests
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
		wake: make(chan struct{}, 1), ripe: make(chan struct{}, 1), sync: (*os.File).Sync,
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
	return j, nil
}

// append takes a clean record. It waits for no disk: where the buffer is full, or
// the journal closed, the record is lost, counted and logged.
func (j *journal) append(r *Record) {
	j.mu.Lock()
	if j.closed || len(j.pending)+len(j.writing) >= j.buffer {
		say := time.Since(j.saidFull) > retryLast
		if say {
			j.saidFull = time.Now()
		}
		j.mu.Unlock()
		j.metrics.lost.Inc()
		if say {
			j.log.Error("usage records are lost: the journal is closed, or its disk takes nothing and the buffer is full", "dir", j.dir, "record", r.ID)
		}
		return
	}
	j.pending = appendFrame(j.pending, r)
	j.count++
	j.appended++
	j.mu.Unlock()
	j.metrics.records.Inc()
	signal(j.wake)
}

// signal tells a loop that there is something to do, if it has not been told.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run commits what comes until ctx ends.
func (j *journal) run(ctx context.Context) {
	retry := retryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.wake:
		}
		pause := groupEvery
		if err := j.commit(); err != nil {
			j.metrics.writeFailures.Inc()
			j.log.Error("cannot write the journal of usage; records wait in memory", "error", err.Error(), "again_in", retry)
			pause, retry = retry, min(2*retry, retryLast)
			signal(j.wake)
		} else {
			retry = retryFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// commit brings on the disk what waits for it. After an error the same records
// are tried again by the next call.
func (j *journal) commit() error {
	j.mu.Lock()
	if j.live != nil && j.live.spoilt {
		j.finish()
	}
	if len(j.writing) == 0 {
		j.writing, j.group = j.pending, j.count
		j.pending, j.count = j.spare[:0], 0
		j.spare = nil
	}
	group := j.writing
	j.mu.Unlock()
	if len(group) == 0 {
		return nil
	}
	if err := j.write(group); err != nil {
		j.abandon()
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.live.size += int64(len(group))
	j.durable += uint64(j.group)
	j.unripe += j.group
	if j.unripe >= batchRecords {
		j.unripe = 0
		signal(j.ripe)
	}
	j.writing = nil
	// What one bad moment needed is not kept for ever, and a report may read it.
	if cap(group) <= 1<<20 && len(j.reading) == 0 {
		j.spare = group
	}
	if j.live.size >= j.segment {
		j.finish()
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

// write appends a group to the live segment, beginning one where there is none.
func (j *journal) write(group []byte) error {
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
	// The size is the end of what is durable, so a failed write is written over.
	if _, err := j.file.WriteAt(group, j.live.size); err != nil {
		return err
	}
	began := time.Now()
	err := j.sync(j.file)
	j.metrics.sync.Observe(time.Since(began).Seconds())
	return err
}

// abandon ends the live segment after a failed write: after a failed sync nobody
// knows what of the file is on the disk, so the group goes to another one.
func (j *journal) abandon() {
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

// finish ends the live segment. The caller holds mu and is the one that commits.
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
