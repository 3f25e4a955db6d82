package stack

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/qwen"
)

// Program runs tidegate with arguments until ctx ends, and returns its exit code.
type Program func(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int

// Kit starts servers and gateways for the tests of a package.
type Kit struct {
	command   func(ctx context.Context, args ...string) (*exec.Cmd, error)
	run       Program
	tokenizer func() (*qwen.Tokenizer, error) // loading it takes a while
}

// NewKit returns a kit. command makes tidegate with arguments a process; run, if there is
// one, runs it in this process, where a gateway need not be killed.
func NewKit(command func(ctx context.Context, args ...string) (*exec.Cmd, error), run Program) *Kit {
	return &Kit{command: command, run: run, tokenizer: sync.OnceValues(qwen.New)}
}

// Binary makes the binary at a path a process, for NewKit.
func Binary(path func() (string, error)) func(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return func(ctx context.Context, args ...string) (*exec.Cmd, error) {
		name, err := path()
		if err != nil {
			return nil, err
		}
		c := exec.CommandContext(ctx, name, args...)
		if dir := flag.Lookup("test.gocoverdir"); dir != nil && dir.Value.String() != "" {
			c.Env = append(c.Environ(), "GOCOVERDIR="+dir.Value.String()) // go test has its own there, and throws it away
		}
		return c, nil
	}
}

// StartServers starts the simulated servers, fast ones unless edit changes that.
func (k *Kit) StartServers(t *testing.T, edit func(*gatewaytest.Options)) Servers {
	t.Helper()
	tokenizer, err := k.tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	var servers Servers
	for _, model := range []string{LargeModel, LargeModel, SmallModel} {
		o := gatewaytest.Default()
		o.Model, o.Tokenizer = model, tokenizer
		o.TTFT, o.ITL = 5*time.Millisecond, time.Millisecond/4
		if edit != nil {
			edit(&o)
		}
		servers = append(servers, gatewaytest.Start(t, o))
	}
	return servers
}

// Start runs `tidegate serve` in front of s until the test ends, and returns when all
// servers are in rotation.
func (k *Kit) Start(t *testing.T, s Servers, c Config) *Gateway {
	t.Helper()
	g := &Gateway{Servers: s, Log: NewLog(), Client: NewClient(t), File: filepath.Join(t.TempDir(), "tidegate.yaml")}
	if err := os.WriteFile(g.File, []byte(c.YAML(s, filepath.Dir(g.File))), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan int, 1)
	if args := []string{"serve", "--config", g.File}; k.run != nil {
		env := func(name string) (string, bool) {
			if value, ok := c.Env[name]; ok {
				return value, true
			}
			key, ok := map[string]string{"KEY_OF_ADA": AdaKey, "KEY_OF_BOB": BobKey}[name]
			return key, ok
		}
		go func() { ended <- k.run(ctx, args, env, g.Log, g.Log) }()
	} else {
		_, ended = k.Process(ctx, t, g.Log, c.Env, args...)
	}
	t.Cleanup(func() {
		if k.run == nil && !t.Failed() {
			g.checkHandlers(t)
		}
		stop()
		select {
		case code := <-ended:
			if code != 0 {
				t.Errorf("the gateway ended with code %d:\n%s", code, g.Log)
			}
		case <-time.After(Patience):
			t.Errorf("the gateway did not end:\n%s", g.Log)
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", g.Log)
		}
	})
	g.Await(t, ended)
	return g
}

// checkHandlers fails the test where a goroutine still works for a request although all
// callers have left: goleak does not see those of another process.
func (g *Gateway) checkHandlers(t *testing.T) {
	t.Helper()
	requestStack := regexp.MustCompile(`tidegate/gateway\.\(\*(Gateway\)\.(answer|guarded|forward)|call\)|sender\))`)
	g.Client.CloseIdleConnections()
	Eventually(t, "all handlers to return", func() bool {
		resp, err := g.Client.Get(g.Ops + "/debug/pprof/goroutine?debug=2")
		if err != nil {
			return true // the test has ended it
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err != nil || !requestStack.Match(text)
	})
}

// Process starts tidegate with arguments in a process of its own. It writes into log, has
// the variables of env beside those of the test, and is asked to end when ctx does. The
// channel gets its exit code.
func (k *Kit) Process(ctx context.Context, t *testing.T, log *Log, env map[string]string, args ...string) (*exec.Cmd, chan int) {
	t.Helper()
	c, err := k.command(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	c.Env = append(c.Environ(), "KEY_OF_ADA="+AdaKey, "KEY_OF_BOB="+BobKey)
	for name, value := range env {
		c.Env = append(c.Env, name+"="+value)
	}
	c.Stdout, c.Stderr = log, log
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() {
		_ = c.Wait() // the code says it
		ended <- c.ProcessState.ExitCode()
	}()
	return c, ended
}

// StartProcess starts a process that ends with the test or is killed by it.
func (k *Kit) StartProcess(t *testing.T, args ...string) (*exec.Cmd, *Log, chan int) {
	t.Helper()
	log := NewLog()
	c, ended := k.Process(t.Context(), t, log, nil, args...)
	return c, log, ended
}

// Command runs tidegate with arguments as a shell would and wants it to end with code.
func (k *Kit) Command(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	return k.Pipe(t, code, "", args...)
}

// Pipe runs tidegate as Command does, with a text on its standard input.
func (k *Kit) Pipe(t *testing.T, code int, stdin string, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	c, err := k.command(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &log
	_ = c.Run() // the code says it
	if exit := c.ProcessState.ExitCode(); exit != code {
		t.Fatalf("tidegate %s: code %d, expected %d\n%s%s", strings.Join(args, " "), exit, code, &out, &log)
	}
	return out.String(), log.String()
}

// NewClient returns an HTTP client for many callers. Its connections end with the test.
func NewClient(t *testing.T) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 512}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
