package gateway_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/account"
	"tidegate/gateway/database"
	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestSoakRevocation measures how soon a key that one process revoked is refused by
// another: told by Redis, while Redis is stopped, and without any Redis.
func TestSoakRevocation(t *testing.T) {
	t.Parallel()
	redis := redistest.Single(t)
	s := startServers(t, nil)
	client := stack.NewClient(t)
	for _, with := range []string{"redis: {addrs: ['" + redis.Addr + "']}\n", ""} {
		p := stack.Config{DSN: databasetest.SQLite(t), Extra: with}
		a, b := startReplica(t, s, p, client), startReplica(t, s, p, client)
		out, _ := kit.Command(t, 0, "key", "create", "--config", a.File, "--user", "root", "--admin")
		admin := strings.TrimSpace(out)
		name := "without Redis"
		if with != "" {
			name = "with Redis"
		}
		t.Run(name, func(t *testing.T) { stack.CheckRevocation(t, a.Gateway, b.Gateway, admin) })
		if with != "" && atLength() {
			t.Run("with a stopped Redis", func(t *testing.T) {
				redis.Pause()
				defer redis.Resume()
				stack.CheckRevocation(t, a.Gateway, b.Gateway, admin)
			})
		}
	}
}

// TestSoakRestore lets gateways and Redis forget what they counted: quotas stand
// where they stood.
func TestSoakRestore(t *testing.T) {
	t.Parallel()
	s := startServers(t, nil)
	client := stack.NewClient(t)
	const quotas = "quotas:\n  - {name: weekly, per: user, tokens: 1000000, every: week}\n  - {name: monthly, per: 'user,model', units: 1000000, every: month, zone: Asia/Kathmandu}\n"
	used := func(r *replica) (used []int64) {
		var now stack.LimitStatus
		r.Limits(t, stack.AdaKey, "/quota/status?model="+stack.LargeModel, &now)
		for _, q := range now.Quotas {
			used = append(used, q.Used)
		}
		return used
	}
	generate := func(r *replica) []int64 {
		for range 10 {
			if a := r.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 10, "")); a.Status != 200 {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		}
		want, _ := s.Delivered()
		total := want.Input + want.Output
		if got := used(r); len(got) != 2 || got[0] != total || got[1] != total {
			t.Fatalf("the quotas stand at %v; the engines say %d", got, total)
		}
		return used(r)
	}
	restart := func(r *replica) {
		r.Kill()
		r.Start(t)
	}
	t.Run("memory", func(t *testing.T) {
		r := startReplica(t, s, stack.Config{Extra: quotas}, client)
		before := generate(r)
		restart(r)
		if after := used(r); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("after a kill the quotas stand at %v; before at %v", after, before)
		}
	})
	for _, one := range s {
		one.Reset()
	}
	t.Run("redis", func(t *testing.T) {
		redis := redistest.Single(t)
		flush := func() {
			if err := redis.Client().FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		r := startReplica(t, s, stack.Config{DSN: databasetest.SQLite(t), Extra: quotas + "redis: {addrs: ['" + redis.Addr + "']}\n"}, client)
		before := generate(r)
		flush()
		restart(r)
		if after := used(r); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("after FLUSHALL and a kill the quotas stand at %v; before at %v", after, before)
		}
		restart(r)
		if after := used(r); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("after another kill the quotas stand at %v; before at %v", after, before)
		}
		if !atLength() {
			return
		}
		for _, how := range []string{"FLUSHALL", "kill -9 of Redis"} {
			if how == "FLUSHALL" {
				flush()
			} else {
				redis.Kill()
				redis.Start()
			}
			began := time.Now()
			stack.Eventually(t, "the quotas to be restored", func() bool { return fmt.Sprint(used(r)) == fmt.Sprint(before) })
			t.Logf("%s under a gateway that does nothing: restored after %v", how, time.Since(began).Round(10*time.Millisecond))
		}
	})
}

