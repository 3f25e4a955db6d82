package alert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
	"tidegate/gateway/database/databasetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCrossed(t *testing.T) {
	usual := []int{80, 95, 100}
	for _, c := range []struct {
		used    int64 // of 1000
		at      []int
		refused bool
		want    []int
	}{
		{799, usual, false, nil},
		{800, usual, false, []int{80}},
		{998, usual, false, []int{80, 95}},
		{1000, usual, false, usual},
		{1000, usual, true, usual},
		{998, usual, true, usual},     // it will never get any nearer
		{949, usual, true, []int{80}}, // a large request was refused, or what others had reserved was in its way
		{600, []int{50, 100}, true, []int{50, 100}},
		{940, []int{100}, true, nil},
		{950, []int{100}, true, []int{100}},
		{990, []int{50, 90}, true, []int{50, 90}}, // nobody wants to know
	} {
		u := &limit.QuotaUse{AlertAt: c.at}
		u.Used, u.Limit = c.used, 1000
		for _, percent := range c.at {
			if c.used >= int64(percent)*10 {
				u.AlertsCrossed = append(u.AlertsCrossed, percent)
			}
		}
		if got := crossedThresholds(u, c.refused); !slices.Equal(got, c.want) {
			t.Errorf("%d of %v, refused %v: %v, want %v", c.used, c.at, c.refused, got, c.want)
		}
	}
}

func TestSeverity(t *testing.T) {
	const w, s, b = channel.Warning, channel.Severe, channel.Blocked
	for _, c := range []struct {
		at   []int
		want []channel.Severity
	}{
		{[]int{80, 95, 100}, []channel.Severity{w, s, b}},
		{[]int{50, 75, 90, 100}, []channel.Severity{w, w, s, b}},
		{[]int{50, 75}, []channel.Severity{w, s}},
		{[]int{90}, []channel.Severity{w}},
		{[]int{95}, []channel.Severity{s}},
		{[]int{95, 97, 98}, []channel.Severity{s, s, s}},
		{[]int{100}, []channel.Severity{b}},
	} {
		for i, percent := range c.at {
			if got := severity(percent, c.at); got != c.want[i] {
				t.Errorf("%d of %v is %v, want %v", percent, c.at, got, c.want[i])
			}
		}
	}
}

func TestPause(t *testing.T) {
	a := &Alerts{Parts: Parts{Random: func() float64 { return 0.5 }}}
	for attempts, want := range map[int]time.Duration{1: 5 * time.Second, 2: 10 * time.Second, 6: 160 * time.Second, 7: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := a.pause(attempts); got != want {
			t.Errorf("after %d tries %v, want %v", attempts, got, want)
		}
	}
	for random, want := range map[float64]time.Duration{0: 4 * time.Second, 1: 6 * time.Second} {
		a.Random = func() float64 { return random }
		if got := a.pause(1); got != want {
			t.Errorf("with %v: %v, want %v", random, got, want)
		}
	}
}

// TestDatabases runs what depends on statements on both databases.
func TestDatabases(t *testing.T) {
	tests := map[string]func(*testing.T, string){
		"Once": testOnce, "Outage": testOutage, "GivenUp": testGivenUp, "Replicas": testReplicas, "Reload": testReload,
		"Recipients": testRecipients, "Periods": testPeriods, "Takeover": testTakeover, "Prune": testPrune,
	}
	t.Run("sqlite", func(t *testing.T) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) { test(t, databasetest.SQLite(t)) })
		}
	})
	t.Run("postgres", func(t *testing.T) {
		server := databasetest.StartServer(t)
		for name, test := range tests {
			t.Run(name, func(t *testing.T) { test(t, server.Database(t)) })
		}
	})
}

func (w *world) use(a *Alerts, user string, used int64) {
	w.mu.Lock()
	w.used[user] = used
	w.mu.Unlock()
	a.Touch(limit.Subjects{User: user})
}

