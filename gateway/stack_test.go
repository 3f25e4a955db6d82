package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
	"tidegate/gateway/ops"
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

// streamWhole streams an answer of so many tokens, and fails the test unless all of it comes.
func (f *front) streamWhole(t *testing.T, tokens int) bool {
	t.Helper()
	resp, err := f.Post(t.Context(), stack.ChatPath, fmt.Sprintf(
		`{"model":%q,"stream":true,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":%d}}`, stack.LargeModel, tokens))
	if err != nil {
		t.Error(err)
		return false
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
		t.Errorf("a request failed: %d %v %.200s", resp.StatusCode, err, body)
		return false
	}
	return true
}

// told returns the status of the gateway.
func (f *front) told(t *testing.T) (s ops.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(f.StatusPage(t)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}
