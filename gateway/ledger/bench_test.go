package ledger

import (
	"fmt"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"tidegate/gateway/database/databasetest"
)

// BenchmarkAdd is what a request pays.
func BenchmarkAdd(b *testing.B) {
	l := open(b, b.TempDir(), openDB(b, databasetest.SQLite(b)))
	run(b, l)
	l.journal.buffer = 1 << 40
	r := one(1)
	r.ID = "0123456789abcdef0123456789abcdef"
	b.ReportAllocs()
	for b.Loop() {
		l.Add(r, nil)
	}
}

// BenchmarkCommit is how long the disk takes for a lone record.
func BenchmarkCommit(b *testing.B) {
	l := open(b, b.TempDir(), nil)
	for b.Loop() {
		l.Add(one(1), nil)
		if err := l.journal.commit(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShip ships batches on one connection: 1,000 users of two models, a
// hundred of them busy.
func BenchmarkShip(b *testing.B) {
	for name, dsn := range map[string]func(testing.TB) string{"sqlite": databasetest.SQLite, "postgres": databasetest.Postgres} {
		b.Run(name, func(b *testing.B) {
			db := openDB(b, dsn(b))
			db.SetMaxOpenConns(1)
			n := 0
			batch := make([]Record, batchRecords)
			for b.Loop() {
				for i := range batch {
					r := one(n)
					user := n % 100
					if n%10 == 0 {
						user = n % 1000
					}
					r.ID, r.User, r.Key = fmt.Sprintf("%012x%020x", time.Now().UnixMilli(), n), fmt.Sprint("user", user), fmt.Sprint("key", user)
					r.Model = [...]string{"Qwen3-1.7B", "Qwen3-0.6B"}[n%2]
					r.Time = noon().Add(time.Duration(n) * time.Second / 100)
					batch[i] = r
					n++
				}
				if err := insert(b.Context(), db, "bench", int64(n), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkReport asks for a month of a thousand users who were active in every
// quarter of an hour of eight hours a day.
func BenchmarkReport(b *testing.B) {
	for name, dsn := range map[string]func(testing.TB) string{"sqlite": databasetest.SQLite, "postgres": databasetest.Postgres} {
		b.Run(name, func(b *testing.B) {
			db := openDB(b, dsn(b))
			l := open(b, b.TempDir(), db)
			fill(b, db)
			for what, q := range map[string]Query{
				"user": always(Filter{User: "user7"}, ByDay), "departments": always(Filter{}, ByDepartment),
			} {
				b.Run(what, func(b *testing.B) {
					for b.Loop() {
						if rows, err := l.Report(b.Context(), q); err != nil || len(rows) == 0 {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}

func fill(b *testing.B, db *bun.DB) {
	b.Helper()
	_, err := db.ExecContext(b.Context(), `WITH RECURSIVE days (d) AS (SELECT 0 UNION ALL SELECT d + 1 FROM days WHERE d < 29),
		slots (s) AS (SELECT 0 UNION ALL SELECT s + 1 FROM slots WHERE s < 31), users (u) AS (SELECT 0 UNION ALL SELECT u + 1 FROM users WHERE u < 999)
		INSERT INTO usage_sums SELECT CAST(? AS BIGINT) + d * 86400 + s * 900, 'd' || (u % 10), 'p' || (u % 50), 'user' || u, 'key' || u, 'm', 5, 0, 500, 10, 900, 0, 0, 1400000, 0
		FROM days, slots, users`, quarterStart(noon()))
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWritten is what the end of an answer waits for, with one request at a time
// and with many.
func BenchmarkWritten(b *testing.B) {
	l := open(b, b.TempDir(), nil)
	run(b, l)
	add := func(n int) {
		l.Add(one(n), nil)
		if err := l.Written(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			add(n)
		}
	})
	b.Run("many", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for n := 0; p.Next(); n++ {
				add(n)
			}
		})
	})
}
