package degrade

import (
	"context"
	"log/slog"
	"math"
	"time"
)

// reportBackend reports what a step has changed at a backend.
func (l *Ladder) reportBackend(m *model, w *watched, old [sides]standing, asks [signals]assessment, out string, now time.Time) {
	if w.outReason != out {
		l.report(Change{Time: now, Model: m.model.Name, Backend: w.gauge.Name, OutReason: w.outReason, Recovered: w.outReason == "", From: w.standings[acting].level, To: w.standings[acting].level, Threshold: math.NaN()})
	}
	for side := range sides {
		from, to := old[side], w.standings[side]
		if from.level == to.level || side == wouldBe && from.level == old[acting].level && to.level == w.standings[acting].level {
			continue
		}
		signal, measured := to.signal, w.assessments
		if to.level < from.level {
			signal = from.signal
		}
		c := Change{Time: now, Model: m.model.Name, Backend: w.gauge.Name, Observed: side == wouldBe, From: from.level, To: to.level, Signal: signal.String(), Threshold: math.NaN()}
		if signal != noSignal {
			if !measured[signal].known {
				measured = asks // it has gone silent
			}
			c.measured(measured[signal])
		}
		l.report(c)
	}
}

// measured sets the reading of the change and the threshold that it has passed.
func (c *Change) measured(a assessment) {
	c.Value = a.value
	if c.To > c.From {
		c.Threshold = a.scale.entry(c.To)
	} else {
		c.Threshold = a.scale.exit(c.From)
	}
}

// reportModel reports what a step has changed at a model.
func (l *Ladder) reportModel(m *model, previous [sides]Level, old, v Verdict, pin Pin, now time.Time) {
	change := Change{Time: now, Model: m.model.Name, From: old.Level, To: v.Level, Threshold: math.NaN()}
	switch {
	case v.Pinned && (!m.pinned || pin != m.pin):
		change.Signal, change.Pin = "pin", pin
		l.report(change)
	case old.Pinned && !v.Pinned:
		change.Signal = "pin"
		l.report(change)
	case old.Level != v.Level:
		change.because(&m.states[acting].lastCause)
		l.report(change)
	}
	act, wouldHave := &m.states[acting], &m.states[wouldBe]
	from, to := previous[wouldBe], wouldHave.stage.level
	if from == to || from == previous[acting] && to == act.stage.level {
		return
	}
	change = Change{Time: now, Model: m.model.Name, Observed: true, From: from, To: to}
	change.because(&wouldHave.lastCause)
	l.report(change)
}

// because sets the cause of a model's change.
func (c *Change) because(origin *cause) {
	c.Signal, c.Cause, c.Value, c.Threshold = origin.signal.String(), origin.backend, origin.value, origin.threshold
}

// report logs a change once, and calls Changed with it.
func (l *Ladder) report(c Change) {
	level, message := slog.LevelWarn, "level rises"
	attrs := []slog.Attr{slog.String("model", c.Model)}
	if c.Backend != "" {
		attrs = append(attrs, slog.String("backend", c.Backend))
	}
	switch {
	case c.OutReason != "":
		message = "backend must not be used"
		attrs = append(attrs, slog.String("why", c.OutReason))
	case c.Recovered:
		level, message = slog.LevelInfo, "backend may be used again"
	case !c.Pin.isZero():
		message = "level pinned"
		attrs = append(attrs, slog.String("from", c.From.String()), slog.String("to", c.To.String()), slog.String("by", c.Pin.Author), slog.String("why", c.Pin.Reason))
		if !c.Pin.Expires.IsZero() {
			attrs = append(attrs, slog.Time("until", c.Pin.Expires))
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

// reason returns the log attributes of a change of level.
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

// rounded returns a number with three decimals.
func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }
