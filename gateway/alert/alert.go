// Package alert notifies people when a quota is nearly used up. It sends one alert for each
// threshold in a period, however many gateways run and whenever one is killed. It never
// works on the path of a request.
//
// # Detection
//
// A request that used a quota, or was rejected by one, only adds its subjects to a small
// set (Touch, Refused). A loop drains the set every two seconds and checks the quotas of
// those subjects. It does not wait for the moment of a crossing but asks whether a
// threshold is crossed, so a crash or an outage of a store loses nothing. Subjects that it
// could not check stay in the set. The loop checks all subjects that the ledger knows in
// the running periods when a gateway starts, when the set overflows, and every quarter of
// an hour, for a second at a time.
//
// Only settled use counts. Elsewhere the tokens that running requests have reserved count
// as used. Most of them are released again, and nobody should be notified of those. So a
// caller can be rejected at 99 % for ever. For that reason the threshold of 100 also counts
// as crossed when the quota has rejected a request while its settled use is at or above the
// highest of the other thresholds (95 % if there is none).
//
// # One alert for a crossing
//
// A crossing is a row of the outbox, in the database of the accounts, unique by quota,
// counter, period and threshold. That is enough for replicas that share the database.
// Replicas that share only a Redis also share Claims in it. A crossing is claimed for a
// minute, noted, claimed for the rest of its period, and then ours. Only then may it be
// delivered. A gateway that is killed between two of these steps completes them when it is
// back. If that takes longer than the minute, another gateway claims the crossing, and the
// first one finds out before it has sent anything.
//
// # Delivery
//
// With the crossing, the outbox stores a delivery for each target of each channel that
// accepts it. A gateway leases a delivery for longer than the longest attempt takes, so
// only one replica tries at a time. A failed delivery is tried again after 5 s, then after
// twice as long each time, up to 5 min, and given up 24 h after the first attempt. A
// gateway keeps the outcome of an attempt until the database accepts it. A message arrives
// twice, with the same id, in three cases: the process dies after the receiver has accepted
// it and before the outcome is stored; the database is away for this gateway alone for
// longer than the lease; the receiver's answer never comes (channel.Error has Unsure set).
package alert

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/uptrace/bun"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
)

// Intervals and timeouts of the loops.
const (
	checkInterval    = 2 * time.Second
	deliverInterval  = 2 * time.Second
	sweepInterval    = 15 * time.Minute
	minSweepInterval = 30 * time.Second
	pruneInterval    = time.Hour
	retention        = 31 * 24 * time.Hour // life of a crossing after the end of its period
	queryTimeout     = 5 * time.Second     // for one query of the database or of Redis
	sweepTimeout     = time.Minute
	sendGrace        = 5 * time.Second // time for a message under way to arrive when the process ends
)

// Quotas reports the use of quotas. *limit.Limiter implements it.
type Quotas interface {
	Use(ctx context.Context, subjects limit.Subjects) ([]limit.QuotaUse, error)
}

// Claims decides which of several databases owns a crossing.
type Claims interface {
	// Claim reserves key for owner for at least ttl from now, and extends an earlier claim
	// of the same owner. It reports false if another owner has claimed the key.
	Claim(ctx context.Context, key, owner string, ttl time.Duration) (bool, error)
}

// Channel is a destination of alerts. NewChannel returns one.
type Channel struct {
	Name, Type string
	Targets    []string
	Accepts    func(channel.Severity) bool
	Send       func(ctx context.Context, target string, a channel.Alert) error

	generation int // number of the reload that brought it
}

// NewChannel returns the destination for a channel of the configuration.
func NewChannel(ch *channel.Channel) Channel {
	return Channel{Name: ch.Name(), Type: ch.Type(), Targets: ch.Targets(), Accepts: ch.Accepts, Send: ch.Send}
}

// Parts are the things that an Alerts works with.
type Parts struct {
	DB             *bun.DB // has the tables of Migrate
	Quotas         Quotas
	Claims         Claims                                          // nil if all gateways with these counters share the database
	ActiveSubjects func(context.Context) ([]limit.Subjects, error) // returns the subjects with usage in the running periods; nil if they are unknown
	Log            *slog.Logger
	Registry       prometheus.Registerer
	Now            func() time.Time // nil for time.Now
	Random         func() float64   // returns a number from 0 to 1, for jitter; nil for math/rand
}

