package gateway_test

import (
	"encoding/json"
	"net/http"
	"os"
	"sync"
	"testing"

	"tidegate/gateway"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// The tests of this package see the gateway from outside: tidegate is built once, and
// each test runs it as a user does. TIDEGATE_ATTACKED=PATH runs another binary, so that
// the same script compares two versions.

// command is the path of the command under test.
var command = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("TIDEGATE_ATTACKED"); path != "" {
		return path, nil
	}
	return stack.Build()
})

var kit = stack.NewKit(stack.Binary(command), nil)

// front is a running gateway with what these tests ask of it.
type front struct{ *stack.Gateway }

// replica is a front in a process of its own.
type replica struct {
	*stack.Replica
	front *front
}

func startServers(t *testing.T, edit func(*gatewaytest.Options)) stack.Servers {
	t.Helper()
	return kit.StartServers(t, edit)
}

func startGateway(t *testing.T, s stack.Servers, c stack.Config) *front {
	t.Helper()
	return &front{kit.Start(t, s, c)}
}

func startReplica(t *testing.T, s stack.Servers, c stack.Config, client *http.Client) *replica {
	t.Helper()
	r := kit.StartReplica(t, s, c, client)
	return &replica{r, &front{r.Gateway}}
}

// told returns the status of the gateway.
func (f *front) told(t *testing.T) (s gateway.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(f.StatusPage(t)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}
