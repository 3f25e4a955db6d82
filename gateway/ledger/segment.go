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

// A segment is a file of frames. A frame is the length of an encoded record and its
// CRC-32C, both as four little-endian bytes, and the record.
const (
	headBytes = 8
	maxFrame  = 16 << 10 // bytes of a record: seven texts and thirteen numbers stay far below
)

var (
	// errTorn is the error for a segment that ends in the middle of a write: the rest was
	// never synced, or the process was killed before it was written.
	errTorn = errors.New("the segment ends in the middle of a record")
	// errCorrupt is the error for a segment with a damaged record before its end.
	errCorrupt = errors.New("the segment is corrupt")
	// errMissing is the error for a segment whose file somebody removed.
	errMissing = errors.New("the segment is missing")
)

// damaged reports whether an error means that the rest of a segment can never be read.
func damaged(err error) bool {
	return errors.Is(err, errTorn) || errors.Is(err, errCorrupt) || errors.Is(err, errMissing)
}

// checksum returns the CRC-32C of a record. The library builds the table once.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// appendFrame appends a clean record as a frame.
func appendFrame(b []byte, r *Record) []byte {
	start := len(b)
	b = r.encode(append(b, make([]byte, headBytes)...))
	body := b[start+headBytes:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+4:], checksum(body))
	return b
}

// frame returns the record in the frame that b begins with. partial reports that b ends
// before the frame does.
func frame(b []byte) (body []byte, partial, ok bool) {
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

// chunk is the size of one read of a segment, in bytes.
const chunk = 256 << 10

// scan reads the records of a segment between two offsets and passes them to yield, with
// the offset after each, until yield returns false. It returns the offset up to which it
// read, and errTorn or errCorrupt where the rest cannot be read.
func scan(f io.ReaderAt, start, end int64, yield func(r Record, end int64) bool) (int64, error) {
	buf := make([]byte, min(chunk, max(end-start, 0)))
	for start < end {
		b := buf[:min(int64(len(buf)), end-start)]
		n, err := f.ReadAt(b, start)
		if err != nil && !errors.Is(err, io.EOF) {
			return start, fmt.Errorf("read segment: %w", err)
		}
		if n == 0 {
			return start, errTorn
		}
		last := n < len(b) || start+int64(n) == end // no more bytes follow
		b = b[:n]
		for len(b) > 0 {
			body, partial, ok := frame(b)
			if partial && !last {
				break
			}
			if !ok {
				return start, damage(f, start, end)
			}
			r, err := decode(body)
			if err != nil {
				return start, errCorrupt
			}
			b = b[headBytes+len(body):]
			start += int64(headBytes + len(body))
			if !yield(r, start) {
				return start, nil
			}
		}
	}
	return start, nil
}

// countFrames counts the frames up to an offset by their heads, as far as they can be read.
// The number is only shown.
func countFrames(path string, end int64) (n int) {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	reader := bufio.NewReaderSize(io.NewSectionReader(f, 0, end), chunk)
	for {
		head, err := reader.Peek(headBytes)
		if err != nil {
			return n
		}
		length := int(binary.LittleEndian.Uint32(head))
		if length == 0 || length > maxFrame {
			return n
		}
		if _, err := reader.Discard(headBytes + length); err != nil {
			return n
		}
		n++
	}
}

// damage returns errCorrupt for a hole in the middle of a segment, after which another
// whole frame follows, and errTorn for a torn tail.
func damage(f io.ReaderAt, start, end int64) error {
	rest := make([]byte, end-start)
	n, err := f.ReadAt(rest, start)
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

// segment is a file of the journal. Its name holds its number, by which segments are
// ordered, and an id that is unique everywhere. Under this id the database notes the bytes
// that were shipped.
type segment struct {
	number  uint64
	id      string
	path    string
	size    int64 // bytes that may be read
	frames  int   // frames in it, those that were shipped included
	live    bool  // still written to
	created bool  // created by this process, so nothing was shipped before
	corrupt bool  // damaged while live; to be ended
	done    bool  // shipped as far as it can be read; to be removed
	keep    bool  // to be renamed instead of removed

	reportsBegun uint64 // number of reports begun when it was done
}

const (
	extension = ".journal"
	aside     = ".corrupt" // suffix of a segment that is kept for people
)

// newSegment creates a segment and syncs its directory.
func newSegment(dir string, number uint64) (*segment, *os.File, error) {
	var id [16]byte
	rand.Read(id[:]) // never returns an error
	s := &segment{number: number, id: hex.EncodeToString(id[:]), live: true, created: true}
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

// listSegments returns the segments of a directory, oldest first, and the highest number
// of any, including those set aside.
func listSegments(dir string) (segments []*segment, last uint64, err error) {
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
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // another process shipped it
		}
		if err != nil {
			return nil, 0, err
		}
		segments = append(segments, &segment{number: number, id: m[2], path: filepath.Join(dir, e.Name()), size: info.Size()})
	}
	slices.SortFunc(segments, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	return segments, last, nil
}

// syncDir syncs a directory, so that the names in it are durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
