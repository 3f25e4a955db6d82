//go:build linux

package overload

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/bench"
	"tidegate/gateway/qwen"
)

// What the environment may say.
const (
	binaryVariable    = "TIDEGATE_BENCH_BINARY"    // the gateway; without it there is nothing to measure
	loadsVariable     = "TIDEGATE_BENCH_LOADS"     // multiples of capacity
	secondsVariable   = "TIDEGATE_BENCH_SECONDS"   // of a load, or of a scenario of BenchmarkFair
	watchVariable     = "TIDEGATE_BENCH_WATCH"     // seconds after a load, at most
	tracesVariable    = "TIDEGATE_BENCH_TRACES"    // of TraceNames
	modesVariable     = "TIDEGATE_BENCH_MODES"     // on and off: ladder, or fair queue
	onVariable        = "TIDEGATE_BENCH_ON"        // files for ReadFragment
	offVariable       = "TIDEGATE_BENCH_OFF"       //
	smallsVariable    = "TIDEGATE_BENCH_SMALLS"    // servers of the small model
	objectiveVariable = "TIDEGATE_BENCH_OBJECTIVE" // for the first token
	outVariable       = "TIDEGATE_BENCH_OUT"       // of the report, without .md and .svg; default: stdout and no drawing
)

// openFiles suffice for a backlog of some thousand requests in this process, which
// has both ends of some.
const openFiles = 16_384

// vocabulary is the tokenizer of all stand-ins: loading it takes a while.
var vocabulary = sync.OnceValues(qwen.New)

func setting(name, unset string) string {
	if text := os.Getenv(name); text != "" {
		return text
	}
	return unset
}

// number reads a setting.
func number(tb testing.TB, name, unset string) float64 {
	tb.Helper()
	n, err := strconv.ParseFloat(setting(name, unset), 64)
	if err != nil || n <= 0 {
		tb.Fatalf("%s: %q is not a number above 0", name, os.Getenv(name))
	}
	return n
}

// benchmark is what both benchmarks start from.
type benchmark struct {
	binary string
	modes  []string
	parts  map[string]Fragment
	length time.Duration
	began  time.Time
}

func newBench(b *testing.B, name, length string) *benchmark {
	b.Helper()
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		b.Skipf("%s names no gateway to measure", binaryVariable)
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		b.Fatal(err)
	}
	if err := bench.RaiseFiles(openFiles); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op") // says nothing here
	k := &benchmark{binary: binary, modes: strings.Fields(setting(modesVariable, "on off")), parts: map[string]Fragment{}, began: time.Now()}
	k.length = time.Duration(number(b, secondsVariable, length) * float64(time.Second))
	for mode, variable := range map[string]string{ModeOn: onVariable, ModeOff: offVariable} {
		if k.parts[mode], err = ReadFragment(setting(variable, filepath.Join("testdata", name+"-"+mode+".yaml"))); err != nil {
			b.Fatal(err)
		}
	}
	return k
}

// stage starts a fleet and a gateway in a mode, for tenants, whose keys it makes.
func (k *benchmark) stage(b *testing.B, f Fleet, mode string, timeout time.Duration, tenants []*Tenant) (*Stage, func()) {
	b.Helper()
	tokenizer, err := vocabulary()
	if err != nil {
		b.Fatal(err)
	}
	servers, err := StartServers(f, tokenizer)
	if err != nil {
		b.Fatal(err)
	}
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TIDEGATE_") { // would be read over the file
			env = append(env, v)
		}
	}
	a, ops, err := StartGateway(b.Context(), k.binary, b.TempDir(), env, servers, k.parts[mode])
	if err != nil {
		servers.Close()
		b.Fatal(err)
	}
	for _, t := range tenants {
		if err := t.MakeKey(b.Context(), a.Base); err != nil {
			b.Fatal(err, a.Stderr())
		}
	}
	s := &Stage{Client: NewClient(a.Base, timeout), Ops: ops, Gateway: a.Process(), Servers: servers, Tenants: tenants, Calm: 10 * time.Second}
	return s, func() {
		select {
		case <-a.Exited():
			b.Errorf("%s: the gateway ended during the run: %s", mode, a.Stderr())
		default:
		}
		s.Client.Close()
		a.Stop()
		servers.Close()
	}
}

