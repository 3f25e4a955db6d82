package backend

import (
	"fmt"
	"math"
	"strings"
)

// Capabilities holds the differences between the versions of vLLM. An unknown version
// has only the capabilities that all versions have.
type Capabilities struct {
	Known             bool `json:"known"`
	UniqueIDs         bool `json:"unique_ids"`         // two requests may have the same id
	StructuredOutputs bool `json:"structured_outputs"` // in place of guided_*, which are ignored
	OnlyReasoning     bool `json:"only_reasoning"`     // answers no longer have reasoning_content
	ThinkingBudget    bool `json:"thinking_budget"`    // thinking_token_budget is kept to
	ReasoningEffort   bool `json:"reasoning_effort"`   // none switches Qwen3's thinking off
	CachedTokens      bool `json:"cached_tokens"`      // told even where they are 0
	ReasoningTokens   bool `json:"reasoning_tokens"`   // told in the usage
	QueueBound        bool `json:"queue_bound"`        // it may refuse with 503 when its queue is full

	minor int // of vLLM 0.minor
}

// Minor returns the n of vLLM 0.n, which determines how a chat is rendered; -1 if it is
// unknown.
func (c Capabilities) Minor() int {
	if !c.Known {
		return -1
	}
	return c.minor
}

// defaultKwargs reports whether the server may have been started with
// --default-chat-template-kwargs (from v0.14).
func (c Capabilities) defaultKwargs() bool { return !c.Known || c.minor >= 14 }

// tokenizesByDefaults reports whether /tokenize applies the default template arguments
// (from v0.18).
func (c Capabilities) tokenizesByDefaults() bool { return !c.Known || c.minor >= 18 }

// capabilitiesOf parses a version such as v0.23.1rc2.dev7+g1a2b3c.cu129.
func capabilitiesOf(version string) Capabilities {
	var major, minor int
	if strings.HasPrefix(strings.TrimPrefix(version, "v"), "0.1.dev") {
		return Capabilities{} // built where the tags of vLLM are missing
	}
	if n, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); n < 2 || err != nil || major < 0 || minor < 0 {
		return Capabilities{}
	}
	// A development version may lack what its release will have.
	if strings.Contains(version, ".dev") && strings.Contains(version, fmt.Sprintf("%d.%d.0", major, minor)) {
		minor--
	}
	if major > 0 {
		minor = math.MaxInt32
	}
	minimum := func(n int) bool { return minor >= n }
	return Capabilities{
		Known: true, StructuredOutputs: minimum(12), UniqueIDs: minimum(14), OnlyReasoning: minimum(16), ThinkingBudget: minimum(22),
		ReasoningEffort: minimum(22), CachedTokens: minimum(23), ReasoningTokens: minimum(28), QueueBound: minimum(29),
		minor: minor,
	}
}
