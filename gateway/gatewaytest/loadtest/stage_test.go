//go:build linux

package loadtest

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
	dir    string
	binary string // of the gateway
	mock   *Actor
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
		return nil, fmt.Errorf("start %s: %w: %s", name, err, a.Says())
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

// gateway starts the gateway and waits until it has found the mock.
func (s *stage) gateway(ctx context.Context) (*Actor, error) {
	listen, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	ops, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "tidegate.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, gatewayConfig, listen, ops, s.mock.Base, s.dir), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(s.binary, "serve", "--config", file)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TIDEGATE_") { // would be read over the file
			cmd.Env = append(cmd.Env, v)
		}
	}
	a, err := StartActor(s.dir, Gateway, cmd)
	if err != nil {
		return nil, err
	}
	a.Base = "http://" + listen
	if err := a.Ready(ctx); err != nil {
		a.Stop()
		return nil, fmt.Errorf("start %s: %w: %s", Gateway, err, a.Says())
	}
	return a, nil
}

// target starts a fresh process of a target; direct is the mock.
func (s *stage) target(ctx context.Context, name string) (a *Actor, stop func(), err error) {
	switch name {
	case Direct:
		return s.mock, func() {}, nil
	case Bare:
		a, err = s.role(Bare, backendVariable+"="+s.mock.Base)
	default:
		a, err = s.gateway(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	return a, a.Stop, nil
}