// callers are the tenants of BenchmarkOverload; who stands there twice asks twice as
// often. A fifth of the requests is critical, half is standard, the rest batch.
func callers() []*Tenant {
	of := func(name, tier string) *Tenant { return &Tenant{Name: name, Tier: tier} }
	clinic, shop, desk, lab, crawl, night := of("clinic", "critical"), of("shop", "standard"), of("desk", "standard"), of("lab", "standard"), of("crawl", "batch"), of("night", "batch")
	return []*Tenant{clinic, clinic, shop, shop, desk, desk, lab, crawl, crawl, night}
}

// BenchmarkOverload replays traces at several loads with the ladder on and off; see
// the package comment. It writes a report and never fails for what it measured.
func BenchmarkOverload(b *testing.B) {
	k := newBench(b, "ladder", "60")
	rows, err := Traces(strings.Fields(setting(tracesVariable, strings.Join(TraceNames(), " "))))
	if err != nil {
		b.Fatal(err)
	}
	fleet := DefaultFleet(int(number(b, smallsVariable, "1")))
	objective, err := time.ParseDuration(setting(objectiveVariable, "2s"))
	if err != nil {
		b.Fatal(err)
	}
	watch := time.Duration(number(b, watchVariable, "150") * float64(time.Second))
	report := &Report{Fleet: fleet, Rows: rows, Cut: Fit(rows, fleet.Context), Objective: objective}
	loads := strings.Fields(setting(loadsVariable, "0.5 1 2 4"))
	for _, text := range loads {
		load, err := strconv.ParseFloat(text, 64)
		if err != nil {
			b.Fatalf("%s: %q is not a number", loadsVariable, text)
		}
		w, err := Cut(rows, 0, fleet, load, k.length)
		if err != nil {
			b.Fatal(err)
		}
		light, err := Cut(rows, w.Next, fleet, lightLoad, watch)
		if err != nil {
			b.Fatal(err)
		}
		for _, mode := range k.modes {
			stage, stop := k.stage(b, fleet, mode, time.Minute, callers())
			run := stage.Perform(b.Context(), load, mode, w, light)
			stop()
			t := Count(run.Outcomes, objective)
			fmt.Fprintf(os.Stderr, "%6.1fs %gx %s: %d sent, goodput strict %s engine %s, %v, cores %.2f + %.2f + %.2f\n", time.Since(k.began).Seconds(), load, mode,
				t.Sent, percent(t.Strict, t.Sent), percent(t.Engine, t.Sent), t.Reasons, run.Gateway, run.Clients, run.Foreign)
			report.Runs = append(report.Runs, run)
		}
	}
	report.Facts = k.facts(b)
	if err := write(report.Write, func(w io.Writer) error { return report.Draw(w, []float64{2, 4}) }, &report.Plot); err != nil {
		b.Fatal(err)
	}
}

func (k *benchmark) facts(b *testing.B) [][2]string {
	processor := "unknown"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(raw), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			processor = strings.TrimLeft(line, "\t: ")
		}
	}
	version := "unknown"
	if raw, err := exec.Command(k.binary, "version").Output(); err == nil {
		version, _, _ = strings.Cut(string(raw), "\n")
	}
	return [][2]string{
		{"machine", fmt.Sprintf("%d cores, %s, %s/%s", runtime.NumCPU(), processor, runtime.GOOS, runtime.GOARCH)},
		{"gateway", version + ", " + runtime.Version()},
		{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		{"took", time.Since(k.began).Round(time.Second).String() + fmt.Sprintf(", %v of each load", k.length)},
		{"modes", "on adds `" + oneLine(k.parts[ModeOn]) + "` to the configuration, off `" + oneLine(k.parts[ModeOff]) + "`"},
	}
}

// oneLine is a fragment without its comments.
func oneLine(f Fragment) string {
	var parts []string
	for _, part := range []string{f.Top, f.Large, f.Small} {
		for line := range strings.Lines(part) {
			if line, _, _ = strings.Cut(line, " #"); strings.TrimSpace(line) != "" && !strings.HasPrefix(strings.TrimSpace(line), "#") {
				parts = append(parts, strings.TrimSpace(line))
			}
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

// write writes report and drawing where the environment says, and tells the report
// the drawing's name before.
func write(report, drawing func(io.Writer) error, plot *string) error {
	out := os.Getenv(outVariable)
	if out == "" {
		return report(os.Stdout)
	}
	*plot = filepath.Base(out) + ".svg"
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	for ext, render := range map[string]func(io.Writer) error{".md": report, ".svg": drawing} {
		f, err := os.Create(out + ext)
		if err != nil {
			return err
		}
		if err := errors.Join(render(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
