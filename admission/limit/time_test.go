package limit

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func zone(t interface{ Fatal(...any) }, name string) *time.Location {
	z, err := LoadZone(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func stamp(t *testing.T, written string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, written)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestHours(t *testing.T) {
	for _, c := range []struct {
		when, at string
		want     bool
	}{
		{"22:00-08:00 Asia/Shanghai", "2026-03-02T21:59:59+08:00", false},
		{"22:00-08:00 Asia/Shanghai", "2026-03-02T22:00:00+08:00", true},
		{"22:00-08:00 Asia/Shanghai", "2026-03-03T07:59:59+08:00", true},
		{"22:00-08:00 Asia/Shanghai", "2026-03-03T08:00:00+08:00", false},
		{"Mon-Fri 08:00-22:00 Asia/Shanghai", "2026-03-06T21:00:00+08:00", true},  // Friday
		{"Mon-Fri 08:00-22:00 Asia/Shanghai", "2026-03-07T12:00:00+08:00", false}, // Saturday
		{"Fri 22:00-08:00 UTC", "2026-03-07T07:00:00Z", true},                     // Friday's night, on Saturday
		{"Fri 22:00-08:00 UTC", "2026-03-06T07:00:00Z", false},
		{"Sat,Sun 00:00-24:00 UTC", "2026-03-08T23:59:59Z", true},
		{"Sat,Sun 00:00-24:00 UTC", "2026-03-09T00:00:00Z", false},
		{"Sat-Mon 00:00-24:00 UTC", "2026-03-09T10:00:00Z", true},
		{"02:00-03:00 Europe/Berlin", "2026-03-29T03:30:00+02:00", false}, // the hour that is skipped
		{"02:00-03:00 Europe/Berlin", "2026-10-25T02:30:00+02:00", true},  // the hour that comes twice
		{"02:00-03:00 Europe/Berlin", "2026-10-25T02:30:00+01:00", true},
	} {
		h, err := parseHours(c.when)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.covers(stamp(t, c.at)); got != c.want {
			t.Errorf("%s at %s: %v", c.when, c.at, got)
		}
	}
}

func TestNextChange(t *testing.T) {
	for _, c := range []struct{ when, at, want string }{
		{"22:00-08:00 Asia/Shanghai", "2026-03-02T12:00:00+08:00", "2026-03-02T22:00:00+08:00"},
		{"22:00-08:00 Asia/Shanghai", "2026-03-02T23:00:00+08:00", "2026-03-03T08:00:00+08:00"},
		{"Mon-Fri 08:00-22:00 Asia/Shanghai", "2026-03-06T23:00:00+08:00", "2026-03-09T08:00:00+08:00"},
		{"Mon-Fri 00:00-24:00 UTC", "2026-03-03T12:00:00Z", "2026-03-07T00:00:00Z"},
		{"02:30-04:00 Europe/Berlin", "2026-03-29T00:00:00+01:00", "2026-03-29T03:00:00+02:00"}, // begins in the gap
		{"02:30-04:00 Europe/Berlin", "2026-10-25T02:00:00+02:00", "2026-10-25T02:30:00+02:00"},
		{"02:30-04:00 Europe/Berlin", "2026-10-25T02:45:00+02:00", "2026-10-25T02:00:00+01:00"}, // 03:00 is 02:00 again
		{"02:30-04:00 Europe/Berlin", "2026-10-25T02:10:00+01:00", "2026-10-25T02:30:00+01:00"},
		{"22:00-06:00 America/New_York", "2026-03-08T00:00:00-05:00", "2026-03-08T06:00:00-04:00"}, // an hour shorter
		{"22:00-06:00 America/New_York", "2026-11-01T00:00:00-04:00", "2026-11-01T06:00:00-05:00"}, // an hour longer
	} {
		h, err := parseHours(c.when)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := timetable{h}.next(stamp(t, c.at))
		if !ok || !got.Equal(stamp(t, c.want)) {
			t.Errorf("%s after %s: %s, want %s", c.when, c.at, got, c.want)
		}
	}
	whole, err := parseHours("00:00-24:00 UTC")
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := (timetable{whole}).next(stamp(t, "2026-03-02T12:00:00Z")); ok {
		t.Errorf("what is always in force changes at %s", at)
	}
}

// TestNextChangeIsNext walks minute by minute over the days on which clocks are
// changed and finds no change that next does not tell of.
func TestNextChangeIsNext(t *testing.T) {
	table := timetable{}
	for _, when := range []string{"Mon-Sat 22:00-02:15 Europe/Berlin", "02:30-04:00 Europe/Berlin", "Sun 12:00-24:00 Europe/Berlin"} {
		h, err := parseHours(when)
		if err != nil {
			t.Fatal(err)
		}
		table = append(table, h)
	}
	for _, day := range []string{"2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z"} {
		at := stamp(t, day)
		next, _ := table.next(at)
		for range 3 * minutesPerDay {
			at = at.Add(time.Minute)
			if at.Before(next) && table.active(at) != table.active(at.Add(-time.Minute)) {
				t.Fatalf("changes at %s, not %s", at, next)
			}
			if !at.Before(next) {
				if table.active(next) == table.active(next.Add(-time.Second)) {
					t.Fatalf("does not change at %s", next)
				}
				next, _ = table.next(next)
			}
		}
	}
}

func TestPeriods(t *testing.T) {
	for _, c := range []struct {
		every                periodLength
		zone, at, begin, end string
	}{
		{daily, "Asia/Shanghai", "2026-03-02T12:00:00+08:00", "2026-03-02T00:00:00+08:00", "2026-03-03T00:00:00+08:00"},
		{daily, "Asia/Shanghai", "2026-03-01T17:00:00Z", "2026-03-02T00:00:00+08:00", "2026-03-03T00:00:00+08:00"},
		{daily, "Europe/Berlin", "2026-03-29T12:00:00+02:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"}, // 23 h
		{daily, "Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"}, // 25 h
		{daily, "Asia/Beirut", "2026-03-29T12:00:00+03:00", "2026-03-29T01:00:00+03:00", "2026-03-30T00:00:00+03:00"},   // no midnight
		{daily, "Asia/Beirut", "2026-03-28T12:00:00+02:00", "2026-03-28T00:00:00+02:00", "2026-03-29T01:00:00+03:00"},
		{daily, "America/Havana", "2026-11-01T12:00:00-05:00", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"}, // two midnights
		{weekly, "UTC", "2026-03-08T23:59:59Z", "2026-03-02T00:00:00Z", "2026-03-09T00:00:00Z"},
		{weekly, "UTC", "2026-03-09T00:00:00Z", "2026-03-09T00:00:00Z", "2026-03-16T00:00:00Z"},
		{monthly, "America/New_York", "2026-03-31T23:00:00-04:00", "2026-03-01T00:00:00-05:00", "2026-04-01T00:00:00-04:00"},
		{monthly, "UTC", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		{monthly, "UTC", "2028-02-29T00:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"},
		{hourly, "UTC", "2026-03-02T12:34:56Z", "2026-03-02T12:00:00Z", "2026-03-02T13:00:00Z"},
		{hourly, "Asia/Kolkata", "2026-03-02T12:34:56+05:30", "2026-03-02T12:00:00+05:30", "2026-03-02T13:00:00+05:30"},
	} {
		begin, end := c.every.bounds(stamp(t, c.at), zone(t, c.zone))
		if !begin.Equal(stamp(t, c.begin)) || !end.Equal(stamp(t, c.end)) {
			t.Errorf("%s in %s: %s to %s, want %s to %s", c.at, c.zone, begin, end, c.begin, c.end)
		}
	}
}

// TestPeriodsFollowOneAnother: a time is in its period, and the next period
// begins where that ends, in zones with odd clocks.
func TestPeriodsFollowOneAnother(t *testing.T) {
	zones := []string{"UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Beirut", "America/Havana", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo", "Pacific/Apia"}
	rapid.Check(t, func(rt *rapid.T) {
		z := zone(t, rapid.SampledFrom(zones).Draw(rt, "zone"))
		e := periodLength(rapid.IntRange(0, 3).Draw(rt, "every"))
		at := time.Unix(rapid.Int64Range(1_300_000_000, 1_900_000_000).Draw(rt, "at"), 0)
		begin, end := e.bounds(at, z)
		if at.Before(begin) || !at.Before(end) {
			rt.Fatalf("%s is not within %s and %s", at.In(z), begin, end)
		}
		for _, other := range []time.Time{begin, end.Add(-time.Second)} {
			if b, n := e.bounds(other, z); !b.Equal(begin) || !n.Equal(end) {
				rt.Fatalf("%s is within %s and %s, but %s within %s and %s", at.In(z), begin, end, other.In(z), b, n)
			}
		}
		if b, _ := e.bounds(end, z); !b.Equal(end) {
			rt.Fatalf("after %s comes a period from %s", end, b)
		}
	})
}
