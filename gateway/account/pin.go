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

// Pin fixes the level of degradation of a model, whatever its load, until the pin expires.
type Pin struct {
	Model   string    // name of the model, which may have left the configuration
	Level   int       // level, 0 to MaxLevel
	Expires time.Time // end of the pin
	Reason  string    // reason that the operator gave; may be empty
	Actor   string    // name of the operator, as in the audit log
	Created time.Time // time at which the pin was set
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

// NewPin is a request for a pin. It sets exactly one of Expires and Duration.
type NewPin struct {
	Model    string `json:"-"`
	Level    string `json:"level"` // L0 to L4
	Expires  string `json:"until"` // time in RFC 3339
	Duration string `json:"for"`   // duration such as 30m
	Reason   string `json:"why"`
}

// MaxPin is the longest life of a pin. A longer one belongs into the configuration, where
// others see it.
const MaxPin = 7 * 24 * time.Hour

// Bounds of a pin.
const (
	maxReason    = 500            // length of a reason, in bytes
	pinRetention = 24 * time.Hour // time for which an expired pin is kept: a clock that is ahead must not delete a pin that is still in force elsewhere
)

// pin checks the request and returns its pin.
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

// end returns the time at which the pin expires.
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

// parseLevel parses L0 to L4.
func parseLevel(field, text string) (int, error) {
	if len(text) == 2 && text[0] == 'L' && text[1] >= '0' && text[1] <= '0'+MaxLevel {
		return int(text[1] - '0'), nil
	}
	return 0, newFault(ErrInvalid, field, "%s: must be L0 to L%d, not %.20q", field, MaxLevel, text)
}

// SetPin pins the level of a model, and replaces the pin that it has. The audit log names
// actor. The caller checks that the model exists.
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

// LiftPin deletes the pin of the first of the names that has one in force, and returns it.
// The names may be aliases of one model. If there is no pin, it fails with ErrNotFound.
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

// FindPin returns the pin of the first of the names that has one.
func FindPin(pins []Pin, names ...string) (Pin, bool) {
	for _, name := range names {
		if i := slices.IndexFunc(pins, func(p Pin) bool { return p.Model == name }); i >= 0 {
			return pins[i], true
		}
	}
	return Pin{}, false
}

// NotPinned returns the Fault for a model whose level is not pinned.
func NotPinned(model string) error {
	return newFault(ErrNotFound, "model", "the level of %.*q is not pinned", maxModel, model)
}

// StoredPins lists the pins in force by model, from the database. So it sees those that
// another replica has set a moment ago.
func (s *Store) StoredPins(ctx context.Context) ([]Pin, error) {
	return readPins(ctx, s.db, s.hooks.now())
}

// readPins reads the pins in force. All models together have few.
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

// Pins returns the pins in force that this replica applies, by model, from memory.
// Hooks.Applied reports possible changes, but not the end of a pin: callers that keep pins
// must check Expires.
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
