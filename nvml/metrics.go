package nvml

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// gauge is one metric of the GPUs; its value is nil where it is not known.
type gauge struct {
	name, help  string
	whenDropped bool // the metric exists for dropped readings too
	value       func(g *GPU, now time.Time) *float64
}

func gauges() []gauge {
	return []gauge{
		{"temperature_celsius", "Of the GPU's core.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.Temperature, 1) }},
		{"margin_celsius", "To the nearest slowdown threshold.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.Margin, 1) }},
		{"memory_temperature_celsius", "Of the GPU's memory.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.HBM, 1) }},
		{"memory_used_bytes", "Without what the driver reserves.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.MemoryUsed, 1) }},
		{"memory_total_bytes", "Of the GPU.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.MemoryTotal, 1) }},
		{"power_watts", "That the GPU draws.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.Power, 1000) }},
		{"utilization_ratio", "Share of the time in which any kernel ran; shown, never used for control.", false, func(g *GPU, _ time.Time) *float64 { return scaled(g.Utilisation, 100) }},
		{"reading_age_seconds", "Age of the values.", true, func(g *GPU, now time.Time) *float64 { age := g.Age(now).Seconds(); return &age }},
		{"wedged", "1 while a call of the driver hangs.", true, func(g *GPU, _ time.Time) *float64 {
			wedged := 0.0
			if g.State == StateWedged {
				wedged = 1
			}
			return &wedged
		}},
	}
}

func scaled[N int | uint64](v *N, divisor float64) *float64 {
	if v == nil {
		return nil
	}
	f := float64(*v) / divisor
	return &f
}

// Gather implements prometheus.Gatherer. It returns the metrics of the GPUs as they are now, so
// that a series ends with its subject. An unknown value has no series; a dropped reading has
// only its age and state. It does without a registry, which would check and sort each of the
// thousands of values of a fleet.
func (m *Monitor) Gather() ([]*dto.MetricFamily, error) {
	now := time.Now()
	sources := family("tidegate_gpu_source_up", "1 while the source of readings answers.", dto.MetricType_GAUGE)
	type named struct {
		*GPU
		labels []*dto.LabelPair
	}
	var gpus []named
	for _, f := range m.sources() {
		healthy := 0.0
		if f.status(now).OK {
			healthy = 1
		}
		sources.Metric = append(sources.Metric, &dto.Metric{Label: []*dto.LabelPair{pair("source", f.config.Name)}, Gauge: &dto.Gauge{Value: &healthy}})
		for _, g := range f.last.Load().gpus {
			ref := g.Ref()
			if ref == g.UUID {
				ref = g.Source + "/" + ref // another source may report the same UUID
			}
			gpus = append(gpus, named{g, []*dto.LabelPair{pair("gpu", ref), pair("name", g.Name), pair("uuid", g.UUID)}})
		}
	}
	slices.SortFunc(gpus, func(a, b named) int { return strings.Compare(a.labels[0].GetValue(), b.labels[0].GetValue()) })
	families := []*dto.MetricFamily{sources}
	for _, metric := range gauges() {
		f := family("tidegate_gpu_"+metric.name, metric.help, dto.MetricType_GAUGE)
		for _, g := range gpus {
			if !metric.whenDropped && g.Freshness(now) == Dropped {
				continue
			}
			if v := metric.value(g.GPU, now); v != nil {
				f.Metric = append(f.Metric, &dto.Metric{Label: g.labels, Gauge: &dto.Gauge{Value: v}})
			}
		}
		families = append(families, f)
	}
	throttled := family("tidegate_gpu_throttle_seconds_total", "How long the clocks have been held down, by reason; reasons overlap.", dto.MetricType_COUNTER)
	for _, g := range gpus {
		if g.Freshness(now) == Dropped {
			continue
		}
		for _, reason := range slices.Sorted(maps.Keys(g.ThrottleNs)) {
			labels, v := slices.Insert(slices.Clone(g.labels), 2, pair("reason", reason)), float64(g.ThrottleNs[reason])/1e9
			throttled.Metric = append(throttled.Metric, &dto.Metric{Label: labels, Counter: &dto.Counter{Value: &v}})
		}
	}
	families = slices.DeleteFunc(append(families, throttled), func(f *dto.MetricFamily) bool { return len(f.Metric) == 0 })
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families, nil
}

var _ prometheus.Gatherer = (*Monitor)(nil)

func family(name, help string, kind dto.MetricType) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
}

func pair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
