package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/nvml"
	"tidegate/nvml/nvmltest"
)

// build builds the agent, once for all tests, unless TIDEGATE_GPU_AGENT names one.
func build(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("TIDEGATE_GPU_AGENT"); path != "" {
		return path
	}
	built.Do(func() {
		dir, err := os.MkdirTemp("", "tidegate-gpu-agent") //nolint:usetesting // it serves all tests
		if err != nil {
			t.Fatal(err)
		}
		agentBinary = nvmltest.Agent(t, dir)
	})
	if agentBinary == "" {
		t.Skip("there is no agent to test")
	}
	return agentBinary
}

var (
	built       sync.Once
	agentBinary string
)

func TestMain(m *testing.M) {
	code := m.Run()
	if agentBinary != "" {
		os.RemoveAll(filepath.Dir(agentBinary))
	}
	os.Exit(code)
}

// agent is one that runs.
type agent struct {
	cmd    *exec.Cmd
	client *http.Client
	logs   *bytes.Buffer
	exited chan struct{}
}

// launch starts the agent over a library on a Unix socket.
func launch(t *testing.T, lib *nvmltest.Library, args ...string) *agent {
	t.Helper()
	binary := build(t)
	socket := filepath.Join(t.TempDir(), "s")
	args = append([]string{"--socket", socket, "--interval", "50ms", "--retry", "20ms", "--node", "n1"}, args...)
	a := &agent{cmd: exec.Command(binary, args...), logs: &bytes.Buffer{}, exited: make(chan struct{})}
	if lib != nil {
		a.cmd.Args = append(a.cmd.Args, "--library", lib.Path)
		a.cmd.Env = append(os.Environ(), lib.Env)
	}
	a.cmd.Stderr = a.logs
	stdout, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	go func() {
		defer close(a.exited)
		_, _ = io.Copy(io.Discard, stdout)
		_ = a.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		<-a.exited
		if t.Failed() {
			t.Log(a.logs.String())
		}
	})
	if err != nil || line != "listening on unix:"+socket+"\n" {
		t.Fatal(line, err)
	}
	a.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(a.client.CloseIdleConnections)
	return a
}

func (a *agent) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := a.client.Get("http://gpu" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(path, resp.Status, err, string(body))
	}
	return string(body)
}

func (a *agent) report(t *testing.T) nvml.Report {
	t.Helper()
	if got := a.get(t, "/healthz"); got != "ok\n" {
		t.Fatalf("healthz: %q", got)
	}
	var r nvml.Report
	raw := a.get(t, "/v1/readings")
	if err := json.Unmarshal([]byte(raw), &r); err != nil || r.Node != "n1" || r.BootID == "" || r.GPUs == nil {
		t.Fatal(err, raw)
	}
	return r
}

