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

// local asks an agent that runs as a child of this process, behind a socket.
type local struct {
	child     *child
	config    *Config
	restarted func()
	agent     *agent // nil: it is not known yet where it listens
}

func (l *local) close() {
	if l.agent != nil {
		l.agent.close()
	}
}

func (l *local) read(ctx context.Context, until time.Time) (*sample, error) {
	socket, why := l.child.where()
	if socket == "" {
		return nil, errors.New(why)
	}
	if l.agent == nil {
		l.agent = newAgent(l.config, "unix://"+socket, l.restarted)
	}
	s, err := l.agent.read(ctx, until)
	if err != nil && why != "" {
		err = fmt.Errorf("%s (%w)", why, err)
	}
	return s, err
}

// Times of a child.
const (
	restartFirst = time.Second      // wait before it is started again
	restartMost  = 30 * time.Second // doubling up to here
	steady       = time.Minute      // having run so long, it begins anew with restartFirst
	stopWait     = 5 * time.Second  // for it to end when told to
)

// child keeps a program running. The driver of a GPU may hang in it or take it
// down; this process only starts it again. It is told to end by SIGTERM and never
// killed: killing a monitor in the middle of a call has frozen GPUs.
type child struct {
	command []string // socket's address is appended
	log     *slog.Logger

	mu     sync.Mutex
	socket string
	why    string // it does not run; empty: it does
}

// where is the socket of the child and, while it does not run, why.
func (c *child) where() (socket, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.socket, c.why
}

func (c *child) say(socket, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.socket, c.why = socket, why
}

// run starts the program, and again whenever it ends, until ctx ends.
func (c *child) run(ctx context.Context) {
	c.say("", "the agent has not been started yet")
	dir, err := os.MkdirTemp("", "tidegate-gpu-")
	if err != nil {
		c.say("", err.Error())
		return
	}
	defer os.RemoveAll(dir) //nolint:errcheck // an empty directory among the temporary ones harms nobody
	socket := filepath.Join(dir, "agent.sock")
	for wait := restartFirst; ; {
		began := time.Now()
		err := c.once(ctx, socket)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= steady {
			wait = restartFirst
		}
		why := fmt.Sprintf("the agent %s does not run: %v", c.command[0], err)
		c.say(socket, why)
		c.log.Warn("the GPU agent ended", "reason", err.Error(), "again_in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, restartMost)
	}
}

// once runs the program to its end.
func (c *child) once(ctx context.Context, socket string) error {
	// A socket that a dead child left would be in the way.
	_ = os.Remove(socket)
	cmd := exec.Command(c.command[0], append(c.command[1:len(c.command):len(c.command)], "--socket", socket)...)
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(v string) bool {
		// The agent would be ended by the loader: see cmd/tidegate-gpu-agent.
		return strings.HasPrefix(v, "LD_BIND_NOW=")
	})
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = dieWithParent()
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// Where the child dies with the thread that started it, that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.pass(said)
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.say(socket, "")
	select {
	case err = <-ended:
	case <-ctx.Done():
		// One that has ended by itself meanwhile needs no signal.
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

// pass writes what the child says into the log, line by line.
func (c *child) pass(said io.Reader) {
	lines := bufio.NewReaderSize(said, 4<<10)
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
