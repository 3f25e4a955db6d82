package main

const gpuNames = "{{gpu}} {{name}}"

// reading is a value of a GPU, which all gateways that use it tell alike.
func gpuReading(name string) string {
	return "max by (gpu, name) (tidegate_gpu_" + name + "{" + ofGPU + "})"
}

func degradationNow() shelf {
	return shelf{"Now", []panel{
		figure(4, "Highest level", "short", "Of any model on any gateway.", `max(tidegate_level{`+ofModel+`})`).mapped(levels()...),
		figure(4, "Highest pressure", "percentunit", "L1 to L4 begin at 50, 65, 80 and 95 %.", `max(tidegate_pressure{`+ofModel+`})`,
			step{0, "green"}, step{.5, "yellow"}, step{.65, "orange"}, step{.8, "red"}),
		figure(4, "Smallest margin", "celsius", "Of any GPU to its slowdown. By default L1 to L4 begin at 12, 9, 6 and 2 degrees.", `min(tidegate_gpu_margin_celsius{`+ofGPU+`})`,
			step{-100, "dark-red"}, step{2, "red"}, step{6, "orange"}, step{9, "yellow"}, step{12, "green"}).emptyText("no GPU tells it"),
		figure(4, "GPUs held down", "short", "GPUs whose clocks heat or the power brake held down within the window.",
			`sum(max by (gpu) (rate(tidegate_gpu_throttle_seconds_total{`+ofGPU+`,reason!="sw_power_cap"}`+window+`) > bool 0))`, step{0, "green"}, step{1, "red"}).emptyText("no GPU tells it"),
		figure(4, "Oldest reading", "s", "Up to 3 s readings count, up to 10 s the level stays, after that a GPU's signals are left out.", `max(tidegate_gpu_reading_age_seconds{`+ofGPU+`})`,
			step{0, "green"}, step{3, "orange"}, step{10, "red"}).emptyText("no GPUs are set"),
		figure(4, "Backends out for a GPU", "short", "Backends that are not used because a GPU is lost or must be reset.", `sum(max by (model, backend) (tidegate_backend_gpu_out{`+ofBackend+`}))`,
			step{0, "green"}, step{1, "red"}),
	}}
}

func degradationLevels() shelf {
	return shelf{"Levels", []panel{
		chart(24, "Level of each model", "short", "The highest on any gateway. L1: not streamed upstream; L2: without thinking; L3: by the smaller model; L4: a canned text.",
			query{`max by (model) (tidegate_level{` + ofModel + `})`, "{{model}}"}).drawn(timeline, 6).mapped(levels()...),
		chart(24, "Level of each backend", "short", "Requests are routed away from a backend that stands higher before they are degraded.",
			query{`max by (model, backend) (tidegate_backend_level{` + ofBackend + `})`, "{{model}} {{backend}}"}).drawn(timeline, 8).mapped(levels()...),
		chart(12, "Pressure", "percentunit", "Of models; the lines are where L1 to L4 begin.", query{`max by (model) (tidegate_pressure{` + ofModel + `})`, "{{model}}"}).
			lined(step{0, "green"}, step{.5, "yellow"}, step{.65, "orange"}, step{.8, "red"}, step{.95, "dark-red"}).upTo(1),
		chart(12, "Pressure by backend", "percentunit", "A model's pressure is the mean of its backends.", query{`max by (model, backend) (tidegate_backend_pressure{` + ofBackend + `})`, "{{model}} {{backend}}"}).
			lined(step{0, "green"}, step{.5, "yellow"}, step{.65, "orange"}, step{.8, "red"}, step{.95, "dark-red"}).upTo(1),
		{
			kind: bars, title: "Time at each level", description: "In the range that is shown, as the mean of the gateways.", width: 12, height: 8, unit: "s", empty: "no data",
			queries: []query{{`avg by (model, level) (increase(tidegate_level_seconds_total{` + ofModel + `}[$__range])) > 0`, "{{model}} {{level}}"}},
		},
		chart(12, "Changes of level", "short", "Steps to a level in the window. A ladder that goes up and down often wants longer dwell times.",
			query{`sum by (model, level) (increase(tidegate_level_changes_total{` + ofModel + `}` + window + `))`, "{{model}} to {{level}}"}),
	}}
}

func degradationAnswers() shelf {
	const degraded = "tidegate_degraded_requests_total"
	tokens := func(direction string) query {
		return query{mean("tidegate_request_tokens", ofModel+`,direction="`+direction+`"`, ""), direction}
	}
	return shelf{"What it does to answers", []panel{
		chart(8, "Degraded by reason", "reqps", "Requests that were given a smaller answer, by the signal that asked for it.", query{rate(degraded, ofModel, "reason"), "{{reason}}"}).stacked().emptyText("nothing was degraded"),
		chart(8, "Degraded share by level", "percentunit", "As a part of all requests, refused ones included.",
			query{rate(degraded, ofModel, "level") + " / on () group_left () (" + rate(answers, ofModel, "") + " > 0)", "{{level}}"}).stacked().upTo(1).emptyText("nothing was degraded"),
		chart(8, "Tokens of an answer", "short", "Mean of a request, of the model that answered. What degradation saves cannot be counted, since nobody knows what the longer answer would have had; how far these fall while the level is up stands for it. Reasoning is a part of output, and is gone from L2 on.",
			tokens("output"), tokens("reasoning")).emptyText("no traffic"),
	}}
}

