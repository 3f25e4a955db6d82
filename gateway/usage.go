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

	"tidegate/admission/limit"
	"tidegate/gateway/ledger"
)

// reportTimeout is how long a report may take, above all where the database hangs.
const reportTimeout = 10 * time.Second

// ownUsage reports what the caller has used: GET /v1/usage?from&to&zone&group_by.
func (g *Gateway) ownUsage(c *call) error {
	by, err := groups(c.r.URL.Query(), ledger.ByDay, ledger.ByMonth, ledger.ByDay, ledger.ByHour, ledger.ByModel, ledger.ByKey)
	if err != nil {
		return err
	}
	r, err := g.report(c, ledger.Query{Filter: c.own(), By: by})
	if err != nil {
		return err
	}
	answer := r.answer()
	answer["user"] = c.who.User
	return c.reply(answer)
}

// groups reads by what a report is broken down: some of those that are allowed.
func groups(q url.Values, otherwise ledger.Group, allowed ...ledger.Group) (by []ledger.Group, err error) {
	for _, name := range strings.Split(cmp.Or(q.Get("group_by"), string(otherwise)), ",") {
		g := ledger.Group(name)
		if !slices.Contains(allowed, g) || slices.Contains(by, g) {
			var names []string
			for _, a := range allowed {
				names = append(names, string(a))
			}
			last := len(names) - 1
			return nil, refuse(codeInvalidRequest, "group_by",
				"group_by must be some of "+strings.Join(names[:last], ", ")+" and "+names[last]+", with commas between")
		}
		by = append(by, g)
	}
	return by, nil
}

// allUsage reports what anybody has used, to administrators: GET
// /admin/v1/usage?from&to&zone&group_by&format and a filter for each group of names.
func (g *Gateway) allUsage(c *call) error {
	q := c.r.URL.Query()
	by, err := groups(q, ledger.ByUser, ledger.Groups()...)
	if err != nil {
		return err
	}
	query := ledger.Query{By: by, Filter: ledger.Filter{
		Department: q.Get("department"), Project: q.Get("project"), User: q.Get("user"), Key: q.Get("key"), Model: q.Get("model"),
	}}
	format := cmp.Or(q.Get("format"), "json")
	if format != "json" && format != "csv" {
		return refuse(codeInvalidRequest, "format", "format must be json or csv")
	}
	r, err := g.report(c, query)
	if err != nil {
		return err
	}
	if format == "json" {
		return c.reply(r.answer())
	}
	var text bytes.Buffer
	if err := ledger.WriteCSV(&text, query.By, r.Prices.Currency, r.rows); err != nil {
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
	ledger.Query
	rows []ledger.Row
}

func (r *report) first() string { return r.From.Format(time.DateOnly) }
func (r *report) last() string  { return r.To.AddDate(0, 0, -1).Format(time.DateOnly) }

// answer is the report as JSON shows it.
func (r *report) answer() map[string]any {
	answer := map[string]any{
		"object": "list", "from": r.first(), "to": r.last(), "zone": r.Zone.String(), "group_by": r.By, "data": r.rows,
	}
	if r.Prices.Currency != "" {
		answer["currency"] = r.Prices.Currency
	}
	return answer
}

// report asks the ledger about the days from and to of the URL. Days are those of its
// zone, or of the configuration's, and both ends are included; the default is the last
// 30 days.
func (g *Gateway) report(c *call, query ledger.Query) (_ *report, err error) {
	q := c.r.URL.Query()
	if query.Zone, err = limit.LoadZone(cmp.Or(q.Get("zone"), c.set.Zone)); err != nil {
		return nil, refuse(codeInvalidRequest, "zone", err.Error())
	}
	to, err := day(q, "to", query.Zone, time.Now())
	if err != nil {
		return nil, err
	}
	from, err := day(q, "from", query.Zone, to.AddDate(0, 0, -29))
	if err != nil {
		return nil, err
	}
	if from.After(to) {
		return nil, refuse(codeInvalidRequest, "from", "from must not be after to")
	}
	query.From, query.To, query.Prices = from, to.AddDate(0, 0, 1), c.set.Prices
	ctx, cancel := context.WithTimeout(c.r.Context(), reportTimeout)
	defer cancel()
	rows, err := g.Ledger.Report(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", refuse(codeStore, "", "the database of usage does not answer; please try again").after(retryStore), err)
	}
	return &report{query, rows}, nil
}

// day reads a date, or the date of a point in time, in a zone: its begin.
func day(q url.Values, name string, zone *time.Location, otherwise time.Time) (time.Time, error) {
	at, s := otherwise, q.Get(name)
	if s != "" {
		var err error
		if at, err = time.ParseInLocation(time.DateOnly, s, zone); err != nil {
			if at, err = time.Parse(time.RFC3339, s); err != nil {
				return at, refuse(codeInvalidRequest, name, fmt.Sprintf("%s must be a date such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z", name))
			}
		}
	}
	y, m, d := at.In(zone).Date()
	return time.Date(y, m, d, 0, 0, 0, 0, zone), nil
}
