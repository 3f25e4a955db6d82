package alert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/gateway/alert/channel"
)

// How often a message is tried.
const (
	leaseTTL     = 3 * time.Minute // longer than a try and what clocks of replicas differ by
	firstPause   = 5 * time.Second
	lastPause    = 5 * time.Minute
	jitter       = 0.2
	maxRetryAge  = 24 * time.Hour
	logInterval  = time.Minute      // of one channel's failures in the log
	recoveryTime = 10 * time.Second // must the database be before another's lease has run out
)

// outcome is what became of a try.
type outcome struct {
	delivery *delivery
	state    string
	time     time.Time
	next     time.Time // when it is tried again
	problem  string
}

// way is what a channel's deliveries know of the database.
type sender struct {
	unwritten *outcome  // that it did not take yet
	failed    time.Time // when it last did not answer
}

// Deliver tries once what is due for a channel, until there is nothing more or the
// channels are others. In a process one goroutine at a time may do so for each channel;
// any number of processes may.
func (a *Alerts) Deliver(ctx context.Context, c Channel) error {
	a.mu.Lock()
	w := a.ways[c.Name]
	if w == nil {
		w = &sender{}
		a.ways[c.Name] = w
	}
	a.mu.Unlock()
	for ctx.Err() == nil && a.current(c) {
		d, err := a.nextDelivery(ctx, c, w)
		if err == nil && d == nil {
			return nil
		}
		if err == nil {
			w.unwritten = a.send(ctx, c, d)
			err = a.writeOutcome(ctx, w)
		}
		if err != nil {
			w.failed = a.now()
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}

// current reports whether no reload has replaced the channel.
func (a *Alerts) current(c Channel) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return c.generation == a.reloads
}

// next writes down what is left to be, then leases what is due. Leases that ran out
// while the database was away are left alone at first: their owners may be about to
// write down that the message is sent.
func (a *Alerts) nextDelivery(ctx context.Context, c Channel, w *sender) (*delivery, error) {
	if err := a.writeOutcome(ctx, w); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	now := a.now()
	return a.outbox.lease(ctx, c.Name, now, now.Add(leaseTTL), now.Sub(w.failed) >= recoveryTime)
}

// write writes down what became of a try, also when the process is to end. What the
// database does not take stays, or the message would be sent again.
func (a *Alerts) writeOutcome(ctx context.Context, w *sender) error {
	if w.unwritten == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	if err := a.outbox.finish(ctx, w.unwritten); err != nil {
		return err
	}
	w.unwritten = nil
	return nil
}

// try sends one message. A process that is to end gives what is on its way a moment to
// arrive.
func (a *Alerts) send(ctx context.Context, c Channel, d *delivery) *outcome {
	if !slices.Contains(c.Targets, d.Recipient) {
		return &outcome{delivery: d, state: dropped, time: a.now(), next: a.now(), problem: noTarget}
	}
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(sendGrace, cancel) })
	defer stop()
	return a.newOutcome(c, d, c.Send(sending, d.Recipient, d.alert()))
}

// judge says what follows from a try.
func (a *Alerts) newOutcome(c Channel, d *delivery, err error) *outcome {
	now := a.now()
	var failed *channel.Error
	args := []any{"channel", c.Name, "recipient", d.Recipient, "alert", d.ID, "attempt", d.Attempts}
	switch {
	case err == nil:
		a.metrics.count(c.Name, d.Severity, "sent")
		a.Log.Info("an alert is sent", args...)
		return &outcome{d, sent, now, now, ""}
	case now.Sub(time.UnixMilli(d.FirstMs)) >= maxRetryAge:
		a.metrics.count(c.Name, d.Severity, "given_up")
		a.Log.Error("an alert could not be sent and is given up", append(args, "error", err.Error())...)
		return &outcome{d, givenUp, now, now, err.Error()}
	}
	a.metrics.count(c.Name, d.Severity, "retried")
	pause := a.pause(d.Attempts)
	a.mu.Lock()
	quiet := now.Sub(a.logged[c.Name]) < logInterval
	if !quiet {
		a.logged[c.Name] = now
	}
	a.mu.Unlock()
	if !quiet {
		unsure := errors.As(err, &failed) && failed.Unsure
		a.Log.Warn("an alert could not be sent; trying again", append(args, "in", pause.Round(time.Second), "may_have_arrived", unsure, "error", err.Error())...)
	}
	return &outcome{d, pending, now, now.Add(pause), err.Error()}
}

// pause is how long to wait after so many tries, up to a fifth more or less so that
// not all come back together.
func (a *Alerts) pause(attempts int) time.Duration {
	p := firstPause
	for i := 1; i < attempts && p < lastPause; i++ {
		p *= 2
	}
	p = min(p, lastPause)
	return p + time.Duration(jitter*(2*a.Random()-1)*float64(p))
}

// Tidy drops what is on its way to nobody, deletes what is old, and brings Status up
// to date. Only one may do so at a time.
func (a *Alerts) Tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	a.mu.Lock()
	removed := slices.Clone(a.removed)
	var names []string
	for _, c := range a.channels {
		names = append(names, c.Name)
	}
	a.mu.Unlock()
	for _, t := range removed {
		n, err := a.outbox.drop(ctx, t)
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		if n > 0 {
			a.Log.Warn("alerts are dropped: their channel or recipient is no longer configured", "channel", t.Channel, "recipient", t.Recipient, "alerts", n)
		}
	}
	a.mu.Lock()
	a.removed = slices.DeleteFunc(a.removed, func(t channel.Target) bool { return slices.Contains(removed, t) })
	a.mu.Unlock()
	if now := a.now(); now.Sub(a.tidied) >= pruneInterval {
		if err := errors.Join(a.outbox.dropAbandoned(ctx, names, now.Add(-maxRetryAge)), a.outbox.prune(ctx, now.Add(-retention))); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		a.tidied = now
	}
	began := a.now()
	if began.Before(a.tallyAt) {
		return nil
	}
	status, err := a.outbox.statuses(ctx)
	a.tallyAt = a.now().Add(50 * a.now().Sub(began)) // a long table is not to be counted all the time
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	a.mu.Lock()
	a.status = status
	a.mu.Unlock()
	return nil
}
