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
	leaseLife  = 3 * time.Minute // longer than a try and what clocks of replicas differ by
	firstPause = 5 * time.Second
	lastPause  = 5 * time.Minute
	jitter     = 0.2
	triedFor   = 24 * time.Hour
	sayEvery   = time.Minute // of one channel's failures in the log
)

// Deliver tries once what is due for a channel. In a process one goroutine at a time
// may do so for each channel; any number of processes may.
func (a *Alerts) Deliver(ctx context.Context, c Channel) error {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, askTimeout)
		now := a.now()
		d, err := a.outbox.lease(call, c.Name, now, now.Add(leaseLife))
		cancel()
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		if d == nil {
			return nil
		}
		if err := a.try(ctx, c, d); err != nil {
			return err
		}
	}
	return nil
}

// try sends one message and notes what became of it. A process that is to end gives
// what is on its way a moment to arrive, and always notes the outcome.
func (a *Alerts) try(ctx context.Context, c Channel, d *delivery) error {
	outlives := context.WithoutCancel(ctx)
	state, next, problem := dropped, a.now(), noTarget
	if slices.Contains(c.Targets, d.Recipient) {
		sending, cancel := context.WithCancel(outlives)
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(endTimeout, cancel) })
		err := c.Send(sending, d.Recipient, d.alert())
		stop()
		cancel()
		state, next, problem = a.judge(c, d, err)
	}
	call, cancel := context.WithTimeout(outlives, askTimeout)
	defer cancel()
	if err := a.outbox.end(call, d, state, a.now(), next, problem); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return nil
}

// judge says what follows from a try: the delivery's state, when it is tried again,
// and what went wrong.
func (a *Alerts) judge(c Channel, d *delivery, err error) (state string, next time.Time, problem string) {
	now := a.now()
	var failed *channel.Error
	args := []any{"channel", c.Name, "recipient", d.Recipient, "alert", d.ID, "attempt", d.Attempts}
	switch {
	case err == nil:
		a.metrics.count(c.Name, d.Severity, "sent")
		a.Log.Info("an alert is sent", args...)
		return sent, now, ""
	case now.Sub(time.UnixMilli(d.FirstMs)) >= triedFor:
		a.metrics.count(c.Name, d.Severity, "given_up")
		a.Log.Error("an alert could not be sent and is given up", append(args, "error", err.Error())...)
		return givenUp, now, err.Error()
	}
	a.metrics.count(c.Name, d.Severity, "retried")
	pause := a.pause(d.Attempts)
	a.mu.Lock()
	quiet := now.Sub(a.said[c.Name]) < sayEvery
	if !quiet {
		a.said[c.Name] = now
	}
	a.mu.Unlock()
	if !quiet {
		unsure := errors.As(err, &failed) && failed.Unsure
		a.Log.Warn("an alert could not be sent; trying again", append(args, "in", pause.Round(time.Second), "may_have_arrived", unsure, "error", err.Error())...)
	}
	return pending, now.Add(pause), err.Error()
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
// to date.
func (a *Alerts) Tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a.mu.Lock()
	gone := slices.Clone(a.gone)
	now := a.now()
	old := now.Sub(a.tidied) >= tidyEvery
	var names []string
	for _, c := range a.channels {
		names = append(names, c.Name)
	}
	a.mu.Unlock()
	for _, t := range gone {
		n, err := a.outbox.drop(ctx, t)
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		if n > 0 {
			a.Log.Warn("alerts are dropped: their channel or recipient is no longer configured", "channel", t.Channel, "recipient", t.Recipient, "alerts", n)
		}
	}
	a.mu.Lock()
	a.gone = slices.DeleteFunc(a.gone, func(t channel.Target) bool { return slices.Contains(gone, t) })
	a.mu.Unlock()
	if old {
		if err := errors.Join(a.outbox.dropOld(ctx, names, now.Add(-triedFor)), a.outbox.prune(ctx, now.Add(-keptFor))); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	status, err := a.outbox.tallies(ctx)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	a.mu.Lock()
	a.status = status
	if old {
		a.tidied = now
	}
	a.mu.Unlock()
	return nil
}
