package alert

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
)

// Bounds of the metric of used quotas.
const (
	maxUsed = 500                             // departments, projects and models, of all quotas
	usedTTL = 2*sweepInterval + 5*time.Minute // life of a series after its last check
)

// usedRatios holds the used share of quotas, as the checks find it, for quotas by
// department, project or model and of all callers together. An operator's setup bounds
// their number. Quotas by user, key or address have no bound and are left out. It is safe
// for concurrent use.
type usedRatios struct {
	desc *prometheus.Desc

	mu     sync.Mutex
	values map[usedKey]usedValue
}

// usedKey identifies a counter of a quota.
type usedKey struct{ quota, scope, subject string }

// usedValue is the use of a counter.
type usedValue struct {
	ratio  float64   // settled use over the quota
	seen   time.Time // time of the last check
	resets time.Time // end of the period
}

func newUsed() *usedRatios {
	return &usedRatios{values: map[usedKey]usedValue{}, desc: prometheus.NewDesc("tidegate_quota_used_ratio",
		"Settled use of a quota by department, project, model or of all, over the quota.", []string{"quota", "per", "subject"}, nil)}
}

// isBounded reports whether a quota counts by things that operators set up, and not by
// callers.
func isBounded(scope string) bool {
	for name := range strings.SplitSeq(scope, ",") {
		if !slices.Contains([]string{"department", "project", "model", "global"}, strings.TrimSpace(name)) {
			return false
		}
	}
	return true
}

// set stores the use of a quota.
func (u *usedRatios) set(q *limit.QuotaUse, now time.Time) {
	if !isBounded(q.Scope) || q.Limit <= 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	key, value := usedKey{q.Name, q.Scope, q.Subject}, usedValue{float64(q.Used) / float64(q.Limit), now, q.ResetsAt}
	if _, known := u.values[key]; !known && len(u.values) >= maxUsed && !u.evict(value.ratio, now) {
		return
	}
	u.values[key] = value
}

// evict deletes the expired counters, or else the counter with the lowest ratio if that is
// below ratio, and reports whether there is room now. The caller holds the lock.
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

// expire deletes the counters whose period has ended or which are no longer checked. The
// caller holds the lock.
func (u *usedRatios) expire(now time.Time) {
	for name, part := range u.values {
		if !now.Before(part.resets) || now.Sub(part.seen) > usedTTL {
			delete(u.values, name)
		}
	}
}

// gather returns the series at a time.
func (u *usedRatios) gather(now time.Time) (out []prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.expire(now)
	for name, part := range u.values {
		out = append(out, prometheus.MustNewConstMetric(u.desc, prometheus.GaugeValue, part.ratio, name.quota, name.scope, name.subject))
	}
	return out
}