// TestSoakKeys lets others try keys: huge ones, odd ones and a flood of made-up ones.
// The database is asked for a few of them a second, and memory does not grow. From one
// address most are not looked at; the key that was used there still is.
func TestSoakKeys(t *testing.T) {
	dsn := databasetest.Postgres(t)
	client := stack.NewClient(t)
	r := startReplica(t, startServers(t, nil), stack.Config{DSN: dsn}, client)
	db, err := database.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	try := func(authorization string) int { return r.authorized(t, authorization) }
	oddKeys(t, try)
	if got := try("Bearer " + stack.AdaKey); got != 200 {
		t.Errorf("a good key before the storm: %d", got)
	}
	before, asked := r.memory(t), transactions(t, db)
	began := time.Now()
	var tried, wrong atomic.Int64
	var callers sync.WaitGroup
	last := began.Add(length(2*time.Second, time.Minute))
	for n := range 16 {
		callers.Go(func() {
			for time.Now().Before(last) {
				want := 401
				key := account.NewSecret()
				if n == 0 {
					key, want = strings.Repeat(rand.Text(), 40_000), 431 // 1 MB
				}
				if got := try("Bearer " + key); got != want && (n != 0 || got != 0) && (n == 0 || got != 429) {
					wrong.Add(1)
				}
				tried.Add(1)
			}
		})
	}
	callers.Wait()
	took := time.Since(began)
	queries, grown := transactions(t, db)-asked, r.memory(t)-before
	// 20 lookups a second after the first 50, one look a second for changes, and the
	// ledger's and this test's own. PostgreSQL counts a transaction up to a second late,
	// so those of the start are among them. Without a bound there is one for each key.
	bound := int64(50 + 25*took.Seconds() + 20 + 100)
	t.Logf("%d unknown keys in %v: %d transactions of the database (at most %d), %d MB more memory, %d unexpected answers",
		tried.Load(), took.Round(10*time.Millisecond), queries, bound, grown>>20, wrong.Load())
	if queries > bound {
		t.Errorf("the database was asked %d times", queries)
	}
	if grown > 128<<20 {
		t.Errorf("memory grew by %d MB", grown>>20)
	}
	if wrong.Load() > 0 {
		t.Errorf("%d answers were neither 401, 429 nor 431", wrong.Load())
	}
	if got := try("Bearer " + stack.AdaKey); got != 200 {
		t.Errorf("a good key after the storm: %d", got)
	}
	if err := r.Process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code := <-r.Ended
	r.Ended <- code
	if code != 0 {
		t.Errorf("code %d", code)
	}
}

// memory is what the process has resident, in bytes.
func (r *replica) memory(t *testing.T) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Process.Process.Pid))
	if err != nil {
		t.Skip("SKIPPED-PART: key storms: there is no /proc here")
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	kilobytes, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// transactions counts those of the database so far.
func transactions(t *testing.T, db *database.DB) (n int64) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), "SELECT pg_stat_force_next_flush()"); err != nil {
		t.Logf("statistics may be late: %v", err)
	}
	if err := db.QueryRowContext(t.Context(), "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// authorized asks with an Authorization header; 0: there was no answer.
func (r *replica) authorized(t *testing.T, authorization string) (status int) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.front.URL+"/v1/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Authorization"] = []string{authorization}
	resp, err := r.Client.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// oddKeys tries what is no key.
func oddKeys(t *testing.T, try func(string) int) {
	t.Helper()
	known := "Bearer " + stack.AdaKey
	for what, c := range map[string]struct {
		value string
		want  []int
	}{
		"nothing": {"", []int{401}}, "no scheme": {stack.AdaKey, []int{401}}, "another scheme": {"Basic " + stack.AdaKey, []int{401}},
		"another case": {"bearer " + stack.AdaKey, []int{200}}, "spaces": {"Bearer    " + stack.AdaKey + "  ", []int{200}},
		"two keys": {known + ", " + known, []int{401}}, "half": {known[:len(known)-1], []int{401}}, "more": {known + "x", []int{401}},
		"unicode": {"Bearer tg-\u2713\u2713\u2713", []int{401}}, "bytes": {"Bearer tg-\xff\xfe", []int{401}}, "SQL": {"Bearer tg-' OR 1=1 --", []int{401}},
		"long": {"Bearer tg-" + strings.Repeat("A", 8<<10), []int{401}}, "1 MB": {"Bearer tg-" + strings.Repeat("A", 1<<20), []int{431, 0}},
	} {
		if got := try(c.value); !slices.Contains(c.want, got) {
			t.Errorf("%s: status %d, expected one of %v", what, got, c.want)
		}
	}
}
