package main

const backendNames = "{{model}} {{backend}}"

func backendsNow() shelf {
	rotation := `max by (model, backend) (tidegate_backend_up{` + ofBackend + `})`
	return shelf{"Now", []panel{
		figure(4, "In rotation", "percentunit", "Backends that any gateway uses, as a part of all.", "avg("+rotation+")", step{0, "red"}, step{.5, "orange"}, step{1, "green"}),
		figure(4, "Models without any", "short", "Models that have no backend in rotation.", "count(max by (model) ("+rotation+") == 0) or vector(0)", step{0, "green"}, step{1, "red"}),
		figure(4, "Open breakers", "short", "Backends that some gateway gives nothing to, since requests failed there.", `sum(max by (model, backend) (tidegate_backend_breaker_state{`+ofBackend+`}))`, step{0, "green"}, step{1, "red"}),
		figure(4, "Attempts", "reqps", "Requests sent to backends in a second, retries included.", rate("tidegate_backend_attempts_total", ofBackend, "")),
		figure(4, "Waiting records", "short", "Usage records that are not yet in the database, of all gateways.", "sum(tidegate_ledger_pending_records)", step{0, "green"}, step{1000, "orange"}, step{10000, "red"}),
		figure(4, "Configuration", "short", "Of the gateway where it is worst: whether the last reading of its configuration succeeded.", "min(tidegate_config_reload_success)").
			mapped(word{0, "refused", "red"}, word{1, "in force", "green"}),
	}}
}

func backendsLoad() shelf {
	return shelf{"Backends", []panel{
		chart(12, "In rotation", "short", "Down where any gateway does not use it.", query{`min by (model, backend) (tidegate_backend_up{` + ofBackend + `})`, backendNames}).
			drawn(timeline, 8).mapped(word{0, "out", "red"}, word{1, "in", "green"}),
		chart(12, "Breaker", "short", "Open while requests are kept from a backend because they failed there.", query{`max by (model, backend) (tidegate_backend_breaker_state{` + ofBackend + `})`, backendNames}).
			drawn(timeline, 8).mapped(word{0, "closed", "green"}, word{1, "open", "red"}),
		chart(12, "In flight", "short", "Requests that hold a place, of all gateways.", query{`sum by (model, backend) (tidegate_backend_inflight{` + ofBackend + `})`, backendNames}).stacked(),
		chart(12, "Waiting", "short", "Requests that wait for the backend, in its engine and in a gateway: the signal queue.", query{signals("value", `,signal="queue"`, "backend"), "{{backend}}"}),
		chart(8, "Tokens a second", "short", "Tokens of each backend's answers, as they pass.", query{rate("tidegate_backend_tokens_total", ofBackend, "model, backend"), backendNames}).stacked(),
		chart(8, "Tokens a second of a stream", "short", "How fast each backend lately made one answer. One far below the others is slow.",
			query{`min by (model, backend) (tidegate_backend_stream_tokens_per_second{` + ofBackend + `})`, backendNames}).emptyText("no traffic"),
		chart(8, "First token, p90", "s", "Within what time nine in ten of each backend's last streams had their first token, by the gateway that waited longest.",
			query{`max by (model, backend) (tidegate_backend_first_token_seconds{` + ofBackend + `})`, backendNames}).emptyText("too few streams"),
		chart(12, "Without progress", "short", "Requests under way on a backend that shows no sign of work for any of them: it may hang.", query{`max by (model, backend) (tidegate_backend_without_progress{` + ofBackend + `})`, backendNames}),
		chart(12, "Slower than its peers", "short", "slow: it makes half of the tokens a second for a stream, or takes three times as long to the first token.", query{`max by (model, backend) (tidegate_backend_slow{` + ofBackend + `})`, backendNames}).
			drawn(timeline, 8).mapped(word{0, "well", "green"}, word{1, "slow", "red"}),
	}}
}

func backendsFailures() shelf {
	const name = "tidegate_backend_attempts_total"
	const failed = `,outcome!~"ok|refused|client_closed"`
	reached := "(" + observed("tidegate_request_duration_seconds", "", "") + ")"
	return shelf{"Attempts", []panel{
		chart(8, "Attempts by outcome", "reqps", "refused: the server answered 4xx; client_closed: the caller left; timeout_*: which of the four.", query{rate(name, ofBackend, "outcome"), "{{outcome}}"}).stacked().emptyText("no traffic"),
		chart(8, "Failures by backend", "percentunit", "Attempts that failed for the server's sake, as a part of its attempts.",
			query{share(rate(name, ofBackend+failed, "model, backend"), rate(name, ofBackend, "model, backend"), "model, backend"), backendNames}).upTo(1).emptyText("no traffic"),
		// A request counts for the model that was asked for, an attempt for the one that
		// is to answer: together they fit.
		chart(8, "Attempts for a request", "short", "Of all models. 1: none is sent twice. A request is sent again only before its first token, and retries are bounded by models[].retry.",
			query{rate(name, "", "") + " / (" + reached + " > 0)", "attempts"}).emptyText("no traffic"),
		chart(12, "Duration, p95", "s", "From a request's head to the end of its answer, by the model that was asked for.", query{quantile(.95, "tidegate_request_duration_seconds", ofModel, "model"), "{{model}}"}).emptyText("no traffic"),
		chart(12, "First token, p95", "s", "From a request's head to the first piece of its stream, by the model that was asked for.", query{quantile(.95, "tidegate_time_to_first_token_seconds", ofModel, "model"), "{{model}}"}).emptyText("no streams"),
	}}
}

