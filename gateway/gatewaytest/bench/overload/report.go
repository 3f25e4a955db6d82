package overload

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// The modes, in the order of the tables.
const (
	ModeOn  = "on"
	ModeOff = "off"
)

// Report is runs to be written down.
type Report struct {
	Facts     [][2]string // name and text
	Fleet     Fleet
	Rows      []Row // all that could be replayed, after Fit
	Cut       int   // prompts that Fit cut
	Objective time.Duration
	Plot      string // file name of the drawing, beside the report
	Runs      []*Run
}

// Write renders the report as Markdown.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Benchmark: goodput under overload\n\n")
	for _, f := range r.Facts {
		fmt.Fprintf(&b, "- %s: %s\n", f[0], f[1])
	}
	r.setting(&b)
	if r.Plot != "" {
		fmt.Fprintf(&b, "\n![goodput by load, ladder on and off](%s)\n", r.Plot)
	}
	r.summary(&b)
	r.waits(&b)
	r.recovery(&b)
	r.whys(&b)
	for _, part := range []struct {
		title string
		note  string
		name  func(*Outcome) string
	}{
		{"By level", "The level in the answer's head; refused and lost requests stand where their answer put them, L0 where there was none.", func(o *Outcome) string { return o.Level }},
		{"By tier", "", func(o *Outcome) string { return o.Tenant.Tier }},
		{"By tenant", "", func(o *Outcome) string { return o.Tenant.Name + " (" + o.Tenant.Tier + ")" }},
		{"By trace", "", func(o *Outcome) string { return o.Trace }},
		{"By what was asked for", "", func(o *Outcome) string { return map[bool]string{true: "stream", false: "whole"}[o.Stream] }},
	} {
		r.parts(&b, part.title, part.note, part.name)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) setting(b *strings.Builder) {
	f, s := r.Fleet, r.Fleet.Large
	var input, output float64
	for _, row := range r.Rows {
		input += float64(row.Input) / float64(len(r.Rows))
		output += float64(row.Output) / float64(len(r.Rows))
	}
	fmt.Fprintf(b, "- fleet: %d simulated %s with %d slots each: TTFT %v + %v for each prompt token, ITL %v; %d simulated %s, 2.5 times as fast; context %d\n",
		f.Larges, LargeModel, s.Slots, s.TTFT, s.Prefill, s.ITL, f.Smalls, SmallModel, f.Context)
	fmt.Fprintf(b, "- traces: %d rows, on average %.0f tokens of prompt and %.0f of answer, with thinking %.0f of output; %d prompts too long for the context were cut to it\n",
		len(r.Rows), input, output, output*(1+thinking), r.Cut)
	fmt.Fprintf(b, "- capacity (1x): %.1f requests/s of this kind on the %s servers at L0: slots / mean of (TTFT + input * prefill + (%d * answer - 1) * ITL); each window is on a clock by which it asks for just its multiple of the slot-seconds\n",
		f.Capacity(r.Rows), LargeModel, 1+thinking)
	fmt.Fprintf(b, "- objective: first token within %v; timeout of a caller 60 s, no retries, %.0f %% streams\n", r.Objective, streamed*100)
	b.WriteString(`
Goodput is the share of **all** requests sent under load that got a real answer (whole, with content, by one of the
models at L0 to L3; a canned one never counts) within the objective. *strict*: until the first content or reasoning at
the caller, who sees an answer of L1 and up only when it is ready; a caller who asked for no stream is judged by the
engine's first token. *engine*: until the engine's first token, for all. Clients, stand-ins and gateway share the machine.
`)
}

// sorted runs: by load, on before off.
func (r *Report) sorted() []*Run {
	return slices.SortedStableFunc(slices.Values(r.Runs), func(a, b *Run) int {
		return cmp.Or(cmp.Compare(a.Load, b.Load), -cmp.Compare(a.Mode, b.Mode))
	})
}

func percent(n, whole int) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(whole))
}

// seconds of a quantile; 0 says that there was nothing.
func seconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", d.Seconds())
}

