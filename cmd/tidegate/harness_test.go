package main

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestMain runs the tests, or, in a process that a test starts, the command itself
// with the arguments of a variable, one a line.
func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv("TIDEGATE_TEST_MAIN"); ok {
		os.Args = append(os.Args[:1], strings.Split(args, "\n")...)
		main()
	}
	goleak.VerifyTestMain(m)
}

// kit runs the command in this process, or, where it is to be killed, this test as the
// command.
var kit = stack.NewKit(func(ctx context.Context, args ...string) (*exec.Cmd, error) {
	c := exec.CommandContext(ctx, os.Args[0])
	c.Env = append(os.Environ(), "TIDEGATE_TEST_MAIN="+strings.Join(args, "\n"))
	return c, nil
}, run)

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
