package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"tidegate/nvml"
	"tidegate/nvml/device"
)

// frame is a line of a trace. A value that was not known is left out.
type frame struct {
	T       int64            `json:"t_ms"` // since the trace began
	UUID    string           `json:"uuid"`
	Margin  *int             `json:"margin,omitempty"`
	Temp    *int             `json:"temp,omitempty"`
	HBM     *int             `json:"hbm,omitempty"`
	Used    *uint64          `json:"used,omitempty"`     // MiB
	Reasons uint64           `json:"reasons"`            // the driver's bits
	Power   *uint64          `json:"power,omitempty"`    // watts
	Calls   map[string]int64 `json:"calls_us,omitempty"` // latency of each of the library's functions, microseconds; the longest where one was called more than once
}

// recorder appends what is sampled to a file. A disk that is slow or full costs
// lines of the trace, never a reading.
type recorder struct {
	file    *os.File
	log     *slog.Logger
	began   time.Time
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
	r := &recorder{file: file, log: log, began: time.Now().Add(-last), samples: make(chan device.Sample, 256), stop: make(chan struct{}), done: make(chan error, 1)}
	go r.run()
	return r, nil
}

// farthest a trace's time may go, milliseconds: 30 years. What is beyond is no time.
const farthest = 1e12

// resume ends a line that was torn and says where the trace's time goes on: a
// second after its last line, so that an agent that was started again does not
// turn time back.
func resume(file *os.File) (time.Duration, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, err
	}
	tail := make([]byte, min(size, 64<<10))
	if _, err := file.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, err
	}
	if tail[len(tail)-1] != '\n' {
		if _, err := file.Write([]byte("\n")); err != nil {
			return 0, err
		}
	}
	lines := bytes.Split(tail, []byte("\n"))
	for _, line := range slices.Backward(lines) {
		var f frame
		if json.Unmarshal(line, &f) == nil && f.T >= 0 && f.T < farthest {
			return time.Duration(f.T+1000) * time.Millisecond, nil
		}
	}
	return 0, nil
}

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
		f := newFrame(g, s.Time.Sub(r.began))
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

func newFrame(g nvml.Reading, at time.Duration) frame {
	f := frame{T: at.Milliseconds(), UUID: g.UUID, Margin: g.Margin, Temp: g.Temperature, HBM: g.HBM, Reasons: device.ReasonMask(g.Reasons)}
	if g.MemoryUsed != nil {
		used := *g.MemoryUsed >> 20
		f.Used = &used
	}
	if g.Power != nil {
		watts := (*g.Power + 500) / 1000
		f.Power = &watts
	}
	return f
}

// close writes what was observed before.
func (r *recorder) close() error {
	close(r.stop)
	if err := errors.Join(<-r.done, r.file.Close()); err != nil {
		return fmt.Errorf("--record: %w", err)
	}
	return nil
}
