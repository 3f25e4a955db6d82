package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ticksPerSecond is USER_HZ, which is 100 on every Linux port Go supports.
const ticksPerSecond = 100

// Process is a process id; 0 stands for none, which uses nothing.
type Process int

// CurrentProcess returns the calling process.
func CurrentProcess() Process { return Process(os.Getpid()) }

// CPU returns the user and system time that the process has used so far.
func (p Process) CPU() time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
	if err != nil {
		return 0
	}
	// The command name may hold spaces; fields are counted after ')'.
	f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(f) < 13 {
		return 0
	}
	var total time.Duration
	for _, i := range []int{11, 12} { // utime, stime
		t, _ := strconv.ParseInt(string(f[i]), 10, 64)
		total += time.Duration(t) * time.Second / ticksPerSecond
	}
	return total
}

// RSS returns the process's resident memory in bytes.
func (p Process) RSS() int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// MachineCPU returns the time that all processors together have spent on work.
func MachineCPU() time.Duration {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	var total time.Duration
	for i, f := range strings.Fields(first) {
		// cpu user nice system idle iowait irq softirq steal
		if i == 0 || i == 4 || i == 5 || i > 7 {
			continue
		}
		t, _ := strconv.ParseInt(f, 10, 64)
		total += time.Duration(t) * time.Second / ticksPerSecond
	}
	return total
}

// Usage holds the resources that a process used between Watch and Stop.
type Usage struct {
	CPU     time.Duration
	RSSPeak int64 // bytes
}

// Sampler watches a process in the background.
type Sampler struct {
	process Process
	cpu     time.Duration
	peak    int64
	stop    chan struct{}
	done    sync.WaitGroup
}

// Watch reads a process's memory every interval until Stop.
func Watch(p Process, interval time.Duration) *Sampler {
	s := &Sampler{process: p, cpu: p.CPU(), peak: p.RSS(), stop: make(chan struct{})}
	s.done.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				s.peak = max(s.peak, p.RSS())
			}
		}
	})
	return s
}

// Stop ends the watch and returns what was used.
func (s *Sampler) Stop() Usage {
	cpu := s.process.CPU() - s.cpu
	close(s.stop)
	s.done.Wait()
	return Usage{CPU: cpu, RSSPeak: max(s.peak, s.process.RSS())}
}
