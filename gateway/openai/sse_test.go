package openai

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func newScanner(r io.Reader) *Scanner { return NewScanner(r, &Buffers{}) }

// scan reads all events of r, and how it ended.
func scan(r io.Reader) (events []string, err error) {
	s := newScanner(r)
	for {
		data, err := s.Next()
		if err != nil {
			return events, err
		}
		events = append(events, string(data))
	}
}

// naive reads events the slow way, line by line over the whole text.
func naive(all string) (events []string, err error) {
	var data []string
	rest, noise, size := all, 0, 0 // size is that of the event so far
	for rest != "" {
		end := strings.IndexAny(rest, "\r\n")
		if end < 0 {
			return events, io.ErrUnexpectedEOF
		}
		line := rest[:end]
		if strings.HasPrefix(rest[end:], "\r\n") {
			end++
		}
		rest = rest[end+1:]
		name, value, _ := strings.Cut(line, ":")
		switch {
		case line == "" && len(data) > 0:
			if event := strings.Join(data, "\n"); strings.TrimSpace(event) != "" {
				events, noise = append(events, event), 0
			} else {
				noise += size + 1
			}
			data, size = nil, 0
		case name == "data":
			data, size = append(data, strings.TrimPrefix(value, " ")), size+end+1
		case len(data) == 0:
			noise += len(line) + 1
		default:
			size += end + 1
		}
		if noise > maxNoise {
			return events, ErrNoEvents
		}
	}
	if len(data) > 0 {
		return events, io.ErrUnexpectedEOF
	}
	return events, io.EOF
}

// pieces hands out its text in pieces of the given sizes, over and over.
type pieces struct {
	rest  []byte
	sizes []byte
	i     int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	size := len(b)
	if len(p.sizes) > 0 {
		size = min(size, int(p.sizes[p.i%len(p.sizes)])+1)
		p.i++
	}
	n := copy(b[:size], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func TestScanner(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
		err      error
	}{
		{"nothing", "", nil, io.EOF},
		{"one", "data: a\n\n", []string{"a"}, io.EOF},
		{"no space", "data:a\n\n", []string{"a"}, io.EOF},
		{"two spaces", "data:  a \n\n", []string{" a "}, io.EOF},
		{"empty data", "data:\n\ndata: a\n\ndata: \n\ndata\n\nevent: ping\ndata:\n\ndata: b\n\n", []string{"a", "b"}, io.EOF},
		{"empty data of several lines", "data:\ndata: \ndata\n\ndata:  \t\n\ndata:\ndata: a\n\n", []string{"\na"}, io.EOF},
		{"empty data, cut", "data:\n\ndata:\n", nil, io.ErrUnexpectedEOF},
		{"CRLF", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}, io.EOF},
		{"CR", "data: a\r\rdata: b\r\r", []string{"a", "b"}, io.EOF},
		{"mixed", "data: a\n\r\ndata: b\r\n\ndata: c\r\n\r", []string{"a", "b", "c"}, io.EOF},
		{"comments", ": ping\n\n:\n\ndata: a\n: in between\n\n", []string{"a"}, io.EOF},
		{"other fields", "event: x\nid: 1\nretry: 5\ndata: a\nevent: y\n\ndatax: b\n\ndata : c\n\n data: d\n\nid: 2\n\n", []string{"a"}, io.EOF},
		{"several lines", "data: a\ndata: b\ndata\ndata:c\n\n", []string{"a\nb\n\nc"}, io.EOF},
		{"several lines twice", "data: a\ndata: b\n\ndata: c\nid: 1\ndata: d\n\n", []string{"a\nb", "c\nd"}, io.EOF},
		{"empty lines before", "\n\r\n\rdata: a\n\n\n\n", []string{"a"}, io.EOF},
		{"colons", "data: a:b: c\n\n", []string{"a:b: c"}, io.EOF},
		{"cut before the empty line", "data: a\n\ndata: b\n", []string{"a"}, io.ErrUnexpectedEOF},
		{"cut in a line", "data: a\n\ndata: b", []string{"a"}, io.ErrUnexpectedEOF},
		{"cut in a name", "data: a\n\nda", []string{"a"}, io.ErrUnexpectedEOF},
		{"cut in a comment", "data: a\n\n: pi", []string{"a"}, io.ErrUnexpectedEOF},
		{"ends behind a comment", "data: a\n\n: ping\n", []string{"a"}, io.EOF},
		{"ends with CR", "data: a\n\r", []string{"a"}, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{
				"whole": strings.NewReader(c.in), "bytes": iotest.OneByteReader(strings.NewReader(c.in)),
				"halves": iotest.HalfReader(strings.NewReader(c.in)), "error with data": iotest.DataErrReader(strings.NewReader(c.in)),
			} {
				if got, err := scan(r); !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
					t.Errorf("%s: %q, %v; want %q, %v", how, got, err, c.want, c.err)
				}
			}
			if got, err := naive(c.in); !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
				t.Errorf("the reference: %q, %v", got, err)
			}
		})
	}
}

