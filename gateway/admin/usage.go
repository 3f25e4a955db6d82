package admin

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
	"tidegate/gateway/refusal"
)

// reportTimeout bounds the time of a report, above all where the database hangs.
const reportTimeout = 10 * time.Second

// OwnUsage reports what the caller has used: GET /v1/usage?from&to&zone&group_by.
func (a *API) OwnUsage(r *Request) (any, error) {
	groupBy, err := groups(r.URL.Query(), ledger.ByDay, ledger.ByMonth, ledger.ByDay, ledger.ByHour, ledger.ByModel, ledger.ByKey)
	if err != nil {
		return nil, err
	}
	report, err := a.report(r, ledger.Query{Filter: ledger.Filter{User: r.Caller.User}, GroupBy: groupBy})
	if err != nil {
		return nil, err
	}
	answer := report.Answer(report.rows)
	answer["user"] = r.Caller.User
	return answer, nil
}

// groups reads by what a report is broken down: some of those that are allowed.
func groups(q url.Values, fallback ledger.Group, allowed ...ledger.Group) (groupBy []ledger.Group, err error) {
	for _, name := range strings.Split(cmp.Or(q.Get("group_by"), string(fallback)), ",") {
		g := ledger.Group(name)
		if !slices.Contains(allowed, g) || slices.Contains(groupBy, g) {
			var names []string
			for _, a := range allowed {
				names = append(names, string(a))
			}
			last := len(names) - 1
			return nil, refusal.New(refusal.InvalidRequest, "group_by",
				"group_by must be some of "+strings.Join(names[:last], ", ")+" and "+names[last]+", with commas between")
		}
		groupBy = append(groupBy, g)
	}
	return groupBy, nil
}

// allUsage reports what anybody has used, to administrators: GET
// /admin/v1/usage?from&to&zone&group_by&format and a filter for each group of names.
func (a *API) allUsage(r *Request) (any, error) {
	q := r.URL.Query()
	groupBy, err := groups(q, ledger.ByUser, ledger.Groups()...)
	if err != nil {
		return nil, err
	}
	query := ledger.Query{GroupBy: groupBy, Filter: ledger.Filter{
		Department: q.Get("department"), Project: q.Get("project"), User: q.Get("user"), Key: q.Get("key"), Model: q.Get("model"),
	}}
	format := cmp.Or(q.Get("format"), "json")
	if format != "json" && format != "csv" {
		return nil, refusal.New(refusal.InvalidRequest, "format", "format must be json or csv")
	}
	report, err := a.report(r, query)
	if err != nil {
		return nil, err
	}
	if format == "json" {
		return report.Answer(report.rows), nil
	}
	var text bytes.Buffer
	if err := ledger.WriteCSV(&text, query.GroupBy, r.Prices.Currency, report.rows); err != nil {
		return nil, err
	}
	first, last := report.Days()
	return File{ContentType: "text/csv; charset=utf-8", Name: fmt.Sprintf("usage-%s-%s.csv", first, last), Body: text.Bytes()}, nil
}

// report holds the rows of some days.
type report struct {
	ledger.Query
	rows []ledger.Row
}

// report asks the ledger about the days from and to of the URL. Days are those of its
// zone, or of the configuration's, and both ends are included; the default is the last
// 30 days.
func (a *API) report(r *Request, query ledger.Query) (_ *report, err error) {
	q := r.URL.Query()
	if query.Zone, err = limit.LoadZone(cmp.Or(q.Get("zone"), r.Zone)); err != nil {
		return nil, refusal.New(refusal.InvalidRequest, "zone", err.Error())
	}
	if query.Start, query.End, err = days(q, query.Zone, time.Now()); err != nil {
		return nil, err
	}
	query.Prices = r.Prices
	ctx, cancel := context.WithTimeout(r.Context(), reportTimeout)
	defer cancel()
	rows, err := a.Ledger.Report(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", refusal.New(refusal.StoreUnavailable, "", "the database of usage does not answer; please try again").After(refusal.RetryStore), err)
	}
	return &report{query, rows}, nil
}

// days reads the days from and to of a URL: the begin of the first, and the end of the
// last. The default is the 30 days to now.
func days(q url.Values, zone *time.Location, now time.Time) (begin, end time.Time, err error) {
	to, err := day(q, "to", zone, now)
	if err != nil {
		return begin, end, err
	}
	from, err := day(q, "from", zone, limit.DayOf(to, -29))
	if err == nil && from.After(to) {
		err = refusal.New(refusal.InvalidRequest, "from", "from must not be after to")
	}
	return from, limit.DayOf(to, 1), err
}

// day reads a date, or the date of a point in time, in a zone: its begin.
func day(q url.Values, name string, zone *time.Location, fallback time.Time) (time.Time, error) {
	text := q.Get(name)
	if text == "" {
		return limit.DayOf(fallback.In(zone), 0), nil
	}
	if date, err := time.Parse(time.DateOnly, text); err == nil {
		return limit.Dawn(date.Year(), date.Month(), date.Day(), zone), nil
	}
	moment, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return moment, refusal.New(refusal.InvalidRequest, name, fmt.Sprintf("%s must be a date such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z", name))
	}
	return limit.DayOf(moment.In(zone), 0), nil
}