// signals returns the highest value of a signal of the models' backends. A signal carries
// the label backend alone.
func signals(name, matchers, labels string) string {
	return "max by (" + labels + ") (tidegate_signal_" + name + `{backend=~"$backend"` + matchers + "} and on (backend) tidegate_backend_up{" + ofBackend + "})"
}

func degradationSignals() shelf {
	signal := func(width int, title, unit, name, description string) panel {
		return chart(width, title, unit, description, query{signals("value", `,signal="`+name+`"`, "backend"), "{{backend}}"}).emptyText("not known")
	}
	return shelf{"Signals", []panel{
		chart(24, "Level by signal", "short", "What each signal asks for on any backend, also where it is only observed. A backend stands at the highest.",
			query{signals("level", "", "signal"), "{{signal}}"}).drawn(timeline, 8).mapped(levels()...),
		signal(6, "KV cache", "percentunit", "kv_cache", "Use of the engine's KV cache. By default L1 to L4 begin at 80, 87, 92 and 97 %.").upTo(1),
		signal(6, "Memory beside the engine", "percentunit", "gpu_memory", "Part that is gone of what was free beside the engine when it had started. By default L1 to L4 begin at 40, 60, 75 and 90 %."),
		signal(6, "Waiting for a backend", "short", "queue", "Requests that wait for the backend, in its engine and in the gateway. By default L1 to L4 begin at 5, 10, 20 and 40."),
		signal(6, "First token over its objective", "percentunit", "ttft", "p90 of the last 30 s over models[].objectives.ttft_p90; above 100 % the promise is broken.").emptyText("no objective is set, or no traffic"),
	}}
}

func gpuHeat() shelf {
	return shelf{"GPUs: heat and power", []panel{
		chart(8, "Margin", "celsius", "Degrees to the nearest slowdown threshold of the card.", query{"min by (gpu, name) (tidegate_gpu_margin_celsius{" + ofGPU + "})", gpuNames}).
			lined(step{-100, "red"}, step{6, "orange"}, step{12, "green"}).emptyText("no GPU tells it"),
		chart(8, "Temperature", "celsius", "Of the GPU.", query{gpuReading("temperature_celsius"), gpuNames}).emptyText("no GPU tells it"),
		chart(8, "Memory temperature", "celsius", "Of the GPU's memory (HBM).", query{gpuReading("memory_temperature_celsius"), gpuNames}).emptyText("no GPU tells it"),
		chart(8, "Power", "watt", "That the GPU draws.", query{gpuReading("power_watts"), gpuNames}).emptyText("no GPU tells it"),
		chart(8, "Time held down by reason", "percentunit", "Part of the time in which the clocks were held down. sw_power_cap is usual under load; the thermal ones and hw_power_brake cost speed.",
			query{`max by (gpu, name, reason) (rate(tidegate_gpu_throttle_seconds_total{` + ofGPU + `}` + window + `))`, gpuNames + " {{reason}}"}).upTo(1).emptyText("no GPU tells it"),
		chart(8, "Utilization", "percentunit", "Part of the time in which any kernel ran: full says little of load, and nothing decides by it.", query{gpuReading("utilization_ratio"), gpuNames}).upTo(1).emptyText("no GPU tells it"),
	}}
}

func gpuMemory() shelf {
	used, total := gpuReading("memory_used_bytes"), gpuReading("memory_total_bytes")
	return shelf{"GPUs: memory", []panel{
		chart(12, "Memory used", "bytes", "Without what the driver keeps for itself. vLLM takes its share at its start, so that this hardly moves: see the KV cache above.", query{used, gpuNames}).emptyText("no GPU tells it"),
		chart(6, "Memory used, part", "percentunit", "Of the card's memory.", query{used + " / " + total, gpuNames}).upTo(1).emptyText("no GPU tells it"),
		chart(6, "Memory of the card", "bytes", "All of it.", query{total, gpuNames}).emptyText("no GPU tells it"),
	}}
}

func gpuReadings() shelf {
	return shelf{"GPUs: readings", []panel{
		chart(12, "Age of readings", "s", "Up to 3 s readings count, up to 10 s the level stays, after that a GPU's signals are left out.", query{gpuReading("reading_age_seconds"), gpuNames}).
			lined(step{0, "green"}, step{3, "orange"}, step{10, "red"}).emptyText("no GPUs are set"),
		chart(6, "Sources", "short", "Agents and exporters, as the gateways reach them.", query{"min by (source) (tidegate_gpu_source_up)", "{{source}}"}).
			drawn(timeline, 8).mapped(word{0, "down", "red"}, word{1, "up", "green"}).emptyText("no GPUs are set"),
		chart(6, "Driver", "short", "hangs: a call of the driver does not come back.", query{gpuReading("wedged"), gpuNames}).
			drawn(timeline, 8).mapped(word{0, "answers", "green"}, word{1, "hangs", "red"}).emptyText("no GPUs are set"),
	}}
}
