package nvml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxReport bounds an agent's answer, in bytes: a node of 16 GPUs needs some 20 KiB.
const maxReport = 1 << 20

// agent asks a tidegate-gpu-agent.
type agent struct {
	page      *page
	restarted func()
	boot      string
	seq       uint64
	texts     texts
	at        map[string]time.Time // by UUID: when the values of report seq were measured
}

func newAgent(c *Config, address string, restarted func()) *agent {
	return &agent{restarted: restarted, texts: texts{}, at: map[string]time.Time{}, page: newPage(address, "/v1/readings", c, maxReport)}
}

func (a *agent) close() { a.page.close() }

func (a *agent) read(ctx context.Context, until time.Time) (s *sample, err error) {
	var at time.Time
	if err = a.page.get(ctx, until, func(body io.Reader, arrived time.Time) error {
		at = arrived
		return a.page.all(body)
	}); err != nil {
		return nil, err
	}
	r, err := readReport(a.page.body, a.texts)
	if err != nil {
		return nil, err
	}
	return a.take(r, at)
}

// take turns a report that arrived at a moment into what it says. Within a boot of
// the agent the number of a report rises: an older one, which something between
// has kept, is refused, and one that comes again makes nothing younger.
func (a *agent) take(r *Report, arrived time.Time) (*sample, error) {
	switch {
	case r.BootID == "":
		return nil, errors.New("the answer has no boot_id: is this a tidegate-gpu-agent?")
	case r.BootID != a.boot:
		if a.boot != "" {
			a.restarted()
		}
		a.boot, a.seq = r.BootID, r.Seq
		clear(a.at)
	case r.Seq < a.seq:
		return nil, fmt.Errorf("report %d came after report %d: something between repeats old answers", r.Seq, a.seq)
	case r.Seq > a.seq:
		a.seq = r.Seq
		clear(a.at)
	}
	s := &sample{node: cleanText(r.Node), driver: cleanText(r.Driver)}
	block := make([]GPU, len(r.GPUs))
	s.gpus = make([]*GPU, len(r.GPUs))
	for i := range r.GPUs {
		g := &block[i]
		s.gpus[i] = g
		g.Reading, g.At = r.GPUs[i], ago(arrived, r.GPUs[i].AgeMs)
		if before, again := a.at[g.UUID]; again && before.Before(g.At) {
			g.At = before
		}
		a.at[g.UUID] = g.At
	}
	if r.Error != "" {
		return s, fmt.Errorf("the agent says: %s", cleanText(r.Error))
	}
	return s, nil
}
