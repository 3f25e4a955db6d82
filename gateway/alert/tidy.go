package alert

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// upkeep is the state of Tidy.
type upkeep struct {
	pruned    time.Time                         // time of the last deletion of old rows
	nextCount time.Time                         // time of the next count of deliveries
	status    atomic.Pointer[map[string]Status] // counts by channel; nil before the first count
}

// Tidy drops the deliveries of removed targets, deletes old rows, and updates Status. Only
// one goroutine may call it at a time.
func (a *Alerts) Tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if err := a.dropRemoved(ctx); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if err := a.prune(ctx); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if err := a.count(ctx); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return nil
}

// dropRemoved drops the pending deliveries of targets that a reload has removed.
func (a *Alerts) dropRemoved(ctx context.Context) error {
	removed := a.routes.removedTargets()
	for _, t := range removed {
		n, err := a.outbox.drop(ctx, t)
		if err != nil {
			return err
		}
		if n > 0 {
			a.Log.Warn("alerts are dropped: their channel or recipient is no longer configured", "channel", t.Channel, "recipient", t.Recipient, "alerts", n)
		}
	}
	a.routes.forget(removed)
	return nil
}

// prune deletes old rows once in a pruneInterval.
func (a *Alerts) prune(ctx context.Context) error {
	now := a.now()
	if now.Sub(a.upkeep.pruned) < pruneInterval {
		return nil
	}
	var names []string
	for _, c := range a.routes.list() {
		names = append(names, c.Name)
	}
	if err := errors.Join(a.outbox.dropAbandoned(ctx, names, now.Add(-maxRetryAge)), a.outbox.prune(ctx, now.Add(-retention))); err != nil {
		return err
	}
	a.upkeep.pruned = now
	return nil
}

// count counts the deliveries for Status. Counts take at most a fiftieth of the time, since
// the table may be long.
func (a *Alerts) count(ctx context.Context) error {
	began := a.now()
	if began.Before(a.upkeep.nextCount) {
		return nil
	}
	status, err := a.outbox.statuses(ctx)
	a.upkeep.nextCount = a.now().Add(50 * a.now().Sub(began))
	if err != nil {
		return err
	}
	a.upkeep.status.Store(&status)
	return nil
}
