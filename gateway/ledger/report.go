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

// Group is a column by which a report is broken down.
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

// Groups returns all groups.
func Groups() []Group {
	return []Group{ByMonth, ByDay, ByHour, ByDepartment, ByProject, ByUser, ByKey, ByModel}
}

// IsTime reports whether the group is a unit of the calendar.
func (g Group) IsTime() bool { return g == ByMonth || g == ByDay || g == ByHour }

// column returns the column of usage_sums of a group that is not one of time.
func (g Group) column() string {
	if g == ByUser || g == ByKey {
		return string(g) + "_name"
	}
	return string(g)
}

// Filter selects the records of a report. An empty field selects all.
type Filter struct{ Department, Project, User, Key, Model string }

func (f *Filter) matches(r *Record) bool {
	for _, p := range [...][2]string{{f.Department, r.Department}, {f.Project, r.Project}, {f.User, r.User}, {f.Key, r.Key}, {f.Model, r.Model}} {
		if p[0] != "" && p[0] != p[1] {
			return false
		}
	}
	return true
}

// Query asks for sums over the records that began at or after Start and before End. Both
// are taken at quarters of an hour: Start is rounded down, End up.
type Query struct {
	Filter
	GroupBy    []Group // empty: one row for all
	Start, End time.Time
	Zone       *time.Location // zone of months, days and hours; nil: UTC
	Prices     Prices
}

func (q *Query) zone() *time.Location { return cmp.Or(q.Zone, time.UTC) }

func (q *Query) quarters() (start, end int64) {
	return quarterStart(q.Start), quarterStart(q.End.Add(quarter - 1))
}

// Days returns the first and the last day of a query of whole days, in its zone.
func (q *Query) Days() (first, last string) {
	return q.Start.In(q.zone()).Format(time.DateOnly), q.End.Add(-1).In(q.zone()).Format(time.DateOnly)
}

// Answer returns the rows that answer a query of whole days as JSON shows them.
func (q *Query) Answer(rows []Row) map[string]any {
	first, last := q.Days()
	answer := map[string]any{"object": "list", "from": first, "to": last, "zone": q.zone().String(), "group_by": q.GroupBy, "data": rows}
	if q.Prices.Currency != "" {
		answer["currency"] = q.Prices.Currency
	}
	return answer
}

// Sums holds sums over records.
type Sums struct {
	Requests   int64      `json:"requests"`
	Failed     int64      `json:"failed_requests"` // part of Requests with an error for the caller
	Input      int64      `json:"input_tokens"`
	Cached     int64      `json:"cached_tokens"`
	Output     int64      `json:"output_tokens"`
	Reasoning  int64      `json:"reasoning_tokens"`
	Total      int64      `json:"total_tokens"` // sum of Input and Output
	Estimated  int64      `json:"estimated_requests"`
	Milliunits Milliunits `json:"units"`
	GPUMillis  int64      `json:"gpu_ms"` // GPU time, where it is known
	Cost       Money      `json:"cost,omitzero"`
	Unpriced   int64      `json:"unpriced_tokens,omitempty"` // part of Total whose model had no price
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
	s.Cost.addMoney(o.Cost)
}

func (s *Sums) count(r *Record) {
	s.Add(&Sums{
		Requests: 1, Failed: flag(r.failed()), Input: int64(r.Usage.Input), Cached: int64(r.Usage.Cached), Output: int64(r.Usage.Output),
		Reasoning: int64(r.Usage.Reasoning), Total: int64(r.Usage.Total()), Estimated: flag(r.Estimated), Milliunits: Milliunits(r.Units),
		GPUMillis: r.GPU.Milliseconds(),
	})
}

// Row is a line of a report. Fields of groups that the query lacks are empty.
type Row struct {
	Month      string `json:"month,omitempty"` // such as 2026-01
	Day        string `json:"day,omitempty"`   // such as 2026-01-31
	Hour       string `json:"hour,omitempty"`  // begin, such as 2026-01-31T14:00+08:00
	Department string `json:"department,omitempty"`
	Project    string `json:"project,omitempty"`
	User       string `json:"user,omitempty"`
	Model      string `json:"model,omitempty"`
	Key        string `json:"key,omitempty"`
	Sums
}

