package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Actor is a process of a benchmark. It dies with the benchmark.
type Actor struct {
	Base   string // URL at which it serves, set by who started it
	cmd    *exec.Cmd
	exited chan struct{}
	stderr string // file
}

// StartActor starts a process whose stderr is kept in a file of that name in dir.
func StartActor(dir, name string, cmd *exec.Cmd) (*Actor, error) {
	a := &Actor{cmd: cmd, exited: make(chan struct{}), stderr: filepath.Join(dir, name+".stderr")}
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

// Process returns the id of the actor's process, for /proc.
func (a *Actor) Process() Process { return Process(a.cmd.Process.Pid) }

// Exited returns a channel that is closed when the process has ended.
func (a *Actor) Exited() <-chan struct{} { return a.exited }

// Stop kills the process and waits for its end.
func (a *Actor) Stop() {
	_ = a.cmd.Process.Kill() // it may have ended by itself
	<-a.exited
}

// Stderr returns the end of the process's output on stderr.
func (a *Actor) Stderr() string {
	raw, _ := os.ReadFile(a.stderr)
	return string(bytes.TrimSpace(raw[max(len(raw)-2000, 0):]))
}

// Patience bounds the time in which an actor must start.
const Patience = 30 * time.Second

// Ready waits until /readyz at Base says 200.
func (a *Actor) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, a.Base+"/readyz", nil)
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

// FreeAddress returns an address of the loopback where nobody listens.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// RaiseFiles lets this process and those it starts hold enough connections.
func RaiseFiles(want uint64) error {
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
