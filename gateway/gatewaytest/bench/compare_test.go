//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What the environment may say.
const (
	binaryVariable  = "TIDEGATE_BENCH_BINARY"  // the gateway; without it there is nothing to compare
	roundsVariable  = "TIDEGATE_BENCH_ROUNDS"  // default 3
	secondsVariable = "TIDEGATE_BENCH_SECONDS" // of one measurement; default 3
	outVariable     = "TIDEGATE_BENCH_OUT"     // file for the report; default stdout
)

const (
	modelName  = "mock-model"
	openFiles  = 8_192 // for 2,000 streams with both their ends in one process, and some room
	abortWait  = 5 * time.Second
	manyAtOnce = 2_000
)

// scenario is one kind of load.
type scenario struct {
	name  string
	mock  string // the mock's behaviour
	times int    // rounds for one of the others; 0: one round in all, since it counts and measures nothing
	fresh bool   // no two prompts are alike
	size  int    // of a body, in bytes
	spec  Spec
	trace string // share of the requests that is traced, with all else that costs a request something; empty: as the gateway is by default
}

// Data events of a stream beside its chunks: role, usage and [DONE].
const besideChunks = 3

func scenarios(measured time.Duration) []scenario {
	base := Spec{Workers: 64, Warmup: time.Second, Duration: measured, Timeout: 30 * time.Second}
	spec := func(f func(*Spec)) Spec { s := base; f(&s); return s }
	streams := func(chunks, workers int) Spec {
		return spec(func(s *Spec) { s.Stream, s.Events, s.Workers = true, chunks+besideChunks, workers })
	}
	slow := streams(20, manyAtOnce)
	slow.Ramp, slow.Warmup = 2*time.Second, 3*time.Second
	lost := slow
	lost.Warmup, lost.Duration, lost.Total = 0, 5*time.Minute, 5*manyAtOnce
	const none, slowly = "content=400&chunks=20&ttft=0s&delay=0s", "chunks=20&ttft=0s&delay=100ms"
	return []scenario{
		{Small, none, 1, false, 500, base, ""},
		{SmallAll, none, 1, false, 500, base, "0.01"},
		{SmallTraced, none, 1, false, 500, base, "1"},
		{SmallNew, none, 1, true, 500, base, ""},
		{Large, none, 1, false, 32 << 10, base, ""},
		{LargeNew, none, 1, true, 32 << 10, base, ""},
		{Rate, none, 1, false, 500, spec(func(s *Spec) { s.Rate = 500 }), ""},
		// The cost of an event differs by a third from run to run on a shared machine.
		{Stream, "chunks=200&ttft=0s&delay=0s", 3, false, 500, streams(200, 64), ""},
		{Stream5ms, "chunks=200&ttft=0s&delay=5ms", 3, false, 500, streams(200, 64), ""},
		{Slow, slowly, 1, false, 500, slow, ""},
		{Lost, slowly, 0, false, 500, lost, ""},
		{AbortStream, "chunks=100&ttft=0s&delay=100ms", 1, false, 500, streams(100, 50), ""},
		{AbortWait, "ttft=5s", 1, false, 500, spec(func(s *Spec) { s.Workers = 50 }), ""},
	}
}

// BenchmarkGateway compares the gateway with a bare proxy; see the package
// comment. It writes a report and never fails for being slow.
func BenchmarkGateway(b *testing.B) {
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		b.Skipf("%s names no gateway to measure", binaryVariable)
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		b.Fatal(err)
	}
	rounds, seconds := setting(b, roundsVariable, 3), setting(b, secondsVariable, 3)
	if err := RaiseFiles(openFiles); err != nil {
		b.Fatal(err)
	}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // what breaks off is the gateway's to send again
	}))
	b.Cleanup(collector.Close)
	st := &stage{dir: b.TempDir(), binary: binary, collector: collector.URL}
	if st.mock, err = st.role("mock"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(st.mock.Stop)
	b.ReportMetric(0, "ns/op") // says nothing here
	if err := smoke(b.Context(), st); err != nil {
		b.Fatal(err)
	}

	began := time.Now()
	report := &Report{}
	var number atomic.Int64
	for _, sc := range scenarios(time.Duration(seconds) * time.Second) {
		if sc.fresh {
			sc.spec.Number = &number
		}
		for round := range max(rounds*sc.times, 1) {
			targets := []string{Direct, Bare, Gateway}
			for i := range targets {
				rec := perform(b.Context(), st, sc, targets[(i+round)%len(targets)]) // each round begins with another
				rec.Round = round
				fmt.Fprintf(os.Stderr, "%6.1fs %s/%s #%d %s\n", time.Since(began).Seconds(), sc.name, rec.Target, round+1, brief(rec))
				report.Records = append(report.Records, rec)
				if rec.Err != "" {
					b.Errorf("%s/%s: %s", sc.name, rec.Target, rec.Err)
				}
			}
		}
	}
	report.Facts = facts(binary, rounds, seconds, time.Since(began))
	if err := write(report); err != nil {
		b.Fatal(err)
	}
}

