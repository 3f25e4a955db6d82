package account

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uptrace/bun"
	"pgregory.net/rapid"

	"tidegate/gateway/database/databasetest"
	"tidegate/nvml/poll"
)

// TestOutage freezes the server: a caller waits no longer than it wants to, and
// the store is back by itself.
func TestOutage(t *testing.T) {
	server := databasetest.StartServer(t)
	r := newReplica(t, server.Database(t), newClock(), nil)
	warm, cold := r.make(t, NewKey{User: "ann"}), r.make(t, NewKey{User: "bob"})
	r.check(t, "before", warm.Secret, nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.store.Run(ctx) }()
	server.Pause(t)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Identify(short, "Bearer "+cold.Secret, netip.Addr{}); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("a caller in a hurry: %v", err)
	}
	r.check(t, "in memory", warm.Secret, nil)
	r.check(t, "not in memory", cold.Secret, ErrUnavailable)
	poll.Await(t, "the store to be taken for down", func() bool { return r.store.failing.Load() })
	server.Resume(t)
	poll.Await(t, "the store to be back", func() bool {
		_, err := r.as(t, cold.Secret)
		return err == nil
	})
	server.Stop(t)
	poll.Await(t, "the crash to be noticed", func() bool { return r.store.failing.Load() })
	r.check(t, "in memory", warm.Secret, nil)
	server.Start(t)
	poll.Await(t, "the store to be back", func() bool { return !r.store.failing.Load() })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRun follows the changes of another replica on a clock that only moves when
// all wait: at the next second without help, at once with a Poke.
func TestRun(t *testing.T) {
	dsn := databasetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		c.ms.Store(time.Now().UnixMilli())
		a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
		m := a.make(t, NewKey{User: "ann"})
		b.check(t, "before", m.Secret, nil)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.store.Run(ctx) }()
		synctest.Wait()
		if _, err := a.store.RevokeKey(t.Context(), "test", "ann"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.check(t, "revoked, not heard yet", m.Secret, nil)
		time.Sleep(pollInterval)
		synctest.Wait()
		b.check(t, "revoked a second ago", m.Secret, ErrUnknownKey)
		a.store.hooks.Wrote = b.store.Poke
		m = a.make(t, NewKey{User: "ann"})
		b.check(t, "made anew", m.Secret, nil)
		if _, err := a.store.RevokeKey(t.Context(), "test", m.Key.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.check(t, "revoked, with a Poke", m.Secret, ErrUnknownKey)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, r := range []*replica{a, b} {
			if err := r.db.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestLateAnswer makes sure that an answer which is older than a change of its key
// is not kept beyond the change.
func TestLateAnswer(t *testing.T) {
	dsn, c := databasetest.SQLite(t), newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	m := a.make(t, NewKey{User: "ann"})
	b.sync(t)
	late := &between{words: "k.hash = ", after: func() {
		if _, err := a.store.RevokeKey(t.Context(), "test", "ann"); err != nil {
			t.Error(err)
		}
		b.sync(t)
	}}
	b.store.db = b.store.db.WithQueryHook(late)
	b.check(t, "looked up before it was revoked", m.Secret, nil)
	if late.after != nil {
		t.Fatal("nothing came between")
	}
	b.check(t, "after that", m.Secret, ErrUnknownKey)
}

// breaker fails the second time that the store is asked for changes.
type breaker struct {
	n    int
	fail func(context.Context) context.Context
}

func (b *breaker) BeforeQuery(ctx context.Context, e *bun.QueryEvent) context.Context {
	if strings.Contains(e.Query, "FROM account_audit") {
		if b.n++; b.n == 2 {
			return b.fail(ctx)
		}
	}
	return ctx
}
func (b *breaker) AfterQuery(context.Context, *bun.QueryEvent) {}

// TestHalfASync takes a change over and then fails, or is told to end: that the
// change was taken over must be said, since the next Sync does not see it again.
func TestHalfASync(t *testing.T) {
	for name, ends := range map[string]bool{"the database fails": false, "the caller leaves": true} {
		t.Run(name, func(t *testing.T) {
			dsn, c := databasetest.SQLite(t), newClock()
			a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
			if err := a.store.SetOverride(t.Context(), "test", Override{Rule: "r", Scope: "user", Name: "ann", Requests: "1/1m"}); err != nil {
				t.Fatal(err)
			}
			applied := 0
			b.store.hooks.Applied = func() { applied++ }
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			b.store.db = b.store.db.WithQueryHook(&breaker{fail: func(ctx context.Context) context.Context {
				if ends {
					leave()
					return ctx
				}
				broken, cancel := context.WithCancel(ctx)
				cancel()
				return broken
			}})
			if err := b.store.Sync(ctx); err == nil {
				t.Fatal("nothing failed")
			}
			b.sync(t)
			if applied != 1 || len(b.store.Overrides()) != 1 {
				t.Errorf("applied %d times: %+v", applied, b.store.Overrides())
			}
		})
	}
}

// TestAgainstModel makes, rotates and revokes keys at random on two replicas while
// time passes: the one where it happens knows at once, the other after a Sync.
func TestAgainstModel(t *testing.T) {
	dsn := databasetest.SQLite(t)
	c := newClock()
	pair := []*replica{newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)}
	type life struct {
		secret string
		ends   time.Time // revoked: at once
	}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		name := fmt.Sprintf("u%d", run)
		var all []*life
		good := func(l *life) bool { return c.now().Before(l.ends) }
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			r := rapid.SampledFrom(pair).Draw(rt, "replica")
			current := len(all) > 0 && good(all[len(all)-1])
			switch op := rapid.SampledFrom([]string{"make", "revoke", "wait", "sync"}).Draw(rt, "op"); {
			case op == "make" && current:
				m, err := r.RotateKey(t.Context(), "test", name, 30*time.Second)
				if err != nil {
					rt.Fatal(err)
				}
				all[len(all)-1].ends = *m.Old.Expires
				all = append(all, &life{m.Secret, *m.Key.Expires})
			case op == "make":
				m := r.make(t, NewKey{User: name, Name: name, TTL: rapid.SampledFrom([]string{"20s", "1h"}).Draw(rt, "ttl")})
				all = append(all, &life{m.Secret, *m.Key.Expires})
			case op == "revoke" && current:
				if _, err := r.store.RevokeKey(t.Context(), "test", name); err != nil {
					rt.Fatal(err)
				}
				for _, l := range all {
					l.ends = time.Time{}
				}
			case op == "wait":
				c.advance(10 * time.Second)
				r.sync(t)
			default:
				r.sync(t)
			}
			for i, l := range all {
				if _, err := r.as(t, l.secret); (err == nil) != good(l) {
					rt.Fatalf("key %d: %v, but good is %v", i, err, good(l))
				}
			}
		}
	})
}