// TestScannerSplits: where reads end changes nothing.
func TestScannerSplits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for range rapid.IntRange(0, 30).Draw(t, "lines") {
			b.WriteString(rapid.SampledFrom([]string{"data: ", "data:", "data", ": ", "event: ", "id", "", "", ""}).Draw(t, "field"))
			if rapid.Bool().Draw(t, "text") {
				b.WriteString(strings.Repeat(rapid.SampledFrom([]string{"x", "é:", "data: "}).Draw(t, "unit"), rapid.SampledFrom([]int{1, 5, 300, 1020, 1024, 70_000}).Draw(t, "times")))
			}
			b.WriteString(rapid.SampledFrom([]string{"\n", "\n", "\r\n", "\r"}).Draw(t, "end"))
		}
		if rapid.Bool().Draw(t, "cut") {
			b.WriteString("data: cu")
		}
		sizes := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "sizes")
		want, wantErr := naive(b.String())
		got, err := scan(&pieces{rest: []byte(b.String()), sizes: sizes})
		if !slices.Equal(got, want) || !errors.Is(err, wantErr) {
			t.Fatalf("%d events, %v; want %d, %v", len(got), err, len(want), wantErr)
		}
	})
}

func FuzzScanner(f *testing.F) {
	for _, s := range []string{"data: a\n\ndata: b\r\n\r\n: c\n\ndata:d\rdata: e\r\rdata: [DONE]\n\n", "data\n\n", "\r\n\r", "data: a\n\r", "id: 1\ndata: x\n\nda"} {
		f.Add([]byte(s), []byte{0, 3, 1})
	}
	f.Fuzz(func(t *testing.T, all, sizes []byte) {
		want, wantErr := naive(string(all))
		got, err := scan(&pieces{rest: all, sizes: sizes})
		if !slices.Equal(got, want) || !errors.Is(err, wantErr) {
			t.Fatalf("%q, %v; want %q, %v", got, err, want, wantErr)
		}
	})
}

// TestScannerLongLines reads lines of 1 MB between short ones, and gives the
// large buffer back behind them.
func TestScannerLongLines(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 1<<16)
	in := fmt.Sprintf("data: a\n\ndata: %s\n\n: %s\n\ndata: %s\ndata: b\n\ndata: c\n\n", long, long[:len(long)/2], long)
	for _, sizes := range [][]byte{nil, {255}, {6, 255, 0}} {
		s := newScanner(&pieces{rest: []byte(in), sizes: sizes})
		for i, want := range []string{"a", long, long + "\nb", "c"} {
			if got, err := s.Next(); err != nil || string(got) != want {
				t.Fatalf("event %d: %d bytes, %v", i, len(got), err)
			}
		}
		if _, err := s.Next(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if len(s.buf) > keepBuffer || cap(s.multi) > keepBuffer {
			t.Errorf("keeps %d and %d bytes", len(s.buf), cap(s.multi))
		}
	}
}

// endless repeats its text.
type endless struct {
	text []byte
	at   int
	read int // bytes so far
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.text[e.at:])
	e.at, e.read = (e.at+n)%len(e.text), e.read+n
	return n, nil
}

