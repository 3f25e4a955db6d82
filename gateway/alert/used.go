package alert

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
)

// Bounds of the quotas of which Prometheus sees what is used.
const (
	maxUsed = 500                             // departments, projects and models, of all quotas
	usedTTL = 2*sweepInterval + 5*time.Minute // after which one that is looked at no more has no series
)

// used remembers how much of quotas is used, as the looks find it: of those by department,
// project or model and of all callers together, whose number is bounded by what an
// operator has set up. Users, keys and addresses may be any number and are never in it. It
// is safe for concurrent use.
type usedRatios struct {
	desc *prometheus.Desc

	mu     sync.Mutex
	values map[usedKey]usedValue
}

// usedOf names a quota's counter.
type usedKey struct{ quota, scope, subject string }

// usedPart is what is used of it.
type usedValue struct {
	ratio  float64
	seen   time.Time
	resets time.Time
}

func newUsed() *usedRatios {
	return &usedRatios{values: map[usedKey]usedValue{}, desc: prometheus.NewDesc("tidegate_quota_used_ratio",
		"Settled use of a quota by department, project, model or of all, over the quota.", []string{"quota", "per", "subject"}, nil)}
}

// few reports whether a quota is counted by what operators set up, and not by callers.
func isBounded(scope string) bool {
	for name := range strings.SplitSeq(scope, ",") {
		if !slices.Contains([]string{"department", "project", "model", "global"}, strings.TrimSpace(name)) {
			return false
		}
	}
	return true
}

// note takes in where a quota stands.
func (u *usedRatios) set(q *limit.QuotaUse, now time.Time) {
	if !isBounded(q.Per) || q.Limit <= 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	key, value := usedKey{q.Name, q.Per, q.Who}, usedValue{float64(q.Used) / float64(q.Limit), now, q.ResetsAt}
	if _, known := u.values[key]; !known && len(u.values) >= maxUsed && !u.evict(value.ratio, now) {
		return
	}
	u.values[key] = value
}

// makeRoom forgets what is over, or else the counter of which least is used, if that is
// less than ratio; false: there is none. The lock is held.
func (u *usedRatios) evict(ratio float64, now time.Time) bool {
	if u.expire(now); len(u.values) < maxUsed {
		return true
	}
	var lowest usedKey
	found := false
	for name, part := range u.values {
		if part.ratio < ratio {
			lowest, ratio, found = name, part.ratio, true
		}
	}
	delete(u.values, lowest)
	return found
}

// forget drops what is over: its period ended, or nobody looks at it any more. The lock is
// held.
func (u *usedRatios) expire(now time.Time) {
	for name, part := range u.values {
		if !now.Before(part.resets) || now.Sub(part.seen) > usedTTL {
			delete(u.values, name)
		}
	}
}

// gather returns the series of now.
func (u *usedRatios) gather(now time.Time) (out []prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.expire(now)
	for name, part := range u.values {
		out = append(out, prometheus.MustNewConstMetric(u.desc, prometheus.GaugeValue, part.ratio, name.quota, name.scope, name.subject))
	}
	return out
}
