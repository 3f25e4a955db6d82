package ledger

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// A segment is a file of frames. A frame is the length of an encoded record and
// its CRC-32C, four bytes each, the lowest first, and the record.
const (
	headBytes = 8
	maxFrame  = 16 << 10 // bytes of a record: seven texts and thirteen numbers stay far below
)

var (
	// errTorn says that a segment ends in the middle of a write: what follows was
	// never synced, or the process was killed before it had written the rest.
	errTorn = errors.New("the segment ends in the middle of a record")
	// errCorrupt says that what once was written whole can no longer be read.
	errCorrupt = errors.New("the segment is corrupt")
	// errMissing says that somebody has taken the file away.
	errMissing = errors.New("the segment is missing")
)

// damaged reports whether an error says that the rest of a segment is beyond
// reading, for ever.
func damaged(err error) bool {
	return errors.Is(err, errTorn) || errors.Is(err, errCorrupt) || errors.Is(err, errMissing)
}

// checksum is of a record. A table for Castagnoli is made once in the library.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// appendFrame appends a clean record as a frame.
func appendFrame(b []byte, r *Record) []byte {
	at := len(b)
	b = r.encode(append(b, make([]byte, headBytes)...))
	body := b[at+headBytes:]
	binary.LittleEndian.PutUint32(b[at:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[at+4:], checksum(body))
	return b
}

// frame returns the record in the frame that b begins with. more says that b ends
// before the frame does.
func frame(b []byte) (body []byte, more, ok bool) {
	if len(b) < headBytes {
		return nil, true, false
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n == 0 || n > maxFrame {
		return nil, false, false
	}
	if len(b) < headBytes+n {
		return nil, true, false
	}
	body = b[headBytes : headBytes+n]
	return body, false, checksum(body) == binary.LittleEndian.Uint32(b[4:])
}

// chunk is how much of a segment is read at a time, in bytes.
const chunk = 256 << 10

// scan reads the records of a segment from one offset to another and gives them
// to yield, with the offset after each, until that returns false. It returns the
// offset up to which it read, and an error that is errTorn or errCorrupt where
// the rest cannot be read.
func scan(f io.ReaderAt, from, to int64, yield func(r Record, end int64) bool) (int64, error) {
	buf := make([]byte, min(chunk, max(to-from, 0)))
	for from < to {
		b := buf[:min(int64(len(buf)), to-from)]
		n, err := f.ReadAt(b, from)
		if err != nil && !errors.Is(err, io.EOF) {
			return from, fmt.Errorf("read segment: %w", err)
		}
		if n == 0 {
			return from, errTorn
		}
		last := n < len(b) || from+int64(n) == to // nothing will follow this
		b = b[:n]
		for len(b) > 0 {
			body, more, ok := frame(b)
			if more && !last {
				break
			}
			if !ok {
				return from, damage(f, from, to)
			}
			r, err := decode(body)
			if err != nil {
				return from, errCorrupt
			}
			b = b[headBytes+len(body):]
			from += int64(headBytes + len(body))
			if !yield(r, from) {
				return from, nil
			}
		}
	}
	return from, nil
}

// countFrames counts the frames up to an offset by their heads, and no further than
// they can be read: it is only told.
func countFrames(path string, to int64) (n int) {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	in := bufio.NewReaderSize(io.NewSectionReader(f, 0, to), chunk)
	for {
		head, err := in.Peek(headBytes)
		if err != nil {
			return n
		}
		length := int(binary.LittleEndian.Uint32(head))
		if length == 0 || length > maxFrame {
			return n
		}
		if _, err := in.Discard(headBytes + length); err != nil {
			return n
		}
		n++
	}
}

// damage tells a torn tail from a hole in the middle: after a hole another whole
// frame follows.
func damage(f io.ReaderAt, at, to int64) error {
	rest := make([]byte, to-at)
	n, err := f.ReadAt(rest, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read segment: %w", err)
	}
	for rest = rest[:n]; len(rest) > headBytes; {
		rest = rest[1:]
		if body, _, ok := frame(rest); ok {
			if _, err := decode(body); err == nil {
				return errCorrupt
			}
		}
	}
	return errTorn
}

// segment is a file of the journal. Its name gives its place in the order and an
// id that no other segment anywhere has, under which the database notes how much
// of it has been shipped.
type segment struct {
	number uint64
	id     string
	path   string
	size   int64 // of what may be read, in bytes
	frames int   // in it; of one that was found, with those that were shipped before
	live   bool  // more will be written to it
	ours   bool  // made by this process, so nothing of it was shipped before
	spoilt bool  // damaged while it is live; to be ended
	done   bool  // shipped as far as it can be read; to be removed
	keep   bool  // under another name instead of being removed

	reports uint64 // that had begun when it was done
}

const (
	extension = ".journal"
	aside     = ".corrupt" // is put behind the name of a segment that is kept for people
)

// newSegment makes a file and makes sure that its name is on the disk.
func newSegment(dir string, number uint64) (*segment, *os.File, error) {
	var id [16]byte
	rand.Read(id[:]) // never returns an error
	s := &segment{number: number, id: hex.EncodeToString(id[:]), live: true, ours: true}
	s.path = filepath.Join(dir, fmt.Sprintf("%012d-%s%s", number, s.id, extension))
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := syncDir(dir); err != nil {
		f.Close()
		_ = os.Remove(s.path) // an empty segment does no harm
		return nil, nil, err
	}
	return s, f, nil
}

// listSegments finds the segments of a directory, oldest first. last is the
// highest number of any, those set aside included.
func listSegments(dir string) (all []*segment, last uint64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	name := regexp.MustCompile(`^(\d{12,})-([0-9a-f]{32})` + regexp.QuoteMeta(extension) + `(` + regexp.QuoteMeta(aside) + `)?$`)
	for _, e := range entries {
		m := name.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		number, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			continue
		}
		last = max(last, number)
		if m[3] != "" {
			continue
		}
		at, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // another process has shipped it
		}
		if err != nil {
			return nil, 0, err
		}
		all = append(all, &segment{number: number, id: m[2], path: filepath.Join(dir, e.Name()), size: at.Size()})
	}
	slices.SortFunc(all, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	return all, last, nil
}

// syncDir makes sure that a directory's names are on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
