// Package stack starts tidegate as a user does, with a configuration file in front of
// simulated vLLM servers, and asks it what callers and operators ask.
package stack

import (
	"context"
	"testing"
	"time"
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

// Patience bounds every wait of the tests. It is meant for loaded machines.
const Patience = time.Minute

// Eventually polls ok until it returns true, and fails the test after Patience.
func Eventually(t testing.TB, event string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Patience) // in a cleanup, too
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %v in vain for %s", Patience, event)
		}
	}
}
