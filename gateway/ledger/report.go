package ledger

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/uptrace/bun"
)

// Group is what a report is broken down by.
type Group string

// The groups. Months, days and hours are those of the query's zone.
const (
	ByMonth      Group = "month"
	ByDay        Group = "day"
	ByHour       Group = "hour"
	ByDepartment Group = "department"
	ByProject    Group = "project"
	ByUser       Group = "user"
	ByKey        Group = "key"
	ByModel      Group = "model"
)

// Groups are all of them.
func Groups() []Group {
	return []Group{ByMonth, ByDay, ByHour, ByDepartment, ByProject, ByUser, ByKey, ByModel}
}

// OfTime reports whether the group is a part of the calendar.
func (g Group) OfTime() bool { return g == ByMonth || g == ByDay || g == ByHour }

// column is the expression of a group that is none of time, over usage_sums.
func (g Group) column() string {
	if g == ByUser || g == ByKey {
		return string(g) + "_name"
	}
	return string(g)
}

// Filter says whose use is meant; an empty field is anybody's.
type Filter struct{ Department, Project, User, Key, Model string }

func (f *Filter) takes(r *Record) bool {
	for _, p := range [...][2]string{{f.Department, r.Department}, {f.Project, r.Project}, {f.User, r.User}, {f.Key, r.Key}, {f.Model, r.Model}} {
		if p[0] != "" && p[0] != p[1] {
			return false
		}
	}
	return true
}

// Query asks for sums over the records that began from a moment on and before
// another. Both are taken at quarters of an hour: From is rounded down, To up.
type Query struct {
	Filter
	By       []Group // empty: one row, of all
	From, To time.Time
	Zone     *time.Location // of months, days and hours; nil: UTC
	Prices   Prices
}

func (q *Query) zone() *time.Location { return cmp.Or(q.Zone, time.UTC) }

func (q *Query) quarters() (from, to int64) {
	return begin(q.From), begin(q.To.Add(quarter - 1))
}

// Days returns the first and the last day of a query of whole days, in its zone.
func (q *Query) Days() (first, last string) {
	return q.From.In(q.zone()).Format(time.DateOnly), q.To.Add(-1).In(q.zone()).Format(time.DateOnly)
}

// Answer returns the rows that answer a query of whole days as JSON shows them.
func (q *Query) Answer(rows []Row) map[string]any {
	first, last := q.Days()
	answer := map[string]any{"object": "list", "from": first, "to": last, "zone": q.zone().String(), "group_by": q.By, "data": rows}
	if q.Prices.Currency != "" {
		answer["currency"] = q.Prices.Currency
	}
	return answer
}

// Sums are sums over records.
type Sums struct {
	Requests   int64      `json:"requests"`
	Failed     int64      `json:"failed_requests"` // of Requests: the caller got an error
	Input      int64      `json:"input_tokens"`
	Cached     int64      `json:"cached_tokens"`
	Output     int64      `json:"output_tokens"`
	Reasoning  int64      `json:"reasoning_tokens"`
	Total      int64      `json:"total_tokens"` // Input and Output
	Estimated  int64      `json:"estimated_requests"`
	Milliunits Milliunits `json:"units"`
	GPUMillis  int64      `json:"gpu_ms"` // of GPUs' time, where it is known
	Cost       Money      `json:"cost,omitzero"`
	Unpriced   int64      `json:"unpriced_tokens,omitempty"` // of Total: their model had no price
}

// Add adds other sums.
func (s *Sums) Add(o *Sums) {
	s.Requests += o.Requests
	s.Failed += o.Failed
	s.Input += o.Input
	s.Cached += o.Cached
	s.Output += o.Output
	s.Reasoning += o.Reasoning
	s.Total += o.Total
	s.Estimated += o.Estimated
	s.Milliunits += o.Milliunits
	s.GPUMillis += o.GPUMillis
	s.Unpriced += o.Unpriced
	s.Cost.sum(o.Cost)
}

func (s *Sums) count(r *Record) {
	s.Add(&Sums{
		Requests: 1, Failed: flag(r.failed()), Input: int64(r.Usage.Input), Cached: int64(r.Usage.Cached), Output: int64(r.Usage.Output),
		Reasoning: int64(r.Usage.Reasoning), Total: int64(r.Usage.Total()), Estimated: flag(r.Estimated), Milliunits: Milliunits(r.Units),
		GPUMillis: r.GPU.Milliseconds(),
	})
}

