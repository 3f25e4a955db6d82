package alert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
)

// maxTouched bounds the set of those who are to be looked at; the ledger knows the
// others.
const maxTouched = 10_000

// touched is who is to be looked at, and which quotas have refused them, with commas.
type touchedSet struct {
	mu         sync.Mutex
	refusals   map[limit.Subjects]string
	overflowed bool // there was no room for all
}

func (t *touchedSet) add(subjects limit.Subjects, quota string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	quotas, known := t.refusals[subjects]
	switch {
	case !known && len(t.refusals) >= maxTouched:
		t.overflowed = true
		return
	case known && (quota == "" || slices.Contains(strings.Split(quotas, ","), quota)):
		return
	case quotas != "":
		quota = quotas + "," + quota
	}
	t.refusals[subjects] = quota
}

func (t *touchedSet) overflow() {
	t.mu.Lock()
	t.overflowed = true
	t.mu.Unlock()
}

func (t *touchedSet) drain() (refusals map[limit.Subjects]string, overflowed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	refusals, overflowed = t.refusals, t.overflowed
	t.refusals, t.overflowed = map[limit.Subjects]string{}, false
	return refusals, overflowed
}

// errAlone says that Redis does not answer: this replica's own counters do not say
// what all have used.
var errNotShared = errors.New("the counters that all gateways share do not answer")

// claimedFor is for how long a crossing is claimed until it is noted, and otherwise
// for how long past its period.
const (
	claimTTL   = time.Minute
	claimGrace = 24 * time.Hour
)

// Look looks at all who were touched, and at everybody if that is due, and notes what
// is crossed. Whom it could not look at it looks at the next time. Only one may look
// at a time.
func (a *Alerts) Check(ctx context.Context) error {
	refusals, overflowed := a.touched.drain()
	now := a.now()
	if overflowed {
		a.sweepAt = a.asked.Add(minSweepInterval)
	}
	for id, expires := range a.settled {
		if !now.Before(expires) {
			delete(a.settled, id)
		}
	}
	err := a.decideOpen(ctx)
	for s, refused := range refusals {
		if err == nil {
			err = a.checkSubjects(ctx, s, refused)
		}
		if err != nil {
			break
		}
		delete(refusals, s)
	}
	a.putBack(refusals)
	if err == nil {
		err = a.sweep(ctx)
	}
	return err
}

// again puts back those who were not looked at.
func (a *Alerts) putBack(subjects map[limit.Subjects]string) {
	for s, refused := range subjects {
		a.touched.add(s, "")
		for quota := range strings.SplitSeq(refused, ",") {
			if quota != "" {
				a.touched.add(s, quota)
			}
		}
	}
}

// sweep looks at everybody, a part each time, so that who was touched does not wait.
// The ledger is asked seldom, and whether it answers matters to nobody else.
func (a *Alerts) sweep(ctx context.Context) error {
	began := a.now()
	if a.ActiveSubjects != nil && len(a.rest) == 0 && !began.Before(a.sweepAt) {
		call, cancel := context.WithTimeout(ctx, sweepTimeout)
		subjects, err := a.ActiveSubjects(call)
		cancel()
		a.asked = a.now()
		a.rest, a.unknown = subjects, err
		if a.sweepAt = a.asked.Add(sweepInterval); err != nil {
			a.sweepAt = a.asked.Add(minSweepInterval + 10*a.asked.Sub(began)) // it may be too much for it
		}
	}
	for began = a.now(); len(a.rest) > 0 && a.now().Sub(began) < checkInterval/2; a.rest = a.rest[1:] {
		if err := a.checkSubjects(ctx, a.rest[0], ""); err != nil {
			return err
		}
	}
	if len(a.rest) == 0 {
		a.rest = nil // it may have been long
	}
	return a.unknown
}

// finish ends what a process that died, or a Redis that went away, left open.
func (a *Alerts) decideOpen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if a.owner == "" {
		owner, err := a.outbox.owner(ctx)
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		a.owner = owner
	}
	open, err := a.outbox.undecided(ctx)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	for i := range open {
		if err := a.decideOwner(ctx, &open[i]); err != nil {
			return err
		}
	}
	return nil
}

