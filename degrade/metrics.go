package degrade

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics reads the ladder when Prometheus asks, so that a series begins at zero and
// ends with its subject. A signal that is not known has no value.
type metrics struct {
	ladder                                          *Ladder
	level, would, pressure                          *prometheus.Desc
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
		would:           desc("would_be_level", "Level that the model would have if no signal were only observed and none pinned.", "model"),
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

// Describe is prometheus.Collector's.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.level, m.would, m.pressure, m.backendLevel, m.backendPressure, m.backendOut, m.backendCap, m.signalValue, m.signalLevel, m.baselines, m.changes, m.seconds, m.observe,
	} {
		out <- d
	}
}

// Collect is prometheus.Collector's.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	// What is sent may wait for the reader, and the ladder must not.
	for _, metric := range m.gather() {
		out <- metric
	}
}

func (m *metrics) gather() (all []prometheus.Metric) {
	l := m.ladder
	l.mu.Lock()
	defer l.mu.Unlock()
	is := func(d *prometheus.Desc, v float64, labels ...string) {
		all = append(all, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...))
	}
	is(m.observe, oneIf(l.book.config.Observe))
	seen := map[string][signals]*watched{}
	for _, of := range l.models {
		name, v := of.model.Name, of.model.Verdict()
		is(m.level, float64(v.Level), name)
		is(m.would, float64(of.pool.tracks[wouldBe].rung.level), name)
		is(m.pressure, v.Pressure, name)
		for level := range of.changes {
			at := Level(level).String()
			all = append(all,
				prometheus.MustNewConstMetric(m.changes, prometheus.CounterValue, of.changes[level], name, at),
				prometheus.MustNewConstMetric(m.seconds, prometheus.CounterValue, of.seconds[level], name, at))
		}
		told := map[string]bool{}
		for _, w := range of.backends {
			if told[w.gauge.Name] {
				continue // two of one name would fail the whole scrape
			}
			told[w.gauge.Name] = true
			m.backend(is, name, w)
			seen[w.gauge.Name] = worse(seen[w.gauge.Name], w)
		}
	}
	for name, of := range seen {
		for s, w := range of {
			if w == nil {
				continue
			}
			is(m.signalLevel, float64(w.rungs[s].level), name, signal(s).String())
			if w.asks[s].known {
				is(m.signalValue, w.asks[s].value, name, signal(s).String())
			}
		}
	}
	return all
}

func (m *metrics) backend(is func(*prometheus.Desc, float64, ...string), model string, w *watched) {
	name, v := w.gauge.Name, w.gauge.Verdict()
	is(m.backendLevel, float64(v.Level), model, name)
	is(m.backendPressure, v.Pressure, model, name)
	is(m.backendOut, oneIf(v.Out != ""), model, name)
	is(m.backendCap, float64(v.Cap), model, name)
	for i := range w.cards {
		c := &w.cards[i]
		// A card may be named twice, by its index and by its UUID.
		twice := slices.ContainsFunc(w.cards[:i], func(other card) bool { return other.uuid == c.uuid })
		if c.baseline > 0 && !twice {
			is(m.baselines, c.baseline, model, name, c.uuid)
		}
	}
}

// worse is of each signal the one that stands at the higher level: a backend of two
// models is one.
func worse(seen [signals]*watched, w *watched) [signals]*watched {
	for s := range signals {
		if !w.off[s] && (seen[s] == nil || w.rungs[s].level > seen[s].rungs[s].level) {
			seen[s] = w
		}
	}
	return seen
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