// Row is a line of a report. Fields by which was not grouped are empty.
type Row struct {
	Month      string `json:"month,omitempty"` // such as 2026-01
	Day        string `json:"day,omitempty"`   // such as 2026-01-31
	Hour       string `json:"hour,omitempty"`  // its begin, such as 2026-01-31T14:00+08:00
	Department string `json:"department,omitempty"`
	Project    string `json:"project,omitempty"`
	User       string `json:"user,omitempty"`
	Model      string `json:"model,omitempty"`
	Key        string `json:"key,omitempty"`
	Sums
}

// head is what a row is about, without its sums; the record's time is in the zone.
func (q *Query) head(at *Record) (row Row) {
	for _, g := range q.By {
		switch g {
		case ByMonth:
			row.Month = at.Time.Format("2006-01")
		case ByDay:
			row.Day = at.Time.Format(time.DateOnly)
		case ByHour:
			row.Hour = at.Time.Format("2006-01-02T15:00Z07:00")
		case ByDepartment:
			row.Department = at.Department
		case ByProject:
			row.Project = at.Project
		case ByUser:
			row.User = at.User
		case ByKey:
			row.Key = at.Key
		case ByModel:
			row.Model = at.Model
		}
	}
	return row
}

// Values is what the row is about, by group.
func (r *Row) Values(by []Group) (out []string) {
	for _, g := range by {
		out = append(out, r.value(g))
	}
	return out
}

func (r *Row) value(g Group) string {
	switch g {
	case ByMonth:
		return r.Month
	case ByDay:
		return r.Day
	case ByHour:
		return r.Hour
	case ByDepartment:
		return r.Department
	case ByProject:
		return r.Project
	case ByUser:
		return r.User
	case ByKey:
		return r.Key
	}
	return r.Model
}

// tally collects the rows of a report from the database and from segments.
type tally struct {
	*Query
	from, to int64
	rows     map[Row]*Sums // by rows without sums
}

func newTally(q *Query) (*tally, error) {
	for i, g := range q.By {
		if !slices.Contains(Groups(), g) || slices.Contains(q.By[:i], g) {
			return nil, fmt.Errorf("a report cannot be grouped by %q, or not twice", g)
		}
	}
	t := &tally{Query: q, rows: map[Row]*Sums{}}
	t.from, t.to = q.quarters()
	if len(q.By) == 0 {
		t.rows[Row{}] = &Sums{} // there is a row even of nothing
	}
	return t, nil
}

func (t *tally) add(head Row, s *Sums) {
	if t.rows[head] == nil {
		t.rows[head] = &Sums{}
	}
	t.rows[head].Add(s)
}

// record counts a record that is not in the database.
func (t *tally) record(r *Record) {
	if at := begin(r.Time); at < t.from || at >= t.to || !t.takes(r) {
		return
	}
	one := t.charge(r)
	r.Time = r.Time.In(t.zone())
	t.add(t.head(r), &one)
}

// database counts what is in the database and returns, as of the same moment, up
// to which byte it has which segments.
func (t *tally) database(ctx context.Context, db *bun.DB) (shipped map[string]int64, err error) {
	// Both databases give a transaction that only reads one unchanging view.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() //nolint:errcheck // it only read
	if err := t.sums(ctx, tx); err != nil {
		return nil, err
	}
	shipped = map[string]int64{}
	rows, err := tx.QueryContext(ctx, "SELECT id, shipped FROM usage_segments")
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err says what went wrong
	for rows.Next() {
		var (
			id string
			at int64
		)
		if err := rows.Scan(&id, &at); err != nil {
			return nil, err
		}
		shipped[id] = at
	}
	return shipped, rows.Err()
}

func (t *tally) sums(ctx context.Context, tx bun.Tx) error {
	for from := t.from; from < t.to; {
		// A caller may ask for millennia, of which most hold nothing.
		var next sql.NullInt64
		if err := tx.QueryRowContext(ctx, "SELECT MIN(quarter) FROM usage_sums WHERE quarter >= ?", from).Scan(&next); err != nil {
			return err
		}
		if !next.Valid || next.Int64 >= t.to {
			return nil
		}
		part := t.spanFrom(next.Int64, t.to)
		if err := t.sumsOf(ctx, tx, part); err != nil {
			return err
		}
		from = part.to
	}
	return nil
}

