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

// Flight is a generation under way, noted in a file that outlives this process.
// It is used by one goroutine, and not after its record has been added. A nil Flight
// notes nothing.
type Flight struct {
	book *flights
	slot []byte // of the file
}

// A slot holds the numbers of a record, eight bytes each, the lowest first; behind
// them whether they are those of its end; and the frame of the record as it began. A
// frame of no length says that the slot is free.
const (
	slotBytes   = 1 << 10
	endedAt     = 8 * numbers
	frameAt     = endedAt + 8
	blockBytes  = 256 * slotBytes // by which the file grows, a multiple of any page
	flightsFile = "flights.v1"
)

// flights is the file of what is under way. It is mapped into memory, so that a note
// costs no call of the system; and what is written to a mapped file is the system's
// when the process is killed. Nothing is synced: after a crash of the machine the file
// holds some of it, and some that is long in the database.
type flights struct {
	log *slog.Logger

	mu   sync.Mutex
	file *os.File // nil: this system cannot, or the file failed
	size int64
	free []*Flight
	full time.Time // when it could not grow
	said time.Time // that something is not noted
}

// openFlights maps the file, and returns what a process that was killed has left in
// it: those generations have had no end. A file that cannot be used is no reason not
// to start; then nothing is noted.
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
		b.troubled(err) // what is mapped is used all the same
	}
	all := b.free
	b.free = nil
	for _, f := range all {
		if _, ok := f.record(); ok {
			left = append(left, f)
		} else {
			b.free = append(b.free, f)
		}
	}
	return b, left
}

// troubled says that something is not noted, once a minute at most.
func (b *flights) troubled(err error) {
	if time.Since(b.said) < time.Minute {
		return
	}
	b.said = time.Now()
	b.log.Warn("some of what is under way would not be counted if this process were killed", "file", flightsFile, "error", err.Error())
}

// fail gives the file up. The lock is held, or not needed yet.
func (b *flights) fail(err error) {
	b.troubled(err)
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.free = nil, nil
}

// grow adds a block of free slots. Its bytes are written, so that they have a place
// on the disk before they are mapped.
func (b *flights) grow() error {
	at, err := b.file.Seek(0, io.SeekEnd)
	if err == nil && at < b.size+blockBytes {
		_, err = b.file.WriteAt(make([]byte, b.size+blockBytes-at), at)
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

// take notes a clean record, nil where that cannot be.
func (b *flights) take(r *Record) *Flight {
	f := b.slot()
	if f == nil {
		return nil
	}
	fits := false
	// Nobody waits for this one, should a store to the file wait for the disk.
	if !f.note(func() {
		f.numbers(r.numbers())
		clear(f.slot[endedAt:frameAt])
		// What is longer than the slot is written elsewhere, and so nowhere.
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

// slot is a free slot, nil where there is none.
func (b *flights) slot() *Flight {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) == 0 && b.file != nil && time.Since(b.full) > growAgain {
		if err := b.grow(); err != nil {
			b.full = time.Now()
			b.troubled(err)
		}
	}
	if len(b.free) == 0 {
		return nil
	}
	f := b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	return f
}

// growAgain is how long the file is not tried to grow after it could not.
const growAgain = time.Second

// release frees the slot of a record that is in the journal, or was none.
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

// write changes the slot, or reads it. A disk that has no room for a page of a mapped
// file makes whoever touches it fault, which must not end the process.
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

func (f *Flight) numbers(all [numbers]int64) {
	for i, n := range all {
		f.number(i, n)
	}
}

func (f *Flight) number(i int, n int64) {
	binary.LittleEndian.PutUint64(f.slot[8*i:], uint64(n)) //nolint:gosec // read as what it was
}

// note is write by whoever uses the flight, which may be nil.
func (f *Flight) note(change func()) (ok bool) {
	if f == nil {
		return false
	}
	err := f.write(change)
	if err != nil {
		f.book.mu.Lock()
		defer f.book.mu.Unlock()
		f.book.fail(err)
	}
	return err == nil
}

// Progress notes what has been used so far, and what quotas are charged for that in
// thousandths of a unit. It takes some nanoseconds.
func (f *Flight) Progress(u openai.Usage, units int64) {
	f.note(func() {
		for i, n := range [...]int{u.Input, u.Cached, u.Output, u.Reasoning} {
			f.number(inputAt+i, int64(n))
		}
		f.number(unitsAt, units)
	})
}

// land notes a clean record whose texts are those that it began with.
func (f *Flight) land(r *Record) (ok bool) {
	return f.note(func() {
		f.numbers(r.numbers())
		f.slot[endedAt] = 1
	})
}

// record is what the slot says; false: it is free, or was being written. Of a
// generation that has had no end it is what had been used, and an estimate.
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
		var all [numbers]int64
		for i := range all {
			all[i] = int64(binary.LittleEndian.Uint64(f.slot[8*i:])) //nolint:gosec // it is cleaned
		}
		r.setNumbers(all)
		if f.slot[endedAt] != 1 {
			r.Status, r.Estimated = statusKilled, true
		}
		r.clean()
		ok = true
	})
	return r, ok && err == nil
}

// statusKilled is that of a generation which a killed gateway had under way: its
// caller has no answer, or half of one.
const statusKilled = 500
