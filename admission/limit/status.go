package limit

import (
	"context"
	"fmt"
	"time"
)

// Status is the state of all rules and quotas of a caller, in the form of GET /quota/status.
type Status struct {
	Quotas []QuotaStatus `json:"quotas"`
	Rates  []RateStatus  `json:"rates"`
}

// QuotaStatus is the state of one quota. Parts of a unit count as used.
type QuotaStatus struct {
	Name          string    `json:"name"`
	Scope         string    `json:"per"`
	Unit          string    `json:"unit"` // units | tokens
	Used          int64     `json:"used"`
	Limit         int64     `json:"limit"`
	Remaining     int64     `json:"remaining"`
	ResetsAt      time.Time `json:"resets_at"`
	AlertsCrossed []int     `json:"alerts_crossed"` // percent
}

// RateStatus is the state of one metric of one rule.
type RateStatus struct {
	Name      string `json:"name"`
	Scope     string `json:"per"`
	Metric    string `json:"metric"`
	Limit     int64  `json:"limit"`
	Remaining int64  `json:"remaining"`
	ResetMs   int64  `json:"reset_ms"`

	// Fields of a limit that pressure has shrunk.
	Level  string  `json:"level,omitempty"`      // L1 to L4
	Factor float64 `json:"factor,omitempty"`     // part of the limit that is left
	Whole  int64   `json:"full_limit,omitempty"` // limit without pressure
}

// Status returns the state of every rule that the subjects of r meet, and changes nothing.
// Shadow rules are left out: they reject nobody.
func (l *Limiter) Status(ctx context.Context, r Request) (Status, error) {
	now := l.opts.Now()
	p := l.set.Load().plan(&r, Estimate{}, now)
	out := Status{Quotas: []QuotaStatus{}, Rates: []RateStatus{}}
	if len(p.dims) == 0 {
		return out, nil
	}
	seen, err := l.opts.Store.Reserve(ctx, Reservation{Dims: withoutCost(p.dims), Peek: true})
	if err != nil {
		return out, fmt.Errorf("look at limits: %w: %w", ErrStore, err)
	}
	for i := range p.dims {
		d, c, s := &p.dims[i], p.counters[i], &seen.States[i]
		switch {
		case c.shadow || p.ceiling(i):
		case d.Kind == Quota:
			out.Quotas = append(out.Quotas, c.status(d, s))
		default:
			rate := RateStatus{Name: d.Rule, Scope: c.scope, Metric: d.Metric.String(), Limit: s.Limit, Remaining: s.Remaining, ResetMs: s.ResetMs}
			if d.Kind == Lease && s.Used > 0 {
				l.mu.Lock()
				wait := l.placeWait(d.Key, place{used: s.Used, cost: s.Limit, limit: s.Limit}, 0, now)
				l.mu.Unlock()
				rate.ResetMs = max(wait.Milliseconds(), 1)
			}
			if small := p.shrunk(i, now); small != (Shrunk{}) {
				rate.Level, rate.Factor, rate.Whole = fmt.Sprintf("L%d", small.Level), float64(small.Factor)/1000, small.Whole
			}
			out.Rates = append(out.Rates, rate)
		}
	}
	return out, nil
}

func (c *counter) status(d *Dim, s *State) QuotaStatus {
	q := QuotaStatus{
		Name: d.Rule, Scope: c.scope, Unit: d.Metric.String(), Used: roundedUp(d.Metric, s.Used), Limit: roundedUp(d.Metric, s.Limit),
		ResetsAt: time.UnixMilli(d.EndMs).In(c.calendar.zone), AlertsCrossed: []int{},
	}
	q.Remaining = max(q.Limit-q.Used, 0)
	for _, percent := range c.alertAt {
		if s.Used*100 >= s.Limit*int64(percent) {
			q.AlertsCrossed = append(q.AlertsCrossed, percent)
		}
	}
	return q
}

// Tightest returns the quota of which the least part remains; false where there is none.
func (s *Status) Tightest() (QuotaStatus, bool) {
	best := -1
	for i := range s.Quotas {
		if best < 0 || float64(s.Quotas[i].Remaining)/float64(s.Quotas[i].Limit) < float64(s.Quotas[best].Remaining)/float64(s.Quotas[best].Limit) {
			best = i
		}
	}
	if best < 0 {
		return QuotaStatus{}, false
	}
	return s.Quotas[best], true
}

// QuotaUse is the settled use of one quota: without what running requests hold and may give
// back.
type QuotaUse struct {
	QuotaStatus
	Subject string // department, project, user, key, address or model, two with a comma; empty for all callers together
	Counter string // key of the counter: two counters may have one Subject
	AlertAt []int  // percent, the smallest first
	Shared  bool   // the counters of all replicas say so, not those of this process alone
}

// Use returns the use of every quota that the subjects meet, and changes nothing. A quota
// whose period has ended by the store's clock, though not by this process's, is left out.
func (l *Limiter) Use(ctx context.Context, subjects Subjects) ([]QuotaUse, error) {
	now := l.opts.Now()
	p := l.set.Load().plan(&Request{Subjects: subjects}, Estimate{}, now)
	var (
		dims     []Dim
		counters []*counter
	)
	for i, d := range withoutCost(p.dims) {
		if d.Kind == Quota {
			dims, counters = append(dims, d), append(counters, p.counters[i])
		}
	}
	if len(dims) == 0 {
		return nil, nil
	}
	seen, err := l.opts.Store.Reserve(ctx, Reservation{Dims: dims, Peek: true, Settled: true})
	if err != nil {
		return nil, fmt.Errorf("look at quotas: %w: %w", ErrStore, err)
	}
	var out []QuotaUse
	for i, c := range counters {
		if now.UnixMilli()+seen.States[i].ResetMs > dims[i].EndMs+CalendarSkew.Milliseconds() {
			continue
		}
		out = append(out, QuotaUse{c.status(&dims[i], &seen.States[i]), c.subjects.describe(&subjects), dims[i].Key, c.alertAt, seen.Shared})
	}
	return out, nil
}