// Status is the state of one channel. Its counts come from the database, so replicas that
// share it report the same. A crossing leaves them a month after the end of its period.
type Status struct {
	Channel     string     `json:"channel"`
	Type        string     `json:"type"`
	Pending     int64      `json:"pending"`
	Sent        int64      `json:"sent"`
	Failed      int64      `json:"failed"` // alerts that were given up
	LastError   string     `json:"last_error"`
	LastErrorAt *time.Time `json:"last_error_at"`
	LastSuccess *time.Time `json:"last_success"`
}

// Alerts detects crossings of quotas and delivers alerts. It is safe for concurrent use. A
// nil Alerts does nothing.
type Alerts struct {
	Parts
	outbox  outbox
	touched touchedSet
	metrics *metrics
	routes  routes
	senders senders
	wake    chan struct{} // receives a token when there is something to deliver
	checks  checks        // written by Check
	upkeep  upkeep        // written by Tidy
}

// New returns an Alerts that is idle until Run.
func New(p Parts, channels []Channel) *Alerts {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Random == nil {
		p.Random = rand.Float64
	}
	a := &Alerts{
		Parts: p, outbox: outbox{p.DB}, touched: touchedSet{refusals: map[limit.Subjects]string{}}, wake: make(chan struct{}, 1),
		senders: senders{byChannel: map[string]*sender{}}, checks: checks{settled: map[string]time.Time{}},
	}
	a.metrics = newMetrics(p.Registry, a)
	a.Reload(channels)
	return a
}

// Reload replaces the channels. Deliveries to removed targets are dropped. A new channel
// receives the crossings from now on.
func (a *Alerts) Reload(channels []Channel) { a.routes.replace(channels, a.metrics.setChannels) }

func (a *Alerts) now() time.Time { return a.Now() }

// Touch records that a request of the subjects has used something. It costs an entry in a
// map.
func (a *Alerts) Touch(subjects limit.Subjects) {
	if a != nil {
		a.touched.add(subjects, "")
	}
}

// Refused records that a quota has rejected a request of the subjects.
func (a *Alerts) Refused(subjects limit.Subjects, quota string) {
	if a != nil {
		a.touched.add(subjects, quota)
	}
}

// Sweep makes the next check cover all subjects, for counters that may have changed without
// a request of this gateway.
func (a *Alerts) Sweep() {
	if a != nil {
		a.touched.overflow()
	}
}

// Status returns the state of the channels, as of a few seconds ago.
func (a *Alerts) Status() []Status {
	if a == nil {
		return []Status{}
	}
	channels := a.routes.list()
	var counted map[string]Status
	if p := a.upkeep.status.Load(); p != nil {
		counted = *p
	}
	out := make([]Status, 0, len(channels))
	for _, c := range channels {
		s := counted[c.Name]
		s.Channel, s.Type = c.Name, c.Type
		out = append(out, s)
	}
	return out
}

// Run checks quotas and delivers alerts until ctx ends. A database or a Redis that does not
// answer is a state, not an error.
func (a *Alerts) Run(ctx context.Context) error {
	steps := steps{running: map[string]bool{}}
	steps.group.Go(func() {
		repeat(ctx, checkInterval, nil, func() { a.logState(ctx, a.Check(ctx)) })
	})
	repeat(ctx, deliverInterval, a.wake, func() {
		steps.start("", func() error { return a.Tidy(ctx) })
		for _, c := range a.routes.list() {
			steps.start(c.Name, func() error { return a.Deliver(ctx, c) })
		}
	})
	steps.group.Wait()
	return nil
}

// steps runs the steps of a loop side by side, so that a slow channel delays only itself.
type steps struct {
	group sync.WaitGroup

	mu      sync.Mutex
	running map[string]bool // steps that run now, by name
}

// start runs a step in a goroutine, unless the step of that name is still running.
func (s *steps) start(name string, step func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[name] {
		return
	}
	s.running[name] = true
	s.group.Go(func() {
		_ = step() // Check logs that the database is away
		s.mu.Lock()
		delete(s.running, name)
		s.mu.Unlock()
	})
}

// repeat calls f at once, then at each tick of the period and each token of wake, until ctx
// ends.
func repeat(ctx context.Context, period time.Duration, wake <-chan struct{}, f func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for ctx.Err() == nil {
		f()
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-wake:
		}
	}
}

// logState logs the beginning and the end of a failure of Check.
func (a *Alerts) logState(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !a.checks.failing:
		a.Log.Warn("quotas cannot be watched for alerts at the moment; what is crossed meanwhile is told later", "error", err.Error())
	case err == nil && a.checks.failing:
		a.Log.Info("quotas are watched for alerts again")
	}
	a.checks.failing = err != nil
}
