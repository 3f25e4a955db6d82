package gatewaytest

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"
)

// metrics renders the Prometheus text by hand: names, labels and order are
// vLLM's, with the _created series that a Go client would not write.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	t := &exposition{created: float64(s.started.UnixMilli()) / 1000}
	s.processMetrics(t)
	s.engineMetrics(t)
	t.httpMetrics(s.Stats())
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(t.b)))
	// A failed write means that the scraper has left.
	_, _ = w.Write(t.b)
}

// exposition is a Prometheus text in the making.
type exposition struct {
	b       []byte
	created float64
}

// family opens a metric.
func (t *exposition) family(name, kind, help string) {
	t.b = append(append(append(append(t.b, "# HELP "...), name...), ' '), help...)
	t.b = append(append(append(append(t.b, "\n# TYPE "...), name...), ' '), kind...)
	t.b = append(t.b, '\n')
}

// sample writes one line; labels are pairs.
func (t *exposition) sample(name string, value float64, labels ...string) {
	t.b = append(t.b, name...)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		t.b = append(append(append(t.b, sep), labels[i]...), '=')
		t.b = appendString(t.b, labels[i+1])
	}
	if len(labels) > 0 {
		t.b = append(t.b, '}')
	}
	t.b = append(t.b, ' ')
	t.b = appendFloat(t.b, value)
	t.b = append(t.b, '\n')
}

// appendFloat writes numbers as Python does: 3.0, not 3.
func appendFloat(b []byte, x float64) []byte {
	n := len(b)
	b = strconv.AppendFloat(b, x, 'g', -1, 64)
	if !slices.ContainsFunc(b[n:], func(c byte) bool { return c == '.' || c == 'e' || c == 'I' || c == 'N' }) {
		b = append(b, '.', '0')
	}
	return b
}

// series is one metric of all engines.
type series struct {
	name, kind, help string
	value            func(m *meter) float64
}

func (s *Server) engineMetrics(t *exposition) {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	model := s.options.Model
	forMeters := func(fn func(i int, m *meter, labels []string)) {
		for i, m := range e.meters {
			fn(i, m, []string{"engine", strconv.Itoa(i), "model_name", model})
		}
	}
	s.gauges(t, forMeters)
	for _, c := range s.counters() {
		t.family(c.name, "counter", c.help)
		forMeters(func(_ int, m *meter, l []string) { t.sample(c.name+"_total", c.value(m), l...) })
		t.family(c.name+"_created", "gauge", c.help)
		forMeters(func(_ int, _ *meter, l []string) { t.sample(c.name+"_created", t.created, l...) })
	}
	t.bySource(forMeters)
	t.family("vllm:request_success", "counter", "Count of successfully processed requests.")
	reasons := []string{"stop", "length", "abort", "error", "repetition"}
	forMeters(func(_ int, m *meter, l []string) {
		for _, reason := range reasons {
			t.sample("vllm:request_success_total", float64(m.success[reason]), append(l, "finished_reason", reason)...)
		}
	})
	t.family("vllm:request_success_created", "gauge", "Count of successfully processed requests.")
	forMeters(func(_ int, _ *meter, l []string) {
		for _, reason := range reasons {
			t.sample("vllm:request_success_created", t.created, append(l, "finished_reason", reason)...)
		}
	})
	if s.release.rejectionMetric() {
		t.family("vllm:admission_rejections", "counter", "Requests refused by the queue bound.")
		t.sample("vllm:admission_rejections_total", float64(e.totals.rejections), "model_name", model, "reason", "num_queued_reqs")
	}
	for _, h := range s.histograms() {
		t.family(h.name, "histogram", h.help)
		forMeters(func(_ int, m *meter, l []string) { t.histogram(h.name, h.histogram(m), l) })
		t.family(h.name+"_created", "gauge", h.help)
		forMeters(func(_ int, _ *meter, l []string) { t.sample(h.name+"_created", t.created, l...) })
	}
}

type eachMeter func(func(i int, m *meter, labels []string))

