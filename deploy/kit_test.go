package deploy

import (
	"encoding/json"
	"sync"
	"testing"

	"tidegate/gateway/gatewaytest/stack"
	"tidegate/gateway/ops"
)

// The tests of this package run the files of this folder, the dashboards and the rules with
// tidegate as a user runs it: it is built once.
var kit = stack.NewKit(stack.Binary(sync.OnceValues(stack.Build)), nil)

// statusOf returns the status of a gateway.
func statusOf(t *testing.T, g *stack.Gateway) (s ops.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(g.StatusPage(t)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}
