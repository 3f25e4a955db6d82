package account

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/uptrace/bun"
)

// Pin holds a model at one level of degradation, whatever its pressure is, before
// a time at which it ends by itself.
type Pin struct {
	Model   string    // the model's own name; it need not be in the configuration any more
	Level   int       // 0 to MaxLevel
	Expires time.Time // from then on it does not hold
	Reason  string    // what the operator gave as the reason; may be empty
	Actor   string    // who pinned it, as in the audit log
	Created time.Time // when it was pinned
}

// MarshalJSON writes the level as L0 to L4.
func (p Pin) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Model   string    `json:"model"`
		Level   string    `json:"level"`
		Expires time.Time `json:"until"`
		Reason  string    `json:"why"`
		Actor   string    `json:"by"`
		Created time.Time `json:"since"`
	}{p.Model, "L" + strconv.Itoa(p.Level), p.Expires, p.Reason, p.Actor, p.Created})
}

// NewPin says what a pin is to be. Of Until and For one is given.
type NewPin struct {
	Model    string `json:"-"`
	Level    string `json:"level"` // L0 to L4
	Expires  string `json:"until"` // a time in RFC 3339
	Duration string `json:"for"`   // a duration such as 30m
	Reason   string `json:"why"`
}

// MaxPin is how long a pin may hold: what is meant for longer belongs into the
// configuration, where others see it.
const MaxPin = 7 * 24 * time.Hour

const (
	maxReason    = 500            // bytes of a reason
	pinRetention = 24 * time.Hour // of a pin that has ended, so that no clock which is ahead drops one that holds elsewhere
)

// pin checks what is asked for.
func (n *NewPin) pin(actor string, now time.Time) (p Pin, err error) {
	p = Pin{Model: n.Model, Reason: n.Reason, Actor: actor, Created: now.Truncate(time.Millisecond).UTC()}
	invalid := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	if n.Model == "" || len(n.Model) > maxModel || !utf8.ValidString(n.Model) || strings.ContainsFunc(n.Model, invalid) {
		return p, newFault(ErrInvalid, "model", "model: %.40q is no name of a model", n.Model)
	}
	if p.Level, err = parseLevel("level", n.Level); err != nil {
		return p, err
	}
	if len(n.Reason) > maxReason || !utf8.ValidString(n.Reason) || strings.ContainsFunc(n.Reason, unicode.IsControl) {
		return p, newFault(ErrInvalid, "why", "why: must be one line of at most %d bytes", maxReason)
	}
	p.Expires, err = n.end(now)
	return p, err
}

