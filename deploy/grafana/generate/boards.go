package main

import "fmt"

// boards returns the dashboards. Their expressions hold for one gateway and for several:
// the counts of all gateways are summed, and a thing that all of them see, such as a GPU,
// is counted once. A window is Grafana's $__rate_interval, four scrapes at least.
func boards() []board {
	return []board{
		{
			uid: "tidegate-overview", title: "Tidegate / Overview",
			description: "What callers get: traffic, success, latency, tokens, refusals, and what waits.",
			picks:       []pick{models()},
			rows:        []shelf{overviewNow(), overviewTraffic(), overviewLatency(), overviewTokens(), overviewLoad()},
		},
		{
			uid: "tidegate-gpus", title: "Tidegate / GPU and degradation",
			description: "What the GPUs read, what level follows from that, and what it does to answers.",
			picks:       []pick{models(), backends(), gpus()},
			rows:        []shelf{degradationNow(), degradationLevels(), degradationAnswers(), degradationSignals(), gpuHeat(), gpuMemory(), gpuReadings()},
		},
		{
			uid: "tidegate-tenants", title: "Tidegate / Tenants and quotas",
			description: "Whom limits and quotas refuse, how much of quotas is used, how well reservations fit, and which alerts were sent.",
			picks:       []pick{models(), rules()},
			rows:        []shelf{tenantsRefused(), tenantsDecisions(), tenantsQuotas(), tenantsUsers(), tenantsAlerts()},
		},
		{
			uid: "tidegate-backends", title: "Tidegate / Backends",
			description: "The servers behind the gateway, and what the gateway stands on: stores, ledger, configuration, itself.",
			picks:       []pick{models(), backends()},
			rows:        []shelf{backendsNow(), backendsLoad(), backendsFailures(), backendsStores(), backendsLedger(), backendsGateway()},
		},
	}
}

func models() pick {
	return pick{"model", "Model", "label_values(tidegate_level, model)", ".*"}
}

func backends() pick {
	return pick{"backend", "Backend", `label_values(tidegate_backend_up{model=~"$model"}, backend)`, ".*"}
}

// gpus returns the variable of the GPUs that gateways export, as SOURCE/INDEX. Agents that
// are scraped beside them export the same cards by their index alone.
func gpus() pick {
	return pick{"gpu", "GPU", `label_values(tidegate_gpu_reading_age_seconds{gpu=~".+/.+"}, gpu)`, ".+/.+"}
}

func rules() pick {
	return pick{"rule", "Rule", "label_values(tidegate_limit_decisions_total, rule)", ".*"}
}

// Selectors.
const (
	ofModel   = `model=~"$model"`
	ofBackend = `model=~"$model",backend=~"$backend"`
	ofGPU     = `gpu=~"$gpu"`
)

const window = "[$__rate_interval]"

// grouped returns sum by (labels) (inner), or sum(inner) without labels.
func grouped(labels, inner string) string {
	if labels == "" {
		return "sum(" + inner + ")"
	}
	return "sum by (" + labels + ") (" + inner + ")"
}

// rate returns the increase of a counter in a second.
func rate(name, selector, labels string) string {
	return grouped(labels, "rate("+name+"{"+selector+"}"+window+")")
}

// quantile returns a quantile of a histogram, which Prometheus keeps with buckets or in
// the native form without them: whichever there is.
func quantile(q float64, name, selector, labels string) string {
	edge := "le"
	if labels != "" {
		edge += ", " + labels
	}
	return fmt.Sprintf("histogram_quantile(%v, %s) or histogram_quantile(%v, %s)", q, rate(name+"_bucket", selector, edge), q, rate(name, selector, labels))
}

// observed returns the number of observations of a histogram in a second, in either form.
func observed(name, selector, labels string) string {
	return rate(name+"_count", selector, labels) + " or histogram_count(" + rate(name, selector, labels) + ")"
}

// mean returns the mean of the observations of a histogram, in either form.
func mean(name, selector, labels string) string {
	native := rate(name, selector, labels)
	return rate(name+"_sum", selector, labels) + " / " + rate(name+"_count", selector, labels) + " or histogram_sum(" + native + ") / histogram_count(" + native + ")"
}