func (r *Report) summary(b *strings.Builder) {
	b.WriteString("\n## Goodput\n\n| load | ladder | sent | req/s | goodput strict | goodput engine | real | canned | refused | failed | cut at max_tokens |\n" +
		"| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, run := range r.sorted() {
		t := Count(run.Outcomes, r.Objective)
		fmt.Fprintf(b, "| %gx | %s | %d | %.1f | %s | %s | %s | %s | %s | %s | %s |\n", run.Load, run.Mode, t.Sent, float64(t.Sent)/run.Window.Length.Seconds(),
			percent(t.Strict, t.Sent), percent(t.Engine, t.Sent), percent(t.Kinds[Real], t.Sent), percent(t.Kinds[Canned], t.Sent),
			percent(t.Kinds[Refused], t.Sent), percent(t.Kinds[Failed], t.Sent), percent(t.Cut, t.Kinds[Real]))
	}
}

func (r *Report) waits(b *strings.Builder) {
	b.WriteString("\n## Time to the first token\n\nSeconds, of real answers. Caller: streams only.\n\n| load | ladder | caller p50 | caller p95 | engine p50 | engine p95 | thousand tokens answered | cores: gateway | clients and stand-ins | foreign |\n" +
		"| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, run := range r.sorted() {
		t := Count(run.Outcomes, r.Objective)
		fmt.Fprintf(b, "| %gx | %s | %s | %s | %s | %s | %.0f | %.2f | %.2f | %.2f |\n", run.Load, run.Mode,
			seconds(quantile(t.waits, .5)), seconds(quantile(t.waits, .95)), seconds(quantile(t.engines, .5)), seconds(quantile(t.engines, .95)),
			float64(t.Tokens)/1000, run.Gateway, run.Clients, run.Foreign)
	}
}

func (r *Report) recovery(b *strings.Builder) {
	fmt.Fprintf(b, "\n## After the load\n\nThe load falls to %gx. Seconds until the level is L0 and stays so, and until nothing waits in an engine.\n\n"+
		"| load | ladder | L0 after | no queue after | watched | sent meanwhile | goodput strict | goodput engine |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n", lightLoad)
	for _, run := range r.sorted() {
		t := Count(run.LightOutcomes, r.Objective)
		fmt.Fprintf(b, "| %gx | %s | %s | %s | %.0f | %d | %s | %s |\n", run.Load, run.Mode, orDash(run.Recovery()), orDash(run.Drained()),
			run.watched().Seconds(), t.Sent, percent(t.Strict, t.Sent), percent(t.Engine, t.Sent))
	}
}

func orDash(d time.Duration, ok bool) string {
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%.1f", d.Seconds())
}

// watched returns the time for which the run was watched after its load.
func (r *Run) watched() time.Duration {
	if len(r.Moments) == 0 {
		return 0
	}
	return r.Moments[len(r.Moments)-1].Elapsed - r.Window.Length
}

func (r *Report) whys(b *strings.Builder) {
	b.WriteString("\n## Why there was no real answer\n\n| load | ladder | what | requests | share |\n| ---: | --- | --- | ---: | ---: |\n")
	for _, run := range r.sorted() {
		t := Count(run.Outcomes, r.Objective)
		for _, reason := range slices.Sorted(maps.Keys(t.Reasons)) {
			fmt.Fprintf(b, "| %gx | %s | %s | %d | %s |\n", run.Load, run.Mode, reason, t.Reasons[reason], percent(t.Reasons[reason], t.Sent))
		}
	}
}

func (r *Report) parts(b *strings.Builder, title, note string, name func(*Outcome) string) {
	fmt.Fprintf(b, "\n## %s\n\n", title)
	if note != "" {
		b.WriteString(note + "\n\n")
	}
	b.WriteString("| load | ladder | | sent | share | goodput strict | goodput engine | canned | refused | failed | caller p95 s | engine p95 s |\n" +
		"| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, run := range r.sorted() {
		parts := GroupBy(run.Outcomes, name)
		for _, key := range slices.Sorted(maps.Keys(parts)) {
			t := Count(parts[key], r.Objective)
			fmt.Fprintf(b, "| %gx | %s | %s | %d | %s | %s | %s | %s | %s | %s | %s | %s |\n", run.Load, run.Mode, key, t.Sent, percent(t.Sent, len(run.Outcomes)),
				percent(t.Strict, t.Sent), percent(t.Engine, t.Sent), percent(t.Kinds[Canned], t.Sent), percent(t.Kinds[Refused], t.Sent),
				percent(t.Kinds[Failed], t.Sent), seconds(quantile(t.waits, .95)), seconds(quantile(t.engines, .95)))
		}
	}
}