// until polls the report until it is as wanted.
func (a *agent) until(t *testing.T, what string, ok func(nvml.Report) bool) nvml.Report {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		r := a.report(t)
		if ok(r) {
			return r
		}
		if time.Now().After(deadline) {
			raw, _ := json.Marshal(r)
			t.Fatalf("never %s: %s", what, raw)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// end waits for the agent's end and returns its exit code.
func (a *agent) end(t *testing.T) int {
	t.Helper()
	select {
	case <-a.exited:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	return a.cmd.ProcessState.ExitCode()
}

// stop asks it to end and expects that it does so well.
func (a *agent) stop(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := a.end(t); code != 0 {
		t.Error("exit code", code)
	}
}

func fresh(r nvml.Report) bool {
	return r.Error == "" && len(r.GPUs) > 0 && !slices.ContainsFunc(r.GPUs, func(g nvml.Reading) bool { return g.State != "ok" || g.Temperature == nil || g.AgeMs > 2000 })
}

func asJSON(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

// TestLazy guards the one flag without which the agent dies before main on
// systems that bind at once by default.
func TestLazy(t *testing.T) {
	t.Parallel()
	f, err := elf.Open(build(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	value := func(tag elf.DynTag) uint64 {
		v, err := f.DynValue(tag)
		if err != nil {
			t.Fatal(err)
		}
		return append(v, 0)[0]
	}
	if now, err := f.DynValue(elf.DT_BIND_NOW); err != nil || len(now) > 0 {
		t.Error("BIND_NOW", now, err)
	}
	if elf.DynFlag(value(elf.DT_FLAGS))&elf.DF_BIND_NOW != 0 || elf.DynFlag1(value(elf.DT_FLAGS_1))&elf.DF_1_NOW != 0 {
		t.Error("it is bound at once")
	}
	libs, err := f.ImportedLibraries()
	if err != nil || len(libs) == 0 || slices.ContainsFunc(libs, func(l string) bool { return strings.Contains(l, "nvidia") }) {
		t.Error("static, or linked with the driver:", libs, err)
	}
}

func TestNotBuiltWithoutCompiler(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(out, []byte("an old one"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../../.ci/agent", out)
	cmd.Env = append(os.Environ(), "CC=no-such-compiler")
	got, err := cmd.CombinedOutput()
	if err != nil || string(got) != "tidegate-gpu-agent was not built: there is no C compiler (no-such-compiler)\n" {
		t.Errorf("%v %q", err, got)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Error("the old one was left")
	}
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	state := map[string]int64{
		"count": 2, "temp": 52, "margin": 35, "1.margin": -2, "field82": 41, "field74": 5, "field269": 7, "field270": 0, "total": 143771 << 20, "reserved": 614 << 20,
		"used": 1000 << 20, "reasons": 0x4 | 0x40, "1.reasons": 0, "power": 627_400, "limit": 700_000, "util": 99, "ecc": 3, "rows": 1, "1.rows": 0,
		"gpu_max": 10, "mem_max": 10, // not to be used where there is a margin
	}
	lib.Set(t, state)
	trace := filepath.Join(t.TempDir(), "trace.jsonl")
	a := launch(t, lib, "--record", trace)
	r := a.until(t, "fresh", fresh)
	for i := range r.GPUs {
		if r.GPUs[i].LatencyUs <= 0 {
			t.Error("no latency")
		}
		r.GPUs[i].AgeMs, r.GPUs[i].LatencyUs, r.GPUs[i].Sweep = 0, 0, 0
	}
	common := `"temperature":52,"hbm":41,"memory_total":150754820096,"memory_used":1048576000,"memory_free":149062418432,"memory_reserved":643825664,"power_mw":627400,"power_limit_mw":700000,"utilisation":99,`
	throttle := `"throttle_ns":{"hw_thermal":0,"sw_power_cap":5,"sw_thermal":7},"ecc_uncorrected":3,`
	want := `[{"index":0,"uuid":"GPU-fake-0","name":"Fake H200","state":"ok","age_ms":0,"margin":35,` + common + `"reasons":["sw_power_cap","hw_thermal"],` + throttle + `"rows_pending":true,"latency_us":0},` +
		`{"index":1,"uuid":"GPU-fake-1","name":"Fake H200","state":"ok","age_ms":0,"margin":-2,` + common + `"reasons":[],` + throttle + `"rows_pending":false,"latency_us":0}]`
	if got := asJSON(r.GPUs); got != want || r.Driver != "580.1" {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	page := a.get(t, "/metrics")
	for _, line := range []string{
		"tidegate_gpu_agent_up 1", `tidegate_gpu_margin_celsius{gpu="1",name="Fake H200",uuid="GPU-fake-1"} -2`,
		`tidegate_gpu_power_watts{gpu="0",name="Fake H200",uuid="GPU-fake-0"} 627.4`, `tidegate_gpu_agent_call_seconds_count{call="nvmlDeviceGetMarginTemperature"}`,
		`tidegate_gpu_throttle_seconds_total{gpu="0",name="Fake H200",reason="sw_thermal",uuid="GPU-fake-0"} 7e-09`,
		`tidegate_gpu_clocks_event{gpu="0",name="Fake H200",reason="hw_thermal",uuid="GPU-fake-0"} 1`, "process_resident_memory_bytes",
	} {
		if !strings.Contains(page, line) {
			t.Errorf("no %s in\n%s", line, page)
		}
	}
	// What is not known is absent, not 0.
	lib.Set(t, map[string]int64{"power": -1, "margin_ret": 999, "gpu_max": 85, "reasons": -1})
	r = a.until(t, "unknown", func(r nvml.Report) bool {
		return !slices.ContainsFunc(r.GPUs, func(g nvml.Reading) bool { return g.Power != nil || g.Reasons != nil })
	})
	if g := r.GPUs[0]; g.Margin != nil || g.HBM != nil || g.Reasons != nil || g.ThrottleNs != nil || g.State != "ok" {
		t.Errorf("%s", asJSON(g))
	}
	if page := a.get(t, "/metrics"); strings.Contains(page, "tidegate_gpu_power_watts{") || strings.Contains(page, "tidegate_gpu_memory_temperature_celsius{") {
		t.Error("an unknown value has a sample")
	}
	a.stop(t)
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), `"reasons":0,`) {
		t.Error("no line without a reason in force")
	}
	if lines := strings.Split(strings.TrimSpace(string(raw)), "\n"); !slices.ContainsFunc(lines, func(l string) bool { return !strings.Contains(l, "reasons") }) {
		t.Error("reasons that are not known:", lines[len(lines)-1])
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	var f frame
	if err := json.Unmarshal([]byte(first), &f); err != nil || f.UUID == "" || *f.Temp != 52 || *f.HBM != 41 || *f.Used != 1000 || *f.Power != 627 || len(f.Calls) < 8 {
		t.Error(err, first)
	}
	if f.UUID == "GPU-fake-0" && (f.Reasons == nil || *f.Reasons != 0x44) {
		t.Error(first)
	}
}

// Cards before Ada have no margin of their own, and say so.
func TestNoMargin(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"margin_ret": 3, "temp": 50, "field82": 80, "gpu_max": 85, "mem_max": 95})
	a := launch(t, lib)
	if r := a.until(t, "fresh", fresh); r.GPUs[0].Margin == nil || *r.GPUs[0].Margin != 15 {
		t.Error(asJSON(r))
	}
	a.stop(t)
}

// Nothing is called that an old library does not have, and of what has several
// forms the first.
func TestOldLibrary(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t, "OLD")
	lib.Set(t, map[string]int64{"gpu_max": 85, "temp": 60, "used": 600 << 20, "reserved": 100 << 20, "total": 1000 << 20, "reasons": 0x20, "pages": 1})
	a := launch(t, lib)
	g := a.until(t, "fresh", fresh).GPUs[0]
	if *g.Margin != 25 || *g.MemoryUsed != 700<<20 || g.MemoryReserved != nil || !slices.Equal(g.Reasons, []string{"sw_thermal"}) || g.RowsPending == nil || !*g.RowsPending || g.ThrottleNs != nil {
		t.Error(asJSON(g))
	}
	lib.Set(t, map[string]int64{"xid_number": 1})
	a.until(t, "an XID", func(r nvml.Report) bool { return len(r.GPUs[0].XIDs) == 1 })
	a.stop(t)
}

func TestMissingLibrary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "libnvidia-ml.so.1")
	a := launch(t, nil, "--library", path, "--attempts", "2")
	a.until(t, "missing", func(r nvml.Report) bool {
		return strings.Contains(r.Error, path) && strings.Contains(r.Error, "cannot open") && len(r.GPUs) == 0
	})
	// One that is no library, then one that is not NVML, then the real one: the
	// process need not end for it, since it called none of them.
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.until(t, "garbage", func(r nvml.Report) bool {
		return strings.Contains(r.Error, "file too short") || strings.Contains(r.Error, "invalid ELF")
	})
	bare := nvmltest.Build(t, "BARE")
	if err := os.Rename(bare.Path, path); err != nil {
		t.Fatal(err)
	}
	a.until(t, "bare", func(r nvml.Report) bool { return strings.Contains(r.Error, "has no nvmlInit_v2") })
	real := nvmltest.Build(t)
	if err := os.Rename(real.Path, path); err != nil {
		t.Fatal(err)
	}
	a.until(t, "found", fresh)
	a.stop(t)
}

// The agent without a library at all, as on most machines that run these tests.
func TestNoDriver(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a driver")
	}
	a := launch(t, nil, "--attempts", "1")
	a.until(t, "missing", func(r nvml.Report) bool { return strings.Contains(r.Error, "no NVML library") })
	a.stop(t)
}

func TestInitFails(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"init": 9})
	a := launch(t, lib, "--attempts", "1000")
	a.until(t, "failing", func(r nvml.Report) bool {
		return strings.Contains(r.Error, "driver not loaded (9)") && len(r.GPUs) == 0
	})
	lib.Set(t, nil)
	a.until(t, "well", fresh)
	a.stop(t)
}

