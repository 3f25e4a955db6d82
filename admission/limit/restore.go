package limit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// QuotaPeriod is the period of a quota that is running now.
type QuotaPeriod struct {
	Name       string
	Per        []string // subjects
	Begin, End time.Time
}

// Quotas are the periods that are running now.
func (l *Limiter) Quotas() (out []QuotaPeriod) {
	set, now := l.set.Load(), l.with.Now()
	for i := range set.counters {
		c := &set.counters[i]
		if c.kind != Quota {
			continue
		}
		q := QuotaPeriod{Name: c.rule}
		for _, s := range c.by {
			q.Per = append(q.Per, s.String())
		}
		running := c.calendar.at(now)
		q.Begin, q.End = running.begin, running.end
		out = append(out, q)
	}
	return out
}

// restoreEvery is how long one restoration of a counter stands for all replicas.
const restoreEvery = 10 * time.Second

// ErrRestoring says that a quota is being restored by another replica, too.
var ErrRestoring = errors.New("another gateway restores this quota just now")

// Restore raises one quota of who to what a ledger says was used in the running
// period, in tokens and in thousandths of a unit, if the store knows of less: it was
// started anew. Of several replicas that do so at once one counts.
func (l *Limiter) Restore(ctx context.Context, quota string, who Subjects, tokens, milliunits int64) error {
	set, now := l.set.Load(), l.with.Now()
	p := set.plan(&Request{Subjects: who}, Estimate{}, now)
	for i := range p.dims {
		d := p.dims[i]
		if d.Kind != Quota || d.Rule != quota {
			continue
		}
		dims := withoutCost(p.dims[i : i+1])
		seen, err := l.with.Store.Reserve(ctx, Reservation{Dims: dims, Peek: true})
		if err != nil {
			return fmt.Errorf("restore quota %s: %w: %w", quota, ErrStore, err)
		}
		was := milliunits
		if d.Metric == Tokens {
			was = tokens
		}
		missing := was - seen.States[0].Used
		if missing <= 0 {
			continue
		}
		id := fmt.Sprintf("restore:%s:%d", d.Key, now.Truncate(restoreEvery).Unix())
		out, err := l.with.Store.Settle(ctx, Settlement{ID: id, Dims: dims, Charges: []int64{missing}, New: true})
		if err != nil {
			return fmt.Errorf("restore quota %s: %w: %w", quota, ErrStore, err)
		}
		if !out.Applied {
			return ErrRestoring
		}
	}
	return nil
}
