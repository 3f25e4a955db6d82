package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidegate/degrade"
	"tidegate/gateway/alert"
	"tidegate/gateway/ops"
	"tidegate/nvml"
)

func (p *process) statusCommand() *cobra.Command {
	var (
		ops             string
		asRaw, complete bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a running gateway, its backends and their GPUs are doing",
		Long: "Asks a running gateway's ops listener and prints what is wrong, then its models,\n" +
			"backends, GPUs and sources of readings. A dash stands for what is not known. Ages are\n" +
			"of the readings: those up to 3 s count in full, those over 10 s not at all. FIRST TOKEN\n" +
			"is within what time nine in ten streams had it, TOKENS/S what answers had of late. Of a large\n" +
			"fleet the lines that need somebody are printed, and a few others; --all prints each.",
		Example: "  tidegate status\n  tidegate status --ops http://10.0.0.5:9090 --json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.status(cmd.Context(), ops, asRaw, complete) },
	}
	cmd.Flags().StringVar(&ops, "ops", "http://127.0.0.1:9090", "URL of the gateway's ops listener")
	cmd.Flags().BoolVar(&asRaw, "json", false, "print what GET /status answers, as it is")
	cmd.Flags().BoolVar(&complete, "all", false, "print every line of a large fleet, and every warning")
	return cmd
}

// Bounds of asking a gateway for its status.
const (
	statusLimit = 10 * time.Second
	maxStatus   = 64 << 20 // bytes
)

func (p *process) status(ctx context.Context, address string, asRaw, complete bool) error {
	body, err := askOps(ctx, address, "/status")
	if err != nil {
		return err
	}
	var s ops.Status
	if err = json.Unmarshal(body, &s); err == nil && s.Version == "" {
		err = errors.New("the answer is no gateway's")
	}
	if err != nil {
		return fmt.Errorf("%s/status: %w", address, err)
	}
	if asRaw {
		_, err = p.stdout.Write(body)
		return err
	}
	return writeStatus(p.stdout, &s, complete)
}

