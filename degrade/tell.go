package degrade

import (
	"context"
	"log/slog"
	"math"
	"time"
)

// told tells what a look has changed at a backend.
func (l *Ladder) told(m *model, w *watched, was [sides]standing, asks [signals]ask, out string, now time.Time) {
	if w.out != out {
		l.tell(Change{At: now, Model: m.model.Name, Backend: w.gauge.Name, Out: w.out, Back: w.out == "", From: w.stand[acting].level, To: w.stand[acting].level, Threshold: math.NaN()})
	}
	for side := range sides {
		from, to := was[side], w.stand[side]
		if from.level == to.level || side == wouldBe && from.level == was[acting].level && to.level == w.stand[acting].level {
			continue
		}
		by, of := to.by, w.asks
		if to.level < from.level {
			by = from.by
		}
		c := Change{At: now, Model: m.model.Name, Backend: w.gauge.Name, Observed: side == wouldBe, From: from.level, To: to.level, Signal: by.String(), Threshold: math.NaN()}
		if by != noSignal {
			if !of[by].known {
				of = asks // it has gone silent
			}
			c.measured(of[by])
		}
		l.tell(c)
	}
}

// measured says by which reading, and which threshold it has passed.
func (c *Change) measured(a ask) {
	c.Value = a.value
	if c.To > c.From {
		c.Threshold = a.scale.entry(c.To)
	} else {
		c.Threshold = a.scale.exit(c.From)
	}
}

// moved tells what a look has changed at a model.
func (l *Ladder) moved(m *model, was [sides]Level, old, v Verdict, pin Pin, now time.Time) {
	of := Change{At: now, Model: m.model.Name, From: old.Level, To: v.Level, Threshold: math.NaN()}
	switch {
	case v.Pinned && (!m.pinned || pin != m.pin):
		of.Signal, of.Pin = "pin", pin
		l.tell(of)
	case old.Pinned && !v.Pinned:
		of.Signal = "pin"
		l.tell(of)
	case old.Level != v.Level:
		of.because(&m.pool.tracks[acting].why)
		l.tell(of)
	}
	act, would := &m.pool.tracks[acting], &m.pool.tracks[wouldBe]
	from, to := was[wouldBe], would.rung.level
	if from == to || from == was[acting] && to == act.rung.level {
		return
	}
	of = Change{At: now, Model: m.model.Name, Observed: true, From: from, To: to}
	of.because(&would.why)
	l.tell(of)
}

func (c *Change) because(why *cause) {
	c.Signal, c.Cause, c.Value, c.Threshold = why.by.String(), why.backend, why.value, why.threshold
}

// tell logs a change once, and hands it on.
func (l *Ladder) tell(c Change) {
	level, message := slog.LevelWarn, "level rises"
	attrs := []slog.Attr{slog.String("model", c.Model)}
	if c.Backend != "" {
		attrs = append(attrs, slog.String("backend", c.Backend))
	}
	switch {
	case c.Out != "":
		message = "backend must not be used"
		attrs = append(attrs, slog.String("why", c.Out))
	case c.Back:
		level, message = slog.LevelInfo, "backend may be used again"
	case !c.Pin.isZero():
		message = "level pinned"
		attrs = append(attrs, slog.String("from", c.From.String()), slog.String("to", c.To.String()), slog.String("by", c.Pin.By), slog.String("why", c.Pin.Why))
		if !c.Pin.Until.IsZero() {
			attrs = append(attrs, slog.Time("until", c.Pin.Until))
		}
	default:
		switch {
		case c.Signal == "pin":
			level, message = slog.LevelInfo, "level is not pinned any more"
		case c.Observed && c.To > c.From:
			level, message = slog.LevelInfo, "level would rise"
		case c.Observed:
			level, message = slog.LevelInfo, "level would fall"
		case c.To < c.From:
			level, message = slog.LevelInfo, "level falls"
		}
		attrs = append(attrs, c.reason()...)
	}
	l.log.LogAttrs(context.Background(), level, message, attrs...)
	if l.Changed != nil {
		l.Changed(c)
	}
}

func (c *Change) reason() []slog.Attr {
	attrs := []slog.Attr{slog.String("from", c.From.String()), slog.String("to", c.To.String())}
	if c.Cause != "" {
		attrs = append(attrs, slog.String("cause", c.Cause))
	}
	if c.Signal != "" && c.Signal != "pin" {
		attrs = append(attrs, slog.String("signal", c.Signal), slog.Float64("reading", rounded(c.Value)))
	}
	if !math.IsNaN(c.Threshold) {
		attrs = append(attrs, slog.Float64("threshold", rounded(c.Threshold)))
	}
	return attrs
}

func (p Pin) isZero() bool { return p == Pin{} }

// rounded is a number for people.
func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }
