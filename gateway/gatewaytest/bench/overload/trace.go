package overload

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"slices"
	"strings"
	"time"
)

//go:embed testdata/traces/*.csv.gz
var traceFiles embed.FS

// Row is one request of a trace.
type Row struct {
	Offset time.Duration // since the first request of its trace
	Trace  string
	Input  int // tokens of the prompt
	Output int // tokens of the answer, thinking not among them
}

// TraceNames returns the names of all traces.
func TraceNames() []string { return []string{"azure-conv", "azure-code", "mooncake-conversation"} }

// Traces reads the named traces, laid over each other: all begin at 0, and rows come
// in the order of their time.
func Traces(names []string) ([]Row, error) {
	var rows []Row
	for _, name := range names {
		raw, err := traceFiles.ReadFile("testdata/traces/" + name + ".csv.gz")
		if err != nil {
			return nil, fmt.Errorf("there is no trace %q, only %s", name, strings.Join(TraceNames(), ", "))
		}
		trace, err := readTrace(name, raw)
		if err != nil {
			return nil, fmt.Errorf("trace %s: %w", name, err)
		}
		rows = append(rows, trace...)
	}
	slices.SortStableFunc(rows, func(a, b Row) int { return int(a.Offset - b.Offset) })
	return rows, nil
}

func readTrace(name string, raw []byte) ([]Row, error) {
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(z)
	lines.Scan() // the names of the columns
	var rows []Row
	for lines.Scan() {
		var ms int64
		r := Row{Trace: name}
		if _, err := fmt.Sscanf(lines.Text(), "%d,%d,%d", &ms, &r.Input, &r.Output); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(rows)+2, err)
		}
		r.Offset = time.Duration(ms) * time.Millisecond
		r.Output = max(r.Output, 1)
		rows = append(rows, r)
	}
	return rows, lines.Err()
}

// Fit cuts prompts that leave no room for their answer in a context, and says how
// many it cut.
func Fit(rows []Row, context int) (cut int) {
	for i := range rows {
		room := context - (1+thinking)*rows[i].Output - frameTokens
		if rows[i].Input > room {
			rows[i].Input = room
			cut++
		}
	}
	return cut
}

// Window is some rows on the clock of a run.
type Window struct {
	Rows   []Row         // At counts from the window's begin
	Length time.Duration // of the run
	Speed  float64       // how much faster than the trace's own clock
	Next   int           // the first row after it
}

// Cut takes rows from the one numbered first, as many as ask a fleet for load times
// its capacity over a length of time, and puts them on a clock on which they take
// this long.
func Cut(rows []Row, first int, f Fleet, load float64, length time.Duration) (Window, error) {
	var asked time.Duration
	want := time.Duration(load * float64(f.Slots()) * float64(length))
	end := first
	for ; asked < want && end < len(rows); end++ {
		asked += f.Large.Holds(rows[end].Input, rows[end].Output)
	}
	if asked < want || end == len(rows) {
		return Window{}, fmt.Errorf("the traces are too short for %v at %gx after row %d", length, load, first)
	}
	w := Window{Length: length, Next: end}
	begin, span := rows[first].Offset, rows[end].Offset-rows[first].Offset
	w.Speed = float64(span) / float64(length)
	for _, r := range rows[first:end] {
		r.Offset = time.Duration(float64(r.Offset-begin) / w.Speed)
		w.Rows = append(w.Rows, r)
	}
	return w, nil
}
