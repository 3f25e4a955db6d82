package gateway

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/ops"
	"tidegate/gateway/refusal"
)

// metrics holds the series of the front. Labels are bounded: a model is
// one of the configuration or other, never what a caller wrote, and so are
// backends and rules. Their series begin at zero with them and end with them.
type metrics struct {
	requests, rejected, tokens, attempts, degraded     *prometheus.CounterVec
	usageCorrected                                     *prometheus.CounterVec
	duration, ttft, itl, queued, overhead, tokensOfOne *prometheus.HistogramVec
	users                                              *userTokens
	page                                               []vector // all of them, but for users

	mu         sync.RWMutex            // held for reading while series are written to, so that none comes back
	models     map[string]*modelSeries // of the configuration
	otherModel func() *modelSeries     // those of the model other, made when they are first asked for
	rules      map[string]bool         // with whether it is a quota
}

// modelSeries are those of one model that nearly every request writes to. They are found
// once, since looking one up by its labels costs as much as counting in it. They are used
// while the lock of metrics is held, and end with their model.
type modelSeries struct {
	model                       string
	duration                    prometheus.Observer // at L0
	ttft, itl, queued, overhead prometheus.Observer
	tokens                      [4]prometheus.Counter // by direction
	tokensOfOne                 [4]prometheus.Observer
	backends                    map[string]bool
	attempts                    map[attempt]prometheus.Counter
}

// attempt is the labels of an exchange with a backend.
type attempt struct{ backend, outcome string }

// newSeries makes the series of a model, but for those of its backends.
func (m *metrics) newSeries(model string) *modelSeries {
	s := &modelSeries{
		model: model, duration: m.duration.WithLabelValues(model, degrade.Full.String()), ttft: m.ttft.WithLabelValues(model), itl: m.itl.WithLabelValues(model),
		queued: m.queued.WithLabelValues(model), overhead: m.overhead.WithLabelValues(model),
		backends: map[string]bool{}, attempts: map[attempt]prometheus.Counter{},
	}
	for i, direction := range directions() {
		s.tokens[i], s.tokensOfOne[i] = m.tokens.WithLabelValues(model, direction), m.tokensOfOne.WithLabelValues(model, direction)
	}
	return s
}

// addBackend makes the series of a backend of the model.
func (s *modelSeries) addBackend(backendName string, attempts *prometheus.CounterVec) {
	s.backends[backendName] = true
	for _, outcome := range backend.Outcomes() {
		s.attempts[attempt{backendName, outcome}] = attempts.WithLabelValues(s.model, backendName, outcome)
	}
}

// seriesOf is the series of a model: its own while it is one of the configuration, else
// those of other. The lock is held.
func (m *metrics) seriesOf(name string) *modelSeries {
	if s := m.models[name]; s != nil {
		return s
	}
	return m.otherModel()
}

// other stands for everything that is not of the configuration.
const labelOther = "other"

// directions are the values of the label direction.
func directions() [4]string { return [4]string{"input", "cached", "output", "reasoning"} }

// byDirection are the tokens of each direction.
func byDirection(u openai.Usage) [4]int { return [4]int{u.Input, u.Cached, u.Output, u.Reasoning} }

// Buckets, in seconds for the latencies of language models, for those of single
// tokens and of the gateway itself, which are shorter, and in tokens.
func seconds() []float64 {
	return []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}
}

func shortSeconds() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .015, .02, .03, .04, .05, .075, .1, .15, .25, .5, 1, 2.5, 10}
}

func tokenBuckets() []float64 {
	return []float64{1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072}
}

