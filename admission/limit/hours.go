package limit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	minutesPerDay = 24 * 60
	daysPerWeek   = 7
)

// hours is a span of times of the week by the wall clock of a zone. It may run over midnight
// and then belongs to the day on which it begins.
type hours struct {
	days       [daysPerWeek]bool // from Sunday, as time.Weekday
	start, end int               // minutes of the day; end may be that of midnight, 1440
	zone       *time.Location
}

func errWhen(text string) error {
	return fmt.Errorf("must be hours and a zone such as 22:00-08:00 Asia/Shanghai or Mon-Fri 08:00-22:00 UTC, not %q", text)
}

// parseHours reads [DAYS ]HH:MM-HH:MM ZONE.
func parseHours(text string) (hours, error) {
	h := hours{}
	words := strings.Fields(text)
	switch len(words) {
	case 2:
		for i := range h.days {
			h.days[i] = true
		}
	case 3:
		if !h.parseDays(words[0]) {
			return h, errWhen(text)
		}
		words = words[1:]
	default:
		return h, errWhen(text)
	}
	startText, endText, ok := strings.Cut(words[0], "-")
	var okFrom, okTo bool
	h.start, okFrom = parseClock(startText)
	h.end, okTo = parseClock(endText)
	if !ok || !okFrom || !okTo || h.start == minutesPerDay {
		return h, errWhen(text)
	}
	if h.start == h.end {
		return h, errors.New("begins when it ends; the whole day is 00:00-24:00")
	}
	zone, err := LoadZone(words[1])
	h.zone = zone
	return h, err
}

// parseDays reads Mon-Fri, Sat,Sun or Fri-Mon.
func (h *hours) parseDays(text string) bool {
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, okA := parseDay(first)
		b, okB := a, true
		if isRange {
			b, okB = parseDay(last)
		}
		if !okA || !okB {
			return false
		}
		for d := a; ; d = (d + 1) % daysPerWeek {
			h.days[d] = true
			if d == b {
				break
			}
		}
	}
	return true
}

func parseDay(text string) (int, bool) {
	d := slices.Index([]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}, text)
	return d, d >= 0
}

// parseClock reads HH:MM, up to 24:00.
func parseClock(text string) (int, bool) {
	if len(text) != 5 || text[2] != ':' || !digits(text[:2]) || !digits(text[3:]) {
		return 0, false
	}
	h := int(text[0]-'0')*10 + int(text[1]-'0')
	m := int(text[3]-'0')*10 + int(text[4]-'0')
	return h*60 + m, m < 60 && h*60+m <= minutesPerDay
}

// covers reports whether the wall clock is within the hours.
func (h hours) covers(t time.Time) bool {
	t = t.In(h.zone)
	day, minute := int(t.Weekday()), t.Hour()*60+t.Minute()
	if h.start < h.end {
		return h.days[day] && minute >= h.start && minute < h.end
	}
	return h.days[day] && minute >= h.start || h.days[(day+6)%daysPerWeek] && minute < h.end
}

// weekMinutes holds the minutes of the week that some schedule covers.
type weekMinutes [daysPerWeek * minutesPerDay]bool

// add marks the minutes of h, and reports whether all were free.
func (w *weekMinutes) add(h hours) bool {
	free, length := true, (h.end-h.start+minutesPerDay)%minutesPerDay
	if length == 0 {
		length = minutesPerDay
	}
	for d, enabled := range h.days {
		for m := 0; enabled && m < length; m++ {
			minute := (d*minutesPerDay + h.start + m) % len(w)
			free = free && !w[minute]
			w[minute] = true
		}
	}
	return free
}

// timetable holds the hours of a rule's schedules, which do not overlap.
type timetable []hours

// active returns the index of the schedule in force, or -1.
func (tt timetable) active(t time.Time) int {
	return slices.IndexFunc(tt, func(h hours) bool { return h.covers(t) })
}

// horizon is the time within which the next change of a timetable is looked for. Every week is
// like the last but for changes of the clock.
const horizon = 8 * 24 * time.Hour

// next returns the time after t at which another schedule comes into force, to the second;
// false where none does within the horizon. It asks covers on both sides of every candidate,
// and so finds what the wall clock skips or repeats when it is changed.
func (tt timetable) next(t time.Time) (time.Time, bool) {
	if len(tt) == 0 {
		return time.Time{}, false
	}
	zone := tt[0].zone
	local := t.In(zone)
	var candidates []time.Time
	for moment := t; moment.Before(t.Add(horizon)); {
		_, end := moment.In(zone).ZoneBounds()
		if end.IsZero() {
			break
		}
		candidates = append(candidates, end)
		moment = end
	}
	for day := -1; day <= int(horizon/(24*time.Hour)); day++ {
		for _, h := range tt {
			for _, minute := range []int{h.start, h.end} {
				candidates = append(candidates, instants(local.Year(), local.Month(), local.Day()+day, minute, zone)...)
			}
		}
	}
	slices.SortFunc(candidates, time.Time.Compare)
	now := tt.active(t)
	for _, c := range candidates {
		if c.After(t) && tt.active(c) != now {
			return c, true
		}
	}
	return time.Time{}, false
}

// instants returns the times at which the wall clock of a zone may show a minute of a date:
// two where the clock is changed about that time.
func instants(year int, month time.Month, day, minute int, zone *time.Location) []time.Time {
	utc := time.Date(year, month, day, 0, minute, 0, 0, time.UTC)
	var out []time.Time
	for _, around := range []time.Duration{-26 * time.Hour, 26 * time.Hour} {
		_, offset := utc.Add(around).In(zone).Zone()
		out = append(out, utc.Add(-time.Duration(offset)*time.Second))
	}
	return out
}