func (w *world) want(t *testing.T, want map[string]int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !maps.Equal(w.arrived, want) {
		t.Errorf("arrived %v, want %v", w.arrived, want)
	}
}

func testOnce(t *testing.T, dsn string) {
	w := newWorld()
	db := open(t, dsn)
	a := w.replica(db, false, w.channel("ops"))
	w.use(a, "ada", 799)
	round(t, a)
	w.want(t, map[string]int{})
	w.use(a, "ada", 800)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1})
	w.use(a, "ada", 1000) // two at once
	round(t, a)
	w.use(a, "ada", 1200)
	round(t, a)
	a = w.replica(db, false, w.channel("ops")) // a new process sweeps
	round(t, a)
	w.use(a, "ada", 900) // given back
	round(t, a)
	w.use(a, "ada", 1000)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1, "ada 95": 1, "ada 100": 1})
	if got := w.order[0]; got.Quota != "daily" || got.Used != 800 || got.Limit != 1000 || !got.ResetsAt.Equal(w.period()) || got.Severity != channel.Warning || got.Unit != "tokens" {
		t.Errorf("told %+v", got)
	}
	// A raise makes room for others: what is told stays told.
	w.limit = 2000
	w.use(a, "ada", 1990)
	round(t, a)
	if len(w.order) != 3 {
		t.Errorf("after a raise: %v", w.arrived)
	}
	s := a.Status()[0]
	if s.Sent != 3 || s.Pending != 0 || s.LastSuccess == nil || !s.LastSuccess.Equal(w.time) || s.LastError != "" {
		t.Errorf("status %+v", s)
	}
}

// testOutage has a receiver away for ten minutes, and its first messages refused.
func testOutage(t *testing.T, dsn string) {
	w := newWorld()
	db := open(t, dsn)
	a := w.replica(db, false, w.channel("ops"))
	w.down = &channel.Error{Status: 500, Text: "500 Internal Server Error"}
	w.use(a, "ada", 1000)
	began := w.time
	tries := 0
	for w.time.Sub(began) < 10*time.Minute {
		round(t, a)
		w.pass(time.Second)
		tries++
	}
	if s := a.Status()[0]; s.Pending != 3 || s.LastError != "500 Internal Server Error" || s.LastErrorAt == nil {
		t.Errorf("status %+v", s)
	}
	lines, err := List(t.Context(), db, false)
	if err != nil || len(lines) != 3 || lines[0].Percent != 100 || lines[0].State != "pending" || lines[0].Attempts != 7 || lines[0].Next == nil {
		t.Errorf("listed %+v, %v", lines, err)
	}
	w.down = nil
	for w.time.Sub(began) < 16*time.Minute {
		round(t, a)
		w.pass(time.Second)
	}
	w.want(t, map[string]int{"ada 80": 1, "ada 95": 1, "ada 100": 1})
	if got := series(t, a, "ops severe retried")["tidegate_alerts_total"]; got != 7 {
		t.Errorf("%v tries were counted as failed", got)
	}
	if got := series(t, a, "ops")["tidegate_alerts_pending"]; got != 0 {
		t.Errorf("%v pending", got)
	}
}

func testGivenUp(t *testing.T, dsn string) {
	w := newWorld()
	a := w.replica(open(t, dsn), false, w.channel("ops"))
	w.down = errors.New("no")
	w.use(a, "ada", 850)
	began := w.time
	for w.time.Sub(began) < 24*time.Hour {
		deliver(t, a)
		if w.time.Equal(began) {
			round(t, a)
		}
		w.pass(4 * time.Minute)
	}
	if s := a.Status()[0]; s.Pending != 1 || s.Failed != 0 {
		t.Errorf("before a day is over: %+v", s)
	}
	w.pass(6 * time.Minute)
	deliver(t, a)
	if s := a.Status()[0]; s.Pending != 0 || s.Failed != 1 || s.LastError != "no" {
		t.Errorf("after a day: %+v", s)
	}
	w.down = nil
	w.pass(time.Hour)
	deliver(t, a)
	w.want(t, map[string]int{})
	if got := series(t, a, "ops warning given_up")["tidegate_alerts_total"]; got != 1 {
		t.Errorf("%v were counted as given up", got)
	}
}

