// Package alert tells when a quota comes near its end: each threshold exactly once in
// a period, however many gateways there are and whenever one is killed, and never on
// the path of a request.
//
// # Seeing
//
// A request that used something of a quota, or was refused by one, only leaves the
// names of its subjects in a small set (Touch, Refused). A loop takes the set every
// two seconds and looks at where their quotas stand. It does not wait for a threshold
// to be passed but asks whether it is passed: nothing hangs on a moment that a crash,
// or a store that is away, could swallow. What could not be looked at stays in the
// set. When a gateway starts, when the set was too small, and every quarter of an hour
// it looks at everybody whom the ledger knows in the running periods, for a second at a
// time.
//
// Only what is settled counts. What running requests have reserved is shown as used
// elsewhere, but most of it is given back, and nobody is to be told of that. So a
// caller can be refused at 99 % for ever: the threshold of 100 also counts as crossed
// when the quota has refused a request while its settled use is at or above the
// highest of the other thresholds (95 % where there is none).
//
// # Telling once
//
// A crossing is a row of the outbox, in the database of the accounts, unique by quota,
// counter, period and threshold: replicas that share the database are done with that.
// Replicas that share only a Redis also share Claims in it. A crossing is claimed for
// a minute, noted, claimed for the rest of its period and then ours: only then it may
// be delivered. A gateway that is killed between any two of these steps finishes them
// when it is back; if it is not back within the minute another takes over, and the
// first finds out before it has told anybody.
//
// # Delivering
//
// Beside the crossing lies a delivery for each target of each channel that there was.
// One who delivers takes a lease on it, which outlasts the longest try, so that of
// several replicas one tries at a time. What fails is tried again after 5 s, then
// twice as long each time, 5 min at most, and given up 24 h after the first try. What
// became of a try is kept until the database takes it. A message arrives twice, with the
// same id, where the process died after the receiver took it and before that was written
// down, where the database was away for it alone for longer than the lease, and where
// the receiver's answer never came (channel.Error says Unsure).
package alert

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/uptrace/bun"

	"tidegate/admission/limit"
	"tidegate/gateway/alert/channel"
)

// Times of the loops.
const (
	checkInterval    = 2 * time.Second
	deliverInterval  = 2 * time.Second
	sweepInterval    = 15 * time.Minute
	minSweepInterval = 30 * time.Second // at least, between two questions to the ledger
	pruneInterval    = time.Hour
	retention        = 31 * 24 * time.Hour // after the end of the period
	queryTimeout     = 5 * time.Second     // of one question to the database or to Redis
	sweepTimeout     = time.Minute
	sendGrace        = 5 * time.Second // for a message that is on its way when the process is to end
)

// Quotas says where quotas stand. *limit.Limiter does.
type Quotas interface {
	Use(ctx context.Context, subjects limit.Subjects) ([]limit.QuotaUse, error)
}

// Claims says which of several databases tells a crossing.
type Claims interface {
	// Claim takes key for owner, or makes it last where it is the owner's already, for
	// ttl from now at least; false: it is another's.
	Claim(ctx context.Context, key, owner string, ttl time.Duration) (bool, error)
}

// Channel is where alerts go. Of makes one.
type Channel struct {
	Name, Type string
	Targets    []string
	Accepts    func(channel.Severity) bool
	Send       func(ctx context.Context, target string, a channel.Alert) error

	generation int // the reload that it came with
}

// Of is the channel of a configuration.
func NewChannel(ch *channel.Channel) Channel {
	return Channel{Name: ch.Name(), Type: ch.Type(), Targets: ch.Targets(), Accepts: ch.Accepts, Send: ch.Send}
}

// Parts are what an Alerts works with.
type Parts struct {
	DB             *bun.DB // whose tables Migrate has made
	Quotas         Quotas
	Claims         Claims                                          // nil: the counters are of this database's gateways alone
	ActiveSubjects func(context.Context) ([]limit.Subjects, error) // who has used something in the running periods; nil: not known
	Log            *slog.Logger
	Registry       prometheus.Registerer
	Now            func() time.Time // nil: time.Now
	Random         func() float64   // from 0 to 1, for jitter; nil: math/rand
}

// Status is how one channel does. Counts are of the database, so replicas that share
// it say the same; they begin anew a month after a quota's period.
type Status struct {
	Channel     string     `json:"channel"`
	Type        string     `json:"type"`
	Pending     int64      `json:"pending"`
	Sent        int64      `json:"sent"`
	Failed      int64      `json:"failed"` // given up
	LastError   string     `json:"last_error"`
	LastErrorAt *time.Time `json:"last_error_at"`
	LastSuccess *time.Time `json:"last_success"`
}

