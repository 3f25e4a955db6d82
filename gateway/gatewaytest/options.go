package gatewaytest

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"tidegate/gateway/qwen"
)

// Options configures a simulated vLLM. Default returns a base for them.
type Options struct {
	// Model is the first served name: it stands in every answer.
	Model string
	// Aliases are further names under which requests are accepted.
	Aliases []string
	// MaxModelLen is the context, in tokens.
	MaxModelLen int
	// Version drives what differs between releases (see release).
	Version string

	// Speed holds the slots and the times of the engine.
	Speed
	// KVBlocks is the KV cache, in blocks of 16 tokens.
	KVBlocks int
	// PriorityScheduling is --scheduling-policy priority: lower runs first.
	PriorityScheduling bool
	// MaxQueued is --max-num-queued-reqs, waiting and running together; 0: no
	// bound. vLLM has it from v0.29; here it holds in every version.
	MaxQueued int
	// Engines is the number of data-parallel engines shown in /metrics.
	Engines int
	// StreamInterval is --stream-interval: tokens to a chunk, at least.
	StreamInterval int

	// ReasoningParser is "qwen3", "deepseek_r1" or "" for none.
	ReasoningParser string
	// ToolParser is --enable-auto-tool-choice --tool-call-parser hermes.
	ToolParser bool
	// APIKey is --api-key: guards /v1 only, as vLLM does.
	APIKey string
	// PromptTokensDetails is --enable-prompt-tokens-details.
	PromptTokensDetails bool
	// ForceIncludeUsage is --enable-force-include-usage.
	ForceIncludeUsage bool
	// NoThinking is --default-chat-template-kwargs '{"enable_thinking": false}', from v0.14.
	NoThinking bool
	// KeepAlive is how long an idle connection stays open.
	KeepAlive time.Duration

	// Seed makes the drawn answers reproducible.
	Seed uint64
	// Tokenizer saves loading the vocabulary again; nil: New loads it.
	Tokenizer *qwen.Tokenizer
}

// Default returns the options of a Qwen3-1.7B on the v0.23 line, started as the contract advises.
func Default() Options {
	return Options{
		Model:           "Qwen3-1.7B",
		MaxModelLen:     40960,
		Version:         "0.23.0",
		Speed:           Speed{Slots: 64},
		KVBlocks:        16384,
		ReasoningParser: "qwen3",
		ToolParser:      true,
		Engines:         1,
		StreamInterval:  1,
		KeepAlive:       5 * time.Second,
		Seed:            1,
	}
}

// validate returns all faults at once.
func (o Options) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if o.Model == "" {
		fault("model: must not be empty")
	}
	if o.MaxModelLen < 1 {
		fault("max-model-len: %d, must be at least 1", o.MaxModelLen)
	}
	if o.Slots < 1 {
		fault("slots: %d, must be at least 1", o.Slots)
	}
	if o.KVBlocks < 2 {
		fault("kv-blocks: %d, must be at least 2", o.KVBlocks)
	}
	if o.KVBlocks*blockTokens < o.MaxModelLen {
		// vLLM refuses to start too: such a request could never finish.
		fault("kv-blocks: %d hold fewer tokens than max-model-len %d", o.KVBlocks, o.MaxModelLen)
	}
	if o.Engines < 1 {
		fault("engines: %d, must be at least 1", o.Engines)
	}
	if o.StreamInterval < 1 {
		fault("stream-interval: %d, must be at least 1", o.StreamInterval)
	}
	if o.TTFT < 0 || o.ITL < 0 || o.PrefillPerToken < 0 || o.KeepAlive < 0 {
		fault("ttft, itl, prefill and keep-alive must not be negative")
	}
	switch o.ReasoningParser {
	case "", "qwen3", "deepseek_r1":
	default:
		fault("reasoning-parser: %q, must be qwen3, deepseek_r1 or empty", o.ReasoningParser)
	}
	if _, err := parseRelease(o.Version); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// serves reports whether the name is one of the served ones. vLLM accepts an
// absent model too.
func (o Options) serves(model string) bool {
	if model == "" || model == o.Model {
		return true
	}
	for _, a := range o.Aliases {
		if model == a {
			return true
		}
	}
	return false
}

// release is a vLLM version as one comparable number: 0.23.1 is 23001.
type release int

func parseRelease(s string) (release, error) {
	var major, minor, patch int
	trimmed, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "+")
	n, _ := fmt.Sscanf(trimmed, "%d.%d.%d", &major, &minor, &patch)
	if n < 2 || major < 0 || minor < 0 || patch < 0 {
		return 0, fmt.Errorf("version: %q, must read like 0.23.0", s)
	}
	return release(major*1_000_000 + minor*1000 + patch), nil
}

// from reports whether this release is 0.minor.patch or newer.
func (r release) atLeast(minor, patch int) bool { return r >= release(minor*1000+patch) }

// The version table of the contract, one method per difference.

func (r release) oldReasoningField() bool      { return !r.atLeast(16, 0) } // reasoning_content is written
func (r release) newReasoningField() bool      { return r.atLeast(11, 1) }  // reasoning is written
func (r release) emptyOptionsMeanUsage() bool  { return !r.atLeast(18, 0) } // stream_options: {}
func (r release) thinkingBudget() bool         { return r.atLeast(22, 0) }
func (r release) effortSwitchesThinking() bool { return r.atLeast(22, 0) }
func (r release) defaultKwargs() bool          { return r.atLeast(14, 0) } // --default-chat-template-kwargs
func (r release) tokenizesByDefaults() bool    { return r.atLeast(18, 0) } // and /tokenize goes by them
func (r release) readsReasoning() bool         { return r.atLeast(16, 0) } // in sent messages
func (r release) readsReasoningContent() bool  { return !r.atLeast(16, 0) || r.atLeast(22, 0) }
func (r release) dialect() qwen.Dialect        { return qwen.DialectOf(int(r) / 1000) }
func (r release) zeroCachedTokens() bool       { return r.atLeast(23, 0) }
func (r release) reasoningTokens() bool        { return r.atLeast(28, 0) }
func (r release) priorityHeader() bool         { return r.atLeast(29, 0) }
func (r release) rejectionMetric() bool        { return r.atLeast(30, 0) }
func (r release) emptyToolDeltas() bool        { return !r.atLeast(24, 0) } // "tool_calls":[] beside text
func (r release) hidesStreamedReasoning() bool { return r.atLeast(24, 0) }  // include_reasoning:false
func (r release) gpuCacheNames() bool          { return !r.atLeast(12, 0) }
func (r release) oldTokenTimeName() bool       { return !r.atLeast(15, 0) }
func (r release) waitingByReason() bool        { return r.atLeast(20, 0) }
func (r release) fingerprint() bool            { return r.atLeast(22, 0) }
func (r release) needsBothThinkMarks() bool    { return !r.atLeast(17, 0) } // qwen3 parser of old

// efforts returns the values that reasoning_effort may have.
func (r release) efforts() []string {
	switch {
	case r.atLeast(21, 0):
		return []string{"none", "minimal", "low", "medium", "high", "xhigh", "max"}
	case r.atLeast(18, 0):
		return []string{"none", "low", "medium", "high"}
	}
	return []string{"low", "medium", "high"}
}
