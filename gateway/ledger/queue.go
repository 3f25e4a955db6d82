package ledger

import "slices"

// queue holds the records that are not on the disk yet. The journal's mutex guards it.
type queue struct {
	pending  []byte    // frames that came after the last write began
	count    int       // records in pending
	flights  []*Flight // flights of the records in pending
	writing  []byte    // frames that are in the live file or go there next, and are not synced
	group    int       // records in writing
	appended uint64    // records ever appended
	written  uint64    // of them, records in a file
	durable  uint64    // of them, records on the disk
	unripe   int       // records made durable since the shipper was notified
	waiters  []waiter  // callers that wait for written to rise
}

// waiter waits until a record is written.
type waiter struct {
	target uint64 // value of queue.written to wait for
	done   chan struct{}
}

// keptBuffer bounds the bytes of a buffer that is reused for the next group, so that
// one bad moment does not hold its memory for ever.
const keptBuffer = 1 << 20

// size returns the bytes of all frames in memory.
func (q *queue) size() int { return len(q.pending) + len(q.writing) }

// records returns the number of records in memory.
func (q *queue) records() int { return q.count + q.group }

// push appends a clean record and its flight, which may be nil.
func (q *queue) push(r *Record, f *Flight) {
	q.pending = appendFrame(q.pending, r)
	q.count++
	q.appended++
	if f != nil {
		q.flights = append(q.flights, f)
	}
}

// advance moves the pending records to those being written and appends their flights
// to flights. shared reports that a report may be reading the pending frames, so their
// memory is not reused.
func (q *queue) advance(flights []*Flight, shared bool) []*Flight {
	q.writing, q.group = append(q.writing, q.pending...), q.group+q.count
	if cap(q.pending) > keptBuffer || shared {
		q.pending = nil
	}
	q.pending, q.count = q.pending[:0], 0
	flights, q.flights = append(flights, q.flights...), q.flights[:0]
	return flights
}

// setWritten notes that the first n records are in a file and wakes who waits for them.
func (q *queue) setWritten(n uint64) {
	q.written = n
	q.waiters = slices.DeleteFunc(q.waiters, func(w waiter) bool {
		if w.target > n {
			return false
		}
		close(w.done)
		return true
	})
}

// removeWaiter removes the waiter with a channel.
func (q *queue) removeWaiter(done chan struct{}) {
	q.waiters = slices.DeleteFunc(q.waiters, func(w waiter) bool { return w.done == done })
}

// release drops the oldest records, which a sync has made durable. It reports whether
// a whole batch waits for the shipper.
func (q *queue) release(bytes, records int) (ripe bool) {
	q.writing, q.group = q.writing[bytes:], q.group-records
	if len(q.writing) == 0 && cap(q.writing) > keptBuffer {
		q.writing = nil
	}
	q.durable += uint64(records)
	q.unripe += records
	if q.unripe < batchRecords {
		return false
	}
	q.unripe = 0
	return true
}