// testReplicas has four replicas of one database see and deliver the same at once.
func testReplicas(t *testing.T, dsn string) {
	w := newWorld()
	db := open(t, dsn)
	for i := range 8 {
		w.used[fmt.Sprint("user", i)] = 970
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			a := w.replica(db, i%2 == 0, w.channel("ops"))
			for range 3 {
				if err := errors.Join(a.Check(t.Context()), a.Tidy(t.Context()), a.Deliver(t.Context(), a.routes.channels[0])); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	want := map[string]int{}
	for user := range w.used {
		want[user+" 80"], want[user+" 95"] = 1, 1
	}
	w.want(t, want)
}

func testReload(t *testing.T, dsn string) {
	w := newWorld()
	db := open(t, dsn)
	a := w.replica(db, false, w.channel("old"), w.channel("stays"))
	w.down = errors.New("no")
	w.use(a, "ada", 800)
	round(t, a)
	a.Reload([]Channel{w.channel("stays"), w.channel("new")})
	w.down = nil
	w.pass(time.Minute)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1}) // by the one that stays
	a.Reload([]Channel{w.channel("stays"), w.channel("new"), w.channel("old")})
	w.use(a, "ada", 960)
	w.pass(time.Minute)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1, "ada 95": 3})
	if n := len(series(t, a, "")); n != 3*3*3+3 {
		t.Errorf("%d series", n)
	}
	a.Reload(nil)
	if n := len(series(t, a, "")); n != 0 {
		t.Errorf("%d series of no channel", n)
	}
	w.use(a, "ada", 1000) // noted, for nobody
	round(t, a)
	a.Reload([]Channel{w.channel("late")})
	w.use(a, "ada", 1000)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1, "ada 95": 3})
	lines, err := List(t.Context(), db, false)
	if err != nil || len(lines) != 1 || lines[0].State != "dropped" || lines[0].Channel != "old" {
		t.Errorf("listed %+v, %v", lines, err)
	}
}

// testRecipients has one of two recipients refused: the other is told once.
func testRecipients(t *testing.T, dsn string) {
	w := newWorld()
	c := w.channel("mail", "a@x", "b@x")
	send := c.Send
	c.Send = func(ctx context.Context, target string, a channel.Alert) error {
		if target == "a@x" {
			return &channel.Error{Status: 550, Text: "550 no such user"}
		}
		return send(ctx, target, a)
	}
	blockedOnly := w.channel("blocked")
	blockedOnly.Accepts = func(s channel.Severity) bool { return s == channel.Blocked }
	a := w.replica(open(t, dsn), false, c, blockedOnly)
	w.use(a, "ada", 800)
	for range 10 {
		round(t, a)
		w.pass(time.Minute)
	}
	w.want(t, map[string]int{"ada 80 b@x": 1})
	if s := a.Status()[0]; s.Pending != 1 || s.Sent != 1 || s.LastError != "550 no such user" {
		t.Errorf("status %+v", s)
	}
	if s := a.Status()[1]; s.Pending != 0 {
		t.Errorf("status %+v", s)
	}
}

func testPeriods(t *testing.T, dsn string) {
	w := newWorld()
	a := w.replica(open(t, dsn), true, w.channel("ops"))
	for range 3 {
		w.use(a, "ada", 900)
		round(t, a)
		w.pass(24 * time.Hour)
		w.use(a, "ada", 10)
		round(t, a)
	}
	w.want(t, map[string]int{"ada 80": 3})
}

