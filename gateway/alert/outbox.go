package alert

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/uptrace/bun"

	"tidegate/gateway/alert/channel"
	"tidegate/gateway/database"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the outbox's tables up to date. Several gateways may call it at once.
func Migrate(ctx context.Context, db *bun.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return database.Migrate(ctx, db, "alert", files)
}

// States of a crossing.
const (
	noted   = "noted"     // its owner is not decided yet
	ours    = "ours"      // this database owns it
	foreign = "elsewhere" // another database owns it
)

// States of a delivery.
const (
	pending = "pending"
	sent    = "sent"
	givenUp = "given_up"
	dropped = "dropped" // its channel or recipient is no longer configured
)

// outbox is the tables. Each of its methods is a single step, after which the process may
// die.
type outbox struct{ db *bun.DB }

// crossing is a threshold that was crossed, once in a period.
type crossing struct {
	ID       string           `bun:"id"`
	Quota    string           `bun:"quota"`
	Scope    string           `bun:"per"`
	Subject  string           `bun:"who"`
	Counter  string           `bun:"counter"`
	Unit     string           `bun:"unit"`
	Percent  int              `bun:"percent"` // threshold
	Severity channel.Severity `bun:"severity"`
	Used     int64            `bun:"used"`
	Limit    int64            `bun:"size"`
	EndsMs   int64            `bun:"ends_ms"` // end of the period
	TimeMs   int64            `bun:"at_ms"`   // time of the crossing
	Zone     string           `bun:"zone"`    // IANA name of the period's time zone
	State    string           `bun:"state"`   // noted, ours or foreign
}

// alert returns the crossing as the channels send it.
func (c *crossing) alert() channel.Alert {
	zone, err := time.LoadLocation(c.Zone)
	if err != nil {
		zone = time.UTC
	}
	return channel.Alert{
		ID: c.ID, Quota: c.Quota, Scope: c.Scope, Subject: c.Subject, Unit: c.Unit, Percent: c.Percent, Severity: c.Severity, Used: c.Used,
		Limit: c.Limit, ResetsAt: time.UnixMilli(c.EndsMs).In(zone), Time: time.UnixMilli(c.TimeMs).In(zone),
	}
}

// delivery is a crossing on its way to one target.
type delivery struct {
	crossing
	Channel   string `bun:"channel"`
	Recipient string `bun:"recipient"` // empty where the channel has one
	Attempts  int    `bun:"attempts"`
	FirstMs   int64  `bun:"first_ms"` // time of the first attempt
}

// owner returns the id of this database. The first call creates it.
func (o outbox) owner(ctx context.Context) (id string, err error) {
	if _, err = o.db.ExecContext(ctx, "INSERT INTO alert_owner (one, id) VALUES (1, ?) ON CONFLICT (one) DO NOTHING", rand.Text()); err != nil {
		return "", err
	}
	err = o.db.QueryRowContext(ctx, "SELECT id FROM alert_owner").Scan(&id)
	return id, err
}

// state returns the state of a crossing, or "" if there is none.
func (o outbox) state(ctx context.Context, id string) (state string, err error) {
	err = o.db.QueryRowContext(ctx, "SELECT state FROM alert_crossings WHERE id = ?", id).Scan(&state)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return state, err
}

