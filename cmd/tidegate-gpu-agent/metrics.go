package main

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"tidegate/nvml"
	"tidegate/nvml/device"
)

// calls collects the latencies of the library's functions, the first sign of a driver in
// trouble. The metrics of the process itself are beside them, since drivers leak.
type calls struct{ seconds *prometheus.HistogramVec }

func newCalls(reg prometheus.Registerer) *calls {
	c := &calls{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "tidegate_gpu_agent_call_seconds", Help: "Latency of NVML's functions, by name.",
		Buckets:                     []float64{10e-6, 30e-6, 100e-6, 300e-6, 1e-3, 3e-3, .01, .03, .1, .3, 1, 3, 10, 45},
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
	}, []string{"call"})}
	reg.MustRegister(c.seconds, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return c
}

func (c *calls) observe(s device.Sample) {
	for _, call := range s.Calls {
		c.seconds.WithLabelValues(call.Name).Observe(call.Took.Seconds())
	}
}

// readings collects the current report. An unknown value has no sample, which is not the same
// as 0.
type readings struct {
	report                                                    func() nvml.Report
	agentUp, temperature, margin, hbm                         *prometheus.Desc
	power, limit, utilisation, throttle, reason, age, latency *prometheus.Desc
	memory                                                    memoryDescs
	faults                                                    faultDescs
}

// memoryDescs describes the metrics of a GPU's memory.
type memoryDescs struct{ used, total, free, reserved *prometheus.Desc }

// faultDescs describes the metrics of a GPU's faults.
type faultDescs struct {
	wedged, lost, fatal, xids, eccUncorrected, rowsPending *prometheus.Desc
}

func newReadings(report func() nvml.Report) *readings {
	gpu := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tidegate_gpu_"+name, help, append([]string{"gpu", "uuid", "name"}, labels...), nil)
	}
	return &readings{
		report:      report,
		agentUp:     prometheus.NewDesc("tidegate_gpu_agent_up", "1 while NVML is initialised.", nil, nil),
		temperature: gpu("temperature_celsius", "Of the GPU's core."),
		margin:      gpu("margin_celsius", "Distance to the nearest slowdown threshold."),
		hbm:         gpu("memory_temperature_celsius", "Of the GPU's memory."),
		power:       gpu("power_watts", "Power drawn, averaged by the driver."),
		limit:       gpu("power_limit_watts", "Power limit in force."),
		utilisation: gpu("utilization_ratio", "Share of time in which any kernel ran; not a measure of load."),
		throttle:    gpu("throttle_seconds_total", "Time for which clocks were lowered, by reason.", "reason"),
		reason:      gpu("clocks_event", "1 for each reason in force for which clocks are not higher.", "reason"),
		age:         gpu("reading_age_seconds", "Age of the values."),
		latency:     gpu("sweep_seconds", "Duration of the last sweep over the GPU."),
		memory: memoryDescs{
			used:     gpu("memory_used_bytes", "Allocated memory."),
			total:    gpu("memory_total_bytes", "Physical memory."),
			free:     gpu("memory_free_bytes", "Memory that is free."),
			reserved: gpu("memory_reserved_bytes", "Memory that the driver keeps for itself."),
		},
		faults: faultDescs{
			wedged:         gpu("wedged", "1 while a call to the GPU hangs."),
			lost:           gpu("lost", "1 while the GPU cannot be reached or must be reset."),
			fatal:          gpu("fatal_xid", "Newest XID after which the GPU must be reset; 0: none."),
			xids:           gpu("xids", fmt.Sprintf("Error events of the driver that are remembered, at most %d.", nvml.MaxXIDs)),
			eccUncorrected: gpu("ecc_uncorrected_total", "Memory errors that were not corrected since the driver was loaded."),
			rowsPending:    gpu("rows_pending", "1 while memory waits for a reset to be remapped, or could not be."),
		},
	}
}

// Describe sends nothing, since the series depend on the GPUs.
func (r *readings) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (r *readings) Collect(out chan<- prometheus.Metric) {
	report := r.report()
	out <- prometheus.MustNewConstMetric(r.agentUp, prometheus.GaugeValue, flag(report.Error == ""))
	for _, g := range report.GPUs {
		r.gpu(out, g)
	}
}

func (r *readings) gpu(out chan<- prometheus.Metric, g nvml.Reading) {
	labels := []string{strconv.Itoa(g.Index), g.UUID, g.Name}
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, extra ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, append(labels[:3:3], extra...)...)
	}
	gauge := func(d *prometheus.Desc, v float64) { put(d, prometheus.GaugeValue, v) }
	putKnown(r.temperature, g.Temperature, 1, gauge)
	putKnown(r.margin, g.Margin, 1, gauge)
	putKnown(r.hbm, g.HBM, 1, gauge)
	putKnown(r.memory.used, g.MemoryUsed, 1, gauge)
	putKnown(r.memory.total, g.MemoryTotal, 1, gauge)
	putKnown(r.memory.free, g.MemoryFree, 1, gauge)
	putKnown(r.memory.reserved, g.MemoryReserved, 1, gauge)
	putKnown(r.power, g.Power, 1e-3, gauge)
	putKnown(r.limit, g.PowerLimit, 1e-3, gauge)
	putKnown(r.utilisation, g.Utilisation, 1e-2, gauge)
	for reason, ns := range g.ThrottleNs {
		put(r.throttle, prometheus.CounterValue, float64(ns)/1e9, reason)
	}
	for _, reason := range g.Reasons {
		put(r.reason, prometheus.GaugeValue, 1, reason)
	}
	gauge(r.age, float64(g.AgeMs)/1e3)
	gauge(r.latency, float64(g.LatencyUs)/1e6)
	gauge(r.faults.wedged, flag(g.State == nvml.StateWedged))
	gauge(r.faults.lost, flag(g.State == nvml.StateLost))
	fatal := uint64(0)
	for _, x := range g.XIDs {
		if x.Fatal {
			fatal = x.Code
		}
	}
	gauge(r.faults.fatal, float64(fatal))
	gauge(r.faults.xids, float64(len(g.XIDs)))
	if g.ECCUncorrected != nil {
		put(r.faults.eccUncorrected, prometheus.CounterValue, float64(*g.ECCUncorrected))
	}
	if g.RowsPending != nil {
		gauge(r.faults.rowsPending, flag(*g.RowsPending))
	}
}

// putKnown calls put with a value in its unit, if it is known.
func putKnown[T int | uint64](d *prometheus.Desc, v *T, unit float64, put func(*prometheus.Desc, float64)) {
	if v != nil {
		put(d, float64(*v)*unit)
	}
}

func flag(value bool) float64 {
	if value {
		return 1
	}
	return 0
}
