package gateway

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
)

// metrics are what Prometheus sees of the face. Labels are bounded: a model is
// one of the configuration or otherModel, never what a caller wrote.
type metrics struct {
	requests *prometheus.CounterVec
	rejected *prometheus.CounterVec
	duration *prometheus.HistogramVec
	ttft     *prometheus.HistogramVec
	tokens   *prometheus.CounterVec
	attempts *prometheus.CounterVec
	degraded *prometheus.CounterVec
	queued   *prometheus.HistogramVec

	mu    sync.Mutex
	rules map[string]bool // that series of rejected name
}

const otherModel = "other"

// directions are the values of the label direction.
func directions() [4]string { return [4]string{"input", "cached", "output", "reasoning"} }

// seconds are buckets for the latencies of language models.
func seconds() []float64 {
	return []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}
}

func newMetrics(reg prometheus.Registerer, fleet *backend.Fleet) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: seconds(), NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
		}, labels)
		reg.MustRegister(v)
		return v
	}
	m := &metrics{
		rules:    map[string]bool{},
		requests: counter("tidegate_requests_total", "Finished requests.", "model", "served", "route", "status", "level", "stream"),
		rejected: counter("tidegate_rejected_total", "Requests refused by the gateway itself, by the code they were given.", "model", "reason", "rule"),
		duration: histogram("tidegate_request_duration_seconds", "From the request's head to the end of its answer.", "model", "level"),
		ttft:     histogram("tidegate_time_to_first_token_seconds", "From the request's head to the first chunk passed on; streams only.", "model"),
		tokens:   counter("tidegate_tokens_total", "Tokens as the engines counted them; input includes cached, output includes reasoning.", "model", "direction"),
		degraded: counter("tidegate_degraded_requests_total", "Requests that were given a smaller answer, by level and the signal that asked for it.", "model", "level", "reason"),
		queued:   histogram("tidegate_queue_wait_seconds", "How long requests waited for a place on a backend.", "model"),
		attempts: counter("tidegate_upstream_attempts_total", "Requests sent to backends, by how they ended.", "model", "backend", "outcome"),
	}
	reg.MustRegister(&fleetCollector{
		fleet:    fleet,
		up:       prometheus.NewDesc("tidegate_backend_up", "1 while the backend is in rotation.", []string{"model", "backend"}, nil),
		inFlight: prometheus.NewDesc("tidegate_backend_inflight", "Requests that hold a place on the backend.", []string{"model", "backend"}, nil),
		requests: prometheus.NewDesc("tidegate_inflight_requests", "Requests that hold a place on any backend of the model.", []string{"model"}, nil),
		queue:    prometheus.NewDesc("tidegate_queue_length", "Requests that wait for a place on any backend of the model.", []string{"model", "tier"}, nil),
		breaker:  prometheus.NewDesc("tidegate_backend_breaker_state", "1 while requests are kept from the backend because they failed there.", []string{"model", "backend"}, nil),
	})
	return m
}

// finished counts a request and its latency.
func (m *metrics) finished(c *call, took time.Duration) {
	model, level, stream := otherModel, c.level.String(), "false"
	served := otherModel
	if c.asked != nil {
		model, served = c.asked.Name, c.served
	}
	if c.wish.Stream {
		stream = "true"
	}
	m.requests.WithLabelValues(model, served, c.route, strconv.Itoa(c.status), level, stream).Inc()
	if c.backend != "" {
		m.duration.WithLabelValues(model, level).Observe(took.Seconds())
	}
	if c.permit != nil {
		m.queued.WithLabelValues(model).Observe(c.permit.Waited.Seconds())
		if c.level > degrade.Full {
			m.degraded.WithLabelValues(model, level, c.reason).Inc()
		}
	}
	if !c.firstToken.IsZero() {
		m.ttft.WithLabelValues(model).Observe(c.firstToken.Sub(c.began).Seconds())
	}
}

// keepRules deletes the series of limits that are no more.
func (m *metrics) keepRules(names []string) {
	stay := map[string]bool{"": true}
	for _, name := range names {
		stay[name] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.rules {
		if !stay[name] {
			m.rejected.DeletePartialMatch(prometheus.Labels{"rule": name})
			delete(m.rules, name)
		}
	}
}

// refused counts a request that no backend was asked to answer.
func (m *metrics) refused(c *call, why *refusal) {
	model := otherModel
	if c.asked != nil {
		model = c.asked.Name
	}
	m.mu.Lock()
	m.rules[why.rule] = true
	m.mu.Unlock()
	m.rejected.WithLabelValues(model, why.told.Code, why.rule).Inc()
}

func (m *metrics) attempted(model, backendName string, err error) {
	m.attempts.WithLabelValues(model, backendName, backend.Outcome(err)).Inc()
}

func (m *metrics) used(model string, u openai.Usage) {
	for i, n := range [...]int{u.Input, u.Cached, u.Output, u.Reasoning} {
		m.tokens.WithLabelValues(model, directions()[i]).Add(float64(n))
	}
}

// fleetCollector reads the backends when Prometheus asks, so that a series ends
// with its subject.
type fleetCollector struct {
	fleet                  *backend.Fleet
	up, inFlight, requests *prometheus.Desc
	queue, breaker         *prometheus.Desc
}

func (f *fleetCollector) Describe(out chan<- *prometheus.Desc) {
	out <- f.up
	out <- f.inFlight
	out <- f.requests
	out <- f.queue
	out <- f.breaker
}

func (f *fleetCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for _, m := range f.fleet.Models() {
		sum := 0
		for _, b := range m.Backends {
			up := 0
			if b.Seat.Usable() {
				up = 1
			}
			open := 0
			if b.BreakerOpen() {
				open = 1
			}
			gauge(f.up, up, m.Name, b.Name)
			gauge(f.breaker, open, m.Name, b.Name)
			gauge(f.inFlight, b.Seat.InFlight(), m.Name, b.Name)
			sum += b.Seat.InFlight()
		}
		gauge(f.requests, sum, m.Name)
		for i, n := range m.Pool.Queued() {
			gauge(f.queue, n, m.Name, admission.Tiers()[i])
		}
	}
}
