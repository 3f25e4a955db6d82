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

// Migrate makes the outbox's tables or brings them up to date. Several gateways may
// do so at once.
func Migrate(ctx context.Context, db *bun.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return database.Migrate(ctx, db, "alert", files)
}

// States of a crossing.
const (
	noted     = "noted" // it may be another database's to tell
	ours      = "ours"
	elsewhere = "elsewhere"
)

// States of a delivery.
const (
	pending = "pending"
	sent    = "sent"
	givenUp = "given_up"
	dropped = "dropped" // its channel or recipient is no more
)

// outbox is the tables. Its methods are single steps, each of which may be the last
// before the process dies.
type outbox struct{ db *bun.DB }

// crossing is a threshold that was crossed, once in a period.
type crossing struct {
	ID, Quota, Per, Who, Counter, Unit string
	Percent                            int
	Severity                           channel.Severity
	Used, Size                         int64
	EndsMs, AtMs                       int64
	Zone, State                        string
}

func (c *crossing) alert() channel.Alert {
	zone, err := time.LoadLocation(c.Zone)
	if err != nil {
		zone = time.UTC
	}
	return channel.Alert{
		ID: c.ID, Quota: c.Quota, Per: c.Per, Who: c.Who, Unit: c.Unit, Percent: c.Percent, Severity: c.Severity, Used: c.Used,
		Limit: c.Size, ResetsAt: time.UnixMilli(c.EndsMs).In(zone), At: time.UnixMilli(c.AtMs).In(zone),
	}
}

// delivery is a crossing on its way to one target.
type delivery struct {
	crossing
	Channel   string
	Recipient string
	Attempts  int
	FirstMs   int64
}

// owner names this database. It is made with the first question.
func (o outbox) owner(ctx context.Context) (id string, err error) {
	if _, err = o.db.ExecContext(ctx, "INSERT INTO alert_owner (one, id) VALUES (1, ?) ON CONFLICT (one) DO NOTHING", rand.Text()); err != nil {
		return "", err
	}
	err = o.db.QueryRowContext(ctx, "SELECT id FROM alert_owner").Scan(&id)
	return id, err
}

// state is that of a crossing; empty: there is none.
func (o outbox) state(ctx context.Context, id string) (state string, err error) {
	err = o.db.QueryRowContext(ctx, "SELECT state FROM alert_crossings WHERE id = ?", id).Scan(&state)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return state, err
}

