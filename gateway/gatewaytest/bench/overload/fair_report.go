package overload

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// FairReport is fair runs to be written down.
type FairReport struct {
	Facts [][2]string
	Fleet Fleet
	Plot  string // file name of the drawing
	Runs  []*FairRun
}

// run finds a run; nil if it was not made.
func (r *FairReport) run(scenario, mode string) *FairRun {
	for _, run := range r.Runs {
		if run.Scenario == scenario && run.Mode == mode {
			return run
		}
	}
	return nil
}

// tally counts a tenant's outcomes, without an objective.
func (r *FairRun) tally(tenant string) *Tally {
	return Count(GroupBy(r.Outcomes, func(o *Outcome) string { return o.Tenant.Name })[tenant], time.Hour)
}

// Write renders the report as Markdown.
func (r *FairReport) Write(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Benchmark: fairness when tenants flood\n\n")
	for _, f := range r.Facts {
		fmt.Fprintf(&b, "- %s: %s\n", f[0], f[1])
	}
	s, small, big, light := r.Fleet.Large, sizes()[SmallTenant], sizes()[BigTenant], sizes()[LightTenant]
	fmt.Fprintf(&b, "- fleet: %d simulated %s with %d slots each: TTFT %v + %v for each prompt token, ITL %v\n", r.Fleet.Larges, LargeModel, s.Slots, s.TTFT, s.Prefill, s.ITL)
	fmt.Fprintf(&b, "- tenants: %s and %s always have %d requests open, of %d + %d and %d + %d tokens (prompt + answer): %d times the service; %s sends one of %d + %d every %v\n",
		SmallTenant, BigTenant, flooders, small.Input, small.Output, big.Input, big.Output, big.Service()/small.Service(), LightTenant, light.Input, light.Output, lightPause)
	b.WriteString("\nService is prompt tokens + 2 x answer tokens, booked as it reaches the caller: the prompt with the first token, the\nanswer token by token. The first 5 s of each run are left out.\n")
	if r.Plot != "" {
		fmt.Fprintf(&b, "\n![service and time to the first token, queue fair and off](%s)\n", r.Plot)
	}
	r.shares(&b)
	r.light(&b)
	r.throughput(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *FairReport) shares(b *strings.Builder) {
	fmt.Fprintf(b, "\n## Two tenants flood, one with requests 8 times as large\n\nThe gap is the most by which their services differ over any stretch; under a Virtual Token Counter it stays below\n"+
		"2 max(wp Linput, wq M) = %d.\n\n| queue | share small | share big | Jain | gap | below the bound | requests small | requests big | refused | failed |\n"+
		"| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |\n", r.Fleet.Bound())
	for _, mode := range []string{ModeOn, ModeOff} {
		run := r.run(BothFlood, mode)
		if run == nil {
			continue
		}
		served := run.Served()
		total := served[SmallTenant] + served[BigTenant]
		totals := Count(run.Outcomes, time.Hour)
		fmt.Fprintf(b, "| %s | %.1f %% | %.1f %% | %.3f | %.0f | %t | %d | %d | %d | %d |\n", mode, 100*served[SmallTenant]/total, 100*served[BigTenant]/total,
			run.Jain(), run.Gap(), run.Gap() <= float64(r.Fleet.Bound()), run.tally(SmallTenant).Kinds[Real], run.tally(BigTenant).Kinds[Real], totals.Kinds[Refused], totals.Kinds[Failed])
	}
}

func (r *FairReport) light(b *strings.Builder) {
	b.WriteString("\n## A light tenant\n\nSeconds to the first token at the caller.\n\n| queue | beside | requests | real | refused | p50 | p95 | p95 above alone |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, mode := range []string{ModeOn, ModeOff} {
		alone := time.Duration(0)
		for _, scenario := range []string{LightAlone, LightBeside} {
			run := r.run(scenario, mode)
			if run == nil {
				continue
			}
			t := run.tally(LightTenant)
			p95, difference := quantile(t.waits, .95), "-"
			if scenario == LightAlone {
				alone = p95
			} else {
				difference = fmt.Sprintf("%.2f", (p95 - alone).Seconds())
			}
			fmt.Fprintf(b, "| %s | %s | %d | %d | %d | %s | %s | %s |\n", mode, map[string]string{LightAlone: "nobody", LightBeside: "a flood"}[scenario],
				t.Sent, t.Kinds[Real], t.Kinds[Refused], seconds(quantile(t.waits, .5)), seconds(p95), difference)
		}
	}
}

func (r *FairReport) throughput(b *strings.Builder) {
	b.WriteString("\n## Throughput\n\n| queue | scenario | service/s | slots busy | against off |\n| --- | --- | ---: | ---: | ---: |\n")
	for _, scenario := range []string{BothFlood, LightBeside} {
		for _, mode := range []string{ModeOn, ModeOff} {
			run := r.run(scenario, mode)
			if run == nil {
				continue
			}
			change := "-"
			if baseline := r.run(scenario, ModeOff); baseline != nil && mode == ModeOn && baseline.Throughput() > 0 {
				change = fmt.Sprintf("%+.1f %%", 100*(run.Throughput()/baseline.Throughput()-1))
			}
			fmt.Fprintf(b, "| %s | %s | %.0f | %.1f %% | %s |\n", mode, scenario, run.Throughput(), 100*run.Busy, change)
		}
	}
}

// Draw renders the report's drawing: the service that the flooding tenants have got,
// and how long the light tenant waited.
func (r *FairReport) Draw(w io.Writer) error {
	d := newDrawing(860, 600, "Fairness when tenants flood")
	highest, length := 1.0, 1.0
	for _, mode := range []string{ModeOn, ModeOff} {
		if run := r.run(BothFlood, mode); run != nil {
			length = run.Length.Seconds()
			for _, v := range run.Served() {
				highest = max(highest, v/1000)
			}
		}
	}
	step := 50.0
	for highest/step > 6 {
		step *= 2
	}
	for i, mode := range []string{ModeOn, ModeOff} {
		p := plot{d: d, x: marginLeft + 410*float64(i), y: 50, w: 340, h: 190, xmax: length, ymax: step * float64(int(highest/step)+1), xtitle: "seconds", ytitle: "service, thousands"}
		if i > 0 {
			p.ytitle = ""
		}
		p.axes("service got, queue "+mode, every(length, 10, "%.0f"), every(p.ymax, step, "%.0f"), nil)
		if run := r.run(BothFlood, mode); run != nil {
			p.line("s0", run.cumulative(SmallTenant), false)
			p.line("s1", run.cumulative(BigTenant), false)
		}
	}
	d.legend(295, [][2]string{{"s0", "small requests"}, {"s1", "requests 8 times as large"}})
	longest := 2 * time.Second
	for _, run := range r.Runs {
		longest = max(longest, quantile(run.tally(LightTenant).waits, 1))
	}
	p := plot{d: d, x: marginLeft, y: 350, w: 750, h: 170, xmax: longest.Seconds(), ymax: 100, xtitle: "seconds to the first token of a light tenant's request", ytitle: "% of its requests"}
	p.axes("the light tenant", every(p.xmax, max(0.5, float64(int(p.xmax/8))), "%.1f"), every(100, 25, "%.0f"), nil)
	for i, c := range []struct{ scenario, mode string }{{LightAlone, ModeOn}, {LightBeside, ModeOn}, {LightBeside, ModeOff}} {
		if run := r.run(c.scenario, c.mode); run != nil {
			p.line([]string{"s2", "s0", "s1"}[i], cumulated(run.tally(LightTenant).waits), false)
		}
	}
	d.legend(585, [][2]string{{"s2", "alone, queue on"}, {"s0", "beside a flood, queue on"}, {"s1", "beside a flood, queue off"}})
	return d.write(w)
}

// cumulative returns a tenant's service by the end of each bin, in thousands.
func (r *FairRun) cumulative(tenant string) [][2]float64 {
	points, sum := [][2]float64{{0, 0}}, 0.0
	for i, v := range r.bins[tenant] {
		sum += v / 1000
		points = append(points, [2]float64{(time.Duration(i+1) * fairBin).Seconds(), sum})
	}
	return points
}

// cumulated returns the share of sorted times up to each of them.
func cumulated(sorted []time.Duration) (points [][2]float64) {
	for i, d := range slices.All(sorted) {
		points = append(points, [2]float64{d.Seconds(), 100 * float64(i+1) / float64(len(sorted))})
	}
	return points
}
