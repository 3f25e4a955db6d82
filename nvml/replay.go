package nvml

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Bounds of a trace.
const (
	maxTraceLine = 64 << 10 // bytes
	maxTrace     = 1 << 20  // lines: a GPU at 1 Hz for 12 days
	maxTraceTime = 1 << 36  // milliseconds: two years
)

// traceLine is one line of a trace: a reading of one GPU.
type traceLine struct {
	Ms      int64        `json:"t_ms"` // time since the start of the trace
	UUID    string       `json:"uuid"`
	Name    string       `json:"name"`
	Margin  *int         `json:"margin"`
	Temp    *int         `json:"temp"`
	HBM     *int         `json:"hbm"`
	Used    *uint64      `json:"used"`  // MiB
	Total   *uint64      `json:"total"` // MiB
	Reasons traceReasons `json:"reasons"`
	Power   *float64     `json:"power"` // W
}

// traceReasons are clocks-event reasons, in JSON NVML's bit mask or a list of names.
type traceReasons []string

func (t *traceReasons) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	var mask uint64
	if json.Unmarshal(raw, &mask) == nil {
		*t = ReasonNames(mask)
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(t))
}

// trace is a recording: the lines of each GPU in the order of time.
type trace struct {
	uuids  []string // in the order of their first lines
	lines  map[string][]traceLine
	period time.Duration // time after which the trace repeats
}

// readTrace reads JSON lines, and skips empty ones. Where the time goes back by a second or
// more, another recording was appended, which is played a second later. Where it goes back by
// less, two GPUs were read at once.
func readTrace(reader io.Reader) (*trace, error) {
	t := &trace{lines: map[string][]traceLine{}}
	scanner := bufio.NewScanner(reader)
	scanner.Buffer(nil, maxTraceLine)
	var first, last, shift int64
	n, kept := 0, 0
	for scanner.Scan() {
		n++
		raw := bytes.TrimSpace(scanner.Bytes())
		if len(raw) == 0 {
			continue
		}
		var l traceLine
		if err := json.Unmarshal(raw, &l); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		switch kept++; {
		case l.UUID == "" || len(l.UUID) > maxText:
			return nil, fmt.Errorf("line %d: has no uuid of at most %d bytes", n, maxText)
		case l.Ms < 0 || l.Ms > maxTraceTime:
			return nil, fmt.Errorf("line %d: t_ms is out of range", n)
		case kept > maxTrace:
			return nil, fmt.Errorf("has more than %d lines", maxTrace)
		case kept == 1:
			first, last = l.Ms, l.Ms
		}
		if l.Ms += shift; l.Ms <= last-1000 {
			shift += last + 1000 - l.Ms
			l.Ms = last + 1000
		}
		l.Ms = max(l.Ms, last)
		if t.lines[l.UUID] == nil {
			if t.uuids = append(t.uuids, l.UUID); len(t.uuids) > maxGPUs {
				return nil, fmt.Errorf("line %d: has more than %d GPUs", n, maxGPUs)
			}
		}
		last = l.Ms
		l.Ms -= first
		t.lines[l.UUID] = append(t.lines[l.UUID], l)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	if kept == 0 {
		return nil, errors.New("has no lines")
	}
	t.period = time.Duration(last-first)*time.Millisecond + time.Second
	return t, nil
}

// readings returns the readings at a time of the trace, with ages relative to now.
func (t *trace) readings(elapsed time.Duration, now time.Time) []*GPU {
	elapsed %= t.period
	var out []*GPU
	for i, uuid := range t.uuids {
		lines := t.lines[uuid]
		next, _ := slices.BinarySearchFunc(lines, elapsed.Milliseconds()+1, func(l traceLine, ms int64) int { return int(l.Ms - ms) })
		if next == 0 {
			continue // the GPU has not appeared yet
		}
		l := &lines[next-1]
		g := &GPU{MeasuredAt: now.Add(-(elapsed - time.Duration(l.Ms)*time.Millisecond))}
		g.Reading = Reading{
			Index: i, UUID: uuid, Name: l.Name, State: StateOK, Margin: copied(l.Margin), Temperature: copied(l.Temp), HBM: copied(l.HBM),
			Reasons: slices.Clone(l.Reasons),
		}
		if l.Used != nil {
			g.MemoryUsed = unsignedOrNil(float64(*l.Used) * mebi)
		}
		if l.Total != nil {
			g.MemoryTotal = unsignedOrNil(float64(*l.Total) * mebi)
		}
		if l.Power != nil {
			g.Power = unsignedOrNil(*l.Power * 1000)
		}
		out = append(out, g)
	}
	return out
}

func copied(v *int) *int {
	if v == nil {
		return nil
	}
	n := *v
	return &n
}

// replay plays a trace repeatedly, in real time.
type replay struct {
	file  string
	trace *trace // nil before the file is read
	began time.Time
}

func (r *replay) close() {}

func (r *replay) read(context.Context, time.Time) (*sample, error) {
	if r.trace == nil {
		f, err := os.Open(r.file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if r.trace, err = readTrace(f); err != nil {
			return nil, fmt.Errorf("%s: %w", r.file, err)
		}
		r.began = time.Now()
	}
	now := time.Now()
	return &sample{gpus: r.trace.readings(now.Sub(r.began), now)}, nil
}
