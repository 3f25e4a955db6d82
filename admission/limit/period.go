package limit

import (
	"slices"
	"time"
)

// periodLength is the length of a calendar period.
type periodLength int

const (
	hourly periodLength = iota
	daily
	weekly // begins on Monday
	monthly
)

func parseEvery(word string) (periodLength, bool) {
	i := slices.Index([]string{"hour", "day", "week", "month"}, word)
	return periodLength(i), i >= 0
}

// bounds returns the begin and the end of the period that t is in. The periods of a zone
// follow one another without gap or overlap, whatever its clock does: a day of a changed clock
// has 23 or 25 hours.
func (e periodLength) bounds(t time.Time, zone *time.Location) (begin, end time.Time) {
	t = t.In(zone)
	if e == hourly {
		_, offset := t.Zone()
		const hour = int64(time.Hour / time.Second)
		wall := t.Unix() + int64(offset)
		first := wall - ((wall%hour)+hour)%hour - int64(offset)
		begin, end = time.Unix(first, 0).In(zone), time.Unix(first+hour, 0).In(zone)
		if zoneStart, zoneEnd := t.ZoneBounds(); !zoneStart.IsZero() && zoneStart.After(begin) {
			begin = zoneStart
		} else if !zoneEnd.IsZero() && zoneEnd.Before(end) {
			end = zoneEnd
		}
		return begin, end
	}
	for shift := -1; ; shift++ {
		begin, end = e.edge(t, shift, zone), e.edge(t, shift+1, zone)
		if t.Before(end) {
			return begin, end
		}
	}
}

// edge returns the begin of the period that is shift periods after the one of t's date.
func (e periodLength) edge(t time.Time, shift int, zone *time.Location) time.Time {
	year, month, day := t.Date()
	switch e {
	case daily:
		day += shift
	case weekly:
		day += shift*daysPerWeek - (int(t.Weekday())+6)%daysPerWeek
	default:
		month, day = month+time.Month(shift), 1
	}
	return Dawn(year, month, day, zone)
}

// DayOf returns the first instant of the day that is days after the one of t, in the zone of
// t.
func DayOf(t time.Time, days int) time.Time {
	year, month, day := t.Date()
	return Dawn(year, month, day+days, t.Location())
}

// Dawn returns the first instant of a date in a zone; a day beyond its month is one of
// another month. Midnight itself may be skipped or come twice where the clock is changed
// at midnight, as it is in America/Santiago.
func Dawn(year int, month time.Month, day int, zone *time.Location) time.Time {
	date := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	candidates := instants(year, month, day, 0, zone)
	if _, changed := date.Add(-26 * time.Hour).In(zone).ZoneBounds(); !changed.IsZero() {
		candidates = append(candidates, changed)
	}
	slices.SortFunc(candidates, time.Time.Compare)
	for _, c := range candidates {
		y, m, d := c.In(zone).Date()
		if !time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Before(date) {
			return c.In(zone)
		}
	}
	return candidates[len(candidates)-1].In(zone)
}