// askOps asks a gateway's ops listener for a page of JSON.
func askOps(ctx context.Context, ops, path string) ([]byte, error) {
	if !httpURL(ops) {
		return nil, usageError{fmt.Errorf("--ops %s: expected a URL such as http://127.0.0.1:9090", ops)}
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(ops, "/")+path, nil)
	if err != nil {
		return nil, usageError{fmt.Errorf("--ops %s: %w", ops, err)}
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(q)
	if err != nil {
		return nil, fmt.Errorf("no gateway answers at %s (server.ops_listen says where it does): %w", ops, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err == nil && resp.StatusCode != http.StatusOK {
		reason, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		err = errors.New(strings.TrimSuffix(fmt.Sprintf("status %d: %s", resp.StatusCode, note(reason)), ": "))
		if resp.StatusCode == http.StatusNotFound {
			err = errors.New("this is no gateway's ops listener: server.ops_listen says where it is, by default 127.0.0.1:9090, and callers have another address")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s%s: %w", ops, path, err)
	}
	return body, nil
}

// writeStatus prints a status for people: what is wrong comes first.
func writeStatus(out io.Writer, s *ops.Status, complete bool) error {
	ready := "ready"
	if !s.Ready {
		ready = "not ready: " + s.WhyNotReady
	}
	fmt.Fprintf(out, "tidegate %s, up %v, store %s, %s\n", cell(s.Version), time.Duration(s.UptimeS)*time.Second, cell(s.Store), note(ready))
	for _, w := range alike(s.Warnings, complete) {
		fmt.Fprintf(out, "warning: %s\n", note(w))
	}
	models := table{{"MODEL", "LEVEL", "REASON", "PRESSURE", "SINCE", "MAY FALL IN", "WAITING", "FALLBACK"}}
	for i := range s.Models {
		if i < len(s.Ladder.Models) {
			models = append(models, modelLine(&s.Models[i], &s.Ladder.Models[i], time.Now()))
		}
	}
	backends := fleetTable{head: []string{"MODEL", "BACKEND", "STATE", "LEVEL", "VLLM", "IN FLIGHT", "FIRST TOKEN", "TOKENS/S", "RUNNING", "WAITING", "KV CACHE", "PREEMPTED 5S", "AGE", "GPUS"}}
	for k, m := range s.Models {
		for i := range m.Backends {
			var level *degrade.BackendStatus
			if k < len(s.Ladder.Models) && i < len(s.Ladder.Models[k].Backends) {
				level = &s.Ladder.Models[k].Backends[i]
			}
			b := &m.Backends[i]
			odd := !b.InRotation || b.Unanswered != nil || level != nil && level.Level != degrade.Full.String() || b.Engine == nil || b.Engine.Freshness != nvml.Fresh.String()
			backends.add(backendLine(m.Model, b, level), odd)
		}
	}
	gpus := fleetTable{head: []string{"GPU", "NAME", "STATE", "MARGIN", "TEMP", "HBM", "MEMORY", "POWER", "AGE", "CLOCKS HELD BY"}}
	for i := range s.GPUs {
		g := &s.GPUs[i]
		gpus.add(gpuLine(g), g.State != nvml.StateOK || g.Freshness != nvml.Fresh.String() || g.Margin != nil && *g.Margin <= oddMargin)
	}
	sources := fleetTable{head: []string{"SOURCE", "KIND", "STATE", "GPUS", "HEARD", "RESTARTS", "ADDRESS"}}
	for i := range s.Sources {
		sources.add(sourceLine(&s.Sources[i]), !s.Sources[i].OK || s.Sources[i].Warning != "")
	}
	alerts := table{{"ALERTS TO", "TYPE", "PENDING", "SENT", "GIVEN UP", "LAST SENT", "LAST ERROR"}}
	for i := range s.Alerts {
		alerts = append(alerts, alertLine(&s.Alerts[i]))
	}
	for _, t := range []fleetTable{{lines: models[1:], head: models[0], odd: len(models) - 1}, backends, gpus, sources, {lines: alerts[1:], head: alerts[0], odd: len(alerts) - 1}} {
		if err := t.write(out, complete); err != nil {
			return err
		}
	}
	return nil
}

// table is lines of cells; the first is the head.
type table [][]string

func (t table) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, cells := range t {
		for i, c := range cells {
			if cells[i] = cell(c); c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// modelLine says where a model stands, and why.
func modelLine(m *ops.ModelStatus, l *degrade.ModelStatus, now time.Time) []string {
	reason, age, fall, waiting := l.Reason, "", "", 0
	if l.Backend != "" {
		reason += " of " + l.Backend
	}
	if l.Pin != nil {
		reason = "pinned by " + l.Pin.Author
		if l.Pin.Reason != "" {
			reason += ": " + l.Pin.Reason
		}
	}
	if l.ChangedAt != nil {
		age = now.Sub(*l.ChangedAt).Round(time.Second).String()
	}
	if l.MayFall != nil && l.Level != degrade.Full.String() {
		fall = max(l.MayFall.Sub(now), 0).Round(time.Second).String()
	}
	for _, n := range m.Queued {
		waiting += n
	}
	level := l.Level
	if l.WouldBe != l.Level && l.Pin == nil {
		level += " (would be " + l.WouldBe + ")"
	}
	return []string{m.Model, level, reason, fmt.Sprintf("%.2f", l.Pressure), age, fall, fmt.Sprint(waiting), m.Fallback}
}

// standing is a backend's level and the signal that asks for it, with its reading.
func standing(b *degrade.BackendStatus) string {
	if b == nil || b.Reason == "" {
		if b == nil {
			return ""
		}
		return b.Level
	}
	for _, s := range b.Signals {
		if s.Signal == b.Reason && s.Value != nil {
			return fmt.Sprintf("%s %s %g", b.Level, b.Reason, *s.Value)
		}
	}
	return b.Level + " " + b.Reason
}

func backendLine(model string, b *ops.BackendStatus, level *degrade.BackendStatus) []string {
	state := "up"
	if !b.InRotation {
		state = "out: " + b.Reason
	}
	var names []string
	for _, g := range b.GPUs {
		name := g.GPU
		if g.Freshness != nvml.Fresh.String() {
			name += " (" + g.Freshness + ")"
		}
		names = append(names, name)
	}
	ttft, made := "", fmt.Sprintf("%.0f", b.Made)
	if b.TTFT != nil {
		ttft = fmt.Sprintf("%.3g s", *b.TTFT)
	}
	if b.Speed != nil {
		made += fmt.Sprintf(", %.0f a stream", *b.Speed)
	}
	inFlight := fmt.Sprint(b.InFlight)
	if b.Unanswered != nil {
		inFlight += fmt.Sprintf(", %d without progress", b.Unanswered.Requests)
	}
	line := []string{model, b.Backend, state, standing(level), b.Version, inFlight, ttft, made}
	running, waiting, cache, preempted, old := "", "", "", "", ""
	if e := b.Engine; e != nil {
		running, waiting, preempted, old = shown(e.Running, "%d"), shown(e.Waiting, "%d"), shown(e.Preempted, "%d"), age(e.AgeMs)
		if e.KV != nil {
			cache = fmt.Sprintf("%.0f%%", *e.KV*100)
		}
	}
	return append(line, running, waiting, cache, preempted, old, strings.Join(names, " "))
}

func gpuLine(g *nvml.GPUStatus) []string {
	state := g.State
	if g.Freshness != nvml.Fresh.String() {
		state += ", " + g.Freshness
	}
	for _, x := range g.XIDs {
		if x.Fatal && x.Code != 0 {
			state += fmt.Sprintf(", XID %d", x.Code)
		}
	}
	const gibi = 1 << 30
	memory := ""
	if g.MemoryUsed != nil {
		memory = fmt.Sprintf("%.1f", float64(*g.MemoryUsed)/gibi)
		if g.MemoryTotal != nil {
			memory += fmt.Sprintf(" of %.1f", float64(*g.MemoryTotal)/gibi)
		}
		memory += " GiB"
	}
	power := ""
	if g.Power != nil {
		power = fmt.Sprintf("%d W", (*g.Power+500)/1000)
	}
	return []string{
		g.GPU, g.Name, state, shown(g.Margin, "%d C"), shown(g.Temperature, "%d C"), shown(g.HBM, "%d C"), memory, power, age(g.AgeMs), strings.Join(g.Reasons, " "),
	}
}

func sourceLine(s *nvml.SourceStatus) []string {
	state, heard := "ok", "never"
	if !s.OK {
		state = s.Error
	}
	if s.HeardMs != nil {
		heard = age(*s.HeardMs) + " ago"
	}
	return []string{s.Name, s.Kind, state, fmt.Sprint(s.GPUs), heard, fmt.Sprint(s.Restarts), s.Address}
}

func alertLine(s *alert.Status) []string {
	last := "never"
	if s.LastSuccess != nil {
		last = s.LastSuccess.Format(time.RFC3339)
	}
	return []string{s.Channel, s.Type, fmt.Sprint(s.Pending), fmt.Sprint(s.Sent), fmt.Sprint(s.Failed), last, s.LastError}
}

func shown(n *int, format string) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf(format, *n)
}

func age(ms int64) string {
	return (time.Duration(ms) * time.Millisecond).Round(100 * time.Millisecond).String()
}
