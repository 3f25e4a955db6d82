package gateway

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"tidegate/gateway/ledger"
)

// reportTimeout is how long a report may take, above all where the database hangs.
const reportTimeout = 10 * time.Second

// ownUsage reports what the caller has used: GET /v1/usage?from&to&group_by.
func (g *Gateway) ownUsage(c *call) error {
	by := ledger.Group(c.r.URL.Query().Get("group_by"))
	switch by {
	case "":
		by = ledger.ByDay
	case ledger.ByDay, ledger.ByModel, ledger.ByKey:
	default:
		return refuse(codeInvalidRequest, "group_by", "group_by must be day, model or key")
	}
	r, err := g.report(c, ledger.Query{Filter: c.own(), By: []ledger.Group{by}})
	if err != nil {
		return err
	}
	return c.reply(map[string]any{
		"object": "list", "user": c.who.User, "from": r.first(), "to": r.last(), "group_by": by, "data": r.rows,
	})
}

// allUsage reports what anybody has used, to administrators: GET
// /admin/v1/usage?from&to&group_by&format and a filter for each group.
func (g *Gateway) allUsage(c *call) error {
	q := c.r.URL.Query()
	query := ledger.Query{Filter: ledger.Filter{
		Department: q.Get("department"), Project: q.Get("project"), User: q.Get("user"), Key: q.Get("key"), Model: q.Get("model"),
	}}
	for _, name := range strings.Split(cmp.Or(q.Get("group_by"), string(ledger.ByUser)), ",") {
		by := ledger.Group(name)
		if !slices.Contains(ledger.Groups(), by) || slices.Contains(query.By, by) {
			return refuse(codeInvalidRequest, "group_by", "group_by must be some of day, department, project, user, key and model, with commas between")
		}
		query.By = append(query.By, by)
	}
	format := cmp.Or(q.Get("format"), "json")
	if format != "json" && format != "csv" {
		return refuse(codeInvalidRequest, "format", "format must be json or csv")
	}
	r, err := g.report(c, query)
	if err != nil {
		return err
	}
	if format == "json" {
		return c.reply(map[string]any{"object": "list", "from": r.first(), "to": r.last(), "group_by": query.By, "data": r.rows})
	}
	var text bytes.Buffer
	if err := ledger.WriteCSV(&text, query.By, r.rows); err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/csv; charset=utf-8")
	h.Set("Content-Disposition", `attachment; filename="usage-`+r.first()+`-`+r.last()+`.csv"`)
	c.send()
	_, _ = c.w.Write(text.Bytes()) // a caller that is gone will not miss it
	return nil
}

// report is the rows of some days.
type report struct {
	from, to time.Time
	rows     []ledger.Row
}

func (r *report) first() string { return r.from.Format(time.DateOnly) }
func (r *report) last() string  { return r.to.Format(time.DateOnly) }

// report asks the ledger about the days from and to of the URL. Days are in UTC and
// both ends are included; the default is the last 30 days.
func (g *Gateway) report(c *call, query ledger.Query) (*report, error) {
	q := c.r.URL.Query()
	to, err := day(q, "to", time.Now().UTC())
	if err != nil {
		return nil, err
	}
	from, err := day(q, "from", to.AddDate(0, 0, -29))
	if err != nil {
		return nil, err
	}
	if from.After(to) {
		return nil, refuse(codeInvalidRequest, "from", "from must not be after to")
	}
	const day = 24 * time.Hour
	query.From, query.To = from.Truncate(day), to.Truncate(day).Add(day)
	ctx, cancel := context.WithTimeout(c.r.Context(), reportTimeout)
	defer cancel()
	rows, err := g.Ledger.Report(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", refuse(codeStore, "", "the database of usage does not answer; please try again").after(retryStore), err)
	}
	return &report{from, to, rows}, nil
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
