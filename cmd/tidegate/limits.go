package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // quotas and schedules know every zone, also in an image without any

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/ledger"
)

// counters are the limiter of a gateway, the rules it was configured with, and
// where the counters lie.
type counters struct {
	*limit.Limiter
	d         *daemon
	mu        sync.Mutex // of the next two
	rules     *limit.Set // of the configuration, without overrides
	overrides []limit.Override
	redis     redis.UniversalClient // nil: the counters are this process's own
	guard     *redislimit.Guarded   // nil, too
	wrote     chan struct{}         // this process has changed accounts
	left      chan struct{}         // Redis no longer answers
}

// openCounters makes the limiter of a configuration.
func (d *daemon) openCounters(registry prometheus.Registerer) error {
	rules, err := d.config.limitSet()
	if err != nil {
		return err
	}
	c := &counters{d: d, rules: rules, wrote: make(chan struct{}, 1), left: make(chan struct{}, 1)}
	store := limit.Store(limit.NewMemory(time.Now))
	if len(d.config.Redis.Addrs) > 0 {
		host, _ := os.Hostname() // it only makes the name readable
		c.redis = redislimit.Dial(d.config.Redis)
		c.guard = redislimit.Guard(redislimit.New(c.redis, redislimit.Options{Damaged: d.damagedRedis()}), redislimit.GuardOptions{
			Replica: host + "-" + rand.Text()[:8], Timeout: d.config.Redis.Timeout, Changed: c.changed, Registry: registry,
		})
		store = c.guard
	}
	shadows := seldom{every: time.Minute}
	c.Limiter = limit.New(rules, limit.Options{
		Store: store, Registry: registry,
		Shadow: func(b limit.Breach) {
			if shadows.now(b.Rule, time.Now()) {
				d.log.Info("a shadow limit would have refused", "rule", b.Rule, "per", b.Scope, "metric", b.Metric.String(), "limit", b.Limit)
			}
		},
		Trouble: func(err error) {
			d.log.Warn("the store of the limits does not answer; trying on", "error", err.Error())
		},
	})
	d.counters = c
	return nil
}

// damagedRedis returns what warns of damage in Redis, once a minute at most.
func (d *daemon) damagedRedis() func(keys []string) {
	warnings := seldom{every: time.Minute}
	return func(keys []string) {
		keys = slices.Clone(keys[:min(len(keys), 10)])
		d.damage.Store(&damage{time.Now(), keys})
		if warnings.now("", time.Now()) {
			d.log.Warn("something among the limits' keys in Redis is damaged or not the gateway's: it counts as not there, and is written over when something is charged; see who else writes to this Redis",
				"keys", strings.Join(keys, " "))
		}
	}
}

// changed hears of Redis going and coming.
func (c *counters) changed(alone bool, last error) {
	if alone {
		raise(c.left)
		c.d.log.Warn("Redis does not answer: this gateway enforces its share of the limits alone, or what on_store_failure says", "error", fmt.Sprint(last))
		return
	}
	c.d.log.Info("Redis answers again: what was counted alone is handed in")
}

// raise sets a flag that is a channel of one.
func raise(flag chan struct{}) {
	select {
	case flag <- struct{}{}:
	default:
	}
}

// hooks ties the store of accounts to the counters: its overrides hold here, and
// its changes are announced by Redis where there is one, which is faster than the
// store's own look every second.
func (d *daemon) hooks() account.Hooks {
	return account.Hooks{
		Log:   d.log,
		Wrote: func() { raise(d.counters.wrote) },
		Applied: func() {
			if d.accounts != nil {
				d.counters.override(d.accounts.Overrides())
				d.ladder.SetPins(pinned(d.accounts))
			}
		},
	}
}

// pinned are the levels that operators have set, by model.
func pinned(accounts *account.Store) map[string]degrade.Pin {
	pins := map[string]degrade.Pin{}
	for _, p := range accounts.Pins() {
		pins[p.Model] = degrade.Pin{Level: degrade.Level(p.Level), Expires: p.Expires, Reason: p.Reason, Author: p.Actor}
	}
	return pins
}

// changesChannel is the channel on which replicas announce changes of accounts.
const changesChannel = "tg:accounts"

