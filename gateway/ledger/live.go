package ledger

import (
	"os"
	"slices"
)

// liveFile is the segment that is being written, with its records that are not synced.
// The journal's files lock guards it. The segment's own fields are guarded by the
// journal's mutex, because readers copy them.
type liveFile struct {
	segment *segment  // nil: none is begun
	file    *os.File  // open file of segment
	bytes   int       // bytes of queue.writing that are in the file
	records int       // records in these bytes
	flights []*Flight // flights of the records in queue.writing
	landed  int       // of them, flights whose record is in the file
}

// ended reports whether the segment takes no more records: it has reached limit bytes,
// or is damaged.
func (l *liveFile) ended(limit int64) bool {
	return l.segment.corrupt || l.segment.size+int64(l.bytes) >= limit
}

// write appends frames, after which the file holds so many records that are not synced.
// The segment's size is the end of its durable part, so a failed write is overwritten.
func (l *liveFile) write(frames []byte, records int) error {
	if _, err := l.file.WriteAt(frames, l.segment.size+int64(l.bytes)); err != nil {
		return err
	}
	l.bytes, l.records, l.landed = l.bytes+len(frames), records, len(l.flights)
	return nil
}

// grow marks the first unsynced bytes and records of the file as synced.
// The caller holds the journal's mutex too.
func (l *liveFile) grow(bytes, records int) {
	l.segment.size += int64(bytes)
	l.segment.frames += records
	l.bytes, l.records = l.bytes-bytes, l.records-records
}

// releaseFlights frees the slots of the first n flights.
func (l *liveFile) releaseFlights(file *flights, n int) {
	for _, f := range l.flights[:n] {
		file.release(f)
	}
	l.flights, l.landed = slices.Delete(l.flights, 0, n), l.landed-n
}

// rewind forgets what was written and not synced: it goes to the next file.
func (l *liveFile) rewind() { l.bytes, l.records, l.landed = 0, 0, 0 }

// close ends the segment. The caller holds the journal's mutex too.
func (l *liveFile) close() {
	l.segment.live = false
	l.file.Close()
	l.segment, l.file = nil, nil
}

// segmentList holds the segments of the journal, and the reports that read them. The
// journal's mutex guards it.
type segmentList struct {
	all     []*segment // oldest first; only the last may be live
	last    uint64     // number of the youngest segment ever seen
	reports uint64     // reports ever begun
	reading []uint64   // numbers of the reports under way
}

// add appends a new segment.
func (l *segmentList) add(s *segment) {
	l.last++
	l.all = append(l.all, s)
}

// drop forgets a segment.
func (l *segmentList) drop(s *segment) {
	l.all = slices.DeleteFunc(l.all, func(o *segment) bool { return o == s })
}

// markDone notes that a segment was shipped as far as it can be read.
func (l *segmentList) markDone(s *segment) { s.done, s.reportsBegun = true, l.reports }

// beginReport notes that a report has begun, and returns its number.
func (l *segmentList) beginReport() uint64 {
	l.reports++
	l.reading = append(l.reading, l.reports)
	return l.reports
}

// endReport notes that a report has ended.
func (l *segmentList) endReport(report uint64) {
	l.reading = slices.DeleteFunc(l.reading, func(r uint64) bool { return r == report })
}

// removeDone removes and returns the segments that are done, but for those that a
// report may still have to read, since it began before they were.
func (l *segmentList) removeDone() (done []*segment) {
	l.all = slices.DeleteFunc(l.all, func(s *segment) bool {
		free := s.done && !slices.ContainsFunc(l.reading, func(report uint64) bool { return report <= s.reportsBegun })
		if free {
			done = append(done, s)
		}
		return free
	})
	return done
}

// backlog returns the bytes and the records of the segments that are not done.
func (l *segmentList) backlog() (bytes int64, records int) {
	for _, s := range l.all {
		if !s.done {
			bytes, records = bytes+s.size, records+s.frames
		}
	}
	return bytes, records
}
