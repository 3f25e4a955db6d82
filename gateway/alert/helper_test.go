package alert

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/uptrace/bun"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
	"tidegate/gateway/database"
)

// world holds all that the replicas of a test share, except their databases: the time, the
// use of the one quota, the claims, and the receiver of one channel.
type world struct {
	mu      sync.Mutex
	time    time.Time
	used    map[string]int64 // use, by user
	limit   int64
	alertAt []int
	alone   bool // set while the shared counters do not answer

	claims map[string]claim

	down    error // error of the receiver; nil if it accepts messages
	arrived map[string]int
	order   []channel.Alert
	last    string // last arrival, whose outcome may not be stored yet
}

type claim struct {
	owner   string
	expires time.Time
}

func newWorld() *world {
	return &world{
		time: time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC), used: map[string]int64{}, limit: 1000, alertAt: []int{80, 95, 100},
		claims: map[string]claim{}, arrived: map[string]int{},
	}
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.time
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	w.time = w.time.Add(d)
	w.mu.Unlock()
}

// period returns the end of the running day.
func (w *world) period() time.Time { return w.time.Truncate(24 * time.Hour).Add(24 * time.Hour) }

// Use implements Quotas.
func (w *world) Use(_ context.Context, who limit.Subjects) ([]limit.QuotaUse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u := limit.QuotaUse{Subject: who.User, Counter: "daily:" + who.User, AlertAt: w.alertAt, Shared: !w.alone}
	u.QuotaStatus = limit.QuotaStatus{Name: "daily", Scope: "user", Unit: "tokens", Used: w.used[who.User], Limit: w.limit, ResetsAt: w.period()}
	for _, percent := range w.alertAt {
		if u.Used*100 >= u.Limit*int64(percent) {
			u.AlertsCrossed = append(u.AlertsCrossed, percent)
		}
	}
	return []limit.QuotaUse{u}, nil
}

// Claim implements Claims.
func (w *world) Claim(_ context.Context, key, owner string, ttl time.Duration) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	earlier, taken := w.claims[key]
	taken = taken && w.time.Before(earlier.expires)
	if taken && earlier.owner != owner {
		return false, nil
	}
	if expires := w.time.Add(ttl); !taken || earlier.expires.Before(expires) {
		w.claims[key] = claim{owner, expires}
	}
	return true, nil
}

func (w *world) activeSubjects(context.Context) (out []limit.Subjects, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for user := range w.used {
		out = append(out, limit.Subjects{User: user})
	}
	return out, nil
}

// channel returns a channel whose messages arrive in the world.
func (w *world) channel(name string, recipients ...string) Channel {
	if len(recipients) == 0 {
		recipients = []string{""}
	}
	return Channel{
		Name: name, Type: "webhook", Targets: recipients, Accepts: func(channel.Severity) bool { return true },
		Send: func(_ context.Context, target string, a channel.Alert) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.down != nil {
				return w.down
			}
			key := strings.TrimSpace(a.Subject + " " + percentText(a.Percent) + " " + target)
			w.arrived[key]++
			w.last = key
			w.order = append(w.order, a)
			return nil
		},
	}
}

func percentText(percent int) string {
	return map[int]string{50: "50", 80: "80", 90: "90", 95: "95", 100: "100"}[percent]
}

func (w *world) replica(db *bun.DB, shared bool, channels ...Channel) *Alerts {
	p := Parts{
		DB: db, Quotas: w, ActiveSubjects: w.activeSubjects, Log: slog.New(slog.DiscardHandler), Now: w.now, Random: func() float64 { return 0.5 },
		Registry: prometheus.NewRegistry(),
	}
	if shared {
		p.Claims = w
	}
	return New(p, channels)
}

func open(t *testing.T, dsn string) *bun.DB {
	t.Helper()
	db, err := database.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return db
}

// nothingPending reports whether no delivery is pending.
func nothingPending(t *testing.T, db *bun.DB) bool {
	t.Helper()
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM alert_deliveries WHERE state = 'pending'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n == 0
}

// round checks and delivers once.
func round(t *testing.T, a *Alerts) {
	t.Helper()
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	deliver(t, a)
}

func deliver(t *testing.T, a *Alerts) {
	t.Helper()
	if err := a.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range a.routes.channels {
		if err := a.Deliver(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// series returns the values of a replica's metrics: those with some label values, by name,
// or all, by name and label values.
func series(t *testing.T, a *Alerts, values string) map[string]float64 {
	t.Helper()
	families, err := a.Registry.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			label := strings.TrimSpace(labels["channel"] + " " + labels["severity"] + " " + labels["outcome"])
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if values == "" {
				out[f.GetName()+" "+label] = value
			} else if label == values {
				out[f.GetName()] = value
			}
		}
	}
	return out
}