// announce tells other replicas of changes of accounts, and hears of theirs. Where
// Redis does not answer, the store's own look every second finds them.
func (c *counters) announce(ctx context.Context) {
	heard := c.redis.Subscribe(ctx, changesChannel)
	defer heard.Close() //nolint:errcheck // nobody listens any more
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-heard.Channel():
			c.d.accounts.Poke()
		case <-c.wrote:
			call, cancel := context.WithTimeout(ctx, time.Second)
			_ = c.redis.Publish(call, changesChannel, "").Err() // see above
			cancel()
		}
	}
}

// close ends the connections to Redis.
func (c *counters) close() error {
	if c.redis == nil {
		return nil
	}
	return c.redis.Close()
}

// status returns the counters' part of /status.
func (c *counters) status() map[string]any {
	out := map[string]any{"store": "memory", "running": c.Running()}
	if c.guard != nil {
		out["store"], out["redis"] = "redis", c.guard.State()
	}
	return out
}

// reconfigure puts the rules of a new configuration in force.
func (c *counters) reconfigure(rules *limit.Set) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rules = rules
	c.replace()
}

// override puts other overrides of the store over the rules.
func (c *counters) override(stored []account.Override) {
	overrides := make([]limit.Override, 0, len(stored))
	for _, o := range stored {
		overrides = append(overrides, limit.Override{Rule: o.Rule, Scope: o.Scope, Name: o.Name, Numbers: o.Numbers()})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.overrides = overrides
	c.replace()
}

func (c *counters) replace() {
	set, err := c.rules.WithOverrides(c.overrides)
	for _, e := range flatten(err) {
		c.d.log.Warn("an override does not hold", "error", e.Error())
	}
	c.Replace(set)
}

// run keeps reservations alive and, with Redis, hands in what was counted alone and
// restores what Redis has not heard of.
func (c *counters) run(ctx context.Context) error {
	if c.guard == nil {
		return c.Run(ctx)
	}
	var loops sync.WaitGroup
	loops.Go(func() { _ = c.Run(ctx) }) // neither ends with an error
	loops.Go(func() { _ = c.guard.Run(ctx) })
	loops.Go(func() { c.announce(ctx) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	next := refill{need: true, calm: time.Now()}
	var asked time.Time // the ledger, since Redis is away
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			empty, _ := c.guard.Empty(ctx) // its error is one of State
			state := c.guard.State()
			if next.due(time.Now(), state, empty) {
				err := c.restore(ctx)
				next.done(time.Now(), err)
				c.d.alerts.Sweep()
			}
			if state.Alone && time.Since(asked) >= recallEvery {
				asked = time.Now()
				c.recall(ctx)
			}
		case <-c.left:
			asked = time.Now()
			c.recall(ctx)
		}
	}
	loops.Wait()
	return nil
}

// first restores quotas before the first request, where the counters are new: those
// of this process always are, those of Redis may be. It reads them in any case, for
// the time when Redis does not answer.
func (c *counters) first(ctx context.Context) {
	if c.guard != nil {
		if empty, err := c.guard.Empty(ctx); err != nil || !empty {
			c.recall(ctx)
			return
		}
	}
	_ = c.restore(ctx) // what fails is said
}

const (
	// calmFor is the time for which Redis must have known everything of this gateway before
	// quotas are restored that it has not lost: other gateways have handed in by then
	// what they counted alone, and what died with its gateway has been settled.
	calmFor      = time.Minute
	restoreAgain = 10 * time.Second // after a failure
	restoreTime  = 10 * time.Second // for one try
	// recallEvery is the time between two readings of the quotas from the ledger while Redis is away:
	// what other gateways have used in the meantime is known from it alone.
	recallEvery = 10 * time.Second
)

// refill says when quotas are to be restored from the ledger, which knows of what a
// gateway that died had not handed in, and of what a Redis that failed over had not
// passed on.
type refill struct {
	need bool      // something may be missing
	calm time.Time // since when Redis knows everything
	wait time.Time // a failure puts the next try off
}

// due is asked once a second.
func (r *refill) due(now time.Time, s redislimit.State, empty bool) bool {
	if s.Alone || s.Waiting > 0 {
		r.need, r.calm = true, now
	}
	return !s.Alone && !now.Before(r.wait) && (empty || r.need && now.Sub(r.calm) >= calmFor)
}

func (r *refill) done(now time.Time, err error) {
	if err != nil {
		r.wait = now.Add(restoreAgain)
		return
	}
	r.need = false
}

// restore raises quotas to what the ledger says was used of them. Until then they
// count from where they are.
func (c *counters) restore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	if c.guard != nil {
		if err := c.guard.Mark(ctx); err != nil {
			return err
		}
	}
	counted, recorded, err := c.recorded(ctx)
	if err != nil {
		c.d.log.Warn("cannot restore the quotas from the ledger; they count what is used from now on", "error", err.Error())
		return err
	}
	if c.guard != nil {
		c.guard.Recall(counted, recorded)
	}
	for i := range recorded {
		if err := c.Restore(ctx, recorded[i]); err != nil {
			return err
		}
	}
	return nil
}