// FuzzHeader gives Identify any header: it must not fail in other ways than its
// own, and only the good key's text opens.
func FuzzHeader(f *testing.F) {
	c := newClock()
	r := newReplica(f, databasetest.SQLite(f), c, func(c *Config) { c.Keys = validConfig().Keys })
	m := r.make(f, NewKey{User: "ann"})
	for _, s := range []string{"", "Bearer", "Bearer " + m.Secret, "bearer  " + m.Secret + " ", "Bearer " + annKey, "Bearer tg-" + strings.Repeat("0", 43), "Basic eDp5", "Bearer \x00", strings.Repeat("Bearer ", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		id, err := r.Identify(t.Context(), header, netip.Addr{})
		if err != nil && (err != ErrUnknownKey && err != ErrNoKey || id.User != "") { //nolint:errorlint // no other may be wrapped in them
			t.Errorf("%+v, %v", id, err)
		}
		if err == nil && !strings.Contains(header, m.Secret) && !strings.Contains(header, annKey) && !strings.Contains(header, bobKey) && !strings.Contains(header, "tg-upper") {
			t.Errorf("%q opens: %+v", header, id)
		}
	})
}

// BenchmarkMillion looks up keys that are not in memory among a million.
func BenchmarkMillion(b *testing.B) {
	c := newClock()
	dsn := databasetest.SQLite(b)
	r := newReplica(b, dsn, c, nil)
	r.make(b, NewKey{User: "ann"})
	const million = 1_000_000
	if _, err := r.db.ExecContext(b.Context(), `WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
		INSERT INTO account_keys SELECT printf('%026d', n), 'k' || n, 'ann', lower(hex(randomblob(32))), '[]', '[]', 'standard', 4, FALSE, 0, 0, 0, '' FROM n`, million); err != nil {
		b.Fatal(err)
	}
	var texts []string
	if err := r.db.NewRaw("SELECT hash FROM account_keys ORDER BY substr(hash, 60) LIMIT 5000").Scan(b.Context(), &texts); err != nil {
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools hold takes two
	runtime.ReadMemStats(&before)
	began := time.Now()
	s := NewStore(r.db, Hooks{now: c.now})
	if err := s.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}
	loading := time.Since(began)
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ResetTimer()
	var took []time.Duration
	for range b.N {
		s.cache = newLRU[hash, *record](cachedKeys)
		for _, text := range texts {
			sum, err := parseHash(text)
			if err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			if _, err := s.identify(b.Context(), sum, netip.Addr{}, 0); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
	}
	b.StopTimer()
	slices.Sort(took)
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	b.ReportMetric(us(took[len(took)/2]), "us-cold-p50")
	b.ReportMetric(us(took[len(took)*99/100]), "us-cold-p99")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-of-hashes")
	b.ReportMetric(loading.Seconds(), "s-to-load")
}

// BenchmarkCreateKey makes keys one after another, each synchronously on the disk.
func BenchmarkCreateKey(b *testing.B) {
	r := newReplica(b, databasetest.SQLite(b), newClock(), nil)
	for i := 0; b.Loop(); i++ {
		r.make(b, NewKey{User: "ann", Name: fmt.Sprintf("ann%d", i)})
	}
}

// BenchmarkIdentify is what a request pays for a key in memory, an unknown key in a
// storm, and a header of 1 MiB.
func BenchmarkIdentify(b *testing.B) {
	r := newReplica(b, databasetest.SQLite(b), newClock(), nil)
	m := r.make(b, NewKey{User: "ann"})
	for name, header := range map[string]string{
		"known": "Bearer " + m.Secret, "unknown": "Bearer " + NewSecret(), "odd": "Bearer EMPTY", "1MiB": "Bearer " + strings.Repeat("x", 1<<20),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = r.Identify(b.Context(), header, netip.Addr{})
			}
		})
	}
}