// put notes a crossing and whom it goes to, at once or not at all; one that is there
// already stays as it is, which fresh says.
func (o outbox) put(ctx context.Context, c *crossing, targets []channel.Target) (fresh bool, err error) {
	err = o.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		result, err := tx.ExecContext(ctx, `INSERT INTO alert_crossings
			(id, quota, per, who, counter, unit, percent, severity, used, size, ends_ms, zone, at_ms, state)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			c.ID, c.Quota, c.Per, c.Who, c.Counter, c.Unit, c.Percent, int(c.Severity), c.Used, c.Size, c.EndsMs, c.Zone, c.AtMs, c.State)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil || n == 0 {
			return err
		}
		fresh = true
		for _, t := range targets {
			if _, err := tx.ExecContext(ctx, `INSERT INTO alert_deliveries
				(crossing, channel, recipient, state, attempts, first_ms, tried_ms, next_ms, lease_ms, error)
				VALUES (?, ?, ?, ?, 0, 0, 0, ?, 0, '')`, c.ID, t.Channel, t.Recipient, pending, c.AtMs); err != nil {
				return err
			}
		}
		return nil
	})
	return fresh && err == nil, err
}

// unclaimed are the crossings of which it is open whose they are.
func (o outbox) unclaimed(ctx context.Context) (out []crossing, err error) {
	err = o.db.NewRaw("SELECT * FROM alert_crossings WHERE state = ? ORDER BY at_ms, percent", noted).Scan(ctx, &out)
	return out, err
}

// decide says whose a noted crossing is. What is not ours is not delivered from here.
func (o outbox) decide(ctx context.Context, id, state string) error {
	return o.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if state == elsewhere {
			if _, err := tx.ExecContext(ctx, "DELETE FROM alert_deliveries WHERE crossing = ? AND state = ? AND attempts = 0", id, pending); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, "UPDATE alert_crossings SET state = ? WHERE id = ? AND state = ?", state, id, noted)
		return err
	})
}

// lease takes the delivery of a channel that is due for the longest time, until a
// moment; nil: none is. Of several that try, in any process, one gets it. With others
// it also takes what another has leased and not given back in time.
func (o outbox) lease(ctx context.Context, channelName string, now, until time.Time, others bool) (*delivery, error) {
	free := int64(1) // of those that are not leased
	if others {
		free = now.UnixMilli()
	}
	for {
		var all []delivery
		err := o.db.NewRaw(`SELECT c.*, d.channel, d.recipient, d.attempts, d.first_ms
			FROM alert_deliveries AS d JOIN alert_crossings AS c ON c.id = d.crossing
			WHERE d.channel = ? AND d.state = ? AND d.next_ms <= ? AND d.lease_ms < ? AND c.state = ?
			ORDER BY d.next_ms, c.at_ms, c.percent, d.recipient LIMIT 1`,
			channelName, pending, now.UnixMilli(), free, ours).Scan(ctx, &all)
		if err != nil || len(all) == 0 {
			return nil, err
		}
		d := &all[0]
		if d.FirstMs == 0 {
			d.FirstMs = now.UnixMilli()
		}
		result, err := o.db.ExecContext(ctx, `UPDATE alert_deliveries SET lease_ms = ?, attempts = attempts + 1, first_ms = ?, tried_ms = ?
			WHERE crossing = ? AND channel = ? AND recipient = ? AND state = ? AND attempts = ? AND lease_ms < ?`,
			until.UnixMilli(), d.FirstMs, now.UnixMilli(), d.ID, d.Channel, d.Recipient, pending, d.Attempts, free)
		if err != nil {
			return nil, err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			d.Attempts++
			return d, err
		}
	}
}

// end notes what became of a try, unless the lease ran out and another tries it; that
// the message is sent, all the same.
func (o outbox) end(ctx context.Context, t *outcome) error {
	d := t.of
	_, err := o.db.ExecContext(ctx, `UPDATE alert_deliveries SET state = ?, tried_ms = ?, next_ms = ?, lease_ms = 0, error = ?
		WHERE crossing = ? AND channel = ? AND recipient = ? AND state = ? AND (attempts = ? OR ? = ?)`,
		t.state, t.at.UnixMilli(), t.next.UnixMilli(), t.problem, d.ID, d.Channel, d.Recipient, pending, d.Attempts, t.state, sent)
	return err
}

// drop ends what is on its way to a target that is no more.
func (o outbox) drop(ctx context.Context, t channel.Target) (n int64, err error) {
	result, err := o.db.ExecContext(ctx, "UPDATE alert_deliveries SET state = ?, error = ? WHERE channel = ? AND recipient = ? AND state = ?",
		dropped, noTarget, t.Channel, t.Recipient, pending)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

const noTarget = "the configuration no longer has this target"

// dropOld ends what waits since before a moment for channels that this gateway does
// not have: it may be another's, but that one has had its time.
func (o outbox) dropOld(ctx context.Context, known []string, before time.Time) error {
	_, err := o.db.ExecContext(ctx, `UPDATE alert_deliveries SET state = ?, error = ?
		WHERE state = ? AND channel NOT IN (?) AND next_ms < ?`, dropped, noTarget, pending, bun.List(append([]string{""}, known...)), before.UnixMilli())
	return err
}

// prune deletes what is about periods that ended before a moment.
func (o outbox) prune(ctx context.Context, before time.Time) error {
	return o.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM alert_deliveries WHERE crossing IN (SELECT id FROM alert_crossings WHERE ends_ms < ?)", before.UnixMilli()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM alert_crossings WHERE ends_ms < ?", before.UnixMilli())
		return err
	})
}

// tallies are the deliveries by channel.
func (o outbox) tallies(ctx context.Context) (map[string]Status, error) {
	var counts []struct {
		Channel, State string
		N, Last        int64
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
			s.Pending = c.N
		case sent:
			s.Sent, s.LastSuccess = c.N, moment(c.Last)
		case givenUp:
			s.Failed = c.N
		}
		out[c.Channel] = s
	}
	for name, s := range out {
		var last []struct {
			Error   string
			TriedMs int64
		}
		err := o.db.NewRaw("SELECT error, tried_ms FROM alert_deliveries WHERE channel = ? AND state IN (?, ?) AND error <> '' ORDER BY tried_ms DESC LIMIT 1",
			name, pending, givenUp).Scan(ctx, &last)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		if len(last) > 0 {
			s.LastError, s.LastErrorAt = last[0].Error, moment(last[0].TriedMs)
		}
		out[name] = s
	}
	return out, nil
}

// moment is a time of the database; nil: none.
func moment(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

// Line is a delivery as the outbox has it.
type Line struct {
	ID        string     `json:"id" bun:"id"`
	Quota     string     `json:"quota"`
	Who       string     `json:"who"`
	Percent   int        `json:"percent"`
	Channel   string     `json:"channel"`
	Recipient string     `json:"recipient,omitempty"`
	State     string     `json:"state"` // pending | sent | given_up | dropped
	Attempts  int        `json:"attempts"`
	Error     string     `json:"error,omitempty"` // of the last try
	At        time.Time  `json:"at" bun:"-"`      // when the crossing was seen
	Next      *time.Time `json:"next,omitempty" bun:"-"`
	AtMs      int64      `json:"-"`
	NextMs    int64      `json:"-"`
}

// List is what of the outbox is not sent: pending, given up or dropped; with all also
// what is. The newest come first, a thousand at most.
func List(ctx context.Context, db *bun.DB, all bool) (out []Line, err error) {
	but := sent
	if all {
		but = ""
	}
	err = db.NewRaw(`SELECT c.id, c.quota, c.who, c.percent, c.at_ms, d.channel, d.recipient, d.state, d.attempts, d.error, d.next_ms
		FROM alert_deliveries AS d JOIN alert_crossings AS c ON c.id = d.crossing
		WHERE d.state <> ? ORDER BY c.at_ms DESC, c.percent DESC, d.channel, d.recipient LIMIT 1000`, but).Scan(ctx, &out)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("list alerts: %w", err)
	}
	for i := range out {
		out[i].At = time.UnixMilli(out[i].AtMs).UTC()
		if out[i].State == pending {
			out[i].Next = moment(out[i].NextMs)
		}
	}
	return out, nil
}