// recall tells the guard what the ledger says of the quotas. Where it cannot be read,
// what was last known goes on to hold.
func (c *counters) recall(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	counted, recorded, err := c.recorded(ctx)
	if err != nil {
		c.d.log.Warn("cannot read the quotas from the ledger while Redis is away; what was last known of them holds", "error", err.Error())
		return
	}
	c.guard.Recall(counted, recorded)
}

// recorded returns the ledger's sums for all quotas in their running periods, and the
// names of those that it counts.
func (c *counters) recorded(ctx context.Context) (counted []string, recorded []limit.Recorded, err error) {
	for _, q := range c.Quotas() {
		rows, err := c.used(ctx, q)
		if err != nil {
			return nil, nil, fmt.Errorf("quota %s: %w", q.Name, err)
		}
		if _, whole := groupsOf(q.SubjectKinds); whole {
			counted = append(counted, q.Name)
		}
		for i := range rows {
			if r, ok := c.Recorded(q.Name, subjectsOf(&rows[i]), rows[i].Total, int64(rows[i].Milliunits)); ok {
				recorded = append(recorded, r)
			}
		}
	}
	return counted, recorded, nil
}

// used returns everybody's use of a quota in its period, by the ledger.
func (c *counters) used(ctx context.Context, q limit.QuotaPeriod) ([]ledger.Row, error) {
	groups, whole := groupsOf(q.SubjectKinds)
	if !whole {
		return nil, nil
	}
	return c.d.ledger.Report(ctx, ledger.Query{GroupBy: groups, Start: q.Begin, End: q.End})
}

func subjectsOf(r *ledger.Row) limit.Subjects {
	return limit.Subjects{Department: r.Department, Project: r.Project, User: r.User, Key: r.Key, Model: r.Model}
}

// everyone returns those who used something of a quota in its period, by the ledger.
func (c *counters) everyone(ctx context.Context) (out []limit.Subjects, err error) {
	for _, q := range c.Quotas() {
		rows, err := c.used(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		for i := range rows {
			out = append(out, subjectsOf(&rows[i]))
		}
	}
	return out, nil
}

// groupsOf are the sums that a quota's counters are made of: its subjects and who
// owns them. The ledger does not know addresses.
func groupsOf(dimensions []string) (groups []ledger.Group, whole bool) {
	tenants := []ledger.Group{ledger.ByDepartment, ledger.ByProject, ledger.ByUser, ledger.ByKey}
	deepest := -1
	for _, name := range dimensions {
		switch name {
		case "ip":
			return nil, false
		case "model":
			groups = append(groups, ledger.ByModel)
		}
		for i, t := range tenants {
			if name == string(t) {
				deepest = max(deepest, i)
			}
		}
	}
	return append(groups, tenants[:deepest+1]...), true
}

// limitSet compiles the rules and quotas of a configuration that is valid.
func (c *config) limitSet() (*limit.Set, error) {
	weights := map[string]limit.Weights{}
	for i := range c.Models {
		weights[c.Models[i].Name] = c.Models[i].Weights
	}
	return limit.Compile(append(slices.Clone(c.Limits), *c.Server.AuxRule()), c.Quotas, weights)
}

// seldom lets the same thing be said once in a while only.
type seldom struct {
	every time.Duration
	mu    sync.Mutex
	last  map[string]time.Time
}

func (s *seldom) now(event string, moment time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if moment.Sub(s.last[event]) < s.every {
		return false
	}
	if s.last == nil {
		s.last = map[string]time.Time{}
	}
	s.last[event] = moment
	return true
}
