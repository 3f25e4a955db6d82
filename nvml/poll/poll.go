// Package poll waits in tests for what happens beside them. It stands below all packages
// whose tests wait.
package poll

import (
	"context"
	"testing"
	"time"
)

// Patience bounds every wait of the tests. It is meant for loaded machines.
const Patience = time.Minute

// Await polls ok until it returns true, and fails the test after Patience. It may be used
// in a cleanup, too.
func Await(t testing.TB, event string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Patience)
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
