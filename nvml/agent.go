package nvml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// jitter bounds the difference in travel time between two answers.
const jitter = time.Second

// maxReport bounds an agent's answer, in bytes: a node of 16 GPUs needs some 20 KiB.
const maxReport = 1 << 20

// agent reads a tidegate-gpu-agent.
type agent struct {
	page      *page
	restarted func()
	boot      string
	seq       uint64
	texts     texts
	seen      map[string]measured // last sweep of each GPU in this boot, by UUID
}

// measured is the time of a sweep, as far as it is known here.
type measured struct {
	sweep      uint64 // number of the sweep; of the report where the GPU has no sweeps
	measuredAt time.Time
}

func newAgent(c *Config, address string, restarted func()) *agent {
	return &agent{restarted: restarted, texts: texts{}, seen: map[string]measured{}, page: newPage(address, "/v1/readings", c, maxReport)}
}

func (a *agent) close() { a.page.close() }

func (a *agent) read(ctx context.Context, deadline time.Time) (s *sample, err error) {
	var arrivedAt time.Time
	if err = a.page.get(ctx, deadline, func(body io.Reader, arrived time.Time) error {
		arrivedAt = arrived
		return a.page.readAll(body)
	}); err != nil {
		return nil, err
	}
	r, err := readReport(a.page.body, a.texts)
	if err != nil {
		return nil, err
	}
	return a.convert(r, arrivedAt)
}

// convert turns a report that arrived at a moment into a sample. Within a boot of the agent
// the numbers of its reports rise. An older report, which something between has kept, is an
// error. Reports come more often than sweeps, and their travel times differ, so a sweep keeps
// the time at which it was first reported: a repetition makes it no younger, and no second
// sample. Only a sweep that is older by more than the jitter gets a new time.
func (a *agent) convert(r *Report, arrived time.Time) (*sample, error) {
	switch {
	case r.BootID == "":
		return nil, errors.New("the answer has no boot_id: is this a tidegate-gpu-agent?")
	case r.BootID != a.boot:
		if a.boot != "" {
			a.restarted()
		}
		a.boot = r.BootID
		clear(a.seen)
	case r.Seq < a.seq:
		return nil, fmt.Errorf("report %d came after report %d: something between repeats old answers", r.Seq, a.seq)
	}
	a.seq = r.Seq
	s := &sample{node: cleanText(r.Node), driver: cleanText(r.Driver)}
	block := make([]GPU, len(r.GPUs))
	s.gpus = make([]*GPU, len(r.GPUs))
	for i := range r.GPUs {
		g := &block[i]
		s.gpus[i] = g
		g.Reading, g.MeasuredAt = r.GPUs[i], ago(arrived, r.GPUs[i].AgeMs)
		sweep := g.Sweep
		if sweep == 0 {
			sweep = r.Seq
		}
		if previous, repeated := a.seen[g.UUID]; repeated && previous.sweep == sweep && previous.measuredAt.Sub(g.MeasuredAt) < jitter {
			g.MeasuredAt = previous.measuredAt
		}
		a.seen[g.UUID] = measured{sweep, g.MeasuredAt}
	}
	if r.Error != "" {
		return s, fmt.Errorf("the agent says: %s", cleanText(r.Error))
	}
	return s, nil
}
