# Tidegate. `make help` lists what there is.

GO     ?= go
TAGS   := nomsgpack
FLAGS  := -tags $(TAGS) -p 2
CACHE  := $(CURDIR)/.cache
# Each fuzz target runs for so long in `make fuzz`.
FUZZTIME ?= 20s

export CGO_ENABLED ?= 0

.PHONY: help demo build test cover race fuzz bench bench-overload bench-tenants bench-fair fairness fair drill gpu-test lint check dashboards docs golden clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## the gateway in front of three simulated vLLM servers; Ctrl-C stops all
	@bin/tidegate demo

build: ## the binaries, into bin/; the GPU agent where there is a C compiler
	@mkdir -p bin
	$(GO) build $(FLAGS) -trimpath -o bin/ ./cmd/tidegate ./cmd/tidegate-vllm-sim
	@.ci/agent bin/tidegate-gpu-agent $(FLAGS)

test: clients servers ## all tests; installs the client SDKs and servers they need where it may
	@.ci/test $(FLAGS)

cover: ## the share of statements that the tests reach, by package; processes that they start count too
	@rm -rf $(CACHE)/cover && mkdir -p $(CACHE)/cover
	$(GO) test $(FLAGS) -short -timeout 30m -coverpkg=./... ./... -args -test.gocoverdir=$(CACHE)/cover
	$(GO) tool covdata percent -i=$(CACHE)/cover

race: clients servers ## all tests under the race detector (needs a C compiler)
	@CGO_ENABLED=1 CGO_CFLAGS="-O2 -g -Wno-deprecated-declarations" .ci/test $(FLAGS) -race

clients:
	@sh gateway/testdata/clients/install.sh $(CACHE)/clients

servers:
	@.ci/servers

fuzz: ## every fuzz target for FUZZTIME (20s)
	@.ci/fuzz $(FUZZTIME) $(FLAGS)

bench: build ## benchmarks of packages, then the gateway beside a bare proxy; writes docs/benchmarks/DATE.md
	$(GO) test $(FLAGS) -run '^$$' -bench . -benchmem ./gateway/qwen ./gateway/openai
	TIDEGATE_BENCH_BINARY=$(CURDIR)/bin/tidegate TIDEGATE_BENCH_OUT=$(CURDIR)/docs/benchmarks/$$(date -u +%F).md \
		$(GO) test $(FLAGS) -run '^$$' -bench BenchmarkGateway -benchtime 1x -timeout 30m ./gateway/gatewaytest/bench

fairness: ## the fair queue's figures on a simulated engine; writes docs/benchmarks/DATE-fairness.md and .svg
	TIDEGATE_FAIR_OUT=$(CURDIR)/docs/benchmarks/$$(date -u +%F)-fairness $(GO) test $(FLAGS) -count 1 -run '^TestFairnessReport$$' ./admission

fair: fairness # old name

# What bench-overload and bench-tenants run. Where a file of ON or OFF is named, it goes
# before those of the benchmark (testdata of the package): what the mode adds to the
# gateway's configuration.
LOADS     ?= 0.5 1 2 4
MODES     ?= on off
DURATION  ?= 60
WATCH     ?= 150
TRACES    ?= azure-conv azure-code mooncake-conversation
SMALLS    ?= 1
OBJECTIVE ?= 2s
ON        ?=
OFF       ?=
OVERLOAD   = TIDEGATE_BENCH_BINARY=$(CURDIR)/bin/tidegate TIDEGATE_BENCH_MODES="$(MODES)" TIDEGATE_BENCH_SECONDS=$(DURATION) \
	TIDEGATE_BENCH_ON=$(abspath $(ON)) TIDEGATE_BENCH_OFF=$(abspath $(OFF)) \
	TIDEGATE_BENCH_OUT=$(CURDIR)/docs/benchmarks/$$(date -u +%F)-$(1) $(GO) test $(FLAGS) -run '^$$' -bench $(2) -benchtime 1x \
	-timeout 2h ./gateway/gatewaytest/bench/overload

bench-overload: build ## goodput from LOADS (0.5 1 2 4) times capacity, MODES (on off) of the ladder; writes docs/benchmarks/DATE-overload.md and .svg
	TIDEGATE_BENCH_LOADS="$(LOADS)" TIDEGATE_BENCH_WATCH=$(WATCH) TIDEGATE_BENCH_TRACES="$(TRACES)" \
		TIDEGATE_BENCH_SMALLS=$(SMALLS) TIDEGATE_BENCH_OBJECTIVE=$(OBJECTIVE) $(call OVERLOAD,overload,Overload)

bench-tenants: DURATION = 30
bench-tenants: build ## what each tenant gets when two flood, MODES (on off) of the fair queue; writes docs/benchmarks/DATE-fair.md and .svg
	$(call OVERLOAD,fair,Fair)

bench-fair: bench-tenants # old name

drill: build ## the gateway under heat, memory, load, a lost GPU and old readings; on a machine with a GPU also that (6 minutes)
	TIDEGATE_DRILL=1 TIDEGATE_GPU_AGENT=$(CURDIR)/bin/tidegate-gpu-agent $(GO) test $(FLAGS) -count 1 -v -timeout 20m -run '^TestDrill$$' ./cmd/tidegate

# GPUTEST_OUT gets the trace and the figures.
GPUTEST_OUT ?= $(CURDIR)/.cache/gpu-test

gpu-test: build ## the GPU agent on this machine's GPU: idle, memory ramp, matrix burn, cool-down (7 minutes)
	@mkdir -p $(GPUTEST_OUT)
	TIDEGATE_GPU_TEST=$(GPUTEST_OUT) TIDEGATE_GPU_AGENT=$(CURDIR)/bin/tidegate-gpu-agent \
		$(GO) test $(FLAGS) -count 1 -v -timeout 20m -run '^TestGPU$$' ./cmd/tidegate-gpu-agent

lint: ## gofmt, go vet, and golangci-lint where it is installed
	@test -z "$$(gofmt -l .ci cmd deploy docs gateway admission degrade nvml | tee /dev/stderr)"
	$(GO) vet $(FLAGS) ./... ./.ci/summary
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: skipped"; fi

check: build lint ## lint, and the example configuration
	bin/tidegate check --config deploy/tidegate.example.yaml

dashboards: ## writes deploy/grafana/dashboards anew, from deploy/grafana/generate/boards.go
	$(GO) run $(FLAGS) ./deploy/grafana/generate deploy/grafana/dashboards

docs: ## docs/reference.md anew, from the configuration's types, and the table of fields in docs/api.md
	TIDEGATE_DOCS_OUT=$(CURDIR)/docs/reference.md $(GO) test $(FLAGS) -count 1 -run '^TestReference$$' ./cmd/tidegate
	TIDEGATE_API_OUT=$(CURDIR)/docs/api.md $(GO) test $(FLAGS) -count 1 -run '^TestMembersPage$$' ./gateway/openai

golden: clients ## the tokenizer and the chat template beside their references, at length
	TIDEGATE_TEST_PYTHON=$(CACHE)/clients/python/bin/python $(GO) test $(FLAGS) -count 1 -v -run 'Golden|Corpus|Against' ./gateway/qwen

clean: ## what was built and installed here
	rm -rf bin $(CACHE)