func newMetrics(reg prometheus.Registerer, fleet *backend.Fleet) *metrics {
	var page []vector
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		page = append(page, vector{name, help, dto.MetricType_COUNTER, v})
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
		}, labels)
		page = append(page, vector{name, help, dto.MetricType_HISTOGRAM, v})
		return v
	}
	m := &metrics{
		models: map[string]*modelSeries{}, rules: map[string]bool{}, users: newUserTokens(),
		requests: counter("tidegate_requests_total", "Finished requests.", "model", "served", "route", "status", "level", "stream"),
		rejected: counter("tidegate_rejected_total", "Requests refused by the gateway itself, by the code they were given.", "model", "reason", "rule"),
		duration: histogram("tidegate_request_duration_seconds", "From the request's head to the end of its answer; of requests that a backend was asked to answer.", seconds(), "model", "level"),
		ttft:     histogram("tidegate_time_to_first_token_seconds", "From the request's head to the first chunk of the answer, keep-alives not counted; streams only.", seconds(), "model"),
		itl: histogram("tidegate_inter_token_seconds",
			"Mean time between two tokens of a stream: one observation for each stream of two tokens and more, the time from its first to its last over its tokens less one.", shortSeconds(), "model"),
		tokens:      counter("tidegate_tokens_total", "Tokens as the engines counted them, by the model that answered; input includes cached, output includes reasoning.", "model", "direction"),
		tokensOfOne: histogram("tidegate_request_tokens", "Tokens of one request, by the model that answered; input includes cached, output includes reasoning.", tokenBuckets(), "model", "direction"),
		degraded:    counter("tidegate_degraded_requests_total", "Requests that were given a smaller answer, by level and the signal that asked for it.", "model", "level", "reason"),
		queued:      histogram("tidegate_queue_wait_seconds", "How long requests waited for a place on a backend; of those that got one.", seconds(), "model"),
		overhead: histogram("tidegate_overhead_seconds",
			"What the gateway itself added before a backend was asked: from the request's head to the first sending, less what the caller took to send the body and the wait for a place.", shortSeconds(), "model"),
		attempts: counter("tidegate_backend_attempts_total", "Requests sent to backends, by how they ended.", "model", "backend", "outcome"),
		usageCorrected: counter("tidegate_usage_corrected_total",
			"Answers in whose usage the gateway's own counts replaced figures of the engine, by what was wrong with those.", "backend", "why"),
	}
	reg.MustRegister(m.users, ops.NewFleetCollector(fleet))
	// The name before 0.1, for rules that were written for it; it goes with 0.2.
	m.page = append(page, vector{"tidegate_upstream_attempts_total", "Deprecated: the same as tidegate_backend_attempts_total.", dto.MetricType_COUNTER, m.attempts})
	m.otherModel = sync.OnceValue(func() *modelSeries { return m.newSeries(labelOther) })
	return m
}

// model is the label of a model: its name, while it is one of the configuration. The
// lock is held.
func (m *metrics) model(name string) string {
	if m.models[name] == nil {
		return labelOther
	}
	return name
}

// observe notes a duration, with the trace as an exemplar where there is one.
func observe(h prometheus.Observer, d time.Duration, trace string) {
	if exemplars, ok := h.(prometheus.ExemplarObserver); ok && trace != "" {
		exemplars.ObserveWithExemplar(d.Seconds(), prometheus.Labels{"trace_id": trace})
		return
	}
	h.Observe(d.Seconds())
}

// finished counts a request and its latencies.
func (m *metrics) finished(c *call, took time.Duration) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := &c.outcome
	model, served, level, traceID := m.model(c.asked()), m.model(c.served()), out.level.String(), c.tracing.traceID()
	if c.served() == cannedModel {
		served = cannedModel
	}
	m.requests.WithLabelValues(model, served, c.route, strconv.Itoa(out.status), level, strconv.FormatBool(c.request.Wish.Stream)).Inc()
	if out.backend != "" {
		s := m.seriesOf(model)
		duration := s.duration
		if out.level > degrade.Full {
			duration = m.duration.WithLabelValues(model, level)
		}
		observe(duration, took, traceID)
		observe(s.overhead, max(out.overhead, 0), traceID)
	}
	if c.permit != nil {
		if c.served() != cannedModel { // which needs no place
			observe(m.seriesOf(model).queued, c.permit.Wait-c.permit.LimitWait, traceID)
		}
		if out.level > degrade.Full {
			m.degraded.WithLabelValues(model, level, out.reason).Inc()
		}
	}
	if !out.firstToken.IsZero() {
		observe(m.seriesOf(model).ttft, out.firstToken.Sub(c.began), traceID)
		if n, flow := out.usage.Output/max(c.plan.choices, 1)-1, out.flow(); n > 0 && flow > 0 {
			m.seriesOf(model).itl.Observe(flow.Seconds() / float64(n))
		}
	}
}

// refused counts a request that no backend was asked to answer.
func (m *metrics) refused(asked string, r *refusal.Refusal) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	rule := r.Rule
	if _, known := m.rules[rule]; !known && rule != "" {
		rule = labelOther // a reload took it away meanwhile
	}
	m.rejected.WithLabelValues(m.model(asked), string(r.Code), rule).Inc()
}

func (m *metrics) attempted(model, backendName string, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	outcome := backend.Outcome(err)
	if s := m.models[model]; s == nil || !s.backends[backendName] {
		model, backendName = m.model(model), labelOther
	} else if counted := s.attempts[attempt{backendName, outcome}]; counted != nil {
		counted.Inc()
		return
	}
	m.attempts.WithLabelValues(model, backendName, outcome).Inc()
}

