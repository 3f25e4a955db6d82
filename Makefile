# Tidegate. `make help` lists what there is.

GO     ?= go
TAGS   := nomsgpack
FLAGS  := -tags $(TAGS) -p 2
CACHE  := $(CURDIR)/.cache
# Each fuzz target runs for so long in `make fuzz`.
FUZZTIME ?= 20s

export CGO_ENABLED ?= 0

.PHONY: help demo build test race fuzz bench fair drill gpu-test lint check golden clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## the gateway in front of three simulated vLLM servers; Ctrl-C stops all
	@bin/tidegate demo

build: ## the binaries, into bin/; the GPU agent where there is a C compiler
	@mkdir -p bin
	$(GO) build $(FLAGS) -trimpath -o bin/ ./cmd/tidegate ./cmd/tidegate-vllm-sim
	@.ci/agent bin/tidegate-gpu-agent $(FLAGS)

test: clients servers ## all tests; installs the client SDKs and servers they need where it may
	@.ci/test $(FLAGS)

race: clients servers ## all tests under the race detector (needs a C compiler)
	@CGO_ENABLED=1 CGO_CFLAGS="-O2 -g -Wno-deprecated-declarations" .ci/test $(FLAGS) -race

clients:
	@sh cmd/tidegate/testdata/clients/install.sh $(CACHE)/clients

servers:
	@.ci/servers

fuzz: ## every fuzz target for FUZZTIME (20s)
	@.ci/fuzz $(FUZZTIME) $(FLAGS)

bench: build ## benchmarks of packages, then the gateway beside a bare proxy; writes docs/benchmarks/DATE.md
	$(GO) test $(FLAGS) -run '^$$' -bench . -benchmem ./gateway/qwen ./gateway/openai
	TIDEGATE_BENCH_BINARY=$(CURDIR)/bin/tidegate TIDEGATE_BENCH_OUT=$(CURDIR)/docs/benchmarks/$$(date -u +%F).md \
		$(GO) test $(FLAGS) -run '^$$' -bench BenchmarkGateway -benchtime 1x -timeout 30m ./gateway/gatewaytest/loadtest

fair: ## the fair queue's figures on a simulated engine; writes docs/benchmarks/DATE-fairness.md and .svg
	TIDEGATE_FAIR_OUT=$(CURDIR)/docs/benchmarks/$$(date -u +%F)-fairness $(GO) test $(FLAGS) -count 1 -run '^TestFairnessReport$$' ./admission

drill: build ## the gateway under heat, memory, load, a lost GPU and old readings; on a machine with a GPU also that (6 minutes)
	TIDEGATE_DRILL=1 TIDEGATE_GPU_AGENT=$(CURDIR)/bin/tidegate-gpu-agent $(GO) test $(FLAGS) -count 1 -v -timeout 20m -run '^TestDrill$$' ./cmd/tidegate

# GPUTEST_OUT gets the trace and the figures.
GPUTEST_OUT ?= $(CURDIR)/.cache/gpu-test

gpu-test: build ## the GPU agent on this machine's GPU: idle, memory ramp, matrix burn, cool-down (7 minutes)
	@mkdir -p $(GPUTEST_OUT)
	TIDEGATE_GPU_TEST=$(GPUTEST_OUT) TIDEGATE_GPU_AGENT=$(CURDIR)/bin/tidegate-gpu-agent \
		$(GO) test $(FLAGS) -count 1 -v -timeout 20m -run '^TestGPU$$' ./cmd/tidegate-gpu-agent

lint: ## gofmt, go vet, and golangci-lint where it is installed
	@test -z "$$(gofmt -l cmd gateway admission degrade nvml | tee /dev/stderr)"
	$(GO) vet $(FLAGS) ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: skipped"; fi

check: build lint ## lint, and the example configuration
	bin/tidegate check --config deploy/tidegate.example.yaml

golden: clients ## the tokenizer and the chat template beside their references, at length
	TIDEGATE_TEST_PYTHON=$(CACHE)/clients/python/bin/python $(GO) test $(FLAGS) -count 1 -v -run 'Golden|Corpus|Against' ./gateway/qwen

clean: ## what was built and installed here
	rm -rf bin $(CACHE)
