package gateway

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"tidegate/gateway/ledger"
)

// reportTimeout is how long a report may take, above all where the database hangs.
const reportTimeout = 10 * time.Second

// ownUsage reports what the caller has used: GET /v1/usage?from&to&group_by.
// Days are in UTC and both ends are included; the default is the last 30 days.
func (g *Gateway) ownUsage(c *call) error {
	if err := c.identify(); err != nil {
		return err
	}
	q := c.r.URL.Query()
	now := time.Now().UTC()
	to, err := day(q, "to", now)
	if err != nil {
		return err
	}
	from, err := day(q, "from", to.AddDate(0, 0, -29))
	if err != nil {
		return err
	}
	if from.After(to) {
		return refuse(codeInvalidRequest, "from", "from must not be after to")
	}
	by := ledger.Group(q.Get("group_by"))
	switch by {
	case "":
		by = ledger.ByDay
	case ledger.ByDay, ledger.ByModel, ledger.ByKey:
	default:
		return refuse(codeInvalidRequest, "group_by", "group_by must be day, model or key")
	}
	const day = 24 * time.Hour
	ctx, cancel := context.WithTimeout(c.r.Context(), reportTimeout)
	defer cancel()
	rows, err := g.Ledger.Report(ctx, ledger.Query{
		Filter: c.own(), By: []ledger.Group{by}, From: from.Truncate(day), To: to.Truncate(day).Add(day),
	})
	if err != nil {
		return fmt.Errorf("%w (%w)", refuse(codeStore, "", "the database of usage does not answer; please try again").after(retryStore), err)
	}
	return c.reply(map[string]any{
		"object": "list", "user": c.who.User, "from": from.Format(time.DateOnly), "to": to.Format(time.DateOnly),
		"group_by": by, "data": rows,
	})
}

// day reads a date or a point in time.
func day(q url.Values, name string, otherwise time.Time) (time.Time, error) {
	s := q.Get(name)
	if s == "" {
		return otherwise, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, refuse(codeInvalidRequest, name, fmt.Sprintf("%s must be a date such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z", name))
}
