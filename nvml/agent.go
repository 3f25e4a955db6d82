package nvml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// jitter bounds by how much longer one answer is on its way here than another.
const jitter = time.Second

// maxReport bounds an agent's answer, in bytes: a node of 16 GPUs needs some 20 KiB.
const maxReport = 1 << 20

// agent asks a tidegate-gpu-agent.
type agent struct {
	page      *page
	restarted func()
	boot      string
	seq       uint64
	texts     texts
	seen      map[string]measured // by UUID, in this boot
}

// measured is when some values were, as far as it is known here.
type measured struct {
	sweep uint64 // that they are of; of a GPU that tells none the report
	at    time.Time
}

func newAgent(c *Config, address string, restarted func()) *agent {
	return &agent{restarted: restarted, texts: texts{}, seen: map[string]measured{}, page: newPage(address, "/v1/readings", c, maxReport)}
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
// has kept, is refused. Reports come more often than sweeps, and the way here takes
// them different times, so a sweep has the moment at which it was told first: what
// tells it again makes nothing younger, and no second sample. Only where the agent
// says that it is older by more than that is the agent believed.
func (a *agent) take(r *Report, arrived time.Time) (*sample, error) {
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
		g.Reading, g.At = r.GPUs[i], ago(arrived, r.GPUs[i].AgeMs)
		sweep := g.Sweep
		if sweep == 0 {
			sweep = r.Seq
		}
		if before, again := a.seen[g.UUID]; again && before.sweep == sweep && before.at.Sub(g.At) < jitter {
			g.At = before.at
		}
		a.seen[g.UUID] = measured{sweep, g.At}
	}
	if r.Error != "" {
		return s, fmt.Errorf("the agent says: %s", cleanText(r.Error))
	}
	return s, nil
}