func setting(b *testing.B, name string, unset int) int {
	text := os.Getenv(name)
	if text == "" {
		return unset
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s: %q is not a number from 1", name, text)
	}
	return n
}

// smoke looks into one answer of each kind from each target.
func smoke(ctx context.Context, st *stage) error {
	for _, name := range []string{Direct, Bare, Gateway} {
		a, stop, err := st.target(ctx, name, "")
		if err != nil {
			return err
		}
		defer stop()
		for _, stream := range []bool{false, true} {
			spec := Spec{Stream: stream, Body: ChatBody(modelName, 500, stream, 0), Timeout: Patience}
			if stream {
				spec.Events = DefaultBehaviour().Chunks + besideChunks
			}
			if spec.Target, err = ParseTarget(a.Base + "/v1/chat/completions"); err != nil {
				return err
			}
			if err := Check(spec); err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, a.Stderr())
			}
		}
	}
	return nil
}

// perform runs a scenario against a fresh process of a target.
func perform(ctx context.Context, st *stage, sc scenario, target string) Record {
	rec := Record{Scenario: sc.name, Target: target}
	err := func() error {
		if err := MockConfig(st.mock.Base, sc.mock); err != nil {
			return err
		}
		a, stop, err := st.target(ctx, target, sc.trace)
		if err != nil {
			return err
		}
		defer stop()
		spec := sc.spec
		spec.Body = ChatBody(modelName, sc.size, spec.Stream, 0)
		if spec.Target, err = ParseTarget(a.Base + "/v1/chat/completions"); err != nil {
			return err
		}
		switch sc.name {
		case AbortStream:
			rec.Abort, err = LeaveStreams(ctx, spec, st.mock.Base, abortWait)
			return err
		case AbortWait:
			rec.Abort, err = LeaveWaiting(ctx, spec, st.mock.Base, abortWait)
			return err
		}
		return measure(ctx, st, a, spec, &rec)
	}()
	if err != nil {
		rec.Err = err.Error()
	}
	return rec
}

func measure(ctx context.Context, st *stage, a *Actor, spec Spec, rec *Record) error {
	before, err := MockStats(st.mock.Base)
	if err != nil {
		return err
	}
	var process Process
	if a != st.mock {
		process = a.Process()
	}
	if rec.Run, err = Run(ctx, spec, process, st.mock.Process()); err != nil {
		return err
	}
	// The mock counts an answer just after it has written it.
	for end := time.Now().Add(abortWait); ; pause(ctx, abortPoll) {
		after, err := MockStats(st.mock.Base)
		if err != nil {
			return err
		}
		rec.Finished = after.Finished - before.Finished
		if after.Active == 0 || time.Now().After(end) {
			break
		}
	}
	select {
	case <-a.Exited():
		return errors.New("the process ended during the run: " + a.Stderr())
	default:
		return nil
	}
}

func brief(r Record) string {
	switch {
	case r.Err != "":
		return "ERROR " + r.Err
	case r.Abort != nil:
		return fmt.Sprintf("%d left, %d not seen, p50 %v, last %v", r.Abort.Clients, r.Abort.Unseen, r.Abort.Delay.P50, r.Abort.Delay.Max)
	}
	res := r.Run
	s := fmt.Sprintf("%.0f req/s, %d failed, CPU %v/req, other %.2f cores", res.PerSecond(res.OK), res.Failed, res.CPUPerRequest(), res.OtherCores)
	if res.Events > 0 {
		s += fmt.Sprintf(", %.0f events/s, CPU %v/event", res.PerSecond(res.Events), res.CPUPerEvent())
	}
	if res.Failed > 0 {
		s += fmt.Sprintf(" %v %.100q", res.Problems, res.Sample)
	}
	return s
}

func facts(binary string, rounds, seconds int, took time.Duration) [][2]string {
	processor := "unknown"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(raw), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			processor = strings.TrimLeft(line, "\t: ")
		}
	}
	command := fmt.Sprintf("`%s=%d %s=%d %s=…/%s go test -tags nomsgpack -run '^$' -bench Gateway -benchtime 1x -timeout 30m ./gateway/gatewaytest/bench`",
		roundsVariable, rounds, secondsVariable, seconds, binaryVariable, filepath.Join(filepath.Base(filepath.Dir(binary)), filepath.Base(binary)))
	version := "unknown"
	if raw, err := exec.Command(binary, "version").Output(); err == nil {
		version, _, _ = strings.Cut(string(raw), "\n")
	}
	return [][2]string{
		{"machine", fmt.Sprintf("%d cores, %s, %s/%s", runtime.NumCPU(), processor, runtime.GOOS, runtime.GOARCH)},
		{"Go", runtime.Version()},
		{"gateway", version},
		{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		{"took", took.Round(time.Second).String()},
		{"command", command},
	}
}

func write(report *Report) error {
	name := os.Getenv(outVariable)
	if name == "" {
		return report.Write(os.Stdout)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(report.Write(f), f.Close())
}
