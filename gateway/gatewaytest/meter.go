package gatewaytest

import "time"

// meter holds the counts of one engine for /metrics. vLLM observes a request only
// when it finishes: an aborted one is in no histogram but those of its tokens,
// and not in request_success.
type meter struct {
	prompt, cached, generated int64
	preemptions               int64
	success                   map[string]int64

	ttft, itl, e2e, queue, prefillTime, decode, inference, perToken histogram
	promptTokens, generationTokens, computed, maxTokens             histogram
	fanout, iteration, paramMax                                     histogram
}

type histogram struct {
	bounds []float64
	counts []int64 // one more than bounds: +Inf
	sum    float64
	total  int64
}

func newHistogram(bounds []float64) histogram {
	return histogram{bounds: bounds, counts: make([]int64, len(bounds)+1)}
}

func (h *histogram) observe(x float64) {
	i := 0
	for i < len(h.bounds) && x > h.bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += x
	h.total++
}

func newMeter(maxModelLen int) *meter {
	latency := []float64{0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	gap := []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	var tokens []float64
	for decade := 1; decade <= maxModelLen; decade *= 10 {
		for _, step := range []int{1, 2, 5} {
			if step*decade <= maxModelLen {
				tokens = append(tokens, float64(step*decade))
			}
		}
	}
	return &meter{
		success: map[string]int64{},
		ttft: newHistogram([]float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
			1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}),
		itl: newHistogram(gap), perToken: newHistogram(gap),
		e2e: newHistogram(latency), queue: newHistogram(latency), prefillTime: newHistogram(latency),
		decode: newHistogram(latency), inference: newHistogram(latency),
		promptTokens: newHistogram(tokens), generationTokens: newHistogram(tokens), computed: newHistogram(tokens),
		maxTokens: newHistogram(tokens), paramMax: newHistogram(tokens),
		fanout:    newHistogram([]float64{1, 2, 5, 10, 20}),
		iteration: newHistogram([]float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}),
	}
}

func (m *meter) prefill(prompt, cached int) {
	m.prompt += int64(prompt)
	m.cached += int64(cached)
}

// token counts a token. It is called before the sequence's last token time is moved on.
func (m *meter) token(s *sequence, now time.Time) {
	m.generated++
	if s.first.IsZero() {
		s.first = now
		m.ttft.observe(now.Sub(s.arrived).Seconds())
		return
	}
	m.itl.observe(now.Sub(s.last).Seconds())
}

func (m *meter) finish(s *sequence, now time.Time) {
	reason := s.script.finish
	if reason == "tool_calls" { // a word of the API server; the engine stopped
		reason = "stop"
	}
	m.success[reason]++
	m.e2e.observe(now.Sub(s.arrived).Seconds())
	m.queue.observe(s.scheduled.Sub(s.arrived).Seconds())
	m.prefillTime.observe(s.first.Sub(s.scheduled).Seconds())
	m.decode.observe(now.Sub(s.first).Seconds())
	m.inference.observe(now.Sub(s.scheduled).Seconds())
	if s.produced > 1 {
		m.perToken.observe(now.Sub(s.first).Seconds() / float64(s.produced-1))
	}
	m.promptTokens.observe(float64(len(s.prompt)))
	m.generationTokens.observe(float64(s.produced))
	m.computed.observe(float64(len(s.prompt) - s.cached))
	m.maxTokens.observe(float64(s.produced))
	m.paramMax.observe(float64(s.maxNew))
	m.fanout.observe(float64(s.fanout))
}
