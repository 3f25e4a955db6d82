package nvml

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
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
	at        map[string]time.Time // by UUID: when the values of report seq were measured
}

func newAgent(c *Config, w *web, restarted func()) *agent {
	a := &agent{restarted: restarted}
	a.aim(c, w, c.Agent)
	return a
}

// aim sets where the agent is asked.
func (a *agent) aim(c *Config, w *web, url string) {
	if strings.HasPrefix(url, "unix://") {
		url += "?" // what follows is the path of the request
	}
	a.page = newPage(w, strings.TrimSuffix(url, "/")+"/v1/readings", c, maxReport)
}

func (a *agent) read(ctx context.Context) (*sample, error) {
	at, err := a.page.all(ctx)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(a.page.body, &r); err != nil {
		return nil, fmt.Errorf("the answer is no report: %w", err)
	}
	return a.take(&r, at)
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
		a.boot, a.seq, a.at = r.BootID, r.Seq, nil
	case r.Seq < a.seq:
		return nil, fmt.Errorf("report %d came after report %d: something between repeats old answers", r.Seq, a.seq)
	case r.Seq > a.seq:
		a.seq, a.at = r.Seq, nil
	}
	s := &sample{node: cleanText(r.Node), driver: cleanText(r.Driver)}
	measured := make(map[string]time.Time, len(r.GPUs))
	block := make([]GPU, len(r.GPUs))
	for i := range r.GPUs {
		g := &block[i]
		g.Reading, g.At = r.GPUs[i], ago(arrived, r.GPUs[i].AgeMs)
		if before, again := a.at[g.UUID]; again && before.Before(g.At) {
			g.At = before
		}
		measured[g.UUID] = g.At
		s.gpus = append(s.gpus, g)
	}
	a.at = measured
	if r.Error != "" {
		return s, fmt.Errorf("the agent says: %s", cleanText(r.Error))
	}
	return s, nil
}
