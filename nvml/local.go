package nvml

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// local reads an agent that runs as a child of this process, behind a socket.
type local struct {
	child     *child
	config    *Config
	restarted func()
	agent     *agent // nil until the socket is known
}

func (l *local) close() {
	if l.agent != nil {
		l.agent.close()
	}
}

func (l *local) read(ctx context.Context, deadline time.Time) (*sample, error) {
	socket, reason := l.child.state()
	if socket == "" {
		return nil, errors.New(reason)
	}
	if l.agent == nil {
		l.agent = newAgent(l.config, "unix://"+socket, l.restarted)
	}
	s, err := l.agent.read(ctx, deadline)
	if err != nil && reason != "" {
		err = fmt.Errorf("%s (%w)", reason, err)
	}
	return s, err
}

// Times of a child.
const (
	restartMin = time.Second      // wait before the first restart
	restartMax = 30 * time.Second // maximum of the wait, which doubles
	steady     = time.Minute      // run time that resets the wait
	stopWait   = 5 * time.Second  // time to end after SIGTERM
)

// child keeps a program running. The driver of a GPU may hang in it or take it down; this
// process only starts it again. It is ended by SIGTERM and never killed, since killing a
// monitor in the middle of a call has frozen GPUs.
type child struct {
	command []string // program and arguments, without the socket
	log     *slog.Logger

	mu     sync.Mutex
	socket string
	reason string // reason why it does not run; empty: it runs
}

// state returns the socket of the child and, while it does not run, the reason.
func (c *child) state() (socket, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.socket, c.reason
}

func (c *child) setState(socket, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.socket, c.reason = socket, reason
}

// run starts the program, and restarts it whenever it ends, until ctx ends.
func (c *child) run(ctx context.Context) {
	c.setState("", "the agent has not been started yet")
	dir, err := os.MkdirTemp("", "tidegate-gpu-")
	if err != nil {
		c.setState("", err.Error())
		return
	}
	defer os.RemoveAll(dir) //nolint:errcheck // an empty directory among the temporary ones harms nobody
	socket := filepath.Join(dir, "agent.sock")
	for wait := restartMin; ; {
		began := time.Now()
		err := c.runOnce(ctx, socket)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= steady {
			wait = restartMin
		}
		reason := fmt.Sprintf("the agent %s does not run: %v", c.command[0], err)
		c.setState(socket, reason)
		c.log.Warn("the GPU agent ended", "reason", err.Error(), "again_in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, restartMax)
	}
}

// runOnce runs the program to its end.
func (c *child) runOnce(ctx context.Context, socket string) error {
	// The socket of a dead child would be in the way.
	_ = os.Remove(socket)
	cmd := exec.Command(c.command[0], append(c.command[1:len(c.command):len(c.command)], "--socket", socket)...)
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(v string) bool {
		// The agent would be ended by the loader: see cmd/tidegate-gpu-agent.
		return strings.HasPrefix(v, "LD_BIND_NOW=")
	})
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = dieWithParent()
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The child dies with the thread that started it, so that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.logOutput(stderr)
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.setState(socket, "")
	select {
	case err = <-ended:
	case <-ctx.Done():
		// A child that has ended by itself meanwhile needs no signal.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err = <-ended:
		case <-time.After(stopWait):
			c.log.Warn("the GPU agent does not end; a call of the driver may hang in it", "pid", cmd.Process.Pid)
			return ctx.Err()
		}
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return err
}

// logOutput writes the output of the child into the log, line by line.
func (c *child) logOutput(stderr io.Reader) {
	lines := bufio.NewReaderSize(stderr, 4<<10)
	for {
		line, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		if text := strings.TrimSpace(string(line)); text != "" {
			c.log.Info("GPU agent", "says", text)
		}
	}
}
