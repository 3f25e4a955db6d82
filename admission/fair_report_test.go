package admission

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// fairOut names where TestFairnessReport writes: PATH.md and PATH.svg.
const fairOut = "TIDEGATE_FAIR_OUT"

const reportSeeds = 10

// TestFairnessReport writes the figures of the tests above as a table and as a plot.
// `make fairness` runs it.
func TestFairnessReport(t *testing.T) {
	path := os.Getenv(fairOut)
	if path == "" {
		t.Skipf("%s names no place for the report", fairOut)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	var runs []map[string]*outcome
	for seed := range uint64(reportSeeds) {
		runs = append(runs, run(t, "8 x larger", sizes(), seed))
	}
	if err := os.WriteFile(path+".svg", plot(runs[0]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".md", report(t, filepath.Base(path)+".svg", runs), 0o644); err != nil {
		t.Fatal(err)
	}
}

// span is the least and the most of some figures.
func span(format string, all []float64) string {
	low, high := fmt.Sprintf(format, slices.Min(all)), fmt.Sprintf(format, slices.Max(all))
	if low == high {
		return low
	}
	return low + " to " + high
}

// row writes one figure of every discipline over all runs.
func row(b *bytes.Buffer, title, format, bar string, runs []map[string]*outcome, figure func(o, fcfs *outcome) float64) {
	fmt.Fprintf(b, "| %s |", title)
	for _, name := range disciplineNames() {
		var all []float64
		for _, r := range runs {
			all = append(all, figure(r[name], r["FCFS"]))
		}
		fmt.Fprintf(b, " %s |", span(format, all))
	}
	fmt.Fprintf(b, " %s |\n", bar)
}

func report(t *testing.T, image string, size []map[string]*outcome) []byte {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, `# The fair queue: figures

Two tenants wait all the time at one full model, and one's requests are 8 times as large as the other's: service over ten minutes, in weighted tokens (1 for a token of a prompt, 2 for one of an answer).

![Cumulative service of both tenants: apart under FCFS, far apart when tenants take turns, one line under VTC](%s)

A discrete event simulation in virtual time: an engine of %d slots, %.0f tokens/s of answers that all slots share and %.0f tokens/s of prompts; %.0f s; each request has half to one and a half of its tenant's mean tokens, arrivals are Poisson. The queue is the one that the gateway runs; first come, first served (FCFS) and turns stand beside it in the same runs. Least and most of %d seeds. `+"`make fairness`"+` writes this page, and the same runs are tests of package admission.

| figure | FCFS | turns | VTC | bar for VTC |
|---|---|---|---|---|
`, image, simSlots, simDecode, simPrompt, simTime, reportSeeds)
	gap := func(o, _ *outcome) float64 { return o.gap }
	loss := func(o, fcfs *outcome) float64 { return 100 * (1 - o.tokens/fcfs.tokens) }
	rows := func(title string, runs []map[string]*outcome) {
		var bounds []float64
		for _, r := range runs {
			bounds = append(bounds, r["VTC"].bound())
		}
		row(&b, title+": largest service gap, weighted tokens", "%.0f", "≤ "+span("%.0f", bounds)+" (2 max(wp L, wq M), M as seen)", runs, gap)
		row(&b, title+": throughput lost, %", "%.2f", "≤ 1", runs, loss)
	}
	row(&b, "8 × larger: share of the tenant with the small requests, %", "%.1f", "50 ± 2", size, func(o, _ *outcome) float64 { return 100 * o.share(0) })
	rows("the same", size)
	var weights, lights, others []map[string]*outcome
	var alone []float64
	for seed := range uint64(reportSeeds) {
		weights = append(weights, run(t, "weights", weighted(), seed))
		lights = append(lights, run(t, "light", []load{light(), flood()}, seed))
		others = append(others, run(t, "on and off", onOff(), seed))
		alone = append(alone, simulate([]load{light()}, &fcfs{}, seed).p(0, 0.95))
	}
	for i := range weighted() {
		row(&b, fmt.Sprintf("weights 1 : 2 : 3 : 4: share of weight %d, %%", i+1), "%.2f", fmt.Sprintf("%d ± %.1f", 10*(i+1), 0.2*float64(i+1)), weights,
			func(o, _ *outcome) float64 { return 100 * o.share(i) })
	}
	rows("the same", weights)
	row(&b, "0.4 requests/s beside a flood: TTFT p50, s", "%.2f", "–", lights, func(o, _ *outcome) float64 { return o.p(0, 0.5) })
	row(&b, fmt.Sprintf("the same: TTFT p95, s (%s alone)", span("%.2f", alone)), "%.2f", "≤ alone + 1.5", lights, func(o, _ *outcome) float64 { return o.p(0, 0.95) })
	rows("the same", lights)
	rows("two tenants that come and go beside a flood", others)
	fmt.Fprintf(&b, `
Throughput is tokens of prompts and answers together; where a discipline happens to serve other requests (more of long prompts, say) it differs without any slot having been free, which the tests look for.

One operation of the queue at %d tenants that wait (%s, %s; the bar is 2 µs and bounded allocations):

| operation | ns | allocations |
|---|---|---|
`, benchTenants, runtime.Version(), runtime.GOARCH)
	for _, m := range []struct {
		what string
		of   func(*testing.B)
	}{
		{"pop, done and push", BenchmarkQueuePushPop}, {"the same for tenants never seen", BenchmarkQueueNewTenant}, {"remove and push", BenchmarkQueueRemovePush},
		{"a request that need not wait, and its end", BenchmarkQueueDirect}, {"how many are ahead", BenchmarkQueueAhead}, {"output, from two goroutines", BenchmarkQueueOutput},
	} {
		r := testing.Benchmark(m.of)
		fmt.Fprintf(&b, "| %s | %d | %d |\n", m.what, r.NsPerOp(), r.AllocsPerOp())
	}
	return b.Bytes()
}

// plot draws the service of two tenants over time under each discipline.
func plot(out map[string]*outcome) []byte {
	const left, top, width, height, apart = 58, 64, 250, 210, 40
	most := 0.0
	for _, o := range out {
		most = max(most, slices.Max(o.points))
	}
	y := func(v float64) float64 { return top + height*(1-v/most) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Cumulative service of two tenants under FCFS, turns and VTC">
<style>
.paper { fill: #ffffff } text { fill: #1f2328 } .faint { fill: #59636e } .axis { stroke: #d1d9e0 }
.a { stroke: #0969da } .b { stroke: #bc4c00; stroke-dasharray: 7 4 } .a, .b { fill: none; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117 } text { fill: #f0f6fc } .faint { fill: #9198a1 } .axis { stroke: #3d444d }
.a { stroke: #4493f8 } .b { stroke: #f0883e }
}
</style>
<rect class="paper" width="100%%" height="100%%" rx="6"/>
`, left+3*width+2*apart+24, top+height+76)
	for i, name := range disciplineNames() {
		o, x0 := out[name], left+i*(width+apart)
		fmt.Fprintf(&b, `<text x="%d" y="26" font-size="15" font-weight="600">%s</text><text class="faint" x="%d" y="46">shares %.0f / %.0f %%, largest gap %.0f k</text>`+"\n",
			x0, map[string]string{"FCFS": "First come, first served", "turns": "Tenants in turns", "VTC": "Virtual token counter"}[name],
			x0, 100*o.share(0), 100*o.share(1), o.gap/1000)
		for v := 0.0; v <= most; v += 500_000 {
			fmt.Fprintf(&b, `<line class="axis" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, x0, x0+width, y(v), y(v))
			if i == 0 {
				fmt.Fprintf(&b, `<text class="faint" x="%d" y="%.1f" text-anchor="end">%.1f M</text>`, x0-8, y(v)+4, v/1e6)
			}
		}
		for m := 0.0; m <= simTime/60; m += 2 {
			fmt.Fprintf(&b, `<text class="faint" x="%.1f" y="%d" text-anchor="middle">%.0f</text>`, float64(x0)+width*m*60/simTime, top+height+18, m)
		}
		for of, class := range []string{"a", "b"} {
			var points []string
			for k := of; k < len(o.points); k += 2 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", float64(x0)+width*float64(k/2)*simPoint/simTime, y(o.points[k])))
			}
			fmt.Fprintf(&b, "\n"+`<polyline class="%s" points="%s"/>`, class, strings.Join(points, " "))
		}
		fmt.Fprintln(&b)
	}
	foot := top + height + 52
	fmt.Fprintf(&b, `<text class="faint" x="%d" y="%d" text-anchor="end">minutes</text>
<line class="a" x1="%d" x2="%d" y1="%d" y2="%d"/><text x="%d" y="%d">a: small requests</text>
<line class="b" x1="%d" x2="%d" y1="%d" y2="%d"/><text x="%d" y="%d">b: 8 times as large</text>
<text class="faint" x="%d" y="%d">service had so far, weighted tokens</text>
</svg>
`, left+3*width+2*apart, foot, left, left+30, foot-4, foot-4, left+38, foot, left+170, left+200, foot-4, foot-4, left+208, foot, left+350, foot)
	return b.Bytes()
}