// Alerts sees and tells. It is safe for concurrent use; a nil one does nothing.
type Alerts struct {
	Parts
	outbox  outbox
	touched touchedSet
	metrics *metrics
	wake    chan struct{} // there is something to deliver

	mu       sync.Mutex
	channels []Channel
	reloads  int
	ways     map[string]*sender
	removed  []channel.Target     // that a reload took away, whose deliveries are still to be dropped
	busy     map[string]bool      // channels that deliver now
	logged   map[string]time.Time // when a channel's failure was last logged
	status   map[string]Status

	// Of what tidies.
	tidied  time.Time // when what is old was last deleted
	tallyAt time.Time // when deliveries are to be counted again

	// Of the loop that looks.
	owner   string
	asked   time.Time            // when the ledger was last asked who there is
	sweepAt time.Time            // and when it is to be asked again
	unknown error                // why it did not say
	rest    []limit.Subjects     // of what it said, who is still to be looked at
	settled map[string]time.Time // crossings about which nothing is left to do, until when that is known
	trouble bool
}

// New makes one that starts nothing; Run does.
func New(p Parts, channels []Channel) *Alerts {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Random == nil {
		p.Random = rand.Float64
	}
	a := &Alerts{
		Parts: p, outbox: outbox{p.DB}, touched: touchedSet{refusals: map[limit.Subjects]string{}}, wake: make(chan struct{}, 1),
		ways: map[string]*sender{}, busy: map[string]bool{}, logged: map[string]time.Time{}, status: map[string]Status{}, settled: map[string]time.Time{},
	}
	a.metrics = newMetrics(p.Registry, a)
	a.Reload(channels)
	return a
}

// Reload replaces the channels. What is on its way to those that are no more is
// dropped; a new one gets what is crossed from now on.
func (a *Alerts) Reload(channels []Channel) {
	a.mu.Lock()
	defer a.mu.Unlock()
	current := targets(channels, nil)
	for _, t := range targets(a.channels, nil) {
		if !slices.Contains(current, t) {
			a.removed = append(a.removed, t)
		}
	}
	a.removed = slices.DeleteFunc(a.removed, func(t channel.Target) bool { return slices.Contains(current, t) })
	a.channels = slices.Clone(channels)
	a.reloads++
	for i := range a.channels {
		a.channels[i].generation = a.reloads
	}
	a.metrics.setChannels(channels)
}

// targets are those of channels that tell of a severity; nil: of all.
func targets(channels []Channel, severity *channel.Severity) (out []channel.Target) {
	for _, c := range channels {
		if severity != nil && !c.Accepts(*severity) {
			continue
		}
		for _, recipient := range c.Targets {
			out = append(out, channel.Target{Channel: c.Name, Recipient: recipient})
		}
	}
	return out
}

func (a *Alerts) now() time.Time { return a.Now() }

// Touch says that somebody has used something. It costs an entry in a map.
func (a *Alerts) Touch(subjects limit.Subjects) {
	if a != nil {
		a.touched.add(subjects, "")
	}
}

// Refused says that a quota has refused somebody.
func (a *Alerts) Refused(subjects limit.Subjects, quota string) {
	if a != nil {
		a.touched.add(subjects, quota)
	}
}

// Sweep makes the next look one at everybody: counters may have changed without a
// request of this gateway.
func (a *Alerts) Sweep() {
	if a != nil {
		a.touched.overflow()
	}
}

// Status is how the channels do, as of a few seconds ago.
func (a *Alerts) Status() []Status {
	if a == nil {
		return []Status{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Status, 0, len(a.channels))
	for _, c := range a.channels {
		s := a.status[c.Name]
		s.Channel, s.Type = c.Name, c.Type
		out = append(out, s)
	}
	return out
}

// Run looks and delivers until ctx ends. A database or a Redis that does not answer
// is a state, not an error.
func (a *Alerts) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	loops.Go(func() {
		a.repeat(ctx, checkInterval, nil, func() { a.logState(ctx, a.Check(ctx)) })
	})
	a.repeat(ctx, deliverInterval, a.wake, func() {
		a.start(&loops, "", func() error { return a.Tidy(ctx) })
		a.mu.Lock()
		channels := a.channels
		a.mu.Unlock()
		for _, c := range channels {
			a.start(&loops, c.Name, func() error { return a.Deliver(ctx, c) })
		}
	})
	loops.Wait()
	return nil
}

// alone runs a step of a name beside the others, unless it still runs: a slow channel
// keeps only itself waiting.
func (a *Alerts) start(loops *sync.WaitGroup, name string, step func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy[name] {
		return
	}
	a.busy[name] = true
	loops.Go(func() {
		_ = step() // where the database is away, the look says so
		a.mu.Lock()
		delete(a.busy, name)
		a.mu.Unlock()
	})
}

// every calls f at once, then each so often, and when it is woken, until ctx ends.
func (a *Alerts) repeat(ctx context.Context, period time.Duration, wake <-chan struct{}, f func()) {
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

// say logs the begin and the end of trouble.
func (a *Alerts) logState(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !a.trouble:
		a.Log.Warn("quotas cannot be watched for alerts at the moment; what is crossed meanwhile is told later", "error", err.Error())
	case err == nil && a.trouble:
		a.Log.Info("quotas are watched for alerts again")
	}
	a.trouble = err != nil
}
