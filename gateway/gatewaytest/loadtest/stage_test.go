//go:build linux

package loadtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// actor is a process of the benchmark.
type actor struct {
	cmd    *exec.Cmd
	exited chan struct{}
	base   string // URL
	stderr string // file
}

func (a *actor) process() Process { return Process(a.cmd.Process.Pid) }

func (a *actor) stop() {
	_ = a.cmd.Process.Kill() // it may have ended by itself
	<-a.exited
}

// says is the end of what an actor wrote on stderr.
func (a *actor) says() string {
	raw, _ := os.ReadFile(a.stderr)
	return string(bytes.TrimSpace(raw[max(len(raw)-2000, 0):]))
}

// stage starts actors. The mock stays; a target is started anew for each run.
type stage struct {
	dir    string
	binary string // of the gateway
	mock   *actor
}

// patience is how long an actor may take to start.
const patience = 30 * time.Second

func (s *stage) start(name string, cmd *exec.Cmd) (*actor, error) {
	a := &actor{cmd: cmd, exited: make(chan struct{}), stderr: filepath.Join(s.dir, name+".stderr")}
	file, err := os.OpenFile(a.stderr, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd.Stderr = file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(a.exited)
		_ = cmd.Wait() // it is killed
	}()
	return a, nil
}

// role starts this binary in a role and reads where it listens.
func (s *stage) role(name string, env ...string) (*actor, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+name)...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout = w
	a, err := s.start(name, cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		a.stop()
		return nil, fmt.Errorf("start %s: %w: %s", name, err, a.says())
	}
	a.base = "http://" + strings.TrimSpace(line)
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
`

// gateway starts the gateway and waits until it has found the mock.
func (s *stage) gateway(ctx context.Context) (*actor, error) {
	listen, err := freeAddress()
	if err != nil {
		return nil, err
	}
	ops, err := freeAddress()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "tidegate.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, gatewayConfig, listen, ops, s.mock.base, s.dir), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(s.binary, "serve", "--config", file)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TIDEGATE_") { // would be read over the file
			cmd.Env = append(cmd.Env, v)
		}
	}
	a, err := s.start(Gateway, cmd)
	if err != nil {
		return nil, err
	}
	a.base = "http://" + listen
	if err := a.ready(ctx); err != nil {
		a.stop()
		return nil, fmt.Errorf("start %s: %w: %s", Gateway, err, a.says())
	}
	return a, nil
}

func (a *actor) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(q)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-a.exited:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.New("it did not become ready")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// target starts a fresh process of a target; direct is the mock.
func (s *stage) target(ctx context.Context, name string) (a *actor, stop func(), err error) {
	switch name {
	case Direct:
		return s.mock, func() {}, nil
	case Bare:
		a, err = s.role(Bare, backendVariable+"="+s.mock.base)
	default:
		a, err = s.gateway(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	return a, a.stop, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// raiseFiles lets this process and those it starts hold enough connections.
func raiseFiles(want uint64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = max(l.Cur, want)
	l.Max = max(l.Max, want) // only root may raise it
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w (try ulimit -Hn)", want, err)
	}
	return nil
}
