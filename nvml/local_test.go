package nvml

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/nvml/poll"

	"go.uber.org/goleak"
)

// TestMain runs the tests, or, in a process that a test starts, an agent.
func TestMain(m *testing.M) {
	switch mode := os.Getenv("TIDEGATE_TEST_AGENT"); mode {
	case "":
		goleak.VerifyTestMain(m)
	case "many":
		gpus, _ := strconv.Atoi(os.Getenv("TIDEGATE_TEST_GPUS"))
		manyAgents(gpus)
	case "parent":
		parent()
	default:
		childAgent(mode)
	}
}

// childAgent stands in for tidegate-gpu-agent --socket PATH.
func childAgent(mode string) {
	socket := flag.String("socket", "", "")
	flag.Parse()
	fmt.Fprintln(os.Stderr, "agent starts in mode", mode)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if mode == "crash" {
		os.Exit(127)
	}
	l, err := net.Listen("unix", *socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go http.Serve(l, &fakeAgent{boot: strconv.Itoa(os.Getpid()), gpus: 1})
	<-term
	fmt.Fprintln(os.Stderr, "agent was told to end")
	if mode == "stubborn" {
		<-term
	}
	os.Exit(0)
}

// parent runs a monitor with an agent of its own until it is killed.
func parent() {
	m := newMonitor()
	m.Replace([]Config{{Name: "here", Local: true, Command: []string{"env", "TIDEGATE_TEST_AGENT=good", os.Args[0]}, Every: 100 * time.Millisecond}})
	v := m.Watch("here/0")
	go m.Run(context.Background())
	for v.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(pid(v))
	select {}
}

// TestOrphan: the agent does not outlive a gateway that was killed.
func TestOrphan(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends a child with its parent")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TIDEGATE_TEST_AGENT=parent", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	_, err = fmt.Fscan(out, &child)
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	poll.Await(t, "the agent's end", func() bool { return ended(child) })
}

// ended reports whether a process is no more, or only not buried yet.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// journal keeps what is logged.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// pid is the process of the agent that speaks; 0: none does.
func pid(v *View) int {
	g := v.Load()
	if g == nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(g.UUID, "GPU-"), "-0"))
	return n
}

func localMonitor(t *testing.T, mode string, command ...string) (*Monitor, *View, *journal) {
	t.Helper()
	t.Setenv("TIDEGATE_TEST_AGENT", mode)
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		command = []string{self}
	}
	j := &journal{}
	m := newMonitor()
	m.log = slog.New(slog.NewTextHandler(j, nil))
	m.Replace([]Config{{Name: "here", Local: true, Command: command, Every: 100 * time.Millisecond}})
	return m, m.Watch("here/0"), j
}

// TestChild: the agent is started, started again when it dies, told to end at the
// end, and its words stand in the log.
func TestChild(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	m, v, j := localMonitor(t, "good")
	stop := start(t, m)
	poll.Await(t, "the agent's reading", func() bool { return pid(v) > 0 })
	first := pid(v)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll.Await(t, "the next agent's reading", func() bool { p := pid(v); return p > 0 && p != first })
	sources, _ := m.Status()
	if s := sources[0]; !s.OK || s.Restarts != 1 || s.Kind != "local" || !strings.Contains(j.String(), "signal: killed") {
		t.Errorf("%+v\n%s", s, j)
	}
	last := pid(v)
	stop()
	if err := syscall.Kill(last, 0); err == nil {
		t.Error("the agent outlives its gateway")
	}
	for _, want := range []string{"agent starts in mode good", "agent was told to end"} {
		if !strings.Contains(j.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, j)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("temporary directories are left: %v, %v", left, err)
	}
}

// TestChildFails: an agent that dies at once, or is not there, is told in the
// status, and started again at growing intervals only.
func TestChildFails(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		command    []string
		want       string
	}{
		{"crash", "crash", nil, "exit status 127"},
		{"missing", "good", []string{"/nowhere/tidegate-gpu-agent"}, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, v, j := localMonitor(t, c.mode, c.command...)
			stop := start(t, m)
			poll.Await(t, "the fault in the status", func() bool {
				s, _ := m.Status()
				return strings.Contains(s[0].Error, c.want)
			})
			poll.Await(t, "the third start", func() bool { return strings.Count(j.String(), "the GPU agent ended") == 2 })
			stop()
			if v.Load() != nil || !strings.Contains(j.String(), "again_in=1s") || !strings.Contains(j.String(), "again_in=2s") {
				t.Error(j)
			}
		})
	}
}

// TestStubbornChild: one that does not end keeps nobody waiting for long, and is
// not killed.
func TestStubbornChild(t *testing.T) {
	m, v, j := localMonitor(t, "stubborn")
	stop := start(t, m)
	poll.Await(t, "the agent's reading", func() bool { return pid(v) > 0 })
	p := pid(v)
	began := time.Now()
	stop()
	if took := time.Since(began); took > patience {
		t.Errorf("took %v", took)
	}
	if err := syscall.Kill(p, 0); err != nil || !strings.Contains(j.String(), "does not end") {
		t.Errorf("%v\n%s", err, j)
	}
	syscall.Kill(p, syscall.SIGTERM) // the second one ends it
	poll.Await(t, "the agent's end", func() bool { return syscall.Kill(p, 0) != nil })
}

// TestPass: whatever a child writes, each line is one of the log, cut where it is
// long.
func TestPass(t *testing.T) {
	j := &journal{}
	c := &child{log: slog.New(slog.NewTextHandler(j, nil))}
	c.logOutput(io.MultiReader(strings.NewReader("one\n\n" + strings.Repeat("x", 9000) + "\nlast")))
	if n := strings.Count(j.String(), "says="); n != 5 || !strings.Contains(j.String(), "says=last") {
		t.Errorf("%d lines", n)
	}
}