// percentiles returns the usual three.
func percentiles(name, selector string) []query {
	return []query{
		{quantile(.5, name, selector, ""), "p50"}, {quantile(.95, name, selector, ""), "p95"}, {quantile(.99, name, selector, ""), "p99"},
	}
}

// share returns a part of a whole, 0 where there is no such part. Without a whole it has
// no value.
func share(part, whole, labels string) string {
	empty := "vector(0)"
	if labels != "" {
		empty = "0 * " + whole
	}
	return "(" + part + " or " + empty + ") / (" + whole + " > 0)"
}

// levels returns the texts and colours of the levels.
func levels() []word {
	return []word{{0, "L0", "green"}, {1, "L1", "yellow"}, {2, "L2", "orange"}, {3, "L3", "red"}, {4, "L4", "dark-red"}}
}

// chart returns a panel of lines.
func chart(width int, title, unit, description string, queries ...query) panel {
	return panel{kind: lines, title: title, description: description, width: width, height: 8, unit: unit, empty: "no data", queries: queries}
}

// figure returns a panel of one number.
func figure(width int, title, unit, description, expr string, steps ...step) panel {
	return panel{kind: number, title: title, description: description, width: width, height: 4, unit: unit, empty: "no data", queries: []query{{expr, ""}}, steps: steps}
}

// emptyText sets the text of a panel without data.
func (p panel) emptyText(text string) panel { p.empty = text; return p }

// stacked stacks the lines.
func (p panel) stacked() panel { p.stack = true; return p }

// lined draws thresholds as lines.
func (p panel) lined(steps ...step) panel { p.steps = steps; return p }

// upTo ends the axis.
func (p panel) upTo(limit float64) panel { p.limit = limit; return p }

// mapped shows values as words.
func (p panel) mapped(words ...word) panel { p.words = words; return p }

// drawn changes the kind of panel.
func (p panel) drawn(k kind, height int) panel { p.kind, p.height = k, height; return p }

const answers = "tidegate_requests_total"

func overviewNow() shelf {
	return shelf{"Now", []panel{
		figure(3, "Requests", "reqps", "Finished requests a second, refused ones included.", rate(answers, ofModel, "")),
		figure(3, "Success", "percentunit", "Requests that did not end with a status of 500 or more, as a part of all. Refusals for the caller's own rate or quota (429, 403) are no failure.",
			"1 - "+share(rate(answers, ofModel+`,status=~"5.."`, ""), rate(answers, ofModel, ""), ""),
			step{0, "red"}, step{.95, "orange"}, step{.99, "green"}).emptyText("no traffic"),
		figure(3, "Duration, p95", "s", "From a request's head to the end of its answer.", "("+quantile(.95, "tidegate_request_duration_seconds", ofModel, "")+") > 0").emptyText("no traffic"),
		figure(3, "First token, p95", "s", "From a request's head to the first piece of its stream; the gateway's queue is in it.",
			"("+quantile(.95, "tidegate_time_to_first_token_seconds", ofModel, "")+") > 0", step{0, "green"}, step{2, "orange"}, step{5, "red"}).emptyText("no streams"),
		figure(3, "In flight", "short", "Requests that hold a place on a backend.", `sum(tidegate_inflight_requests{`+ofModel+`})`),
		figure(3, "Waiting", "short", "Requests that wait in the gateway for a place.", `sum(tidegate_queue_length{`+ofModel+`})`, step{0, "green"}, step{1, "orange"}, step{100, "red"}),
		figure(3, "Highest level", "short", "Of any model on any gateway: L0 is the whole answer, L4 a canned text.", `max(tidegate_level{`+ofModel+`})`).mapped(levels()...),
		figure(3, "Gateways", "short", "That Prometheus hears of.", "count(tidegate_build_info) or vector(0)", step{0, "red"}, step{1, "green"}),
	}}
}