func TestGPULost(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"count": 2})
	a := launch(t, lib)
	a.until(t, "fresh", func(r nvml.Report) bool { return fresh(r) && len(r.GPUs) == 2 })
	lib.Set(t, map[string]int64{"count": 2, "0.ret": 15, "0.handle": 15})
	lost := func(r nvml.Report) bool {
		return r.GPUs[0].UUID == "GPU-fake-0" && r.GPUs[0].State == "lost" && r.GPUs[1].State == "ok" && r.GPUs[1].AgeMs < 2000
	}
	a.until(t, "lost", lost)
	// Also after it was looked for: the GPU that is left is still read.
	a.until(t, "looked for", func(r nvml.Report) bool { return lost(r) && r.GPUs[0].AgeMs > 6000 })
	lib.Set(t, map[string]int64{"count": 2})
	a.until(t, "back", fresh)
	a.stop(t)
}

// The driver says that a GPU must be reset, though it still answers.
func TestResetRequired(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"field230": 1})
	a := launch(t, lib)
	r := a.until(t, "to be reset", func(r nvml.Report) bool { return len(r.GPUs) == 1 && r.GPUs[0].State == "lost" })
	if r.GPUs[0].Temperature == nil {
		t.Error(asJSON(r))
	}
	a.stop(t)
}

