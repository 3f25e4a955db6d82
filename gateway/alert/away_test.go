package alert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
	"tidegate/gateway/database/databasetest"
)

// TestAway looks while the shared counters, and then the database, do not answer: who
// was touched is looked at later, without a sweep.
func TestAway(t *testing.T) {
	w := newWorld()
	db := open(t, databasetest.SQLite(t))
	a := w.replica(db, true, w.channel("ops"))
	a.ActiveSubjects = nil
	w.alone = true
	w.use(a, "ada", 800)
	if err := a.Check(t.Context()); !errors.Is(err, errNotShared) {
		t.Fatalf("got %v", err)
	}
	w.alone = false
	if _, err := db.Exec("ALTER TABLE alert_crossings RENAME TO gone"); err != nil {
		t.Fatal(err)
	}
	a.Refused(limit.Subjects{User: "bob"}, "daily")
	w.used["bob"] = 960
	for range 2 {
		if err := a.Check(t.Context()); err == nil {
			t.Fatal("the table is not there")
		}
	}
	if _, err := db.Exec("ALTER TABLE gone RENAME TO alert_crossings"); err != nil {
		t.Fatal(err)
	}
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1, "bob 80": 1, "bob 95": 1, "bob 100": 1})
}

// TestTidyWhileAway: each step of tidying that fails is tried again, and says so meanwhile;
// the deliveries of a removed channel are dropped once the database is back.
func TestTidyWhileAway(t *testing.T) {
	w := newWorld()
	db := open(t, databasetest.SQLite(t))
	a := w.replica(db, false, w.channel("ops"), w.channel("old"))
	w.use(a, "ada", 800)
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	rename := func(from, to string) {
		t.Helper()
		if _, err := db.Exec("ALTER TABLE " + from + " RENAME TO " + to); err != nil {
			t.Fatal(err)
		}
	}
	away := func(step string) {
		t.Helper()
		rename("alert_deliveries", "gone")
		if err := a.Tidy(t.Context()); err == nil || !strings.Contains(err.Error(), "outbox: ") {
			t.Errorf("%s, and the table is not there: %v", step, err)
		}
		rename("gone", "alert_deliveries")
	}
	away("old rows are to be deleted")
	if err := a.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Minute)
	away("deliveries are to be counted")
	a.Reload([]Channel{w.channel("ops")})
	away("a channel was removed")
	if left := len(a.routes.removedTargets()); left != 1 {
		t.Errorf("%d removed targets wait for their end", left)
	}
	if err := a.Tidy(t.Context()); err != nil || len(a.routes.removedTargets()) != 0 {
		t.Errorf("%v, %d removed targets are left", err, len(a.routes.removedTargets()))
	}
}

// TestUnwritten has the database go away while a message is sent, for longer than its
// lease, and two replicas: it is not sent again.
func TestUnwritten(t *testing.T) {
	w := newWorld()
	db := open(t, databasetest.SQLite(t))
	rename := func(from, to string) {
		if _, err := db.Exec("ALTER TABLE " + from + " RENAME TO " + to); err != nil {
			t.Error(err)
		}
	}
	c := w.channel("ops")
	send := c.Send
	c.Send = func(ctx context.Context, target string, m channel.Alert) error {
		rename("alert_deliveries", "away")
		return send(ctx, target, m)
	}
	a, b := w.replica(db, false, c), w.replica(db, false, w.channel("ops"))
	w.use(a, "ada", 800)
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, r := range []*Alerts{a, b} {
			if err := r.Deliver(t.Context(), r.routes.channels[0]); err == nil {
				t.Fatal("the table is not there")
			}
		}
		w.pass(10 * time.Minute)
	}
	for _, r := range []*Alerts{a, b} { // they ask every two seconds
		if err := r.Deliver(t.Context(), r.routes.channels[0]); err == nil {
			t.Fatal("the table is not there")
		}
	}
	rename("away", "alert_deliveries")
	for range 10 {
		deliver(t, b)
		deliver(t, a)
		w.pass(2 * time.Second)
	}
	w.want(t, map[string]int{"ada 80": 1})
	if s := b.Status()[0]; s.Sent != 1 || s.Pending != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestReloadMeanwhile replaces a channel that has more to send while it sends: the rest
