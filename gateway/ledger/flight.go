package ledger

import (
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"tidegate/gateway/openai"
)

// Flight is a generation under way, written to a file that outlives this process.
// One goroutine uses it, and no longer once its record was added. A nil Flight writes
// nothing.
type Flight struct {
	file *flights
	slot []byte // part of the mapped file
}

// A slot holds the numbers of a record, eight little-endian bytes each, then a byte that
// is 1 once they are final, then the frame of the record as it began. A frame of length 0
// marks a free slot.
const (
	slotBytes   = 1 << 10
	endedAt     = 8 * numbers
	frameAt     = endedAt + 8
	blockBytes  = 256 * slotBytes // by which the file grows, a multiple of any page
	flightsFile = "flights.v1"
)

// flights is the file of the generations under way. It is mapped into memory, so that an
// update costs no system call, and the system keeps the pages when the process is killed.
// Nothing is synced: after a crash of the machine the file may lack flights, and may hold
// some that are long in the database.
type flights struct {
	log *slog.Logger

	mu         sync.Mutex
	file       *os.File // nil: this system cannot map files, or the file failed
	size       int64
	free       []*Flight
	growFailed time.Time // time when the file last failed to grow
	warned     time.Time // time of the last warning
}

// openFlights maps the file and returns the flights that a killed process left in it. A
// file that cannot be used is no reason not to start; then no flights are written.
func openFlights(dir string, log *slog.Logger) (b *flights, left []*Flight) {
	b = &flights{log: log}
	file, err := os.OpenFile(filepath.Join(dir, flightsFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		b.fail(err)
		return b, nil
	}
	b.file = file
	end, err := file.Seek(0, io.SeekEnd)
	for err == nil && b.size < end {
		err = b.grow()
	}
	if err != nil {
		b.warn(err) // what is mapped is used all the same
	}
	slots := b.free
	b.free = nil
	for _, f := range slots {
		if _, ok := f.record(); ok {
			left = append(left, f)
		} else {
			b.free = append(b.free, f)
		}
	}
	return b, left
}

// warn logs that some flights are not written, at most once a minute.
func (b *flights) warn(err error) {
	if time.Since(b.warned) < time.Minute {
		return
	}
	b.warned = time.Now()
	b.log.Warn("some of what is under way would not be counted if this process were killed", "file", flightsFile, "error", err.Error())
}

// fail closes the file for good. The caller holds the lock, or has the only reference.
func (b *flights) fail(err error) {
	b.warn(err)
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.free = nil, nil
}

// grow adds a block of free slots. It writes their bytes first, so that they have room on
// the disk before they are mapped.
func (b *flights) grow() error {
	end, err := b.file.Seek(0, io.SeekEnd)
	if err == nil && end < b.size+blockBytes {
		_, err = b.file.WriteAt(make([]byte, b.size+blockBytes-end), end)
	}
	if err != nil {
		return err
	}
	block, err := mapped(b.file, b.size, blockBytes)
	if err != nil {
		return err
	}
	b.size += blockBytes
	for i := blockBytes - slotBytes; i >= 0; i -= slotBytes {
		b.free = append(b.free, &Flight{b, block[i : i+slotBytes : i+slotBytes]})
	}
	return nil
}

// begin writes a clean record to a free slot. It returns nil where that is not possible.
func (b *flights) begin(r *Record) *Flight {
	f := b.freeSlot()
	if f == nil {
		return nil
	}
	fits := false
	// No lock is held, in case a store to the file waits for the disk.
	if !f.update(func() {
		f.setNumbers(r.numbers())
		clear(f.slot[endedAt:frameAt])
		// A frame that is too long for the slot is appended to a copy, which is dropped.
		frame := appendFrame(f.slot[frameAt:frameAt:slotBytes], r)
		fits = frameAt+len(frame) <= slotBytes
	}) {
		return nil
	}
	if !fits {
		b.release(f)
		return nil
	}
	return f
}

// freeSlot returns a free slot, or nil where there is none.
func (b *flights) freeSlot() *Flight {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) == 0 && b.file != nil && time.Since(b.growFailed) > growRetry {
		if err := b.grow(); err != nil {
			b.growFailed = time.Now()
			b.warn(err)
		}
	}
	if len(b.free) == 0 {
		return nil
	}
	f := b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	return f
}

// growRetry is the pause after the file failed to grow.
const growRetry = time.Second

// release frees the slot of a record that is in the journal, or did not fit.
func (b *flights) release(f *Flight) {
	err := f.write(func() { clear(f.slot[frameAt : frameAt+headBytes]) })
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.fail(err)
	} else if b.file != nil {
		b.free = append(b.free, f)
	}
}

// write runs a function that changes or reads the slot, and returns its memory faults as
// errors. Touching a mapped page for which the disk has no room faults, which must not end
// the process.
func (f *Flight) write(change func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			fault, ok := p.(interface {
				error
				Addr() uintptr
			})
			if !ok {
				panic(p)
			}
			err = fault
		}
	}()
	change()
	return nil
}

func (f *Flight) setNumbers(values [numbers]int64) {
	for i, n := range values {
		f.setNumber(i, n)
	}
}

func (f *Flight) setNumber(i int, n int64) {
	binary.LittleEndian.PutUint64(f.slot[8*i:], uint64(n)) //nolint:gosec // read as what it was
}

// update is write for a flight that may be nil. It reports whether the change was made,
// and closes the file after a fault.
func (f *Flight) update(change func()) (ok bool) {
	if f == nil {
		return false
	}
	err := f.write(change)
	if err != nil {
		f.file.mu.Lock()
		defer f.file.mu.Unlock()
		f.file.fail(err)
	}
	return err == nil
}

// Progress writes the usage so far, and the units charged to quotas for it, in
// thousandths. It takes some nanoseconds.
func (f *Flight) Progress(u openai.Usage, units int64) {
	f.update(func() {
		for i, n := range [...]int{u.Input, u.Cached, u.Output, u.Reasoning} {
			f.setNumber(inputAt+i, int64(n))
		}
		f.setNumber(unitsAt, units)
	})
}

// end writes the final numbers of a clean record, whose texts are those it began with.
func (f *Flight) end(r *Record) (ok bool) {
	return f.update(func() {
		f.setNumbers(r.numbers())
		f.slot[endedAt] = 1
	})
}

// record returns the record in the slot, and false where the slot is free or was being
// written. A generation without an end has the usage so far, marked as an estimate.
func (f *Flight) record() (r Record, ok bool) {
	err := f.write(func() {
		body, _, whole := frame(f.slot[frameAt:])
		if !whole {
			return
		}
		var err error
		if r, err = decode(body); err != nil {
			return
		}
		var values [numbers]int64
		for i := range values {
			values[i] = int64(binary.LittleEndian.Uint64(f.slot[8*i:])) //nolint:gosec // the record is cleaned below
		}
		r.setNumbers(values)
		if f.slot[endedAt] != 1 {
			r.Status, r.Estimated = statusKilled, true
		}
		r.clean()
		ok = true
	})
	return r, ok && err == nil
}

// statusKilled is the status of a generation that a killed gateway had under way: its
// caller has no answer, or half of one.
const statusKilled = 500
