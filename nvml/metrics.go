package nvml

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// metrics reads the GPUs when Prometheus asks, so that a series ends with its
// subject. A value that is not known has no series; one that is dropped as too old
// has only its age and state.
type metrics struct {
	monitor *Monitor
	gauges  []gauge
	state   *prometheus.Desc // throttling, by reason
	sources *prometheus.Desc
}

// gauge is one value of a GPU; nil: it is not known.
type gauge struct {
	desc   *prometheus.Desc
	always bool // even of a reading that is dropped
	value  func(g *GPU, now time.Time) *float64
}

func newMetrics(reg prometheus.Registerer, m *Monitor) {
	labels := []string{"gpu", "uuid", "name"}
	c := &metrics{
		monitor: m,
		state:   prometheus.NewDesc("tidegate_gpu_throttle_seconds_total", "How long the clocks have been held down, by reason.", append(labels, "reason"), nil),
		sources: prometheus.NewDesc("tidegate_gpu_source_up", "1 while the source of readings answers.", []string{"source"}, nil),
	}
	add := func(name, help string, value func(g *GPU, now time.Time) *float64) {
		c.gauges = append(c.gauges, gauge{prometheus.NewDesc("tidegate_gpu_"+name, help, labels, nil), false, value})
	}
	add("temperature_celsius", "Of the GPU.", func(g *GPU, _ time.Time) *float64 { return scaled(g.Temperature, 1) })
	add("margin_celsius", "To the nearest slowdown threshold.", func(g *GPU, _ time.Time) *float64 { return scaled(g.Margin, 1) })
	add("memory_temperature_celsius", "Of the GPU's memory.", func(g *GPU, _ time.Time) *float64 { return scaled(g.HBM, 1) })
	add("memory_used_bytes", "Without what the driver reserves.", func(g *GPU, _ time.Time) *float64 { return scaled(g.MemoryUsed, 1) })
	add("memory_total_bytes", "Of the GPU.", func(g *GPU, _ time.Time) *float64 { return scaled(g.MemoryTotal, 1) })
	add("power_watts", "That the GPU draws.", func(g *GPU, _ time.Time) *float64 { return scaled(g.Power, 1000) })
	add("utilization_ratio", "Share of the time in which any kernel ran; shown, never used for control.", func(g *GPU, _ time.Time) *float64 { return scaled(g.Utilisation, 100) })
	add("reading_age_seconds", "Age of the values.", func(g *GPU, now time.Time) *float64 { age := g.Age(now).Seconds(); return &age })
	c.gauges[len(c.gauges)-1].always = true
	add("wedged", "1 while a call of the driver hangs.", func(g *GPU, _ time.Time) *float64 {
		wedged := 0.0
		if g.State == StateWedged {
			wedged = 1
		}
		return &wedged
	})
	c.gauges[len(c.gauges)-1].always = true
	reg.MustRegister(c)
}

func scaled[N int | uint64](v *N, by float64) *float64 {
	if v == nil {
		return nil
	}
	f := float64(*v) / by
	return &f
}

// Describe is prometheus.Collector's.
func (c *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, g := range c.gauges {
		out <- g.desc
	}
	out <- c.state
	out <- c.sources
}

// Collect is prometheus.Collector's. A fleet has thousands of values: a GPU's labels
// are made once for all of them, and they come in the order in which they are shown.
func (c *metrics) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	type named struct {
		ref string
		*GPU
	}
	var gpus []named
	for _, f := range c.monitor.running() {
		up := 0.0
		if f.status(now).OK {
			up = 1
		}
		out <- prometheus.MustNewConstMetric(c.sources, prometheus.GaugeValue, up, f.config.Name)
		for _, g := range f.last.Load().gpus {
			ref := g.Ref()
			if ref == g.UUID {
				ref = g.Source + "/" + ref // another source may have the same one
			}
			gpus = append(gpus, named{ref, g})
		}
	}
	slices.SortFunc(gpus, func(a, b named) int { return strings.Compare(a.ref, b.ref) })
	for _, g := range gpus {
		c.collect(out, g.GPU, now, g.ref)
	}
}

func (c *metrics) collect(out chan<- prometheus.Metric, g *GPU, now time.Time, ref string) {
	dropped := g.Freshness(now) == Dropped
	labels := prometheus.MakeLabelPairs(c.gauges[0].desc, []string{ref, g.UUID, g.Name})
	for _, m := range c.gauges {
		if dropped && !m.always {
			continue
		}
		if v := m.value(g, now); v != nil {
			out <- &gaugeValue{m.desc, labels, v}
		}
	}
	if dropped {
		return
	}
	for _, reason := range slices.Sorted(maps.Keys(g.ThrottleNs)) {
		out <- prometheus.MustNewConstMetric(c.state, prometheus.CounterValue, float64(g.ThrottleNs[reason])/1e9, ref, g.UUID, g.Name, reason)
	}
}

// gaugeValue is one value of a gauge.
type gaugeValue struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	value  *float64
}

// Desc is prometheus.Metric's.
func (s *gaugeValue) Desc() *prometheus.Desc { return s.desc }

// Write is prometheus.Metric's.
func (s *gaugeValue) Write(out *dto.Metric) error {
	out.Label, out.Gauge = s.labels, &dto.Gauge{Value: s.value}
	return nil
}