// end is when the pin is to end.
func (n *NewPin) end(now time.Time) (expires time.Time, err error) {
	field := "until"
	switch {
	case (n.Expires == "") == (n.Duration == ""):
		return expires, newFault(ErrInvalid, field, "until: give either until, such as %s, or for, such as 30m: a pin must end", now.Add(time.Hour).UTC().Format(time.RFC3339))
	case n.Duration != "":
		field = "for"
		duration, err := ParseDuration(n.Duration)
		if err != nil || duration < time.Second {
			return expires, newFault(ErrInvalid, field, "for: must be a duration of at least 1s such as 30m, not %.40q", n.Duration)
		}
		expires = now.Add(duration)
	default:
		if expires, err = time.Parse(time.RFC3339, n.Expires); err != nil {
			return expires, newFault(ErrInvalid, field, "until: must be a time such as %s, not %.40q", now.Add(time.Hour).UTC().Format(time.RFC3339), n.Expires)
		}
	}
	expires = expires.Truncate(time.Millisecond).UTC()
	if !now.Before(expires) {
		return expires, newFault(ErrInvalid, field, "until: %s is past: it is %s now", expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if expires.Sub(now) > MaxPin {
		return expires, newFault(ErrInvalid, field, "%s: a pin may hold for %d days at most", field, MaxPin/(24*time.Hour))
	}
	return expires, nil
}

// parseLevel reads L0 to L4.
func parseLevel(field, text string) (int, error) {
	if len(text) == 2 && text[0] == 'L' && text[1] >= '0' && text[1] <= '0'+MaxLevel {
		return int(text[1] - '0'), nil
	}
	return 0, newFault(ErrInvalid, field, "%s: must be L0 to L%d, not %.20q", field, MaxLevel, text)
}

// SetPin pins the level of a model, in place of a pin that it has; who is written
// into the audit log. That there is such a model is for the caller to check.
func (s *Store) SetPin(ctx context.Context, actor string, n NewPin) (Pin, error) {
	p, err := n.pin(actor, s.hooks.now())
	if err != nil {
		return p, err
	}
	return p, s.change(ctx, actor, func(c *change) error {
		found, err := readPins(c.ctx, c.tx, c.now)
		if err != nil {
			return err
		}
		if err := c.exec("DELETE FROM account_pins WHERE model = ? OR until_ms <= ?", p.Model, c.now.Add(-pinRetention).UnixMilli()); err != nil {
			return err
		}
		if err := c.exec("INSERT INTO account_pins (model, level, until_ms, why, who, since_ms) VALUES (?, ?, ?, ?, ?, ?)",
			p.Model, p.Level, p.Expires.UnixMilli(), p.Reason, p.Actor, p.Created.UnixMilli()); err != nil {
			return err
		}
		if old, ok := FindPin(found, p.Model); ok {
			return c.writeAudit("pin.set", p.Model, old, p)
		}
		return c.writeAudit("pin.set", p.Model, nil, p)
	})
}

// LiftPin takes away the pin of the first of the names that has one in force, and
// returns it: somebody may know a model by an alias. Without any it fails with
// ErrNotFound.
func (s *Store) LiftPin(ctx context.Context, actor string, names ...string) (p Pin, err error) {
	err = s.change(ctx, actor, func(c *change) error {
		found, err := readPins(c.ctx, c.tx, c.now)
		if err != nil {
			return err
		}
		var ok bool
		if p, ok = FindPin(found, names...); !ok {
			return NotPinned(names[0])
		}
		if err := c.exec("DELETE FROM account_pins WHERE model = ?", p.Model); err != nil {
			return err
		}
		return c.writeAudit("pin.lift", p.Model, p, nil)
	})
	return p, err
}

// PinOf finds the pin of the first of the names that has one.
func FindPin(pins []Pin, names ...string) (Pin, bool) {
	for _, name := range names {
		if i := slices.IndexFunc(pins, func(p Pin) bool { return p.Model == name }); i >= 0 {
			return pins[i], true
		}
	}
	return Pin{}, false
}

// NoPin says, as a Fault, that a model's level is not pinned.
func NotPinned(model string) error {
	return newFault(ErrNotFound, "model", "the level of %.*q is not pinned", maxModel, model)
}

// StoredPins lists the pins of the database that are in force, by model: those that
// any replica has set, also a moment ago.
func (s *Store) StoredPins(ctx context.Context) ([]Pin, error) {
	return readPins(ctx, s.db, s.hooks.now())
}

// readPins reads those in force: there are few, of all models together.
func readPins(ctx context.Context, db bun.IDB, now time.Time) ([]Pin, error) {
	var rows []struct {
		Model     string `bun:"model"`
		Level     int    `bun:"level"`
		ExpiresMs int64  `bun:"until_ms"`
		CreatedMs int64  `bun:"since_ms"`
		Reason    string `bun:"why"`
		Actor     string `bun:"who"`
	}
	if err := db.NewRaw("SELECT model, level, until_ms, since_ms, why, who FROM account_pins WHERE until_ms > ? ORDER BY model", now.UnixMilli()).Scan(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read the pins: %w", err)
	}
	pins := make([]Pin, 0, len(rows))
	for _, r := range rows {
		pins = append(pins, Pin{r.Model, r.Level, timeOf(r.ExpiresMs), r.Reason, r.Actor, timeOf(r.CreatedMs)})
	}
	return pins, nil
}

// Pins are the pins in force that this replica has taken over, by model. It asks
// only memory. Hooks.Applied says when others may have come; that one ends is not
// said: who keeps them looks at Until.
func (s *Store) Pins() []Pin {
	now := s.hooks.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	pins := make([]Pin, 0, len(s.pins))
	for _, p := range s.pins {
		if now.Before(p.Expires) {
			pins = append(pins, p)
		}
	}
	return pins
}
