package alert

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"pgregory.net/rapid"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
	"tidegate/gateway/database/databasetest"
)

// killed is what a process that is killed panics with.
type killed struct{}

// killer kills the process at one of the steps to come: before or after any statement,
// claim or message.
type killer struct {
	w    *world
	left int // steps until then; negative: never
}

func (k *killer) step() {
	if k.left--; k.left == 0 {
		panic(killed{})
	}
}

// BeforeQuery implements bun.QueryHook.
func (k *killer) BeforeQuery(ctx context.Context, _ *bun.QueryEvent) context.Context {
	k.step()
	return ctx
}

// AfterQuery implements bun.QueryHook.
func (k *killer) AfterQuery(_ context.Context, e *bun.QueryEvent) {
	if e.Err == nil && len(e.Query) > 35 && e.Query[:35] == "UPDATE alert_deliveries SET state =" {
		k.w.last = "" // it is written down that it arrived
	}
	k.step()
}

// Claim implements Claims.
func (k *killer) Claim(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	k.step()
	mine, err := k.w.Claim(ctx, key, owner, ttl)
	k.step()
	return mine, err
}

// property draws histories of two replicas: what is used, who is touched and refused,
// kills at any step, a receiver and shared counters that go away, and time. In the end
// each threshold that stands has arrived once, but for those that had arrived when a
// kill kept that from being written down.
type property struct {
	t        *rapid.T
	w        *world
	dbs      [2]*bun.DB
	shared   bool
	replicas [2]*Alerts
	kill     *killer
	excused  map[string]int
}

const users = 2

func user(i int) string { return fmt.Sprintf("user-%d", i) }

func (p *property) start(i int) {
	p.replicas[i] = p.w.replica(p.dbs[i], p.shared, p.w.channel("ops"))
	if p.shared {
		p.replicas[i].Claims = p.kill
	}
}

// run runs a step of a replica, which may be killed in it and is then started anew.
func (p *property) run(i, steps int, f func(*Alerts) error) {
	defer func() {
		p.kill.left = -1
		switch dead := recover().(type) {
		case nil:
		case killed:
			if p.w.last != "" {
				p.excused[p.w.last]++
			}
			p.start(i)
		default:
			panic(dead)
		}
		p.w.last = ""
	}()
	if rapid.Bool().Draw(p.t, "kill") {
		p.kill.left = rapid.IntRange(1, steps).Draw(p.t, "at")
	}
	_ = f(p.replicas[i]) // it fails while the counters are away
}

func (p *property) step() {
	i := rapid.IntRange(0, 1).Draw(p.t, "replica")
	who := limit.Subjects{User: user(rapid.IntRange(0, users-1).Draw(p.t, "user"))}
	ctx := context.Background()
	switch rapid.IntRange(0, 9).Draw(p.t, "what") {
	case 0, 1, 2:
		p.w.used[who.User] = min(p.w.used[who.User]+int64(rapid.IntRange(0, 900).Draw(p.t, "use")), 1100)
		p.replicas[i].Touch(who)
	case 3:
		p.replicas[i].Refused(who, "daily")
	case 4, 5:
		p.run(i, 30, func(a *Alerts) error { return a.Check(ctx) })
	case 6, 7:
		p.run(i, 9, func(a *Alerts) error { return a.Deliver(ctx, a.routes.channels[0]) })
	case 8:
		p.w.pass(time.Duration([...]int{1, 10, 70, 600}[rapid.IntRange(0, 3).Draw(p.t, "seconds")]) * time.Second)
	case 9:
		if p.w.down = nil; rapid.Bool().Draw(p.t, "down") {
			p.w.down = &channel.Error{Text: "away"}
		}
		p.w.alone = rapid.IntRange(0, 3).Draw(p.t, "alone") == 0
	}
}

func (p *property) end() {
	p.w.down, p.w.alone = nil, false
	for range 3 { // claims of what died end, then leases, then what was put off is due
		p.w.pass(lastPause * 2)
		for i := range p.replicas {
			p.replicas[i].Sweep()
			if err := p.replicas[i].Check(context.Background()); err != nil {
				p.t.Fatal(err)
			}
			if err := p.replicas[i].Deliver(context.Background(), p.replicas[i].routes.channels[0]); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	for i := range users {
		for _, percent := range p.w.alertAt {
			key := user(i) + " " + percentText(percent)
			got, stands := p.w.arrived[key], p.w.used[user(i)]*100 >= p.w.limit*int64(percent)
			refused := percent == 100 && p.w.used[user(i)] >= 950 // may have been refused
			switch {
			case stands && got < 1, got > 1+p.excused[key], got > 0 && !stands && !refused:
				p.t.Fatalf("%s at %d: arrived %d times, excused %d", key, p.w.used[user(i)], got, p.excused[key])
			}
		}
	}
}

func TestProperty(t *testing.T) {
	var all [2]*bun.DB
	k := &killer{left: -1}
	for i := range all {
		all[i] = open(t, databasetest.SQLite(t))
		all[i].SetMaxOpenConns(1)
		if _, err := all[i].Exec("PRAGMA synchronous = OFF"); err != nil { // nobody pulls the plug here
			t.Fatal(err)
		}
		all[i] = all[i].WithQueryHook(k)
	}
	kills := 0
	rapid.Check(t, func(rt *rapid.T) {
		for _, db := range all {
			for _, table := range []string{"alert_deliveries", "alert_crossings", "alert_owner"} {
				if _, err := db.Exec("DELETE FROM " + table); err != nil {
					t.Fatal(err)
				}
			}
		}
		k.w = newWorld()
		p := &property{t: rt, w: k.w, dbs: all, kill: k, excused: map[string]int{}}
		switch rapid.IntRange(0, 2).Draw(rt, "databases") {
		case 0:
			p.shared = true // a database each, and one Redis
		case 1:
			p.shared, p.dbs[1] = true, all[0]
		case 2:
			p.dbs[1] = all[0]
		}
		p.start(0)
		p.start(1)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			p.step()
		}
		p.end()
		for _, n := range p.excused {
			kills += n
		}
	})
	t.Logf("%d messages arrived just before a kill", kills)
}
