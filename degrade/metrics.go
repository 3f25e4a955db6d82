package degrade

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics reads the ladder when Prometheus asks, so that a series begins at zero and
// ends with its subject. A signal that is not known has no value.
type metrics struct {
	ladder                                          *Ladder
	level, wouldBe, pressure                        *prometheus.Desc
	backendLevel, backendPressure, backendOut       *prometheus.Desc
	backendCap, signalValue, signalLevel, baselines *prometheus.Desc
	changes, seconds, observe                       *prometheus.Desc
}

func newMetrics(reg prometheus.Registerer, l *Ladder) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tidegate_"+name, help, labels, nil)
	}
	m := &metrics{
		ladder:          l,
		level:           desc("level", "Level of the model, 0 to 4.", "model"),
		wouldBe:         desc("would_be_level", "Level that the model would have if no signal were only observed and none pinned.", "model"),
		pressure:        desc("pressure", "Pressure on the model, 0 to 1; L1 to L4 begin at 0.50, 0.65, 0.80 and 0.95.", "model"),
		backendLevel:    desc("backend_level", "Level of the backend, 0 to 4.", "model", "backend"),
		backendPressure: desc("backend_pressure", "Pressure on the backend, 0 to 1.", "model", "backend"),
		backendOut:      desc("backend_gpu_out", "1 while the backend must not be used because of a GPU: it is lost, or needs a reset.", "model", "backend"),
		backendCap:      desc("backend_cap", "Requests in flight that the backend may have while its readings are too old; 0: no cap.", "model", "backend"),
		signalValue:     desc("signal_value", "Reading of the signal, in its own unit; none while it is not known.", "backend", "signal"),
		signalLevel:     desc("signal_level", "Level that the signal stands at, 0 to 4, whether it acts or is only observed.", "backend", "signal"),
		baselines:       desc("backend_memory_baseline_bytes", "Free memory beside the engine when it had started, by which burned headroom is judged.", "model", "backend", "uuid"),
		changes:         desc("level_changes_total", "How often the model came to the level.", "model", "level"),
		seconds:         desc("level_seconds_total", "How long the model stood at the level.", "model", "level"),
		observe:         desc("ladder_observe", "1 while the whole ladder only observes."),
	}
	reg.MustRegister(m)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.level, m.wouldBe, m.pressure, m.backendLevel, m.backendPressure, m.backendOut, m.backendCap, m.signalValue, m.signalLevel, m.baselines, m.changes, m.seconds, m.observe,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	// What is sent may wait for the reader, and the ladder must not.
	for _, metric := range m.gather() {
		out <- metric
	}
}

func (m *metrics) gather() (collected []prometheus.Metric) {
	l := m.ladder
	l.mu.Lock()
	defer l.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		collected = append(collected, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...))
	}
	gauge(m.observe, oneIf(l.rules.config.Observe))
	seen := map[string][signals]*watched{}
	for _, watchedModel := range l.models {
		name, v := watchedModel.model.Name, watchedModel.model.Verdict()
		gauge(m.level, float64(v.Level), name)
		gauge(m.wouldBe, float64(watchedModel.states[wouldBe].stage.level), name)
		gauge(m.pressure, v.Pressure, name)
		for level := range watchedModel.changes {
			label := Level(level).String()
			collected = append(collected,
				prometheus.MustNewConstMetric(m.changes, prometheus.CounterValue, watchedModel.changes[level], name, label),
				prometheus.MustNewConstMetric(m.seconds, prometheus.CounterValue, watchedModel.seconds[level], name, label))
		}
		collectedNames := map[string]bool{}
		for _, w := range watchedModel.backends {
			if collectedNames[w.gauge.Name] {
				continue // two of one name would fail the whole scrape
			}
			collectedNames[w.gauge.Name] = true
			m.backend(gauge, name, w)
			seen[w.gauge.Name] = worse(seen[w.gauge.Name], w)
		}
	}
	for name, bySignal := range seen {
		for s, w := range bySignal {
			if w == nil {
				continue
			}
			gauge(m.signalLevel, float64(w.stages[s].level), name, signal(s).String())
			if w.assessments[s].known {
				gauge(m.signalValue, w.assessments[s].value, name, signal(s).String())
			}
		}
	}
	return collected
}

func (m *metrics) backend(gauge func(*prometheus.Desc, float64, ...string), model string, w *watched) {
	name, v := w.gauge.Name, w.gauge.Verdict()
	gauge(m.backendLevel, float64(v.Level), model, name)
	gauge(m.backendPressure, v.Pressure, model, name)
	gauge(m.backendOut, oneIf(v.Out != ""), model, name)
	gauge(m.backendCap, float64(v.Cap), model, name)
	for i := range w.cards {
		c := &w.cards[i]
		// A card may be named twice, by its index and by its UUID.
		twice := slices.ContainsFunc(w.cards[:i], func(first card) bool { return first.uuid == c.uuid })
		if c.headroom.baseline > 0 && !twice {
			gauge(m.baselines, c.headroom.baseline, model, name, c.uuid)
		}
	}
}

// worse returns for each signal the backend at the higher level: a backend of two models is
// one.
func worse(seen [signals]*watched, w *watched) [signals]*watched {
	for s := range signals {
		if !w.disabled[s] && (seen[s] == nil || w.stages[s].level > seen[s].stages[s].level) {
			seen[s] = w
		}
	}
	return seen
}

func oneIf(flag bool) float64 {
	if flag {
		return 1
	}
	return 0
}