// sumsOf counts what the database has of a part of the time.
func (t *tally) sumsOf(ctx context.Context, tx bun.Tx, part span) error {
	q := tx.NewSelect().TableExpr("usage_sums").Where("quarter >= ?", part.from).Where("quarter < ?", part.to)
	for _, p := range [...]struct{ column, value string }{
		{"department", t.Department}, {"project", t.Project}, {"user_name", t.User}, {"key_name", t.Key}, {"model", t.Model},
	} {
		if p.value != "" {
			q = q.Where("? = ?", bun.Ident(p.column), p.value)
		}
	}
	var (
		at    Record
		start int64 // of the day or hour
		s     Sums
		to    []any
	)
	group := func(expression string, into any, args ...any) {
		to = append(to, into)
		q = q.ColumnExpr(expression, args...).GroupExpr(strconv.Itoa(len(to)))
	}
	if slices.ContainsFunc(t.By, Group.OfTime) {
		grain := 86400
		if slices.Contains(t.By, ByHour) {
			grain = 3600
		}
		group("quarter - (quarter + ?) % ?", &start, part.offset, grain)
	}
	texts := map[Group]*string{ByDepartment: &at.Department, ByProject: &at.Project, ByUser: &at.User, ByKey: &at.Key, ByModel: &at.Model}
	for _, g := range Groups() {
		if into := texts[g]; into != nil && (slices.Contains(t.By, g) || g == ByModel && t.Prices.Currency != "") { // the model has the price
			group(g.column(), into)
		}
	}
	for _, column := range []string{"requests", "failed", "input", "cached", "output", "reasoning", "estimated", "milliunits", "gpu_ms"} {
		q = q.ColumnExpr("CAST(COALESCE(SUM(?), 0) AS BIGINT)", bun.Ident(column))
	}
	to = append(to, &s.Requests, &s.Failed, &s.Input, &s.Cached, &s.Output, &s.Reasoning, &s.Estimated, &s.Milliunits, &s.GPUMillis)
	rows, err := q.Rows(ctx)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err says what went wrong
	clock := time.FixedZone("", int(part.offset))
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return err
		}
		at.Time, s.Total = time.Unix(start, 0).In(clock), s.Input+s.Output
		s.Cost, s.Unpriced = Money{}, 0
		t.Prices.cost(&s, at.Model, part.from)
		t.add(t.head(&at), &s)
	}
	return rows.Err()
}

// unshipped counts what segments hold after what is shipped of them.
func (t *tally) unshipped(ctx context.Context, segments []segment, shipped map[string]int64) error {
	for _, s := range segments {
		if shipped[s.id] >= s.size {
			continue
		}
		f, err := os.Open(s.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = t.read(ctx, f, shipped[s.id], s.size)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// read counts the records of a part of a segment. What cannot be read any more is
// not counted; the shipper says so.
func (t *tally) read(ctx context.Context, f io.ReaderAt, from, to int64) error {
	_, err := scan(f, from, to, func(r Record, _ int64) bool {
		t.record(&r)
		return ctx.Err() == nil
	})
	if damaged(err) {
		err = nil
	}
	return errors.Join(err, ctx.Err())
}

// memory counts frames that are in no segment.
func (t *tally) memory(ctx context.Context, frames []byte) error {
	return t.read(ctx, bytes.NewReader(frames), 0, int64(len(frames)))
}

// sorted are the rows in the order of the groups.
func (t *tally) sorted() []Row {
	out := make([]Row, 0, len(t.rows))
	for row, s := range t.rows {
		row.Sums = *s
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b Row) int {
		for _, g := range t.By {
			if c := strings.Compare(a.value(g), b.value(g)); c != 0 {
				return c
			}
		}
		return 0
	})
	return out
}

// Report answers a query from a database and a journal directory that may belong
// to a running gateway; an empty directory name, or one that is missing, counts
// nothing. It changes neither. The rows are in the order of the groups.
func Report(ctx context.Context, db *bun.DB, dir string, q Query) ([]Row, error) {
	t, err := newTally(&q)
	if err != nil {
		return nil, err
	}
	// A segment that is removed while the database is asked can be read only if
	// it was open before.
	open := map[string]*os.File{}
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	look := func() error {
		if dir == "" {
			return nil
		}
		all, _, err := listSegments(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("journal directory: %w", err)
		}
		for _, s := range all {
			if open[s.id] == nil {
				if f, err := os.Open(s.path); err == nil {
					open[s.id] = f
				}
			}
		}
		return nil
	}
	if err := look(); err != nil {
		return nil, err
	}
	shipped, err := t.database(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("report of usage: %w", err)
	}
	if err := look(); err != nil {
		return nil, err
	}
	for id, f := range open {
		at, err := f.Stat()
		if err == nil {
			err = t.read(ctx, f, shipped[id], at.Size())
		}
		if err != nil {
			return nil, fmt.Errorf("report of usage: %w", err)
		}
	}
	return t.sorted(), nil
}
