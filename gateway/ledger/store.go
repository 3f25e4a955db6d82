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

// quarter is the grain of the sums.
const quarter = 15 * time.Minute

// Migrate makes the ledger's tables or brings them up to date. Several gateways
// may do so at once.
func Migrate(ctx context.Context, db *bun.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return database.Migrate(ctx, db, "ledger", files)
}

// place is what sums are kept apart by, but for the time.
type place struct{ department, project, user, key, model string }

// cell is a place in a quarter of an hour, by the quarter's begin in seconds.
type cell struct {
	quarter int64
	place
}

// begin is the begin of a moment's quarter, in seconds.
func begin(t time.Time) int64 {
	s := t.Unix()
	return s - s%int64(quarter/time.Second)
}

func cellOf(r *Record) cell {
	return cell{begin(r.Time), place{r.Department, r.Project, r.User, r.Key, r.Model}}
}

// insert puts a batch into the database in one transaction and notes that the
// segment is shipped up to a byte. Records that are there already change nothing.
func insert(ctx context.Context, db *bun.DB, segment string, shipped int64, batch []Record) error {
	// The same order everywhere: gateways that add to the same sums wait for each
	// other, and never each for the other.
	slices.SortFunc(batch, func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
	put := insertPostgres
	if db.Dialect().Name() != dialect.PG {
		put = func(ctx context.Context, tx *sql.Tx, batch []Record) error {
			return insertSQLite(ctx, tx, batch, rowsAtOnce)
		}
	}
	err := insertBy(ctx, db, segment, shipped, batch, put)
	if errors.Is(err, errSome) {
		put = func(ctx context.Context, tx *sql.Tx, batch []Record) error { return insertSQLite(ctx, tx, batch, 1) }
		err = insertBy(ctx, db, segment, shipped, batch, put)
	}
	return err
}

func insertBy(ctx context.Context, db *bun.DB, segment string, shipped int64, batch []Record, put func(context.Context, *sql.Tx, []Record) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it says that there is nothing to roll back; else the error is known
	if err := put(ctx, tx.Tx, batch); err != nil {
		// Without one of its own a statement of SQLite says only that there is no
		// transaction any more.
		return cmp.Or(ctx.Err(), err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO usage_segments (id, shipped, at) VALUES (?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET shipped = excluded.shipped, at = excluded.at`, segment, shipped, time.Now().UnixMilli()); err != nil {
		return err
	}
	return tx.Commit()
}

// addSums adds to a sum that is there already.
const addSums = ` ON CONFLICT (quarter, department, project, user_name, key_name, model) DO UPDATE SET
	requests = usage_sums.requests + excluded.requests, failed = usage_sums.failed + excluded.failed,
	input = usage_sums.input + excluded.input, cached = usage_sums.cached + excluded.cached,
	output = usage_sums.output + excluded.output, reasoning = usage_sums.reasoning + excluded.reasoning,
	estimated = usage_sums.estimated + excluded.estimated, milliunits = usage_sums.milliunits + excluded.milliunits,
	gpu_ms = usage_sums.gpu_ms + excluded.gpu_ms`

// columns of usage_records, first the texts, then the numbers of a record.
const (
	textColumns   = "id, department, project, user_name, key_name, asked, model"
	numberColumns = "at, level, status, input, cached, output, reasoning, estimated, milliunits, queue_ms, ttft_ms, took_ms, gpu_ms"
)

// insertPostgres is one statement: it inserts the rows that are new, and adds
// those, and only those, to the sums.
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

// rowsAtOnce is how many rows one statement of SQLite inserts: what a statement costs
// is shared by them, and what its parameters cost grows with the square of them.
const rowsAtOnce = 6

// errSome says that a statement inserted some of its rows, and nobody knows which.
var errSome = errors.New("some records are in the database already")

// insertSQLite does the same step by step, so many rows at once: there is nobody
// between its steps, and the way to the database costs nothing.
func insertSQLite(ctx context.Context, tx *sql.Tx, batch []Record, atOnce int) error {
	// A statement that can be interrupted costs a goroutine. These are short, and the
	// transaction ends with ctx.
	inside := context.WithoutCancel(ctx)
	sums := map[cell]*Sums{}
	whole := len(batch) - len(batch)%atOnce
	if err := insertRows(inside, tx, batch[:whole], atOnce, sums); err != nil {
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

// insertRows inserts records, of which batch holds a multiple of atOnce, and adds
// those that are new to the sums.
func insertRows(ctx context.Context, tx *sql.Tx, batch []Record, atOnce int, sums map[cell]*Sums) error {
	row := "(?" + strings.Repeat(", ?", texts+numbers-1) + ")"
	insert, err := tx.PrepareContext(ctx, `INSERT INTO usage_records (`+textColumns+`, `+numberColumns+`) VALUES `+
		row+strings.Repeat(", "+row, atOnce-1)+` ON CONFLICT (id) DO NOTHING`)
	if err != nil {
		return err
	}
	defer insert.Close() //nolint:errcheck // the transaction ends it anyway
	args := make([]any, 0, atOnce*(texts+numbers))
	for some := range slices.Chunk(batch, atOnce) {
		args = args[:0]
		for i := range some {
			for _, v := range some[i].texts() {
				args = append(args, v)
			}
			for _, v := range some[i].numbers() {
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
		case fresh < int64(atOnce) && atOnce > 1:
			return errSome
		case fresh == 0:
			continue
		}
		for i := range some {
			at := cellOf(&some[i])
			if sums[at] == nil {
				sums[at] = &Sums{}
			}
			sums[at].count(&some[i])
		}
	}
	return nil
}

// stored are those of ids that have a record.
func stored(ctx context.Context, db *bun.DB, ids []string) (known []string, err error) {
	for some := range slices.Chunk(ids, batchRecords) {
		rows, err := db.QueryContext(ctx, "SELECT id FROM usage_records WHERE id IN (?)", bun.List(some))
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

// shippedOf is up to which byte a segment is in the database.
func shippedOf(ctx context.Context, db *bun.DB, segment string) (shipped int64, err error) {
	err = db.QueryRowContext(ctx, "SELECT shipped FROM usage_segments WHERE id = ?", segment).Scan(&shipped)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return shipped, err
}

// forget drops the note of a segment that is no more.
func forget(ctx context.Context, db *bun.DB, segments []string) error {
	_, err := db.ExecContext(ctx, "DELETE FROM usage_segments WHERE id IN (?)", bun.List(segments))
	return err
}

// noteKept is how much longer than single records the notes of segments are kept.
// A gateway that comes back with a segment must find how much of it was shipped,
// since the records that would tell may be gone.
const noteKept = 365 * 24 * time.Hour

// How prune deletes: in pieces, so that a shipper or another gateway waits for one
// of them at most, and with pauses, in which they go on.
const (
	prunePiece   = 1000                   // records
	prunePause   = 100 * time.Millisecond // between two
	pruneTimeout = 30 * time.Second       // of one
)

// prune deletes single records that began before a moment, and notes of segments
// of machines that never came back. The sums stay. It returns how many records it
// deleted, also where it fails.
func prune(ctx context.Context, db *bun.DB, before time.Time) (deleted int64, err error) {
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
		n, err := exec("DELETE FROM usage_records WHERE id IN (SELECT id FROM usage_records WHERE at < ? ORDER BY at LIMIT ?)", before.UnixMilli(), prunePiece)
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
	if _, err := exec("DELETE FROM usage_segments WHERE at < ?", before.Add(-noteKept).UnixMilli()); err != nil {
		return deleted, fmt.Errorf("prune notes of segments: %w", err)
	}
	return deleted, nil
}
