// Package stack starts tidegate as a user does, with a configuration file in front of
// simulated vLLM servers, and asks it what callers and operators ask.
package stack

import (
	"testing"

	"tidegate/nvml/poll"
)

// Models of the stack, and the keys of its callers and of its administrator.
const (
	LargeModel = "Qwen3-1.7B"
	LargeAlias = "qwen3"
	SmallModel = "Qwen3-0.6B"
	GoneModel  = "Qwen3-gone" // its only server is not there

	AdaKey   = "tg-test-key-of-ada-who-may-use-all"
	BobKey   = "tg-test-key-of-bob-who-may-use-the-small-one"
	AdminKey = "an-administrators-key-of-the-tests"
)

// Routes of generations.
const (
	ChatPath       = "/v1/chat/completions"
	CompletionPath = "/v1/completions"
)

// Patience bounds every wait of the tests.
const Patience = poll.Patience

// Eventually polls ok until it returns true, and fails the test after Patience.
func Eventually(t testing.TB, event string, ok func() bool) {
	t.Helper()
	poll.Await(t, event, ok)
}
