package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect"

	"tidegate/gateway/database"
)

//go:embed migrations/*.sql
var migrations embed.FS

// quarter is the period of one sum.
const quarter = 15 * time.Minute

// Migrate creates the ledger's tables or updates them. Several gateways may do so at once.
func Migrate(ctx context.Context, db *bun.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return database.Migrate(ctx, db, "ledger", files)
}

// sumKey is the key of a sum without its time.
type sumKey struct{ department, project, user, key, model string }

// cell is the key of a sum. quarter is the start of its period, in seconds since 1970.
type cell struct {
	quarter int64
	sumKey
}

// quarterStart returns the start of a moment's quarter of an hour, in seconds since 1970.
func quarterStart(t time.Time) int64 {
	s := t.Unix()
	return s - s%int64(quarter/time.Second)
}

func newCell(r *Record) cell {
	return cell{quarterStart(r.Time), sumKey{r.Department, r.Project, r.User, r.Key, r.Model}}
}

// insert inserts a batch into the database in one transaction, and notes the bytes of the
// segment that are shipped. Records that are there already change nothing.
func insert(ctx context.Context, db *bun.DB, segment string, shipped int64, batch []Record) error {
	// Always in the same order, so that gateways that add to the same sums cannot
	// deadlock.
	slices.SortFunc(batch, func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
	put := insertPostgres
	if db.Dialect().Name() != dialect.PG {
		put = func(ctx context.Context, tx *sql.Tx, batch []Record) error {
			return insertSQLite(ctx, tx, batch, rowsPerStatement)
		}
	}
	err := insertTx(ctx, db, segment, shipped, batch, put)
	if errors.Is(err, errPartial) {
		put = func(ctx context.Context, tx *sql.Tx, batch []Record) error { return insertSQLite(ctx, tx, batch, 1) }
		err = insertTx(ctx, db, segment, shipped, batch, put)
	}
	return err
}

func insertTx(ctx context.Context, db *bun.DB, segment string, shipped int64, batch []Record, put func(context.Context, *sql.Tx, []Record) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back; otherwise the error is known
	if err := put(ctx, tx.Tx, batch); err != nil {
		// After the end of its context SQLite reports only that there is no transaction
		// any more.
		return cmp.Or(ctx.Err(), err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO usage_segments (id, shipped, at) VALUES (?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET shipped = excluded.shipped, at = excluded.at`, segment, shipped, time.Now().UnixMilli()); err != nil {
		return err
	}
	return tx.Commit()
}

// addSums is the clause that adds to an existing sum.
const addSums = ` ON CONFLICT (quarter, department, project, user_name, key_name, model) DO UPDATE SET
	requests = usage_sums.requests + excluded.requests, failed = usage_sums.failed + excluded.failed,
	input = usage_sums.input + excluded.input, cached = usage_sums.cached + excluded.cached,
	output = usage_sums.output + excluded.output, reasoning = usage_sums.reasoning + excluded.reasoning,
	estimated = usage_sums.estimated + excluded.estimated, milliunits = usage_sums.milliunits + excluded.milliunits,
	gpu_ms = usage_sums.gpu_ms + excluded.gpu_ms`

// Columns of usage_records: first the texts, then the numbers of a record.
const (
	textColumns   = "id, department, project, user_name, key_name, asked, model"
	numberColumns = "at, level, status, input, cached, output, reasoning, estimated, milliunits, queue_ms, ttft_ms, took_ms, gpu_ms"
)

// insertPostgres inserts a batch in one statement: it inserts the new rows and adds these,
// and only these, to the sums.
func insertPostgres(ctx context.Context, tx *sql.Tx, batch []Record) error {
	var (
		text   [texts][]string
		number [numbers][]int64
		kinds  []string
		args   []any
	)
	for i := range batch {
		for c, v := range batch[i].texts() {
			text[c] = append(text[c], v)
		}
		for c, v := range batch[i].numbers() {
			number[c] = append(number[c], v)
		}
	}
	for _, column := range text {
		args = append(args, column)
		kinds = append(kinds, fmt.Sprintf("$%d::text[]", len(args)))
	}
	for _, column := range number {
		args = append(args, column)
		kinds = append(kinds, fmt.Sprintf("$%d::bigint[]", len(args)))
	}
	columns := textColumns + ", " + numberColumns
	_, err := tx.ExecContext(ctx, `WITH fresh AS (
		INSERT INTO usage_records (`+columns+`)
		SELECT * FROM unnest(`+strings.Join(kinds, ", ")+`) AS given (`+columns+`) ORDER BY id
		ON CONFLICT (id) DO NOTHING RETURNING `+columns+`)
	INSERT INTO usage_sums (quarter, department, project, user_name, key_name, model,
		requests, failed, input, cached, output, reasoning, estimated, milliunits, gpu_ms)
	SELECT at / 900000 * 900, department, project, user_name, key_name, model,
		count(*), count(*) FILTER (WHERE status >= 400 AND status <> 499), sum(input), sum(cached), sum(output), sum(reasoning),
		sum(estimated), sum(milliunits), sum(gpu_ms)
	FROM fresh GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6`+addSums, args...)
	return err
}

// rowsPerStatement is the number of rows that one statement of SQLite inserts. More rows
// share the cost of a statement, but the cost of its parameters grows with their square.
const rowsPerStatement = 6

// errPartial is the error of a statement that inserted some of its rows, nobody knows which.
var errPartial = errors.New("some records are in the database already")

// insertSQLite does the same step by step, with size rows in a statement. SQLite has one
// writer at a time, and its statements need no round trip.
func insertSQLite(ctx context.Context, tx *sql.Tx, batch []Record, size int) error {
	// A statement that can be interrupted costs a goroutine. These are short, and the
	// transaction ends with ctx.
	inside := context.WithoutCancel(ctx)
	sums := map[cell]*Sums{}
	whole := len(batch) - len(batch)%size
	if err := insertRows(inside, tx, batch[:whole], size, sums); err != nil {
		return err
	}
	if err := insertRows(inside, tx, batch[whole:], 1, sums); err != nil {
		return err
	}
	sum, err := tx.PrepareContext(inside, `INSERT INTO usage_sums (quarter, department, project, user_name, key_name, model,
		requests, failed, input, cached, output, reasoning, estimated, milliunits, gpu_ms)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`+addSums)
	if err != nil {
		return err
	}
	defer sum.Close() //nolint:errcheck // the transaction ends it anyway
	for c, s := range sums {
		if _, err := sum.ExecContext(inside, c.quarter, c.department, c.project, c.user, c.key, c.model,
			s.Requests, s.Failed, s.Input, s.Cached, s.Output, s.Reasoning, s.Estimated, s.Milliunits, s.GPUMillis); err != nil {
			return err
		}
	}
	return nil
}

// insertRows inserts a multiple of size records and adds the new ones to the sums.
func insertRows(ctx context.Context, tx *sql.Tx, batch []Record, size int, sums map[cell]*Sums) error {
	row := "(?" + strings.Repeat(", ?", texts+numbers-1) + ")"
	insert, err := tx.PrepareContext(ctx, `INSERT INTO usage_records (`+textColumns+`, `+numberColumns+`) VALUES `+
		row+strings.Repeat(", "+row, size-1)+` ON CONFLICT (id) DO NOTHING`)
	if err != nil {
		return err
	}
	defer insert.Close() //nolint:errcheck // the transaction ends it anyway
	args := make([]any, 0, size*(texts+numbers))
	for part := range slices.Chunk(batch, size) {
		args = args[:0]
		for i := range part {
			for _, v := range part[i].texts() {
				args = append(args, v)
			}
			for _, v := range part[i].numbers() {
				args = append(args, v)
			}
		}
		result, err := insert.ExecContext(ctx, args...)
		if err != nil {
			return err
		}
		fresh, err := result.RowsAffected()
		switch {
		case err != nil:
			return err
		case fresh < int64(size) && size > 1:
			return errPartial
		case fresh == 0:
			continue
		}
		for i := range part {
			key := newCell(&part[i])
			if sums[key] == nil {
				sums[key] = &Sums{}
			}
			sums[key].count(&part[i])
		}
	}
	return nil
}

// stored returns those of the ids that have a record.
func stored(ctx context.Context, db *bun.DB, ids []string) (known []string, err error) {
	for part := range slices.Chunk(ids, batchRecords) {
		rows, err := db.QueryContext(ctx, "SELECT id FROM usage_records WHERE id IN (?)", bun.List(part))
		if err != nil {
			return known, err
		}
		for rows.Next() {
			var id string
			if err = rows.Scan(&id); err != nil {
				break
			}
			known = append(known, id)
		}
		if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return known, err
		}
	}
	return known, nil
}

// shippedBytes returns the number of bytes of a segment that are in the database.
func shippedBytes(ctx context.Context, db *bun.DB, segment string) (shipped int64, err error) {
	err = db.QueryRowContext(ctx, "SELECT shipped FROM usage_segments WHERE id = ?", segment).Scan(&shipped)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return shipped, err
}

// deleteSegmentNotes deletes the notes of segments that no longer exist.
func deleteSegmentNotes(ctx context.Context, db *bun.DB, segments []string) error {
	_, err := db.ExecContext(ctx, "DELETE FROM usage_segments WHERE id IN (?)", bun.List(segments))
	return err
}

// noteRetention is the time by which notes of segments outlive single records. A gateway
// that comes back with a segment must find how much of it was shipped, since the records
// that would show it may be deleted.
const noteRetention = 365 * 24 * time.Hour

// Bounds of prune. It deletes in pieces with pauses, so that a shipper or another gateway
// waits for one piece at most.
const (
	prunePiece   = 1000                   // records in a piece
	prunePause   = 100 * time.Millisecond // pause between two pieces
	pruneTimeout = 30 * time.Second       // bound for one piece
)

// prune deletes single records that began before a moment, and notes of segments
// of machines that never came back. The sums stay. It returns how many records it
// deleted, also where it fails.
func prune(ctx context.Context, db *bun.DB, cutoff time.Time) (deleted int64, err error) {
	exec := func(query string, args ...any) (int64, error) {
		ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
		defer cancel()
		result, err := db.ExecContext(ctx, query, args...)
		if err != nil {
			return 0, err
		}
		return result.RowsAffected()
	}
	for {
		n, err := exec("DELETE FROM usage_records WHERE id IN (SELECT id FROM usage_records WHERE at < ? ORDER BY at LIMIT ?)", cutoff.UnixMilli(), prunePiece)
		deleted += n
		if err != nil {
			return deleted, fmt.Errorf("prune usage records: %w", err)
		}
		if n < prunePiece {
			break
		}
		if !sleep(ctx, prunePause) {
			return deleted, ctx.Err()
		}
	}
	if _, err := exec("DELETE FROM usage_segments WHERE at < ?", cutoff.Add(-noteRetention).UnixMilli()); err != nil {
		return deleted, fmt.Errorf("prune notes of segments: %w", err)
	}
	return deleted, nil
}
