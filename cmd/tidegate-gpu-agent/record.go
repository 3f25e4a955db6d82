package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"tidegate/nvml"
	"tidegate/nvml/device"
)

// frame is a line of a trace, without the values that are not known.
type frame struct {
	T       int64            `json:"t_ms"` // time since the start of the trace
	UUID    string           `json:"uuid"`
	Name    string           `json:"name,omitempty"`
	Margin  *int             `json:"margin,omitempty"`
	Temp    *int             `json:"temp,omitempty"`
	HBM     *int             `json:"hbm,omitempty"`
	Used    *uint64          `json:"used,omitempty"`     // MiB
	Total   *uint64          `json:"total,omitempty"`    // MiB
	Reasons *uint64          `json:"reasons,omitempty"`  // the driver's bits
	Power   *uint64          `json:"power,omitempty"`    // watts
	Calls   map[string]int64 `json:"calls_us,omitempty"` // latency of each of the library's functions, microseconds; the longest where one was called more than once
}

// recorder appends samples to a file. A slow or full disk costs lines of the trace, never a
// reading.
type recorder struct {
	file    *os.File
	log     *slog.Logger
	start   time.Time
	samples chan device.Sample
	stop    chan struct{}
	done    chan error
}

func newRecorder(path string, log *slog.Logger) (*recorder, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("--record: %w", err)
	}
	last, err := resume(file)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("--record: %w", err)
	}
	r := &recorder{file: file, log: log, start: time.Now().Add(-last), samples: make(chan device.Sample, 256), stop: make(chan struct{}), done: make(chan error, 1)}
	go r.run()
	return r, nil
}

// resume truncates a torn last line, and returns the time at which the trace continues: a
// second after its last line, so that a restarted agent does not turn the time back. A file
// that is no trace is an error, and stays as it is.
func resume(file *os.File) (time.Duration, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, err
	}
	tail := make([]byte, min(size, 64<<10))
	if _, err := file.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, err
	}
	const start = `{"t_ms":`
	end := bytes.LastIndexByte(tail, '\n') + 1
	whole, torn := bytes.Split(tail[:max(end-1, 0)], []byte("\n")), tail[end:]
	last := whole[len(whole)-1]
	f := frame{}
	switch {
	case !bytes.HasPrefix(torn, []byte(start)) && !strings.HasPrefix(start, string(torn)):
		return 0, fmt.Errorf("%s exists and is no trace", file.Name())
	case end == 0:
		return 0, file.Truncate(0)
	case json.Unmarshal(last, &f) != nil || f.UUID == "" || f.T < 0 || f.T > maxTime:
		return 0, fmt.Errorf("%s exists and is no trace", file.Name())
	}
	return time.Duration(f.T+1000) * time.Millisecond, file.Truncate(size - int64(len(torn)))
}

// maxTime is the largest time of a trace in milliseconds: 30 years.
const maxTime = 1e12

func (r *recorder) observe(s device.Sample) {
	select {
	case r.samples <- s:
	default:
	}
}

func (r *recorder) run() {
	var failed error
	write := func(s device.Sample) {
		if failed == nil {
			if failed = r.write(s); failed != nil {
				r.log.Error("recording ends", "error", failed)
			}
		}
	}
	for {
		select {
		case s := <-r.samples:
			write(s)
		case <-r.stop:
			for {
				select {
				case s := <-r.samples:
					write(s)
				default:
					r.done <- failed
					return
				}
			}
		}
	}
}

func (r *recorder) write(s device.Sample) error {
	for i, g := range s.Readings {
		if g.UUID == "" {
			continue // a trace identifies GPUs by nothing else
		}
		f := newFrame(g, s.Time.Sub(r.start))
		if i == 0 {
			f.Calls = map[string]int64{}
			for _, c := range s.Calls {
				f.Calls[c.Name] = max(f.Calls[c.Name], c.Took.Microseconds())
			}
		}
		line, err := json.Marshal(f)
		if err != nil {
			return err
		}
		if _, err := r.file.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// newFrame returns the line of a reading at an offset from the start of the trace.
func newFrame(g nvml.Reading, offset time.Duration) frame {
	f := frame{T: offset.Milliseconds(), UUID: g.UUID, Name: g.Name, Margin: g.Margin, Temp: g.Temperature, HBM: g.HBM}
	if g.Reasons != nil {
		f.Reasons = new(nvml.ReasonMask(g.Reasons))
	}
	f.Used, f.Total = scaled(g.MemoryUsed, 1<<20), scaled(g.MemoryTotal, 1<<20)
	f.Power = scaled(g.Power, 1000)
	return f
}

// scaled returns a value in a larger unit, rounded.
func scaled(v *uint64, unit uint64) *uint64 {
	if v == nil {
		return nil
	}
	n := (*v + unit/2) / unit
	return &n
}

// close writes the samples that were observed before, and closes the file.
func (r *recorder) close() error {
	close(r.stop)
	if err := errors.Join(<-r.done, r.file.Close()); err != nil {
		return fmt.Errorf("--record: %w", err)
	}
	return nil
}