func TestHungCall(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"count": 2})
	a := launch(t, lib)
	a.until(t, "fresh", func(r nvml.Report) bool { return fresh(r) && len(r.GPUs) == 2 })
	threads := func() int {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", a.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	before := threads()
	lib.Set(t, map[string]int64{"count": 2, "0.hang": 1})
	a.until(t, "wedged", func(r nvml.Report) bool {
		return r.GPUs[0].State == "wedged" && r.GPUs[0].AgeMs > 2000 && r.GPUs[1].State == "ok" && r.GPUs[1].AgeMs < 2000
	})
	if after := threads(); after > before+4 {
		t.Errorf("%d threads, %d before", after, before)
	}
	// SIGTERM waits for the call, and answers meanwhile.
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.until(t, "waiting", func(r nvml.Report) bool { return r.GPUs[1].AgeMs > 500 })
	lib.Set(t, nil)
	if code := a.end(t); code != 0 {
		t.Error(code)
	}
}

// What is asked of a GPU only once hangs for that GPU alone.
func TestHungThreshold(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"count": 2, "0.threshold_hang": 1})
	a := launch(t, lib)
	a.until(t, "wedged", func(r nvml.Report) bool {
		return len(r.GPUs) == 2 && r.GPUs[0].State == nvml.StateWedged && r.GPUs[1].State == nvml.StateOK && r.GPUs[1].Temperature != nil
	})
	lib.Set(t, map[string]int64{"count": 2})
	a.until(t, "fresh", fresh)
	a.stop(t)
}

func TestHungPastGrace(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	a := launch(t, lib, "--grace", "100ms")
	a.until(t, "fresh", fresh)
	lib.Set(t, map[string]int64{"0.hang": 1})
	a.until(t, "hanging", func(r nvml.Report) bool { return r.GPUs[0].AgeMs > 300 })
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	if code := a.end(t); code != 1 || !strings.Contains(a.logs.String(), "did not return") {
		t.Error(code)
	}
}

