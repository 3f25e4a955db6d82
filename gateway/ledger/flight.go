package ledger

import (
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"tidegate/gateway/openai"
)

// Flight is a generation under way, noted in a file that outlives this process.
// It is used by one goroutine, and not after its record has been added. A nil Flight
// notes nothing.
type Flight struct {
	book *flights
	slot []byte // of the file
}

// A slot holds five numbers that grow, eight bytes each, the lowest first, and the
// frame of the record as it began; a frame of no length says that it is free.
const (
	slotBytes   = 1 << 10
	grownBytes  = 40
	blockBytes  = 256 * slotBytes // by which the file grows, a multiple of any page
	flightsFile = "flights.v1"
)

// flights is the file of what is under way. It is mapped into memory, so that a note
// costs no call of the system; and what is written to a mapped file is the system's
// when the process is killed. Nothing is synced: a crash of the machine loses it.
type flights struct {
	log *slog.Logger

	mu   sync.Mutex
	file *os.File // nil: this system cannot, or the file failed
	size int64
	free []*Flight
	said sync.Once // that it failed
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
		b.fail(err)
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

// fail gives the file up. The lock is held, or not needed yet.
func (b *flights) fail(err error) {
	b.said.Do(func() {
		b.log.Warn("what is under way when this process is killed will not be counted", "file", flightsFile, "error", err.Error())
	})
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
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	if len(b.free) == 0 {
		if err := b.grow(); err != nil {
			b.fail(err)
			return nil
		}
	}
	f := b.free[len(b.free)-1]
	err := f.write(func() {
		f.grown(r.Usage, r.Units)
		// Its length is written last. One that is longer than the slot is written
		// elsewhere, and so nowhere.
		appendFrame(f.slot[grownBytes:grownBytes:slotBytes], r)
	})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.free = b.free[:len(b.free)-1]
	return f
}

// release frees the slot of a record that is in the journal, or was none.
func (b *flights) release(f *Flight) {
	err := f.write(func() { clear(f.slot[grownBytes : grownBytes+headBytes]) })
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

func (f *Flight) grown(u openai.Usage, units int64) {
	for i, n := range [...]uint64{uint64(u.Input), uint64(u.Cached), uint64(u.Output), uint64(u.Reasoning), uint64(units)} {
		binary.LittleEndian.PutUint64(f.slot[8*i:], n)
	}
}

// Progress notes what has been used so far, and what quotas are charged for that in
// thousandths of a unit. It takes some nanoseconds.
func (f *Flight) Progress(u openai.Usage, units int64) {
	if f == nil {
		return
	}
	if err := f.write(func() { f.grown(u, units) }); err != nil {
		f.book.mu.Lock()
		defer f.book.mu.Unlock()
		f.book.fail(err)
	}
}

// record is what the slot says of a generation that has had no end; false: it is
// free, or was being written.
func (f *Flight) record() (r Record, ok bool) {
	err := f.write(func() {
		body, _, whole := frame(f.slot[grownBytes:])
		if !whole {
			return
		}
		var err error
		if r, err = decode(body); err != nil {
			return
		}
		ok = true
		for i, n := range []*int{&r.Usage.Input, &r.Usage.Cached, &r.Usage.Output, &r.Usage.Reasoning} {
			*n = int(min(binary.LittleEndian.Uint64(f.slot[8*i:]), maxNumber)) //nolint:gosec // bounded
		}
		r.Units = int64(min(binary.LittleEndian.Uint64(f.slot[32:]), maxNumber)) //nolint:gosec // bounded
	})
	return r, ok && err == nil
}