func overviewTraffic() shelf {
	return shelf{"Traffic", []panel{
		chart(12, "Requests by status", "reqps", "499: the caller left before its answer was whole.", query{rate(answers, ofModel, "status"), "{{status}}"}).stacked(),
		chart(12, "Requests by model", "reqps", "By the model that was asked for; other: no such model.", query{rate(answers, ofModel, "model"), "{{model}}"}).stacked(),
		chart(12, "Success by model", "percentunit", "Requests that did not end with a status of 500 or more. The line is the objective of the alert TidegateSuccessRateLow.",
			query{"1 - " + share(rate(answers, ofModel+`,status=~"5.."`, "model"), rate(answers, ofModel, "model"), "model"), "{{model}}"}).
			lined(step{0, "red"}, step{.99, "green"}).upTo(1).emptyText("no traffic"),
		chart(12, "Refused by reason", "reqps", "Requests that no backend was asked to answer, by the code of their error.",
			query{rate("tidegate_rejected_total", ofModel, "reason"), "{{reason}}"}).stacked().emptyText("nothing was refused"),
	}}
}

func overviewLatency() shelf {
	return shelf{"Latency", []panel{
		chart(8, "Duration", "s", "From a request's head to the end of its answer, of requests that a backend was asked to answer.", percentiles("tidegate_request_duration_seconds", ofModel)...).emptyText("no traffic"),
		chart(8, "Time to first token", "s", "From a request's head to the first piece of its stream; streams only.", percentiles("tidegate_time_to_first_token_seconds", ofModel)...).emptyText("no streams"),
		chart(8, "Between tokens", "s", "Of a stream, the mean time between two tokens; one observation for each stream.", percentiles("tidegate_inter_token_seconds", ofModel)...).emptyText("no streams"),
		chart(12, "Wait in the queue", "s", "How long requests waited in the gateway for a place on a backend.", percentiles("tidegate_queue_wait_seconds", ofModel)...).emptyText("no traffic"),
		chart(12, "What the gateway adds", "s", "From a request's head until a backend was asked, without the wait in the queue.", percentiles("tidegate_overhead_seconds", ofModel)...).emptyText("no traffic"),
	}}
}

func overviewTokens() shelf {
	const name = "tidegate_request_tokens"
	return shelf{"Tokens", []panel{
		chart(12, "Tokens a second", "short", "As the engines counted them. Input includes cached, output includes reasoning.",
			query{rate("tidegate_tokens_total", ofModel, "direction"), "{{direction}}"}),
		chart(12, "Tokens of a request", "short", "Half of the requests have no more than p50, 95 in 100 no more than p95.",
			query{quantile(.5, name, ofModel+`,direction=~"input|output"`, "direction"), "{{direction}} p50"},
			query{quantile(.95, name, ofModel+`,direction=~"input|output"`, "direction"), "{{direction}} p95"}).emptyText("no traffic"),
	}}
}

func overviewLoad() shelf {
	return shelf{"Load", []panel{
		chart(12, "In flight", "short", "Requests that hold a place on a backend, by model.", query{`sum by (model) (tidegate_inflight_requests{` + ofModel + `})`, "{{model}}"}).stacked(),
		chart(12, "Waiting", "short", "Requests that wait in the gateway for a place, by model and tier.", query{`sum by (model, tier) (tidegate_queue_length{` + ofModel + `})`, "{{model}} {{tier}}"}).stacked(),
	}}
}

func tenantsRefused() shelf {
	const name = "tidegate_rejected_total"
	return shelf{"Refused", []panel{
		chart(12, "Refused by rule", "reqps", "Requests that a limit or a quota refused, by the rule that asks for the longest wait.",
			query{rate(name, ofModel+`,rule=~"$rule",rule!=""`, "rule, reason"), "{{rule}} {{reason}}"}).stacked().emptyText("no limit refused anything"),
		chart(12, "Refused share", "percentunit", "Requests refused for a rate, a quota or a full queue, as a part of all that were asked. The line is the threshold of the alert TidegateRejectedShareHigh.",
			query{share(rate(name, ofModel+`,reason=~"rate_limit_exceeded|insufficient_quota|overloaded"`, "model"), rate(answers, ofModel, "model"), "model"), "{{model}}"}).
			lined(step{0, "green"}, step{.1, "red"}).upTo(1).emptyText("no traffic"),
	}}
}