func backendsStores() shelf {
	const name, empty = "tidegate_store_call_seconds", "no Redis is set: each gateway counts alone"
	return shelf{"Stores", []panel{
		chart(6, "Calls", "reqps", "Calls of stores that requests wait for.", query{observed(name, "", "store"), "{{store}}"}).emptyText(empty),
		chart(6, "Time of a call", "s", "A decision waits for redis.timeout at most.", query{quantile(.5, name, "", "store"), "{{store}} p50"}, query{quantile(.99, name, "", "store"), "{{store}} p99"}).emptyText(empty),
		chart(4, "Damaged values", "short", "Calls in the window that read what no gateway wrote, and took it as not there. Something else writes to this Redis, or its data was damaged.",
			query{"sum by (instance, store) (increase(tidegate_store_damaged_total" + window + "))", "{{instance}} {{store}}"}).emptyText(empty),
		chart(4, "Store of limits", "short", "not asked: it did not answer, and each rule's on_store_failure holds.", query{"max by (instance, store) (tidegate_store_breaker_state)", "{{instance}} {{store}}"}).
			drawn(timeline, 8).mapped(word{0, "asked", "green"}, word{1, "not asked", "red"}).emptyText(empty),
		chart(4, "Store of accounts", "short", "Whether the database of accounts answered when it was last asked.", query{"min by (instance) (tidegate_accounts_up)", "{{instance}}"}).
			drawn(timeline, 8).mapped(word{0, "down", "red"}, word{1, "up", "green"}),
	}}
}

func backendsLedger() shelf {
	failures := func(name string) string {
		return "sum by (instance) (increase(tidegate_ledger_" + name + "_total" + window + "))"
	}
	return shelf{"Ledger of usage", []panel{
		chart(6, "Waiting records", "short", "Usage records that are not yet in the database. They pile up in the journal while it is away.", query{"sum by (instance) (tidegate_ledger_pending_records)", "{{instance}}"}),
		chart(6, "Written records", "short", "Usage records a second that came into the database.", query{"sum by (instance) (rate(tidegate_ledger_written_total" + window + "))", "{{instance}}"}),
		chart(6, "Failures", "short", "Failed attempts in the window to write the journal and to reach the database. Lost records are gone: the journal's disk took nothing and the buffer was full.",
			query{failures("write_failures"), "{{instance}} journal"}, query{failures("ship_failures"), "{{instance}} database"}, query{failures("lost_records"), "{{instance}} lost"}),
		chart(6, "Usage not believed", "short", "Answers in the window in whose usage the gateway's own counts replaced figures of the engine. unseen: nobody saw an answer in one piece, which is no fault of the engine.",
			query{"sum by (backend, why) (increase(tidegate_usage_corrected_total" + window + "))", "{{backend}} {{why}}"}).emptyText("none"),
	}}
}

// gateways are the processes that are gateways: the names of what every process
// tells are not ours alone.
const gateways = " and on (job, instance) tidegate_build_info"

func backendsGateway() shelf {
	return shelf{"Gateways", []panel{
		chart(6, "Configuration", "short", "refused: the last reading failed, and the configuration before it stays.", query{"min by (instance) (tidegate_config_reload_success)", "{{instance}}"}).
			drawn(timeline, 8).mapped(word{0, "refused", "red"}, word{1, "in force", "green"}),
		figure(6, "Last configuration", "dateTimeFromNow", "When each gateway last read its configuration successfully.", "1000 * max by (instance) (tidegate_config_reload_timestamp_seconds)").
			drawn(number, 8).named("{{instance}}"),
		chart(6, "CPU", "short", "Cores that each gateway uses.", query{"rate(process_cpu_seconds_total" + window + ")" + gateways, "{{instance}}"}),
		chart(6, "Memory", "bytes", "Resident memory of each gateway.", query{"process_resident_memory_bytes" + gateways, "{{instance}}"}),
		figure(8, "Certificates", "dateTimeFromNow", "When each certificate ends that gateways and backends show or check others by.", "1000 * min by (certificate) (tidegate_certificate_expiry_timestamp_seconds)").
			named("{{certificate}}").emptyText("no certificates"),
		figure(8, "Keys that expire soon", "short", "Keys of the store that are good, have no successor and expire within auth.expiry_warn. Their callers are refused from then on: tidegate key list shows them.", "max(tidegate_keys_expiring)",
			step{0, "green"}, step{1, "orange"}),
		figure(8, "Versions", "short", "How many gateways run each.", "count by (version) (tidegate_build_info)").named("{{version}}"),
	}}
}

// named names the series of a panel's only query.
func (p panel) named(legend string) panel { p.queries[0].legend = legend; return p }