// testTakeover has a replica with a database of its own die after it has noted a
// crossing and before that is its own for good. Another tells it; when the first is
// back it does not.
func testTakeover(t *testing.T, dsn string) {
	w := newWorld()
	first, second := open(t, dsn), open(t, databasetest.SQLite(t))
	a, b := w.replica(first, true, w.channel("ops")), w.replica(second, true, w.channel("ops"))
	a.Claims = claimOnce{Claims: w, left: new(int)}
	w.use(a, "ada", 800)
	if err := a.Check(t.Context()); err == nil {
		t.Fatal("the second claim was to fail")
	}
	deliver(t, a) // it must not be sent yet
	w.use(b, "ada", 800)
	round(t, b)
	w.want(t, map[string]int{})
	w.pass(2 * time.Minute)
	b.Touch(limit.Subjects{User: "ada"})
	round(t, b)
	w.want(t, map[string]int{"ada 80": 1})
	a = w.replica(first, true, w.channel("ops"))
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1})
	if !nothingPending(t, first) {
		t.Error("the first still wants to send it")
	}
}

// claimOnce fails after its first claim, as when the process dies or Redis goes away.
type claimOnce struct {
	Claims
	left *int
}

func (c claimOnce) Claim(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	if *c.left++; *c.left > 1 {
		return false, errors.New("away")
	}
	return c.Claims.Claim(ctx, key, owner, ttl)
}

func testPrune(t *testing.T, dsn string) {
	w := newWorld()
	db := open(t, dsn)
	a := w.replica(db, false, w.channel("ops"))
	w.use(a, "ada", 800)
	round(t, a)
	for range 2 {
		w.pass(31 * 24 * time.Hour)
		delete(w.used, "ada")
		deliver(t, a)
	}
	for _, table := range []string{"alert_crossings", "alert_deliveries"} {
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s has %d rows, %v", table, n, err)
		}
	}
}

// TestSlowChannel runs the loops: a channel that hangs keeps only itself waiting, and
// does not keep the process from ending.
func TestSlowChannel(t *testing.T) {
	w := newWorld()
	hung := make(chan struct{}, 10)
	slow := w.channel("slow")
	slow.Send = func(ctx context.Context, _ string, _ channel.Alert) error {
		hung <- struct{}{}
		<-ctx.Done()
		return &channel.Error{Text: "cut", Unsure: true}
	}
	a := w.replica(open(t, databasetest.SQLite(t)), false, slow, w.channel("ops"))
	w.used["ada"] = 1000
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	<-hung
	deadline := time.Now().Add(time.Minute)
	for arrived := 0; arrived < 3; {
		w.mu.Lock()
		arrived = len(w.order)
		w.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("the other channel waits")
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(hung) > 0 {
		t.Error("it hangs more than once")
	}
}

func TestNobody(t *testing.T) {
	var a *Alerts
	a.Touch(limit.Subjects{})
	a.Refused(limit.Subjects{}, "daily")
	a.Sweep()
	if got := a.Status(); got == nil || len(got) > 0 {
		t.Errorf("got %v", got)
	}
}

// BenchmarkTouch is what the path of a request pays: of those who come again and
// again, and of those who come the first time since the last look.
func BenchmarkTouch(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a := &Alerts{touched: touchedSet{refusals: map[limit.Subjects]string{}}}
			who := make([]limit.Subjects, n)
			for i := range who {
				who[i] = limit.Subjects{Department: "research", Project: "search", User: fmt.Sprint("user-", i), Key: "laptop", Model: "Qwen3-1.7B"}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				a.Touch(who[i%n])
			}
		})
	}
	b.Run("first", func(b *testing.B) {
		a := &Alerts{touched: touchedSet{refusals: map[limit.Subjects]string{}}}
		who := make([]limit.Subjects, maxTouched)
		for i := range who {
			who[i] = limit.Subjects{Department: "research", Project: "search", User: fmt.Sprint("user-", i), Key: "laptop", Model: "Qwen3-1.7B"}
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if i%maxTouched == 0 {
				a.touched.drain()
			}
			a.Touch(who[i%maxTouched])
		}
	})
}
