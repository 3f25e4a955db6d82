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
	maxUsed = 500                          // departments, projects and models, of all quotas
	usedFor = 2*sweepEvery + 5*time.Minute // after which one that is looked at no more has no series
)

// used remembers how much of quotas is used, as the looks find it: of those by department,
// project or model and of all callers together, whose number is bounded by what an
// operator has set up. Users, keys and addresses may be any number and are never in it. It
// is safe for concurrent use.
type used struct {
	desc *prometheus.Desc

	mu sync.Mutex
	of map[usedOf]usedPart
}

// usedOf names a quota's counter.
type usedOf struct{ quota, per, subject string }

// usedPart is what is used of it.
type usedPart struct {
	ratio  float64
	seen   time.Time
	resets time.Time
}

func newUsed() *used {
	return &used{of: map[usedOf]usedPart{}, desc: prometheus.NewDesc("tidegate_quota_used_ratio",
		"Settled use of a quota by department, project, model or of all, over the quota.", []string{"quota", "per", "subject"}, nil)}
}

// few reports whether a quota is counted by what operators set up, and not by callers.
func few(per string) bool {
	for name := range strings.SplitSeq(per, ",") {
		if !slices.Contains([]string{"department", "project", "model", "global"}, strings.TrimSpace(name)) {
			return false
		}
	}
	return true
}

// note takes in where a quota stands.
func (u *used) note(q *limit.QuotaUse, now time.Time) {
	if !few(q.Per) || q.Limit <= 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	name, part := usedOf{q.Name, q.Per, q.Who}, usedPart{float64(q.Used) / float64(q.Limit), now, q.ResetsAt}
	if _, known := u.of[name]; !known && len(u.of) >= maxUsed && !u.makeRoom(part.ratio, now) {
		return
	}
	u.of[name] = part
}

// makeRoom forgets what is over, or else the counter of which least is used, if that is
// less than ratio; false: there is none. The lock is held.
func (u *used) makeRoom(ratio float64, now time.Time) bool {
	if u.forget(now); len(u.of) < maxUsed {
		return true
	}
	var least usedOf
	found := false
	for name, part := range u.of {
		if part.ratio < ratio {
			least, ratio, found = name, part.ratio, true
		}
	}
	delete(u.of, least)
	return found
}

// forget drops what is over: its period ended, or nobody looks at it any more. The lock is
// held.
func (u *used) forget(now time.Time) {
	for name, part := range u.of {
		if !now.Before(part.resets) || now.Sub(part.seen) > usedFor {
			delete(u.of, name)
		}
	}
}

// gather returns the series of now.
func (u *used) gather(now time.Time) (all []prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.forget(now)
	for name, part := range u.of {
		all = append(all, prometheus.MustNewConstMetric(u.desc, prometheus.GaugeValue, part.ratio, name.quota, name.per, name.subject))
	}
	return all
}