func tenantsDecisions() shelf {
	const name, selector = "tidegate_limit_decisions_total", `rule=~"$rule"`
	return shelf{"Decisions of limits and quotas", []panel{
		chart(8, "Decisions", "reqps", "allow; deny: the request was refused; degrade: it was sent to the fallback; shadow_deny: a rule with shadow: true would have refused it.",
			query{rate(name, selector, "decision"), "{{decision}}"}).emptyText("no limits or quotas are set"),
		chart(8, "Denied by rule", "reqps", "Also what rules with shadow: true would have refused, so that a new rule can be watched before it acts.",
			query{rate(name, selector+`,decision=~"deny|shadow_deny"`, "rule, decision"), "{{rule}} {{decision}}"}).emptyText("nothing was denied"),
		chart(8, "Where it was decided", "reqps", "redis: by all gateways together; local: by each for itself, because there is no Redis or it does not answer.",
			query{rate(name, selector, "store"), "{{store}}"}).emptyText("no limits or quotas are set"),
	}}
}

func tenantsQuotas() shelf {
	const name = "tidegate_quota_used_ratio"
	const empty = "no quota is by this, or nothing of it has been used since the start"
	part := func(labels string) query {
		return query{"topk(20, max by (quota, subject) (" + name + "{per=~\".*" + labels + ".*\"}))", "{{subject}} {{quota}}"}
	}
	return shelf{"Quotas used", []panel{
		chart(12, "Used by department", "percentunit", "How much of its quota each department has used in the running period, of the twenty with most. What running requests hold is not in it.",
			part("department")).lined(step{0, "green"}, step{.8, "orange"}, step{1, "red"}).emptyText(empty),
		chart(12, "Used by project", "percentunit", "How much of its quota each project has used in the running period, of the twenty with most. What running requests hold is not in it.",
			part("project")).lined(step{0, "green"}, step{.8, "orange"}, step{1, "red"}).emptyText(empty),
	}}
}

func tenantsUsers() shelf {
	const name = "tidegate_user_tokens_total"
	const empty = "telemetry.per_user is 0: single users are in `tidegate usage report` and GET /v1/usage only"
	return shelf{"Users and reservations", []panel{
		chart(12, "Tokens by user", "short", "Tokens a second of the ten users with most, of those that have a series of their own; other is the rest. Needs telemetry.per_user.",
			query{"topk(10, " + rate(name, `direction=~"input|output"`, "user") + ")", "{{user}}"}).stacked().emptyText(empty),
		chart(12, "Reserved over used", "percentunit", "How much of the limits a request held while it ran, over what it used in the end: 100 % is exact. Far above it limits refuse too early, below it they let too much in (reserve: p90 | max).",
			query{quantile(.1, "tidegate_reservation_error_ratio", ofModel, ""), "p10"},
			query{quantile(.5, "tidegate_reservation_error_ratio", ofModel, ""), "p50"},
			query{quantile(.9, "tidegate_reservation_error_ratio", ofModel, ""), "p90"}).emptyText("no token limit or quota is set"),
	}}
}

func tenantsAlerts() shelf {
	const name, empty = "tidegate_alerts_total", "no channel is set"
	return shelf{"Quota alerts", []panel{
		chart(8, "Tries by outcome", "short", "Tries to send a quota alert in the window. retried: it failed and is tried again; given_up: it will not be sent.",
			query{"sum by (channel, outcome) (increase(" + name + window + "))", "{{channel}} {{outcome}}"}).emptyText(empty),
		chart(8, "To be sent", "short", "Quota alerts that wait to be sent. All gateways on one database see the same ones.", query{"max by (channel) (tidegate_alerts_pending)", "{{channel}}"}).emptyText(empty),
		{
			kind: bars, title: "Sent by severity", description: "Alerts that got out in the range that is shown.", width: 8, height: 8, unit: "short", empty: empty,
			queries: []query{{"sum by (severity) (increase(" + name + `{outcome="sent"}[$__range]))`, "{{severity}}"}},
		},
	}}
}
