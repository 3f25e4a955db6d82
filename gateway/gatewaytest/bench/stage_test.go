//go:build linux

package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// stage starts actors. The mock stays; a target is started anew for each run.
type stage struct {
	dir       string
	binary    string // of the gateway
	collector string // URL of what takes its traces
	mock      *Actor
}

// role starts this binary in a role and reads where it listens.
func (s *stage) role(name string, env ...string) (*Actor, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+name)...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout = w
	a, err := StartActor(s.dir, name, cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	if err := r.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		a.Stop()
		return nil, fmt.Errorf("start %s: %w: %s", name, err, a.Stderr())
	}
	a.Base = "http://" + strings.TrimSpace(line)
	return a, nil
}

const gatewayConfig = `server:
  listen: %[1]s
  ops_listen: %[2]s
auth:
  mode: open
store:
  dsn: "sqlite://%[4]s/tidegate.db"
  journal_dir: "%[4]s/journal"
models:
  - name: mock-model
    backends:
      - url: %[3]s
        max_in_flight: 20000
`

// everything is what the gateway can be told beside that to do for each request. Its
// limits are never reached.
const everything = `limits:
  - {name: user, per: user, requests: 100000000/1m, tokens: 100000000000/1m, concurrency: 100000}
quotas:
  - {name: day, per: user, tokens: 1000000000000, every: day}
telemetry:
  per_user: 20
  otlp_endpoint: %s
`

// gateway starts the gateway and waits until it has found the mock. Where trace is a
// share of the requests, that is traced, and everything else is on.
func (s *stage) gateway(ctx context.Context, trace string) (*Actor, error) {
	listen, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	ops, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "tidegate.yaml")
	config := fmt.Appendf(nil, gatewayConfig, listen, ops, s.mock.Base, s.dir)
	if trace != "" {
		config = fmt.Appendf(config, everything, s.collector)
	}
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(s.binary, "serve", "--config", file)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TIDEGATE_") && !strings.HasPrefix(v, "OTEL_") { // would be read over the file
			cmd.Env = append(cmd.Env, v)
		}
	}
	if trace != "" {
		cmd.Env = append(cmd.Env, "OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG="+trace)
	}
	a, err := StartActor(s.dir, Gateway, cmd)
	if err != nil {
		return nil, err
	}
	a.Base = "http://" + listen
	if err := a.Ready(ctx); err != nil {
		a.Stop()
		return nil, fmt.Errorf("start %s: %w: %s", Gateway, err, a.Stderr())
	}
	return a, nil
}

// target starts a fresh process of a target; direct is the mock. trace is the gateway's.
func (s *stage) target(ctx context.Context, name, trace string) (a *Actor, stop func(), err error) {
	switch name {
	case Direct:
		return s.mock, func() {}, nil
	case Bare:
		a, err = s.role(Bare, backendVariable+"="+s.mock.Base)
	default:
		a, err = s.gateway(ctx, trace)
	}
	if err != nil {
		return nil, nil, err
	}
	return a, a.Stop, nil
}