func (a *Alerts) checkSubjects(ctx context.Context, subjects limit.Subjects, refused string) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	uses, err := a.Quotas.Use(ctx, subjects)
	if err != nil {
		return err
	}
	for i := range uses {
		u := &uses[i]
		a.metrics.used.set(u, a.now())
		if a.Claims != nil && !u.Shared {
			return errNotShared
		}
		for _, percent := range crossedThresholds(u, slices.Contains(strings.Split(refused, ","), u.Name)) {
			if err := a.record(ctx, u, percent); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	full = 100 // percent
	// nearlyFull is from where on a threshold is severe, and a refusal means that the
	// quota is used up where no threshold says so.
	nearlyFull = 95
)

// crossed are the thresholds that a quota is at or above.
func crossedThresholds(u *limit.QuotaUse, refused bool) []int {
	if !refused || !slices.Contains(u.AlertAt, full) || slices.Contains(u.AlertsCrossed, full) {
		return u.AlertsCrossed
	}
	threshold := nearlyFull
	for _, percent := range u.AlertAt {
		if percent < full {
			threshold = percent // the last is the highest
		}
	}
	if u.Used*full < u.Limit*int64(threshold) {
		return u.AlertsCrossed
	}
	return append(slices.Clone(u.AlertsCrossed), full)
}

// severity is what a threshold means: 100 that requests are refused; 95 and more, or
// the last of several below 100, that they soon will be.
func severity(percent int, thresholds []int) channel.Severity {
	partial := slices.DeleteFunc(slices.Clone(thresholds), func(p int) bool { return p >= full })
	switch {
	case percent >= full:
		return channel.Blocked
	case percent >= nearlyFull, len(partial) > 1 && percent == partial[len(partial)-1]:
		return channel.Severe
	}
	return channel.Warning
}

// crossingID is the same in every process and database.
func crossingID(u *limit.QuotaUse, percent int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%d", u.Name, u.Counter, u.ResetsAt.UnixMilli(), percent))
	return hex.EncodeToString(sum[:16])
}

// note puts a crossing into the outbox, unless it is there or another's.
func (a *Alerts) record(ctx context.Context, u *limit.QuotaUse, percent int) error {
	now := a.now()
	c := &crossing{
		ID: crossingID(u, percent), Quota: u.Name, Scope: u.Per, Subject: u.Who, Counter: u.Counter, Unit: u.Unit, Percent: percent,
		Severity: severity(percent, u.AlertAt), Used: u.Used, Limit: u.Limit, EndsMs: u.ResetsAt.UnixMilli(),
		Zone: u.ResetsAt.Location().String(), TimeMs: now.UnixMilli(), State: ours,
	}
	if _, known := a.settled[c.ID]; known {
		return nil
	}
	state, err := a.outbox.state(ctx, c.ID)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	switch {
	case state == ours || state == foreign:
		a.settled[c.ID] = u.ResetsAt
		return nil
	case a.Claims != nil:
		c.State = noted
		mine, err := a.Claims.Claim(ctx, c.ID, a.owner, claimTTL)
		if err != nil {
			return fmt.Errorf("claim an alert: %w", err)
		}
		if !mine {
			a.settled[c.ID] = now.Add(claimTTL) // it may die before it has told it
			return nil
		}
	}
	a.mu.Lock()
	recipients := targets(a.channels, &c.Severity)
	a.mu.Unlock()
	inserted, err := a.outbox.insert(ctx, c, recipients)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if inserted {
		a.Log.Info("a quota's threshold is crossed", "alert", c.ID, "quota", c.Quota, "per", c.Scope, "who", c.Subject, "percent", c.Percent,
			"used", c.Used, "limit", c.Limit, "unit", c.Unit, "resets_at", u.ResetsAt)
	}
	return a.decideOwner(ctx, c)
}

// settle decides whose a crossing is that lies in the outbox.
func (a *Alerts) decideOwner(ctx context.Context, c *crossing) error {
	state := ours
	if a.Claims != nil {
		ends := time.UnixMilli(c.EndsMs)
		mine, err := a.Claims.Claim(ctx, c.ID, a.owner, max(ends.Sub(a.now()), 0)+claimGrace)
		if err != nil {
			return fmt.Errorf("claim an alert: %w", err)
		}
		if !mine {
			state = foreign
		}
	}
	if c.State == noted {
		if err := a.outbox.setState(ctx, c.ID, state); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	a.settled[c.ID] = time.UnixMilli(c.EndsMs)
	if state == ours {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	return nil
}
