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

// maxTouched bounds the set of subjects to check. The ledger knows the others.
const maxTouched = 10_000

// touchedSet is the set of subjects to check. It is safe for concurrent use.
type touchedSet struct {
	mu         sync.Mutex
	refusals   map[limit.Subjects]string // names of the quotas that rejected them, with commas
	overflowed bool                      // set if there was no room for some
}

// add adds subjects, and the name of a quota that has rejected them, if any.
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

// overflow marks the set as incomplete, so that the next check covers all subjects.
func (t *touchedSet) overflow() {
	t.mu.Lock()
	t.overflowed = true
	t.mu.Unlock()
}

// drain empties the set and returns its former content.
func (t *touchedSet) drain() (refusals map[limit.Subjects]string, overflowed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	refusals, overflowed = t.refusals, t.overflowed
	t.refusals, t.overflowed = map[limit.Subjects]string{}, false
	return refusals, overflowed
}

// errNotShared reports that Redis does not answer: this replica's own counters do not have
// the use of the others.
var errNotShared = errors.New("the counters that all gateways share do not answer")

// Times of claims.
const (
	claimTTL   = time.Minute    // life of the claim on a crossing before it is noted
	claimGrace = 24 * time.Hour // life of the claim on a noted crossing, after the end of its period
)

// checks is the state of Check.
type checks struct {
	owner     string               // id of the database; empty before it is known
	swept     time.Time            // last time at which the ledger was asked for subjects
	nextSweep time.Time            // next time to ask it
	sweepErr  error                // error of the last time
	queue     []limit.Subjects     // subjects of the ledger that are still to be checked
	settled   map[string]time.Time // crossings that need no work, by id, with the time until which that holds
	failing   bool                 // set if the last check failed
}

// Check checks the quotas of all touched subjects, and of all others if a sweep is due, and
// notes the crossings. It checks the subjects it failed on the next time. Only one goroutine
// may call it at a time.
func (a *Alerts) Check(ctx context.Context) error {
	refusals, overflowed := a.touched.drain()
	now := a.now()
	if overflowed {
		a.checks.nextSweep = a.checks.swept.Add(minSweepInterval)
	}
	for id, expires := range a.checks.settled {
		if !now.Before(expires) {
			delete(a.checks.settled, id)
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

// putBack returns unchecked subjects to the set.
func (a *Alerts) putBack(refusals map[limit.Subjects]string) {
	for s, refused := range refusals {
		a.touched.add(s, "")
		for quota := range strings.SplitSeq(refused, ",") {
			if quota != "" {
				a.touched.add(s, quota)
			}
		}
	}
}

// sweep checks all subjects, a part each time, so that touched ones do not wait. It asks
// the ledger seldom. A ledger that does not answer delays nothing else.
func (a *Alerts) sweep(ctx context.Context) error {
	c := &a.checks
	began := a.now()
	if a.ActiveSubjects != nil && len(c.queue) == 0 && !began.Before(c.nextSweep) {
		call, cancel := context.WithTimeout(ctx, sweepTimeout)
		subjects, err := a.ActiveSubjects(call)
		cancel()
		c.swept = a.now()
		c.queue, c.sweepErr = subjects, err
		if c.nextSweep = c.swept.Add(sweepInterval); err != nil {
			c.nextSweep = c.swept.Add(minSweepInterval + 10*c.swept.Sub(began)) // the ledger may be overloaded
		}
	}
	for began = a.now(); len(c.queue) > 0 && a.now().Sub(began) < checkInterval/2; c.queue = c.queue[1:] {
		if err := a.checkSubjects(ctx, c.queue[0], ""); err != nil {
			return err
		}
	}
	if len(c.queue) == 0 {
		c.queue = nil // frees a long list
	}
	return c.sweepErr
}

// decideOpen decides the crossings that a dead process or an unavailable Redis left open.
func (a *Alerts) decideOpen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if a.checks.owner == "" {
		owner, err := a.outbox.owner(ctx)
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		a.checks.owner = owner
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

// checkSubjects notes the crossings of the subjects' quotas. refused names the quotas that
// rejected them, with commas.
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
			if err := a.note(ctx, u, percent); err != nil {
				return err
			}
		}
	}
	return nil
}

// Thresholds with a meaning, in percent.
const (
	full = 100
	// nearlyFull makes a threshold severe. A rejection at or above it means that the quota
	// is used up, if the quota has no lower threshold.
	nearlyFull = 95
)

// crossedThresholds returns the thresholds, in percent, that a quota has crossed.
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

// severity returns the severity of a threshold. At 100 requests are rejected. At 95 and
// more, or at the last of several below 100, they soon will be.
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

// crossingID returns the id of a crossing, which is the same in every process and database.
func crossingID(u *limit.QuotaUse, percent int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%d", u.Name, u.Counter, u.ResetsAt.UnixMilli(), percent))
	return hex.EncodeToString(sum[:16])
}

// note inserts a crossing into the outbox, unless it is there or another database owns it.
func (a *Alerts) note(ctx context.Context, u *limit.QuotaUse, percent int) error {
	now := a.now()
	c := &crossing{
		ID: crossingID(u, percent), Quota: u.Name, Scope: u.Scope, Subject: u.Subject, Counter: u.Counter, Unit: u.Unit, Percent: percent,
		Severity: severity(percent, u.AlertAt), Used: u.Used, Limit: u.Limit, EndsMs: u.ResetsAt.UnixMilli(),
		Zone: u.ResetsAt.Location().String(), TimeMs: now.UnixMilli(), State: ours,
	}
	if _, known := a.checks.settled[c.ID]; known {
		return nil
	}
	state, err := a.outbox.state(ctx, c.ID)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	switch {
	case state == ours || state == foreign:
		a.checks.settled[c.ID] = u.ResetsAt
		return nil
	case a.Claims != nil:
		c.State = noted
		mine, err := a.Claims.Claim(ctx, c.ID, a.checks.owner, claimTTL)
		if err != nil {
			return fmt.Errorf("claim an alert: %w", err)
		}
		if !mine {
			a.checks.settled[c.ID] = now.Add(claimTTL) // its owner may die before it has noted the crossing
			return nil
		}
	}
	inserted, err := a.outbox.insert(ctx, c, a.routes.accepting(c.Severity))
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if inserted {
		a.Log.Info("a quota's threshold is crossed", "alert", c.ID, "quota", c.Quota, "per", c.Scope, "who", c.Subject, "percent", c.Percent,
			"used", c.Used, "limit", c.Limit, "unit", c.Unit, "resets_at", u.ResetsAt)
	}
	return a.decideOwner(ctx, c)
}

// decideOwner decides which database owns a crossing of the outbox, and stores the
// decision.
func (a *Alerts) decideOwner(ctx context.Context, c *crossing) error {
	state := ours
	if a.Claims != nil {
		ends := time.UnixMilli(c.EndsMs)
		mine, err := a.Claims.Claim(ctx, c.ID, a.checks.owner, max(ends.Sub(a.now()), 0)+claimGrace)
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
	a.checks.settled[c.ID] = time.UnixMilli(c.EndsMs)
	if state == ours {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	return nil
}
