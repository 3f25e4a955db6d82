package limit

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics holds the Prometheus metrics of the decisions. Labels are bounded by the
// configuration: a rule or model that was removed from it makes no series, although requests
// of it may still run.
type metrics struct {
	decisions *prometheus.CounterVec
	errors    *prometheus.HistogramVec
	stores    []string // stores that decide here

	mu     sync.RWMutex // held for reading while a series is written to, so that no deleted one returns
	rules  map[string]ruleCounters
	models map[string]Weights
}

// ruleCounters holds a rule's series of decisions, looked up once, by decision and store.
type ruleCounters map[[2]string]prometheus.Counter

// otherModel is the label of every model that is not configured.
const otherModel = "other"

func newMetrics(o *Options, set *Set) *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_limit_decisions_total",
			Help: "Decisions of limits and quotas by rule: allow; deny, by the rule that refuses longest; wait, for a place under a concurrency limit; degrade; shadow_deny.",
		}, []string{"rule", "decision", "store"}),
		errors: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tidegate_reservation_error_ratio",
			Help:                        "Tokens that the limits reserved for a request, over those it used; 1 is exact. Only requests that a rule or quota of tokens or units counts and that used some.",
			Buckets:                     []float64{.1, .25, .5, .75, .9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 25, 100},
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
		}, []string{"model"}),
		stores: []string{"local"},
	}
	if _, alone := o.Store.(*Memory); !alone {
		m.stores = append(m.stores, "redis")
	}
	if o.Registry != nil {
		o.Registry.MustRegister(m.decisions, m.errors)
	}
	m.setSeries(set)
	return m
}

// countDecision counts one decision, once for each rule that it was about.
func (m *metrics) countDecision(p *plan, out *Decision) {
	store := "local"
	if out.Shared {
		store = "redis"
	}
	if !out.Allowed && (out.TooLarge || p.counters[out.Binding].wait == 0) {
		m.count(p.dims[out.Binding].Rule, "deny", store) // else who decides whether it waits counts it
	}
	for i := 0; i < len(p.dims); {
		rule, word := p.dims[i].Rule, "allow"
		for ; i < len(p.dims) && p.dims[i].Rule == rule; i++ {
			switch exceeded := p.dims[i].Soft && out.States[i].Exceeded; {
			case exceeded && p.counters[i].shadow:
				word = "shadow_deny"
			case exceeded:
				word = "degrade"
			}
		}
		if out.Allowed || word != "allow" {
			m.count(rule, word, store)
		}
	}
}

func (m *metrics) count(rule, decision, store string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c, known := m.rules[rule][[2]string{decision, store}]; known {
		c.Inc()
	}
}

// observeSettlement compares what was reserved for a request with what it used.
func (m *metrics) observeSettlement(p *plan, model string, charges []int64) {
	for i := range p.dims {
		d := &p.dims[i]
		if d.Metric != Tokens && d.Metric != Units {
			continue
		}
		if charges[i] > 0 {
			m.mu.RLock()
			defer m.mu.RUnlock()
			if _, known := m.models[model]; !known {
				model = otherModel
			}
			m.errors.WithLabelValues(model).Observe(float64(d.Cost) / float64(charges[i]))
		}
		return // the others are of the same tokens
	}
}

// setSeries makes series for the rules and models of a set, which begin at zero, and deletes
// those of rules and models that it lacks.
func (m *metrics) setSeries(set *Set) {
	m.mu.Lock()
	defer m.mu.Unlock()
	previous, models := m.rules, m.models
	m.rules, m.models = map[string]ruleCounters{}, set.weights
	for i := range set.counters {
		c := &set.counters[i]
		series := m.rules[c.rule]
		if series == nil {
			series = ruleCounters{}
			m.rules[c.rule] = series
		}
		for _, store := range m.stores {
			for _, word := range c.decisionLabels() {
				series[[2]string{word, store}] = m.decisions.WithLabelValues(c.rule, word, store)
			}
		}
	}
	for model := range m.models {
		m.errors.WithLabelValues(model)
	}
	for rule := range previous {
		if _, stays := m.rules[rule]; !stays {
			m.decisions.DeletePartialMatch(prometheus.Labels{"rule": rule})
		}
	}
	for model := range models {
		if _, stays := m.models[model]; !stays {
			m.errors.DeleteLabelValues(model)
		}
	}
}

// decisionLabels returns the decisions that a counter's rule may come to.
func (c *counter) decisionLabels() []string {
	switch {
	case c.shadow:
		return []string{"allow", "shadow_deny"}
	case c.degrade:
		return []string{"allow", "degrade"}
	}
	if c.wait > 0 {
		return []string{"allow", "deny", "wait"}
	}
	return []string{"allow", "deny"}
}
