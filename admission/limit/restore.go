package limit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// QuotaPeriod is the period of a quota that is running now.
type QuotaPeriod struct {
	Name         string
	SubjectKinds []string // subjects
	Begin, End   time.Time
}

// Quotas are the periods that are running now.
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

// restoreEvery is how long one restoration of a counter stands for all replicas.
const restoreEvery = 10 * time.Second

// ErrRestoring says that a quota is being restored by another replica, too.
var ErrRestoring = errors.New("another gateway restores this quota just now")

// Recorded is what a ledger says was used of one quota's counter in the running period.
type Recorded struct {
	Dim  Dim   // with the counter's key and period
	Used int64 // in the unit of the counter; of units in thousandths
}

// Recorded returns what a ledger's sum of tokens and of thousandths of a unit means for
// one quota of who. It reports whether the quota counts them.
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

// Restore raises one quota to what a ledger says was used in the running period, if the
// store knows of less: it was started anew. Of several replicas that do so at once one
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