func TestFatalXID(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	a := launch(t, lib)
	a.until(t, "fresh", fresh)
	lib.Set(t, map[string]int64{"xid": 31, "xid_number": 1}) // an application's fault
	lib.Set(t, map[string]int64{"xid": 79, "xid_number": 2})
	r := a.until(t, "an XID", func(r nvml.Report) bool { return len(r.GPUs[0].XIDs) > 0 })
	if x := r.GPUs[0].XIDs[0]; x.Code != 79 || !x.Fatal || r.GPUs[0].State != "ok" {
		t.Error(asJSON(r))
	}
	lib.Set(t, map[string]int64{"xid_type": 2, "xid": 0, "xid_number": 3}) // a double-bit error has no code
	a.until(t, "two", func(r nvml.Report) bool { return len(r.GPUs[0].XIDs) == 2 && r.GPUs[0].XIDs[1].Code == 48 })
	if page := a.get(t, "/metrics"); !strings.Contains(page, `tidegate_gpu_fatal_xid{gpu="0",name="Fake H200",uuid="GPU-fake-0"} 48`) {
		t.Error(page)
	}
	a.stop(t)
}

// After an update of the driver the library in memory fits no more. No new try in
// this process can cure that: it ends, with the code that says so.
func TestDriverChange(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	a := launch(t, lib, "--attempts", "4", "--retry", "300ms")
	a.until(t, "fresh", fresh)
	lib.Set(t, map[string]int64{"ret": 18, "init": 18})
	a.until(t, "mismatched", func(r nvml.Report) bool {
		return strings.Contains(r.Error, "different versions (18)") && len(r.GPUs) == 1
	})
	if code := a.end(t); code != exitGivenUp || !strings.Contains(a.logs.String(), "cannot be initialised") {
		t.Error(code)
	}
}

// A container that lost its right to the GPU: every call fails, with a code that
// says nothing.
func TestNothingAnswers(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	a := launch(t, lib, "--attempts", "3")
	a.until(t, "fresh", fresh)
	lib.Set(t, map[string]int64{"0.ret": 999, "init": 999})
	if code := a.end(t); code != exitGivenUp {
		t.Error(code)
	}
}

// One GPU of two answers nothing: the other is read on.
func TestOneAnswersNothing(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"count": 2})
	a := launch(t, lib, "--attempts", "2")
	a.until(t, "fresh", func(r nvml.Report) bool { return fresh(r) && len(r.GPUs) == 2 })
	lib.Set(t, map[string]int64{"count": 2, "0.ret": 999})
	// Also after it was looked for, when not even its UUID is told.
	a.until(t, "lost", func(r nvml.Report) bool {
		g := r.GPUs
		return len(g) == 2 && g[0].UUID == "GPU-fake-0" && g[0].State == nvml.StateLost && g[0].AgeMs > 6000 && g[1].State == nvml.StateOK && g[1].AgeMs < 2000
	})
	lib.Set(t, map[string]int64{"count": 2})
	a.until(t, "back", func(r nvml.Report) bool { return fresh(r) && len(r.GPUs) == 2 })
	a.stop(t)
}

func TestMIG(t *testing.T) {
	t.Parallel()
	lib := nvmltest.Build(t)
	lib.Set(t, map[string]int64{"mig": 2, "total": 1000, "used": 600, "margin": 24})
	a := launch(t, lib)
	r := a.until(t, "fresh", func(r nvml.Report) bool { return fresh(r) && len(r.GPUs) == 3 })
	g := r.GPUs[2]
	if g.UUID != "MIG-fake-0-1" || g.Parent != "GPU-fake-0" || g.Name != "Fake MIG 1g" || *g.MemoryTotal != 500 || *g.MemoryUsed != 300 || *g.Margin != 24 || g.Power != nil || g.Utilisation != nil {
		t.Error(asJSON(g))
	}
	if r.GPUs[0].Power == nil || *r.GPUs[0].MemoryTotal != 1000 {
		t.Error(asJSON(r.GPUs[0]))
	}
	a.stop(t)
}
