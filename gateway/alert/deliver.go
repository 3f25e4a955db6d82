package alert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidegate/gateway/alert/channel"
)

// Times of the attempts at a delivery.
const (
	leaseTTL     = 3 * time.Minute // longer than an attempt plus the clock skew of replicas
	firstPause   = 5 * time.Second
	lastPause    = 5 * time.Minute
	jitter       = 0.2 // share of a pause
	maxRetryAge  = 24 * time.Hour
	logInterval  = time.Minute      // between two logged failures of a channel
	recoveryTime = 10 * time.Second // time that the database must answer before expired leases are taken
)

// outcome is the result of an attempt at a delivery.
type outcome struct {
	delivery *delivery
	state    string
	time     time.Time // end of the attempt
	next     time.Time // time of the next attempt
	problem  string    // error; empty if there was none
}

// sender is the state of one channel's deliveries. The goroutine that delivers to the
// channel owns it.
type sender struct {
	unwritten *outcome  // outcome that the database has not stored yet
	failed    time.Time // last time at which the database did not answer
	logged    time.Time // time of the last logged failure
}

// senders holds the sender of each channel. It is safe for concurrent use.
type senders struct {
	mu        sync.Mutex
	byChannel map[string]*sender
}

// get returns the sender of a channel, which stays the same across reloads.
func (s *senders) get(name string) *sender {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byChannel[name] == nil {
		s.byChannel[name] = &sender{}
	}
	return s.byChannel[name]
}

// Deliver attempts each due delivery of a channel once. It returns when none is left or
// when a reload has replaced the channel. For each channel, only one goroutine of a process
// may call it at a time; any number of processes may.
func (a *Alerts) Deliver(ctx context.Context, c Channel) error {
	s := a.senders.get(c.Name)
	for ctx.Err() == nil && a.routes.isCurrent(c) {
		d, err := a.nextDelivery(ctx, c, s)
		if err == nil && d == nil {
			return nil
		}
		if err == nil {
			s.unwritten = a.attempt(ctx, c, d, s)
			err = a.writeOutcome(ctx, s)
		}
		if err != nil {
			s.failed = a.now()
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}

// nextDelivery stores the outcome that is left, then leases a due delivery; nil if none is
// due. After an outage of the database it ignores expired leases at first: their owners may
// be about to store that the message is sent.
func (a *Alerts) nextDelivery(ctx context.Context, c Channel, s *sender) (*delivery, error) {
	if err := a.writeOutcome(ctx, s); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	now := a.now()
	return a.outbox.lease(ctx, c.Name, now, now.Add(leaseTTL), now.Sub(s.failed) >= recoveryTime)
}

// writeOutcome stores the outcome of an attempt, even when the process ends. It keeps one
// that the database does not accept, or the message would be sent again.
func (a *Alerts) writeOutcome(ctx context.Context, s *sender) error {
	if s.unwritten == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	if err := a.outbox.finish(ctx, s.unwritten); err != nil {
		return err
	}
	s.unwritten = nil
	return nil
}

// attempt sends one message. When the process ends, a message under way has sendGrace to
// arrive.
func (a *Alerts) attempt(ctx context.Context, c Channel, d *delivery, s *sender) *outcome {
	if !slices.Contains(c.Targets, d.Recipient) {
		return &outcome{delivery: d, state: dropped, time: a.now(), next: a.now(), problem: noTarget}
	}
	sendCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(sendGrace, cancel) })
	defer stop()
	return a.outcome(c, d, s, c.Send(sendCtx, d.Recipient, d.alert()))
}

// outcome returns the outcome of an attempt that ended with err, and counts and logs it.
func (a *Alerts) outcome(c Channel, d *delivery, s *sender, err error) *outcome {
	now := a.now()
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
	if now.Sub(s.logged) >= logInterval {
		s.logged = now
		var failed *channel.Error
		unsure := errors.As(err, &failed) && failed.Unsure
		a.Log.Warn("an alert could not be sent; trying again", append(args, "in", pause.Round(time.Second), "may_have_arrived", unsure, "error", err.Error())...)
	}
	return &outcome{d, pending, now, now.Add(pause), err.Error()}
}

// pause returns the time to wait after a number of attempts. It varies by a fifth, so that
// retries do not come together.
func (a *Alerts) pause(attempts int) time.Duration {
	p := firstPause
	for i := 1; i < attempts && p < lastPause; i++ {
		p *= 2
	}
	p = min(p, lastPause)
	return p + time.Duration(jitter*(2*a.Random()-1)*float64(p))
}
