package limit

import "github.com/prometheus/client_golang/prometheus"

// metrics are what Prometheus sees of the decisions. Labels are bounded by the
// configuration.
type metrics struct{ decisions *prometheus.CounterVec }

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidegate_limit_decisions_total",
		Help: "Decisions of limits and quotas by rule: allow; deny, by the rule that refuses longest; degrade; shadow_deny.",
	}, []string{"rule", "decision", "store"})}
	if reg != nil {
		reg.MustRegister(m.decisions)
	}
	return m
}

// decided counts one decision, once for each rule that it was about.
func (m *metrics) decided(p *plan, out *Decision) {
	store := "local"
	if out.Shared {
		store = "redis"
	}
	if !out.Allowed {
		m.decisions.WithLabelValues(p.dims[out.Binding].Rule, "deny", store).Inc()
	}
	last := ""
	for i := range p.dims {
		d := &p.dims[i]
		over := d.Soft && out.States[i].Over
		if d.Rule == last && !over || !out.Allowed && !over {
			continue
		}
		last = d.Rule
		word := "allow"
		if over && p.counters[i].shadow {
			word = "shadow_deny"
		} else if over {
			word = "degrade"
		}
		m.decisions.WithLabelValues(d.Rule, word, store).Inc()
	}
}

// keep deletes the series of rules that are no more.
func (m *metrics) keep(old, now *Set) {
	stay := map[string]bool{}
	for i := range now.counters {
		stay[now.counters[i].rule] = true
	}
	for i := range old.counters {
		if rule := old.counters[i].rule; !stay[rule] {
			m.decisions.DeletePartialMatch(prometheus.Labels{"rule": rule})
		}
	}
}
