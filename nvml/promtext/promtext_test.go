package promtext

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// sample is what a scanner made of one line.
type sample struct {
	name, engine string
	value        float64
	ok           bool
}

func scan(s *Scanner, from io.Reader, limit int64) (out []sample) {
	s.Reset(from, "vllm:", limit)
	for s.Next() {
		v, ok := s.Value()
		out = append(out, sample{string(s.Name()), string(s.Label("engine")), v, ok})
	}
	return out
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		line string
		want string
	}{
		{`vllm:a{engine="0"} 1.0`, "[{vllm:a 0 1 true}]"},
		{`vllm:a 3`, "[{vllm:a  3 true}]"},
		{"vllm:a\t3", "[{vllm:a  3 true}]"},
		{`vllm:a{} 3`, "[{vllm:a  3 true}]"},
		{`vllm:a{engine="0",} 3`, "[{vllm:a 0 3 true}]"},
		{`vllm:a{ x="1" , engine="7" } 3 1700000000000`, "[{vllm:a 7 3 true}]"},
		{"vllm:a{engine=\"1\"} 2\r", "[{vllm:a 1 2 true}]"},
		{`vllm:a{x="a\"} 9",engine="2"} 4e2`, "[{vllm:a 2 400 true}]"},
		{`vllm:a{x="{,}=",engine="2"} +Inf`, "[{vllm:a 2 +Inf true}]"},
		{`vllm:a{xengine="5",engine="6"} 1`, "[{vllm:a 6 1 true}]"},
		{`vllm:a{x="\\",engine="6"} 1`, "[{vllm:a 6 1 true}]"},
		{`vllm:a{engine="6"} NaN`, "[{vllm:a 6 NaN false}]"},
		{`vllm:a{engine="6"}`, "[{vllm:a  0 false}]"},
		{`vllm:a{engine="6" 1`, "[{vllm:a  0 false}]"},
		{`vllm:a{engine=6} 1`, "[{vllm:a  0 false}]"},
		{`vllm:a{engine="6} 1`, "[{vllm:a  0 false}]"},
		{`vllm:a soon`, "[{vllm:a  0 false}]"},
		{`vllm:a 1234567890123456789012345678901234567890`, "[{vllm:a  0 false}]"},
		{`# HELP vllm:a b c`, "[]"},
		{` vllm:a 1`, "[]"},
		{`other 1`, "[]"},
		{`vllm: 1`, "[{vllm:  1 true}]"},
		{`vllm:`, "[]"},
		{`vllm:a`, "[]"},
		{``, "[]"},
	} {
		var s Scanner
		got := scan(&s, strings.NewReader(c.line), 1<<20)
		if fmt.Sprint(got) != c.want || s.Err() != nil {
			t.Errorf("%q: %v, %v; want %s", c.line, got, s.Err(), c.want)
		}
	}
}

// TestAnyPage: whatever stands on a page and however it arrives, the wanted
// samples are found with their labels and values.
func TestAnyPage(t *testing.T) {
	text := rapid.StringMatching(`[ -~]{0,12}`)
	rapid.Check(t, func(t *rapid.T) {
		var page strings.Builder
		var want []sample
		for range rapid.IntRange(0, 40).Draw(t, "lines") {
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				fmt.Fprintf(&page, "# %s\n", text.Draw(t, "comment"))
			case 1:
				fmt.Fprintf(&page, "http_%s\n", text.Draw(t, "other"))
			case 2:
				// longer than the buffer: left out
				fmt.Fprintf(&page, "vllm:long{x=\"%s\"} 1\n", strings.Repeat("x", bufferSize+rapid.IntRange(0, 3*bufferSize).Draw(t, "length")))
			default:
				s := sample{"vllm:" + rapid.StringMatching(`[a-z_]{1,20}`).Draw(t, "name"), strconv.Itoa(rapid.IntRange(0, 99).Draw(t, "engine")), rapid.Float64().Draw(t, "value"), true}
				if len(strconv.FormatFloat(s.value, 'g', -1, 64)) > 30 {
					continue
				}
				fmt.Fprintf(&page, "%s{before=%s,engine=%q,after=%s} %s\n", s.name, quoted(text.Draw(t, "label")), s.engine, quoted(text.Draw(t, "label")), strconv.FormatFloat(s.value, 'g', -1, 64))
				want = append(want, s)
			}
		}
		var from io.Reader = strings.NewReader(page.String())
		switch rapid.IntRange(0, 2).Draw(t, "arrives") {
		case 1:
			from = iotest.HalfReader(from)
		case 2:
			from = iotest.DataErrReader(from)
		}
		var s Scanner
		if got := scan(&s, from, math.MaxInt64); fmt.Sprint(got) != fmt.Sprint(want) || s.Err() != nil {
			t.Fatalf("%v, %v; want %v", got, s.Err(), want)
		}
	})
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// TestLongLine: no piece of a line that is left out is taken for a line.
func TestLongLine(t *testing.T) {
	const piece = "vllm:a 1" // of a length that divides the buffer's
	page := strings.Repeat(piece, bufferSize/len(piece)*5/2) + "\nvllm:b 2\n"
	var s Scanner
	if got := scan(&s, strings.NewReader(page), 1<<20); fmt.Sprint(got) != "[{vllm:b  2 true}]" {
		t.Errorf("%v", got)
	}
}

func TestFaults(t *testing.T) {
	page := strings.Repeat("vllm:a 1\n", 100)
	var s Scanner
	if got := scan(&s, strings.NewReader(page), int64(len(page))); len(got) != 100 || s.Err() != nil {
		t.Errorf("a page of the limit: %d samples, %v", len(got), s.Err())
	}
	if scan(&s, strings.NewReader(page), int64(len(page))-1); !errors.Is(s.Err(), ErrTooLong) {
		t.Errorf("a page over the limit: %v", s.Err())
	}
	broken := errors.New("broken")
	if got := scan(&s, io.MultiReader(strings.NewReader("vllm:a 1\nvllm:b 2"), iotest.ErrReader(broken)), 1<<20); !errors.Is(s.Err(), broken) || len(got) > 1 {
		t.Errorf("a page that breaks off: %v, %v", got, s.Err())
	}
	if got := scan(&s, strings.NewReader("vllm:a 1"), 1<<20); len(got) != 1 || s.Err() != nil {
		t.Errorf("after faults: %v, %v", got, s.Err())
	}
}

func TestNoAllocations(t *testing.T) {
	page := bytes.Repeat([]byte("vllm:a{engine=\"0\",model_name=\"Qwen3-1.7B\"} 1.7384e+09\n"), 450)
	from := bytes.NewReader(page)
	var s Scanner
	sum := 0.0
	n := testing.AllocsPerRun(20, func() {
		from.Reset(page)
		s.Reset(from, "vllm:", 1<<20)
		for s.Next() {
			v, _ := s.Value()
			sum += v + float64(len(s.Label("model_name")))
		}
	})
	if n > 0 || sum == 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzScanner(f *testing.F) {
	f.Add([]byte("vllm:a{engine=\"0\"} 1\n# x\nvllm:b 2 3\n"), 7)
	f.Add([]byte("vllm:a{x=\"\\\"} 1"), 1)
	f.Fuzz(func(t *testing.T, page []byte, step int) {
		var whole, pieces Scanner
		a := scan(&whole, bytes.NewReader(page), 1<<20)
		b := scan(&pieces, &stepReader{page, max(step%100, 1)}, 1<<20)
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("at once %v, in pieces %v", a, b)
		}
	})
}

// stepReader gives so many bytes at a time.
type stepReader struct {
	rest []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.step)], r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
