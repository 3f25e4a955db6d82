package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/nvml"
)

// TestGPU runs the agent on this machine's GPU through idle, a ramp of memory, a
// burn of matrices and the cool-down. It leaves the trace and the figures in the
// folder that TIDEGATE_GPU_TEST names. `make gpu-test` runs it. On a machine
// without Go, run the test's binary with TIDEGATE_GPU_AGENT and TIDEGATE_GPU_BURN
// naming what was built elsewhere. TIDEGATE_GPU_TEST_SCALE scales all durations.
func TestGPU(t *testing.T) {
	dir := os.Getenv("TIDEGATE_GPU_TEST")
	if dir == "" {
		t.Skip("`make gpu-test` runs it, on a machine with an NVIDIA GPU")
	}
	scale := 1.0
	if s := os.Getenv("TIDEGATE_GPU_TEST_SCALE"); s != "" {
		var err error
		if scale, err = strconv.ParseFloat(s, 64); err != nil || scale <= 0 {
			t.Fatal("TIDEGATE_GPU_TEST_SCALE:", s)
		}
	}
	burner := burner(t)
	trace := filepath.Join(dir, "trace.jsonl")
	if err := os.Remove(trace); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	began := time.Now()
	a := launch(t, nil, "--interval", "500ms", "--record", trace)
	report := a.until(t, "readable: is there an NVIDIA GPU on this machine?", fresh)
	var phases []span
	begin := func(name string) { phases = append(phases, span{name, time.Since(began)}) }

	begin("idle")
	wait(scale * 30)
	seconds := func(s float64) string { return fmt.Sprintf("%.2f", scale*s) }
	cmd := exec.Command(burner, "10", seconds(4), seconds(20), seconds(180))
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if lines.Text() != "done" {
			begin(lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("burn: %v: %s", err, stderr)
	}
	begin("cool-down")
	wait(scale * 60)
	last := a.report(t)
	a.stop(t)

	frames := readTrace(t, trace)
	for _, g := range last.GPUs {
		if g.State != "ok" || g.Margin == nil || g.MemoryUsed == nil {
			t.Errorf("at the end: %s", asJSON(g))
		}
	}
	figures := describe(report, phases, frames)
	if err := os.WriteFile(filepath.Join(dir, "figures.md"), []byte(figures), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + figures)
	if longest := longestGap(frames); longest > 3*time.Second {
		t.Errorf("no reading for %v", longest)
	}
}

// wait lets the GPU do what it does: there is nothing to poll for.
func wait(seconds float64) { time.Sleep(time.Duration(seconds * float64(time.Second))) }

func burner(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("TIDEGATE_GPU_BURN"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "burn")
	if out, err := exec.Command("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, "testdata/burn.c", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("burn.c: %v\n%s", err, out)
	}
	return path
}

// TestBurnBuilds keeps what only a machine with a GPU can run in a state in which
// it compiles, and without a driver says so.
func TestBurnBuilds(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("SKIPPED-PART: the GPU agent over NVML: there is no gcc on this machine (apt-get install gcc libc6-dev)")
	}
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a driver")
	}
	var exit *exec.ExitError
	if err := exec.Command(burner(t), "1", "0", "0", "0").Run(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Error(err)
	}
}

// span is a phase, from its beginning until the next one's.
type span struct {
	name string
	from time.Duration // since the agent began
}

func readTrace(t *testing.T, path string) []frame {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var frames []frame
	for line := range bytes.Lines(raw) {
		var f frame
		if err := json.Unmarshal(line, &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		frames = append(frames, f)
	}
	if len(frames) == 0 {
		t.Fatal("the trace is empty")
	}
	return frames
}

// longestGap is the longest time between two readings of the same GPU.
func longestGap(frames []frame) time.Duration {
	var longest int64
	last := map[string]int64{}
	for _, f := range frames {
		if at, ok := last[f.UUID]; ok {
			longest = max(longest, f.T-at)
		}
		last[f.UUID] = f.T
	}
	return time.Duration(longest) * time.Millisecond
}

// describe writes the figures: what each phase did to the readings, and what each
// call cost in it.
func describe(report nvml.Report, phases []span, frames []frame) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, driver %s, %d readings, longest gap %v.\n\n", report.GPUs[0].Name, report.Driver, len(frames), longestGap(frames))
	b.WriteString("| phase | readings | margin C, min / median / max | temperature C, max | HBM C, max | used MiB, max | power W, median / max | reasons seen |\n|---|---|---|---|---|---|---|---|\n")
	calls := map[string]map[string][]int64{}
	for i, p := range phases {
		var margin, temp, hbm, used, power []int64
		var reasons uint64
		n := 0
		for _, f := range frames {
			if f.T < p.from.Milliseconds() || i+1 < len(phases) && f.T >= phases[i+1].from.Milliseconds() {
				continue
			}
			n++
			if f.Reasons != nil {
				reasons |= *f.Reasons
			}
			margin, temp, hbm = known(margin, f.Margin), known(temp, f.Temp), known(hbm, f.HBM)
			used, power = known(used, f.Used), known(power, f.Power)
			for name, us := range f.Calls {
				if calls[name] == nil {
					calls[name] = map[string][]int64{}
				}
				calls[name][p.name] = append(calls[name][p.name], us)
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %s / %s / %s | %s | %s | %s | %s / %s | %#x |\n", p.name, n, rank(margin, 0), rank(margin, 0.5), rank(margin, 1),
			rank(temp, 1), rank(hbm, 1), rank(used, 1), rank(power, 0.5), rank(power, 1), reasons)
	}
	b.WriteString("\nLatency of each call, microseconds, median / p99 / max:\n\n| call |")
	for _, p := range phases {
		fmt.Fprintf(&b, " %s |", p.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(phases)) + "\n")
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, p := range phases {
			us := calls[name][p.name]
			fmt.Fprintf(&b, " %s / %s / %s |", rank(us, 0.5), rank(us, 0.99), rank(us, 1))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func known[T int | uint64](to []int64, v *T) []int64 {
	if v == nil {
		return to
	}
	return append(to, int64(*v))
}

// rank is the value at a share of the sorted values, "-" where there are none.
func rank(values []int64, share float64) string {
	if len(values) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(values))
	return strconv.FormatInt(sorted[int(share*float64(len(sorted)-1)+0.5)], 10)
}

func TestDescribe(t *testing.T) {
	p := func(v int) *int { return &v }
	got := describe(nvml.Report{Driver: "580", GPUs: []nvml.Reading{{Name: "H200"}}}, []span{{"idle", 0}, {"burn", 2 * time.Second}}, []frame{
		{T: 0, UUID: "a", Margin: p(59), Reasons: new(uint64(1)), Calls: map[string]int64{"x": 10}},
		{T: 1000, UUID: "a", Margin: p(57), Reasons: new(uint64(1)), Calls: map[string]int64{"x": 30}},
		{T: 2500, UUID: "a", Margin: p(35), Reasons: new(uint64(4)), Calls: map[string]int64{"x": 500}},
	})
	for _, want := range []string{
		"H200, driver 580, 3 readings, longest gap 1.5s.", "| idle | 2 | 57 / 59 / 59 | - | - | - | - / - | 0x1 |", "| burn | 1 | 35 / 35 / 35 | - | - | - | - / - | 0x4 |",
		"| call | idle | burn |", "| x | 30 / 30 / 30 | 500 / 500 / 500 |",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