func TestScannerBoundsEvents(t *testing.T) {
	for name, text := range map[string]string{
		"one line": "data: xxxxxxxx", "many lines": "data: " + strings.Repeat("x", 500) + "\n", "comments inside": "data: x\n: " + strings.Repeat("y", 500) + "\n",
	} {
		if _, err := newScanner(&endless{text: []byte(text)}).Next(); !errors.Is(err, ErrEventTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	comments := strings.Repeat(": "+strings.Repeat("x", 997)+"\n", maxNoise/1000)
	if events, err := scan(strings.NewReader(strings.Repeat("data: a\n\n"+comments, 3) + "data: b\n\n")); len(events) != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("with 1 MiB of comments between two: %d events, %v", len(events), err)
	}
	for name, text := range map[string]string{
		"comments": ": ping\n\n", "empty lines": "\n", "carriage returns": "\r", "empty events": "data:\n\n", "empty events of many lines": strings.Repeat("data:\n", 100) + "\n",
		"other fields": "event: ping\n\n", "a comment without end": ":xxxxxxxx", "a field without end": "datum", "events of white space": "data:   \n\n",
	} {
		from := &endless{text: []byte(text)}
		s := newScanner(io.MultiReader(strings.NewReader("data: a\n\n"), from))
		if data, err := s.Next(); string(data) != "a" || err != nil {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if data, err := s.Next(); !errors.Is(err, ErrNoEvents) {
			t.Errorf("%s without end: %q, %v", name, data, err)
		}
		if from.read > 4*maxNoise {
			t.Errorf("%s without end: %d bytes are read", name, from.read)
		}
	}
	fits := "data: " + strings.Repeat("x", maxEvent-len("data: \n\n")) + "\n\n"
	if events, err := scan(strings.NewReader(fits + "data: a\n\n")); len(events) != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("an event of just 16 MiB: %d events, %v", len(events), err)
	}
	if events, err := scan(strings.NewReader("data: x" + fits[len("data: "):])); len(events) != 0 || !errors.Is(err, ErrEventTooLong) {
		t.Errorf("a byte more: %d events, %v", len(events), err)
	}
}

// TestScannerWaits: a reader that has nothing yet is asked again, wherever in an
// event that is, and between events no buffer is held.
func TestScannerWaits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SampledFrom([]string{"data: a\n\n: c\n\ndata: b\r\ndata: c\r\n\r\ndata:d\r\r", "data: a\ndata: b\n\nid: 1\n\ndata: [DONE]\n\n"}).Draw(t, "in")
		sizes := rapid.SliceOfN(rapid.ByteMax(3), 1, 8).Draw(t, "sizes")
		nothing := errors.New("nothing yet")
		from, waits := &pieces{rest: []byte(in), sizes: sizes}, false
		s := newScanner(readerFunc(func(p []byte) (int, error) {
			if waits = !waits; waits {
				return 0, nothing
			}
			return from.Read(p)
		}))
		var got []string
		for {
			data, err := s.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			switch {
			case err == nil:
				got = append(got, string(data))
			case !errors.Is(err, nothing):
				t.Fatal(err)
			case s.event.lines == 0 && s.pos == s.end && s.buf != nil:
				t.Fatal("a buffer is held")
			}
		}
		if want, _ := naive(in); !slices.Equal(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}

func TestScannerErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, in := range []string{"", "data: a", "data: a\n", "data: a\n\n"} {
		events, err := scan(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || (len(events) == 1) != strings.HasSuffix(in, "\n\n") {
			t.Errorf("%q: %q, %v", in, events, err)
		}
	}
	s := newScanner(iotest.ErrReader(broken))
	for range 2 {
		if _, err := s.Next(); !errors.Is(err, broken) {
			t.Error(err)
		}
	}
	silent := readerFunc(func([]byte) (int, error) { return 0, nil })
	if _, err := newScanner(silent).Next(); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestScannerMemory reads 100,000 events of the sizes a stream has.
func TestScannerMemory(t *testing.T) {
	var b bytes.Buffer
	for i := range 100 {
		fmt.Fprintf(&b, "data: {\"choices\":[{\"delta\":{\"content\":%q}}]}\n\n: ping\n\ndata: a\ndata: b\r\n\r\n", strings.Repeat("x", i*7))
	}
	s := newScanner(&endless{text: b.Bytes()})
	read := func() {
		for range 100_000 {
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The count is of the whole process, so the runtime's own may be among them.
	if n := testing.AllocsPerRun(1, read); n > 100 {
		t.Errorf("%v allocations for 100,000 events", n)
	}
	if len(s.buf) > scanBuffer {
		t.Errorf("a buffer of %d bytes", len(s.buf))
	}
}