// corrected counts an answer whose usage was not believed, once for each fault.
func (m *metrics) corrected(backendName string, faults openai.Faults) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !m.known(backendName) {
		backendName = labelOther
	}
	for _, fault := range faults.Names() {
		m.usageCorrected.WithLabelValues(backendName, fault).Inc()
	}
}

// known reports whether a backend is one of the configuration. The lock is held.
func (m *metrics) known(backendName string) bool {
	for _, s := range m.models {
		if s.backends[backendName] {
			return true
		}
	}
	return false
}

// used counts the tokens of a request that is charged for.
func (m *metrics) used(served, user string, used openai.Usage) {
	u := byDirection(used)
	m.users.add(user, u, time.Now())
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.seriesOf(served)
	for i, n := range u {
		s.tokens[i].Add(float64(n))
		s.tokensOfOne[i].Observe(float64(n))
	}
}

// keepRules makes the series of the limits and quotas in force, and deletes those of
// limits that are no more.
func (m *metrics) keepRules(rules map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.rules {
		if _, stays := rules[name]; !stays {
			m.rejected.DeletePartialMatch(prometheus.Labels{"rule": name})
		}
	}
	m.rules = rules
	m.begin()
}

// follow makes the series of the models and backends there are, and deletes those of
// others.
func (m *metrics) follow(models []*backend.Model) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.models
	m.models = map[string]*modelSeries{}
	for _, model := range models {
		s := m.newSeries(model.Name)
		for _, b := range model.Backends {
			s.addBackend(b.Name, m.attempts)
		}
		m.models[model.Name] = s
	}
	for name, series := range old {
		for b := range series.backends {
			if !m.known(b) {
				m.usageCorrected.DeletePartialMatch(prometheus.Labels{"backend": b})
			}
		}
		if m.models[name] == nil {
			m.forget(name)
			continue
		}
		for b := range series.backends {
			if !m.models[name].backends[b] {
				m.attempts.DeletePartialMatch(prometheus.Labels{"model": name, "backend": b})
			}
		}
	}
	m.begin()
}

func (m *metrics) forget(model string) {
	labels := prometheus.Labels{"model": model}
	for _, v := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{m.requests, m.rejected, m.tokens, m.attempts, m.degraded, m.duration, m.ttft, m.itl, m.queued, m.overhead, m.tokensOfOne} {
		v.DeletePartialMatch(labels)
	}
	m.requests.DeletePartialMatch(prometheus.Labels{"served": model})
}

// begin makes what panels and rules need from the first scrape on beside the series of
// each model, so that the first event is already an increase. The lock is held.
func (m *metrics) begin() {
	for _, reason := range []refusal.Code{
		refusal.AccessDenied, refusal.InvalidAPIKey, refusal.InvalidRequest, refusal.ModelNotAllowed, refusal.ModelNotFound, refusal.RequestTooLarge, refusal.StoreUnavailable, refusal.UnknownURL,
	} {
		m.rejected.WithLabelValues(labelOther, string(reason), "")
	}
	m.beginRules(labelOther) // who hammers is refused before the model is known
	for model, s := range m.models {
		for _, stream := range []string{"true", "false"} {
			m.requests.WithLabelValues(model, model, "/v1/chat/completions", "200", degrade.Full.String(), stream)
		}
		for _, reason := range []refusal.Code{refusal.ContextLength, refusal.InvalidRequest, refusal.NoBackend, refusal.Overloaded, refusal.StoreUnavailable} {
			m.rejected.WithLabelValues(model, string(reason), "")
		}
		m.beginRules(model)
		for level := degrade.StreamingOff; level <= degrade.Canned; level++ {
			for _, reason := range admission.Reasons() {
				m.degraded.WithLabelValues(model, level.String(), reason)
			}
		}
		for b := range s.backends {
			for _, fault := range openai.FaultNames() {
				m.usageCorrected.WithLabelValues(b, fault)
			}
		}
	}
}

func (m *metrics) beginRules(model string) {
	for rule, quota := range m.rules {
		reason := refusal.RateLimit
		if quota {
			reason = refusal.InsufficientQuota
		}
		m.rejected.WithLabelValues(model, string(reason), rule)
		if model != labelOther {
			m.rejected.WithLabelValues(model, string(refusal.TooLargeForLimit), rule)
		}
	}
}