// goes the new way.
func TestReloadMeanwhile(t *testing.T) {
	w := newWorld()
	var a *Alerts
	c := w.channel("ops")
	c.Send = func(context.Context, string, channel.Alert) error {
		a.Reload([]Channel{w.channel("ops")})
		return errors.New("no")
	}
	a = w.replica(open(t, databasetest.SQLite(t)), false, c)
	w.use(a, "ada", 1000)
	round(t, a)
	deliver(t, a)
	w.want(t, map[string]int{"ada 95": 1, "ada 100": 1})
	w.pass(time.Minute)
	deliver(t, a)
	w.want(t, map[string]int{"ada 80": 1, "ada 95": 1, "ada 100": 1})
}

// TestLedgerAway: without the ledger those are looked at who were touched, and it is
// not asked again at once.
func TestLedgerAway(t *testing.T) {
	w := newWorld()
	a := w.replica(open(t, databasetest.SQLite(t)), false, w.channel("ops"))
	asked := 0
	a.ActiveSubjects = func(ctx context.Context) ([]limit.Subjects, error) {
		if asked++; asked == 1 {
			return nil, errors.New("it takes too long")
		}
		return w.activeSubjects(ctx)
	}
	w.used["bob"] = 800
	w.use(a, "ada", 800)
	for range 3 {
		if err := a.Check(t.Context()); err == nil {
			t.Error("it is not said that not everybody is seen")
		}
		w.pass(checkInterval)
	}
	deliver(t, a)
	w.want(t, map[string]int{"ada 80": 1})
	w.pass(minSweepInterval)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1, "bob 80": 1})
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// TestSweepAlone has the shared counters go away in the middle of a look at more than
// the set has room for: it goes on where it was, without the ledger.
func TestSweepAlone(t *testing.T) {
	w := newWorld()
	a := w.replica(open(t, databasetest.SQLite(t)), true, w.channel("ops"))
	asked := 0
	a.ActiveSubjects = func(context.Context) (out []limit.Subjects, err error) {
		asked++
		for i := range maxTouched + 10 {
			out = append(out, limit.Subjects{User: fmt.Sprint("nobody", i)})
		}
		return append(out, limit.Subjects{User: "ada"}), nil
	}
	w.used["ada"] = 800
	w.alone = true
	for range 100 {
		if err := a.Check(t.Context()); !errors.Is(err, errNotShared) {
			t.Fatalf("got %v", err)
		}
		w.pass(checkInterval)
	}
	w.alone = false
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1})
	if asked != 1 {
		t.Errorf("the ledger was asked %d times", asked)
	}
}

// TestSlowTally has the count of deliveries take a second: it is not made all the time.
func TestSlowTally(t *testing.T) {
	w := newWorld()
	slow := &slowTally{w: w}
	a := w.replica(open(t, databasetest.SQLite(t)).WithQueryHook(slow), false, w.channel("ops"))
	for range 30 {
		deliver(t, a)
		w.pass(deliverInterval)
	}
	if slow.n != 2 {
		t.Errorf("counted %d times in a minute", slow.n)
	}
}

type slowTally struct {
	w *world
	n int
}

// BeforeQuery implements bun.QueryHook.
func (s *slowTally) BeforeQuery(ctx context.Context, e *bun.QueryEvent) context.Context {
	if strings.Contains(e.Query, "COUNT(*)") {
		s.n++
		s.w.pass(time.Second)
	}
	return ctx
}

// AfterQuery implements bun.QueryHook.
func (s *slowTally) AfterQuery(context.Context, *bun.QueryEvent) {}

// TestFlood touches more than there is room for: the ledger knows the others.
func TestFlood(t *testing.T) {
	w := newWorld()
	a := w.replica(open(t, databasetest.SQLite(t)), false, w.channel("ops"))
	round(t, a)
	for i := range maxTouched + 10 {
		a.Touch(limit.Subjects{User: fmt.Sprint("nobody", i)})
	}
	w.use(a, "ada", 800)
	if n := len(a.touched.refusals); n != maxTouched {
		t.Errorf("%d are to be looked at", n)
	}
	w.pass(minSweepInterval)
	round(t, a)
	w.want(t, map[string]int{"ada 80": 1})
}