// rowKey returns the row of a record, without sums. The record's time is in the zone.
func (q *Query) rowKey(r *Record) (row Row) {
	for _, g := range q.GroupBy {
		switch g {
		case ByMonth:
			row.Month = r.Time.Format("2006-01")
		case ByDay:
			row.Day = r.Time.Format(time.DateOnly)
		case ByHour:
			row.Hour = r.Time.Format("2006-01-02T15:00Z07:00")
		case ByDepartment:
			row.Department = r.Department
		case ByProject:
			row.Project = r.Project
		case ByUser:
			row.User = r.User
		case ByKey:
			row.Key = r.Key
		case ByModel:
			row.Model = r.Model
		}
	}
	return row
}

// Values returns the row's value for each group.
func (r *Row) Values(groups []Group) (out []string) {
	for _, g := range groups {
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
	start, end int64
	rows       map[Row]*Sums // by row without its sums
}

func newTally(q *Query) (*tally, error) {
	for i, g := range q.GroupBy {
		if !slices.Contains(Groups(), g) || slices.Contains(q.GroupBy[:i], g) {
			return nil, fmt.Errorf("a report cannot be grouped by %q, or not twice", g)
		}
	}
	t := &tally{Query: q, rows: map[Row]*Sums{}}
	t.start, t.end = q.quarters()
	if len(q.GroupBy) == 0 {
		t.rows[Row{}] = &Sums{} // a report without groups always has one row
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
func (t *tally) addRecord(r *Record) {
	if start := quarterStart(r.Time); start < t.start || start >= t.end || !t.matches(r) {
		return
	}
	one := t.sumsWithCost(r)
	r.Time = r.Time.In(t.zone())
	t.add(t.rowKey(r), &one)
}

// addDatabase counts the records in the database. It returns, as of the same moment, the
// number of bytes that were shipped of each segment, by id.
func (t *tally) addDatabase(ctx context.Context, db *bun.DB) (shipped map[string]int64, err error) {
	// In both databases a read-only transaction has one unchanging view.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() //nolint:errcheck // the transaction only reads
	if err := t.addSpans(ctx, tx); err != nil {
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
			id     string
			offset int64
		)
		if err := rows.Scan(&id, &offset); err != nil {
			return nil, err
		}
		shipped[id] = offset
	}
	return shipped, rows.Err()
}

func (t *tally) addSpans(ctx context.Context, tx bun.Tx) error {
	for start := t.start; start < t.end; {
		// A query may span millennia that are mostly empty.
		var next sql.NullInt64
		if err := tx.QueryRowContext(ctx, "SELECT MIN(quarter) FROM usage_sums WHERE quarter >= ?", start).Scan(&next); err != nil {
			return err
		}
		if !next.Valid || next.Int64 >= t.end {
			return nil
		}
		part := t.firstSpan(next.Int64, t.end)
		if err := t.addSpan(ctx, tx, part); err != nil {
			return err
		}
		start = part.end
	}
	return nil
}

// addSpan counts the database's sums of a span.
func (t *tally) addSpan(ctx context.Context, tx bun.Tx, part span) error {
	q := tx.NewSelect().TableExpr("usage_sums").Where("quarter >= ?", part.start).Where("quarter < ?", part.end)
	for _, p := range [...]struct{ column, value string }{
		{"department", t.Department}, {"project", t.Project}, {"user_name", t.User}, {"key_name", t.Key}, {"model", t.Model},
	} {
		if p.value != "" {
			q = q.Where("? = ?", bun.Ident(p.column), p.value)
		}
	}
	var (
		r     Record
		start int64 // begin of the day or hour
		s     Sums
		dest  []any
	)
	group := func(expression string, target any, args ...any) {
		dest = append(dest, target)
		q = q.ColumnExpr(expression, args...).GroupExpr(strconv.Itoa(len(dest)))
	}
	if slices.ContainsFunc(t.GroupBy, Group.IsTime) {
		grain := 86400
		if slices.Contains(t.GroupBy, ByHour) {
			grain = 3600
		}
		group("quarter - (quarter + ?) % ?", &start, part.offset, grain)
	}
	texts := map[Group]*string{ByDepartment: &r.Department, ByProject: &r.Project, ByUser: &r.User, ByKey: &r.Key, ByModel: &r.Model}
	for _, g := range Groups() {
		if target := texts[g]; target != nil && (slices.Contains(t.GroupBy, g) || g == ByModel && t.Prices.Currency != "") { // the price depends on the model
			group(g.column(), target)
		}
	}
	for _, column := range []string{"requests", "failed", "input", "cached", "output", "reasoning", "estimated", "milliunits", "gpu_ms"} {
		q = q.ColumnExpr("CAST(COALESCE(SUM(?), 0) AS BIGINT)", bun.Ident(column))
	}
	dest = append(dest, &s.Requests, &s.Failed, &s.Input, &s.Cached, &s.Output, &s.Reasoning, &s.Estimated, &s.Milliunits, &s.GPUMillis)
	rows, err := q.Rows(ctx)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err says what went wrong
	clock := time.FixedZone("", int(part.offset))
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		r.Time, s.Total = time.Unix(start, 0).In(clock), s.Input+s.Output
		s.Cost, s.Unpriced = Money{}, 0
		t.Prices.addCost(&s, r.Model, part.start)
		t.add(t.rowKey(&r), &s)
	}
	return rows.Err()
}

// addSegments counts the records of segments that are not shipped.
func (t *tally) addSegments(ctx context.Context, segments []segment, shipped map[string]int64) error {
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
		err = t.addFrames(ctx, f, shipped[s.id], s.size)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// addFrames counts the records of a part of a segment. Damaged records are not counted;
// the shipper reports them.
func (t *tally) addFrames(ctx context.Context, f io.ReaderAt, start, end int64) error {
	_, err := scan(f, start, end, func(r Record, _ int64) bool {
		t.addRecord(&r)
		return ctx.Err() == nil
	})
	if damaged(err) {
		err = nil
	}
	return errors.Join(err, ctx.Err())
}

// addMemory counts frames that are in no segment.
func (t *tally) addMemory(ctx context.Context, frames []byte) error {
	return t.addFrames(ctx, bytes.NewReader(frames), 0, int64(len(frames)))
}

// sortedRows returns the rows in the order of the groups.
func (t *tally) sortedRows() []Row {
	out := make([]Row, 0, len(t.rows))
	for row, s := range t.rows {
		row.Sums = *s
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b Row) int {
		for _, g := range t.GroupBy {
			if c := strings.Compare(a.value(g), b.value(g)); c != 0 {
				return c
			}
		}
		return 0
	})
	return out
}

// Report answers a query from a database and from a journal directory that may belong to a
// running gateway. An empty directory name, or a missing directory, counts nothing. Report
// changes neither. The rows are in the order of the groups.
func Report(ctx context.Context, db *bun.DB, dir string, q Query) ([]Row, error) {
	t, err := newTally(&q)
	if err != nil {
		return nil, err
	}
	// A segment that is removed during the query of the database can be read only if
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
		segments, _, err := listSegments(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("journal directory: %w", err)
		}
		for _, s := range segments {
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
	shipped, err := t.addDatabase(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("report of usage: %w", err)
	}
	if err := look(); err != nil {
		return nil, err
	}
	for id, f := range open {
		info, err := f.Stat()
		if err == nil {
			err = t.addFrames(ctx, f, shipped[id], info.Size())
		}
		if err != nil {
			return nil, fmt.Errorf("report of usage: %w", err)
		}
	}
	return t.sortedRows(), nil
}
