package alert

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/gateway/alert/channel"
)

// metrics are the Prometheus metrics of alerts.
type metrics struct {
	total   *prometheus.CounterVec
	pending *prometheus.Desc
	alerts  *Alerts
	used    *usedRatios

	mu       sync.Mutex
	channels map[string]bool // names of the current channels
}

func newMetrics(reg prometheus.Registerer, a *Alerts) *metrics {
	m := &metrics{
		alerts: a, channels: map[string]bool{}, used: newUsed(),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_alerts_total", Help: "Tries to send a quota alert, by how they ended: sent, retried (it failed and is tried again) or given_up.",
		}, []string{"channel", "severity", "outcome"}),
		pending: prometheus.NewDesc("tidegate_alerts_pending", "Quota alerts in the database that are still to be sent; gateways that share it say the same.", []string{"channel"}, nil),
	}
	if reg != nil {
		reg.MustRegister(m.total, m)
	}
	return m
}

// setChannels creates the series of the channels, and deletes all others.
func (m *metrics) setChannels(channels []Channel) {
	m.mu.Lock()
	defer m.mu.Unlock()
	current := map[string]bool{}
	for _, c := range channels {
		current[c.Name] = true
		for _, s := range []channel.Severity{channel.Warning, channel.Severe, channel.Blocked} {
			for _, outcome := range []string{"sent", "retried", "given_up"} {
				m.total.WithLabelValues(c.Name, s.String(), outcome)
			}
		}
	}
	for name := range m.channels {
		if !current[name] {
			m.total.DeletePartialMatch(prometheus.Labels{"channel": name})
		}
	}
	m.channels = current
}

// count counts an attempt, unless a reload has removed the channel.
func (m *metrics) count(channelName string, s channel.Severity, outcome string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.channels[channelName] {
		m.total.WithLabelValues(channelName, s.String(), outcome).Inc()
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.pending
	out <- m.used.desc
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	for _, s := range m.alerts.Status() {
		out <- prometheus.MustNewConstMetric(m.pending, prometheus.GaugeValue, float64(s.Pending), s.Channel)
	}
	for _, metric := range m.used.gather(m.alerts.now()) {
		out <- metric
	}
}
