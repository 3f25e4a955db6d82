package admin

import (
	"net/url"
	"testing"
	"time"

	"tidegate/gateway/ledger"
)

// TestUsageDays: the days of a report are whole ones of its zone, also where a change of
// the clock takes their midnight away (Santiago, Beirut) or brings it twice (Havana).
func TestUsageDays(t *testing.T) {
	now := time.Date(2024, 9, 8, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ zone, query, begin, end string }{
		{"America/Santiago", "from=2024-09-08&to=2024-09-08", "2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00"},
		{"America/Santiago", "from=2024-09-07&to=2024-09-07", "2024-09-07T00:00:00-04:00", "2024-09-08T01:00:00-03:00"},
		{"America/Santiago", "from=2024-09-08T12:00:00Z", "2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00"},
		{"America/Santiago", "", "2024-08-10T00:00:00-04:00", "2024-09-09T00:00:00-03:00"},
		{"Asia/Beirut", "from=2024-03-31&to=2024-03-31", "2024-03-31T01:00:00+03:00", "2024-04-01T00:00:00+03:00"},
		{"America/Havana", "from=2024-11-03&to=2024-11-03", "2024-11-03T00:00:00-04:00", "2024-11-04T00:00:00-05:00"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		begin, end, err := days(q, zone, now)
		if err != nil || begin.Format(time.RFC3339) != c.begin || end.Format(time.RFC3339) != c.end {
			t.Errorf("%s, %s: from %v to %v, %v; want %s to %s", c.zone, c.query, begin, end, err, c.begin, c.end)
		}
		asked := ledger.Query{Start: begin, End: end, Zone: zone}
		if first, last := asked.Days(); q.Has("to") && (first != q.Get("from") || last != q.Get("to")) {
			t.Errorf("%s, %s: said to be from %s to %s", c.zone, c.query, first, last)
		}
	}
}
