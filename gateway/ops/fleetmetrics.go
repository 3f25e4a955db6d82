package ops

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
	"tidegate/gateway/backend"
)

// FleetCollector reads the backends when Prometheus asks, so that a series ends
// with its subject.
type FleetCollector struct {
	fleet                          *backend.Fleet
	inRotation, inFlight, requests *prometheus.Desc
	queue, breaker                 *prometheus.Desc
	ttft, speed, made              *prometheus.Desc
	slow, silent                   *prometheus.Desc
}

// NewFleetCollector returns a collector of the series of a fleet.
func NewFleetCollector(fleet *backend.Fleet) *FleetCollector {
	return &FleetCollector{
		fleet:      fleet,
		inRotation: prometheus.NewDesc("tidegate_backend_up", "1 while the backend is in rotation.", []string{"model", "backend"}, nil),
		inFlight:   prometheus.NewDesc("tidegate_backend_inflight", "Requests that hold a place on the backend.", []string{"model", "backend"}, nil),
		requests:   prometheus.NewDesc("tidegate_inflight_requests", "Requests that hold a place on any backend of the model.", []string{"model"}, nil),
		queue:      prometheus.NewDesc("tidegate_queue_length", "Requests that wait for a place on any backend of the model.", []string{"model", "tier"}, nil),
		ttft:       prometheus.NewDesc("tidegate_backend_first_token_seconds", "Within what time nine in ten of the last streams had their first token, from the sending of the request; none while too few are known.", []string{"model", "backend"}, nil),
		speed:      prometheus.NewDesc("tidegate_backend_stream_tokens_per_second", "Tokens a second that the backend lately made for one choice; none while no answer has shown it.", []string{"model", "backend"}, nil),
		made:       prometheus.NewDesc("tidegate_backend_tokens_total", "Tokens of the backend's answers, as they pass.", []string{"model", "backend"}, nil),
		silent:     prometheus.NewDesc("tidegate_backend_without_progress", "Requests under way on the backend while it shows no sign of work for any of them.", []string{"model", "backend"}, nil),
		slow:       prometheus.NewDesc("tidegate_backend_slow", "1 while the backend is slower than its peers: half of their tokens a second for a stream, or three times their time to the first token.", []string{"model", "backend"}, nil),
		breaker:    prometheus.NewDesc("tidegate_backend_breaker_state", "0 while requests are sent to the backend; 1 while they are kept from it, because they failed there.", []string{"model", "backend"}, nil),
	}
}

// Describe sends the descriptors of all series.
func (f *FleetCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{f.inRotation, f.inFlight, f.requests, f.queue, f.breaker, f.ttft, f.speed, f.made, f.slow, f.silent} {
		out <- d
	}
}

// Collect sends the series of the backends that there are now.
func (f *FleetCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	flag := func(d *prometheus.Desc, value bool, labels ...string) {
		v := 0
		if value {
			v = 1
		}
		gauge(d, v, labels...)
	}
	for _, m := range f.fleet.Models() {
		sum := 0
		for _, b := range m.Backends {
			flag(f.inRotation, b.Seat.Usable(), m.Name, b.Name)
			flag(f.breaker, b.BreakerOpen(), m.Name, b.Name)
			gauge(f.inFlight, b.Seat.InFlight(), m.Name, b.Name)
			silent, _ := b.Unanswered(time.Now())
			gauge(f.silent, silent, m.Name, b.Name)
			sum += b.Seat.InFlight()
		}
		f.pace(m, out)
		gauge(f.requests, sum, m.Name)
		for i, n := range m.Pool.Queued() {
			gauge(f.queue, n, m.Name, limit.Tiers()[i])
		}
	}
}

// pace collects how fast the backends of a model are.
func (f *FleetCollector) pace(m *backend.Model, out chan<- prometheus.Metric) {
	var p pacing
	now := time.Now()
	metric := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, b *backend.Backend) {
		out <- prometheus.MustNewConstMetric(d, kind, v, m.Name, b.Name)
	}
	for _, b := range m.Backends {
		speed, ttft := b.Pace.Speed(now), b.Pace.TTFT(now).Seconds()
		p.add(b.Seat.Usable(), speed, ttft)
		if speed > 0 {
			metric(f.speed, prometheus.GaugeValue, speed, b)
		}
		if ttft > 0 {
			metric(f.ttft, prometheus.GaugeValue, ttft, b)
		}
		metric(f.made, prometheus.CounterValue, float64(b.Output.Total()), b)
	}
	bySpeed, byTTFT := p.slow()
	for i, b := range m.Backends {
		v := 0.0
		if bySpeed[i] || byTTFT[i] {
			v = 1
		}
		metric(f.slow, prometheus.GaugeValue, v, b)
	}
}