// insert inserts a crossing and its deliveries in one transaction. It leaves an existing
// crossing as it is, and reports whether it inserted one.
func (o outbox) insert(ctx context.Context, c *crossing, targets []channel.Target) (inserted bool, err error) {
	err = o.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		result, err := tx.ExecContext(ctx, `INSERT INTO alert_crossings
			(id, quota, per, who, counter, unit, percent, severity, used, size, ends_ms, zone, at_ms, state)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			c.ID, c.Quota, c.Scope, c.Subject, c.Counter, c.Unit, c.Percent, int(c.Severity), c.Used, c.Limit, c.EndsMs, c.Zone, c.TimeMs, c.State)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil || n == 0 {
			return err
		}
		inserted = true
		for _, t := range targets {
			if _, err := tx.ExecContext(ctx, `INSERT INTO alert_deliveries
				(crossing, channel, recipient, state, attempts, first_ms, tried_ms, next_ms, lease_ms, error)
				VALUES (?, ?, ?, ?, 0, 0, 0, ?, 0, '')`, c.ID, t.Channel, t.Recipient, pending, c.TimeMs); err != nil {
				return err
			}
		}
		return nil
	})
	return inserted && err == nil, err
}

// undecided returns the crossings whose owner is not decided yet.
func (o outbox) undecided(ctx context.Context) (out []crossing, err error) {
	err = o.db.NewRaw("SELECT * FROM alert_crossings WHERE state = ? ORDER BY at_ms, percent", noted).Scan(ctx, &out)
	return out, err
}

// setState sets the owner of a noted crossing. A foreign crossing loses its deliveries.
func (o outbox) setState(ctx context.Context, id, state string) error {
	return o.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if state == foreign {
			if _, err := tx.ExecContext(ctx, "DELETE FROM alert_deliveries WHERE crossing = ? AND state = ? AND attempts = 0", id, pending); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, "UPDATE alert_crossings SET state = ? WHERE id = ? AND state = ?", state, id, noted)
		return err
	})
}

// lease leases the delivery of a channel that is due for the longest time; nil if none is
// due. Of several callers in any process, one gets it. With stale it also takes deliveries
// whose lease has expired.
func (o outbox) lease(ctx context.Context, channelName string, now, expires time.Time, stale bool) (*delivery, error) {
	free := int64(1) // upper bound of lease_ms, which is 0 without a lease
	if stale {
		free = now.UnixMilli()
	}
	for {
		var deliveries []delivery
		err := o.db.NewRaw(`SELECT c.*, d.channel, d.recipient, d.attempts, d.first_ms
			FROM alert_deliveries AS d JOIN alert_crossings AS c ON c.id = d.crossing
			WHERE d.channel = ? AND d.state = ? AND d.next_ms <= ? AND d.lease_ms < ? AND c.state = ?
			ORDER BY d.next_ms, c.at_ms, c.percent, d.recipient LIMIT 1`,
			channelName, pending, now.UnixMilli(), free, ours).Scan(ctx, &deliveries)
		if err != nil || len(deliveries) == 0 {
			return nil, err
		}
		d := &deliveries[0]
		if d.FirstMs == 0 {
			d.FirstMs = now.UnixMilli()
		}
		result, err := o.db.ExecContext(ctx, `UPDATE alert_deliveries SET lease_ms = ?, attempts = attempts + 1, first_ms = ?, tried_ms = ?
			WHERE crossing = ? AND channel = ? AND recipient = ? AND state = ? AND attempts = ? AND lease_ms < ?`,
			expires.UnixMilli(), d.FirstMs, now.UnixMilli(), d.ID, d.Channel, d.Recipient, pending, d.Attempts, free)
		if err != nil {
			return nil, err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			d.Attempts++
			return d, err
		}
	}
}

// finish stores the outcome of an attempt, unless the lease has expired and another
// process has tried since. It always stores that the message is sent.
func (o outbox) finish(ctx context.Context, t *outcome) error {
	d := t.delivery
	_, err := o.db.ExecContext(ctx, `UPDATE alert_deliveries SET state = ?, tried_ms = ?, next_ms = ?, lease_ms = 0, error = ?
		WHERE crossing = ? AND channel = ? AND recipient = ? AND state = ? AND (attempts = ? OR ? = ?)`,
		t.state, t.time.UnixMilli(), t.next.UnixMilli(), t.problem, d.ID, d.Channel, d.Recipient, pending, d.Attempts, t.state, sent)
	return err
}

// drop ends the pending deliveries of a removed target, and returns their number.
func (o outbox) drop(ctx context.Context, t channel.Target) (n int64, err error) {
	result, err := o.db.ExecContext(ctx, "UPDATE alert_deliveries SET state = ?, error = ? WHERE channel = ? AND recipient = ? AND state = ?",
		dropped, noTarget, t.Channel, t.Recipient, pending)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// noTarget is the error of a dropped delivery.
const noTarget = "the configuration no longer has this target"

// dropAbandoned ends the deliveries to unknown channels that have been due since before
// the cutoff. They may be another gateway's, which has had its time.
func (o outbox) dropAbandoned(ctx context.Context, known []string, cutoff time.Time) error {
	_, err := o.db.ExecContext(ctx, `UPDATE alert_deliveries SET state = ?, error = ?
		WHERE state = ? AND channel NOT IN (?) AND next_ms < ?`, dropped, noTarget, pending, bun.List(append([]string{""}, known...)), cutoff.UnixMilli())
	return err
}

// prune deletes the crossings of periods that ended before the cutoff, with their
// deliveries.
func (o outbox) prune(ctx context.Context, cutoff time.Time) error {
	return o.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM alert_deliveries WHERE crossing IN (SELECT id FROM alert_crossings WHERE ends_ms < ?)", cutoff.UnixMilli()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM alert_crossings WHERE ends_ms < ?", cutoff.UnixMilli())
		return err
	})
}

// statuses counts the deliveries by channel.
func (o outbox) statuses(ctx context.Context) (map[string]Status, error) {
	var counts []struct {
		Channel string `bun:"channel"`
		State   string `bun:"state"`
		Count   int64  `bun:"n"`
		LastMs  int64  `bun:"last"` // time of the last attempt
	}
	err := o.db.NewRaw("SELECT channel, state, COUNT(*) AS n, MAX(tried_ms) AS last FROM alert_deliveries GROUP BY channel, state").Scan(ctx, &counts)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	out := map[string]Status{}
	for _, c := range counts {
		s := out[c.Channel]
		switch c.State {
		case pending:
			s.Pending = c.Count
		case sent:
			s.Sent, s.LastSuccess = c.Count, optionalTime(c.LastMs)
		case givenUp:
			s.Failed = c.Count
		}
		out[c.Channel] = s
	}
	for name, s := range out {
		var last []struct {
			Error   string `bun:"error"`
			TriedMs int64  `bun:"tried_ms"`
		}
		err := o.db.NewRaw("SELECT error, tried_ms FROM alert_deliveries WHERE channel = ? AND state IN (?, ?) AND error <> '' ORDER BY tried_ms DESC LIMIT 1",
			name, pending, givenUp).Scan(ctx, &last)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		if len(last) > 0 {
			s.LastError, s.LastErrorAt = last[0].Error, optionalTime(last[0].TriedMs)
		}
		out[name] = s
	}
	return out, nil
}

// optionalTime returns a time of the database; nil for 0.
func optionalTime(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

// Line is a delivery of the outbox with its crossing.
type Line struct {
	ID        string     `json:"id" bun:"id"`
	Quota     string     `json:"quota" bun:"quota"`
	Subject   string     `json:"who" bun:"who"`
	Percent   int        `json:"percent" bun:"percent"` // threshold
	Channel   string     `json:"channel" bun:"channel"`
	Recipient string     `json:"recipient,omitempty" bun:"recipient"`
	State     string     `json:"state" bun:"state"` // pending | sent | given_up | dropped
	Attempts  int        `json:"attempts" bun:"attempts"`
	Error     string     `json:"error,omitempty" bun:"error"` // error of the last attempt
	Time      time.Time  `json:"at" bun:"-"`                  // time of the crossing
	Next      *time.Time `json:"next,omitempty" bun:"-"`      // time of the next attempt; nil if there is none
	TimeMs    int64      `json:"-" bun:"at_ms"`
	NextMs    int64      `json:"-" bun:"next_ms"`
}

// List returns the deliveries that are pending, given up or dropped, and the sent ones
// with includeSent: at most a thousand, the newest first.
func List(ctx context.Context, db *bun.DB, includeSent bool) (out []Line, err error) {
	excluded := sent
	if includeSent {
		excluded = ""
	}
	err = db.NewRaw(`SELECT c.id, c.quota, c.who, c.percent, c.at_ms, d.channel, d.recipient, d.state, d.attempts, d.error, d.next_ms
		FROM alert_deliveries AS d JOIN alert_crossings AS c ON c.id = d.crossing
		WHERE d.state <> ? ORDER BY c.at_ms DESC, c.percent DESC, d.channel, d.recipient LIMIT 1000`, excluded).Scan(ctx, &out)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("list alerts: %w", err)
	}
	for i := range out {
		out[i].Time = time.UnixMilli(out[i].TimeMs).UTC()
		if out[i].State == pending {
			out[i].Next = optionalTime(out[i].NextMs)
		}
	}
	return out, nil
}
