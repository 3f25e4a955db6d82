package limit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// QuotaPeriod is the running period of a quota.
type QuotaPeriod struct {
	Name         string
	SubjectKinds []string // subjects
	Begin, End   time.Time
}

// Quotas returns the running periods of all quotas.
func (l *Limiter) Quotas() (out []QuotaPeriod) {
	set, now := l.set.Load(), l.opts.Now()
	for i := range set.counters {
		c := &set.counters[i]
		if c.kind != Quota {
			continue
		}
		q := QuotaPeriod{Name: c.rule}
		for _, s := range c.subjects {
			q.SubjectKinds = append(q.SubjectKinds, s.String())
		}
		running := c.calendar.periodAt(now)
		q.Begin, q.End = running.begin, running.end
		out = append(out, q)
	}
	return out
}

// restoreEvery is the time for which one restoration of a counter counts for all replicas.
const restoreEvery = 10 * time.Second

// ErrRestoring means that another replica restores the same quota.
var ErrRestoring = errors.New("another gateway restores this quota just now")

// Recorded is the amount that a ledger knows to be used of one quota's counter in the running
// period.
type Recorded struct {
	Dim  Dim   // counter's key and period
	Used int64 // amount in the unit of the counter; units are in thousandths
}

// Recorded returns a ledger's sum of tokens and of thousandths of a unit as an amount of one
// quota of the subjects. It reports whether the quota counts them.
func (l *Limiter) Recorded(quota string, subjects Subjects, tokens, milliunits int64) (Recorded, bool) {
	p := l.set.Load().plan(&Request{Subjects: subjects}, Estimate{}, l.opts.Now())
	for i := range p.dims {
		d := p.dims[i]
		if d.Kind != Quota || d.Rule != quota {
			continue
		}
		d.Cost, d.Floor = 0, 0
		if d.Metric == Tokens {
			return Recorded{d, tokens}, true
		}
		return Recorded{d, milliunits}, true
	}
	return Recorded{}, false
}

// Restore raises one quota to what a ledger knows to be used in the running period, if the
// store knows of less because it was started anew. Of several replicas that do so at once, one
// counts.
func (l *Limiter) Restore(ctx context.Context, r Recorded) error {
	dims := []Dim{r.Dim}
	seen, err := l.opts.Store.Reserve(ctx, Reservation{Dims: dims, Peek: true})
	if err != nil {
		return fmt.Errorf("restore quota %s: %w: %w", r.Dim.Rule, ErrStore, err)
	}
	missing := r.Used - seen.States[0].Used
	if missing <= 0 {
		return nil
	}
	id := fmt.Sprintf("restore:%s:%d", r.Dim.Key, l.opts.Now().Truncate(restoreEvery).Unix())
	out, err := l.opts.Store.Settle(ctx, Settlement{ID: id, Dims: dims, Charges: []int64{missing}, New: true})
	if err != nil {
		return fmt.Errorf("restore quota %s: %w: %w", r.Dim.Rule, ErrStore, err)
	}
	if !out.Applied {
		return ErrRestoring
	}
	return nil
}