// gauges writes the gauges, which it reads under the engine's lock.
func (s *Server) gauges(t *exposition, forMeters eachMeter) {
	e := s.engine
	run, wait := make([]int, e.engines), make([]int, e.engines)
	index := func(m *meter) int { return slices.Index(e.meters, m) }
	for q := range e.running {
		run[index(q.meter)]++
	}
	for _, q := range e.waiting.seqs {
		wait[index(q.meter)]++
	}
	t.family("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.")
	forMeters(func(i int, _ *meter, l []string) { t.sample("vllm:num_requests_running", float64(run[i]), l...) })
	t.family("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.")
	forMeters(func(i int, _ *meter, l []string) { t.sample("vllm:num_requests_waiting", float64(wait[i]), l...) })
	if s.release.waitingByReason() {
		t.family("vllm:num_requests_waiting_by_reason", "gauge", "Number of requests waiting, by reason.")
		forMeters(func(i int, _ *meter, l []string) {
			t.sample("vllm:num_requests_waiting_by_reason", float64(wait[i]), append(l, "reason", "capacity")...)
			t.sample("vllm:num_requests_waiting_by_reason", 0, append(l, "reason", "deferred")...)
		})
	}
	t.family("vllm:engine_sleep_state", "gauge", "Engine sleep state; awake = 0 means engine is sleeping.")
	forMeters(func(_ int, _ *meter, l []string) {
		for i, state := range []string{"awake", "weights_offloaded", "discard_all"} {
			value := 0.0
			if int(s.sleep.Load()) == i {
				value = 1
			}
			t.sample("vllm:engine_sleep_state", value, append(l, "sleep_state", state)...)
		}
	})
	usage := []string{"vllm:kv_cache_usage_perc"}
	if s.release.gpuCacheNames() {
		usage = append(usage, "vllm:gpu_cache_usage_perc")
	}
	for _, name := range usage {
		t.family(name, "gauge", "KV-cache usage. 1 means 100 percent usage.")
		forMeters(func(_ int, _ *meter, l []string) { t.sample(name, e.cache.usage(), l...) })
	}
	t.family("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
	forMeters(func(i int, _ *meter, _ []string) {
		t.sample("vllm:cache_config_info", 1, "block_size", strconv.Itoa(blockTokens), "cache_dtype", "auto",
			"calculate_kv_scales", "False", "cpu_kvcache_space_bytes", "None", "enable_prefix_caching", "True",
			"engine", strconv.Itoa(i), "gpu_memory_utilization", "0.92", "num_cpu_blocks", "None",
			"num_gpu_blocks", strconv.Itoa(e.cache.total), "num_gpu_blocks_override", "None",
			"prefix_caching_hash_algo", "sha256", "sliding_window", "None", "swap_space", "0")
	})
}

func (s *Server) counters() []series {
	list := []series{
		{"vllm:num_preemptions", "counter", "Cumulative number of preemption from the engine.", func(m *meter) float64 { return float64(m.preemptions) }},
		{"vllm:prompt_tokens", "counter", "Number of prefill tokens processed.", func(m *meter) float64 { return float64(m.prompt) }},
		{"vllm:prompt_tokens_cached", "counter", "Number of cached prompt tokens.", func(m *meter) float64 { return float64(m.cached) }},
		{"vllm:generation_tokens", "counter", "Number of generation tokens processed.", func(m *meter) float64 { return float64(m.generated) }},
		{"vllm:prefix_cache_queries", "counter", "Prefix cache queries, in terms of number of queried tokens.", func(m *meter) float64 { return float64(m.prompt) }},
		{"vllm:prefix_cache_hits", "counter", "Prefix cache hits, in terms of number of cached tokens.", func(m *meter) float64 { return float64(m.cached) }},
	}
	for _, name := range []string{"vllm:external_prefix_cache_queries", "vllm:external_prefix_cache_hits", "vllm:mm_cache_queries", "vllm:mm_cache_hits"} {
		list = append(list, series{name, "counter", "Not used by this model.", func(*meter) float64 { return 0 }})
	}
	if s.release.gpuCacheNames() {
		list = append(list,
			series{"vllm:gpu_prefix_cache_queries", "counter", "DEPRECATED: use vllm:prefix_cache_queries.", func(m *meter) float64 { return float64(m.prompt) }},
			series{"vllm:gpu_prefix_cache_hits", "counter", "DEPRECATED: use vllm:prefix_cache_hits.", func(m *meter) float64 { return float64(m.cached) }})
	}
	return list
}

func (t *exposition) bySource(forMeters eachMeter) {
	t.family("vllm:prompt_tokens_by_source", "counter", "Number of prompt tokens by source.")
	forMeters(func(_ int, m *meter, l []string) {
		t.sample("vllm:prompt_tokens_by_source_total", float64(m.prompt-m.cached), append(l, "source", "local_compute")...)
		t.sample("vllm:prompt_tokens_by_source_total", float64(m.cached), append(l, "source", "local_cache_hit")...)
		t.sample("vllm:prompt_tokens_by_source_total", 0, append(l, "source", "external_kv_transfer")...)
	})
}

type distribution struct {
	name, help string
	histogram  func(m *meter) *histogram
}

func (s *Server) histograms() []distribution {
	list := []distribution{
		{"vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", func(m *meter) *histogram { return &m.ttft }},
		{"vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", func(m *meter) *histogram { return &m.itl }},
		{"vllm:request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", func(m *meter) *histogram { return &m.perToken }},
		{"vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", func(m *meter) *histogram { return &m.e2e }},
		{"vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", func(m *meter) *histogram { return &m.queue }},
		{"vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", func(m *meter) *histogram { return &m.prefillTime }},
		{"vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", func(m *meter) *histogram { return &m.decode }},
		{"vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", func(m *meter) *histogram { return &m.inference }},
		{"vllm:request_prompt_tokens", "Number of prefill tokens processed.", func(m *meter) *histogram { return &m.promptTokens }},
		{"vllm:request_generation_tokens", "Number of generation tokens processed.", func(m *meter) *histogram { return &m.generationTokens }},
		{"vllm:request_prefill_kv_computed_tokens", "Histogram of new KV tokens computed during prefill.", func(m *meter) *histogram { return &m.computed }},
		{"vllm:request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", func(m *meter) *histogram { return &m.maxTokens }},
		{"vllm:request_params_n", "Histogram of the n request parameter.", func(m *meter) *histogram { return &m.fanout }},
		{"vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", func(m *meter) *histogram { return &m.paramMax }},
		{"vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", func(m *meter) *histogram { return &m.iteration }},
	}
	if s.release.oldTokenTimeName() {
		list = append(list, distribution{"vllm:time_per_output_token_seconds", "DEPRECATED: use vllm:inter_token_latency_seconds.", func(m *meter) *histogram { return &m.itl }})
	}
	return list
}

func (t *exposition) histogram(name string, h *histogram, labels []string) {
	total := int64(0)
	for i, bound := range h.bounds {
		total += h.counts[i]
		t.sample(name+"_bucket", float64(total), append(labels, "le", string(appendFloat(nil, bound)))...)
	}
	t.sample(name+"_bucket", float64(h.total), append(labels, "le", "+Inf")...)
	t.sample(name+"_count", float64(h.total), labels...)
	t.sample(name+"_sum", h.sum, labels...)
}

// processMetrics writes the lines of the Python client; the memory is this
// process's own.
func (s *Server) processMetrics(t *exposition) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	t.family("python_gc_objects_collected", "counter", "Objects collected during gc")
	t.family("python_gc_collections", "counter", "Number of times this generation was collected")
	for _, generation := range []string{"0", "1", "2"} {
		t.sample("python_gc_objects_collected_total", float64(mem.Frees), "generation", generation)
		t.sample("python_gc_collections_total", float64(mem.NumGC), "generation", generation)
	}
	t.family("python_info", "gauge", "Python platform information")
	t.sample("python_info", 1, "implementation", "CPython", "major", "3", "minor", "12", "patchlevel", "11", "version", "3.12.11")
	t.family("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.")
	t.sample("process_virtual_memory_bytes", float64(mem.Sys))
	t.family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.")
	t.sample("process_resident_memory_bytes", float64(mem.HeapInuse))
	t.family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.")
	t.sample("process_start_time_seconds", t.created)
	t.family("process_cpu_seconds", "counter", "Total user and system CPU time spent in seconds.")
	t.sample("process_cpu_seconds_total", time.Since(s.started).Seconds())
	t.family("process_open_fds", "gauge", "Number of open file descriptors.")
	t.sample("process_open_fds", float64(s.net.open.Load()+32))
	t.family("process_max_fds", "gauge", "Maximum number of open file descriptors.")
	t.sample("process_max_fds", 1048576)
}

func (t *exposition) httpMetrics(sum Stats) {
	const name = "http_requests"
	t.family(name, "counter", "Total number of requests by method, status and handler.")
	t.sample(name+"_total", float64(sum.Finished+sum.Aborted), "handler", "/v1/chat/completions", "method", "POST", "status", "2xx")
	t.sample(name+"_total", float64(sum.Refused), "handler", "/v1/chat/completions", "method", "POST", "status", "4xx")
	t.family(name+"_created", "gauge", "Total number of requests by method, status and handler.")
	t.sample(name+"_created", t.created, "handler", "/v1/chat/completions", "method", "POST", "status", "2xx")
	t.sample(name+"_created", t.created, "handler", "/v1/chat/completions", "method", "POST", "status", "4xx")
}
