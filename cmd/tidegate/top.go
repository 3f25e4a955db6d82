package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tidegate/gateway/activity"

	"github.com/spf13/cobra"
)

// topFlags are the flags of tidegate top.
type topFlags struct {
	ops        []string
	dimension  string
	json, once bool
	every      time.Duration
	rows       int
	names      []string // of by
}

func (p *process) topCommand() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show who uses what now: users, keys, models, tokens a second, in flight, refused",
		Long: "Asks the ops listeners of running gateways who uses what, and sums it up. Tokens a\n" +
			"second are those of the last 10 to 15 seconds, as they pass; requests and refusals are\n" +
			"those of the last minute, and a refusal is one without asking a backend. On a terminal\n" +
			"it goes on until Ctrl-C; else, and with --once or --json, it prints once and ends.\n" +
			"Each gateway tells 4096 pairs of a key and a model apart; the rest is other.",
		Example: "  tidegate top\n  tidegate top --by department --once\n  tidegate top --ops http://10.0.0.5:9090 --ops http://10.0.0.6:9090 --json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.top(cmd.Context(), f) },
	}
	cmd.Flags().StringArrayVar(&f.ops, "ops", []string{"http://127.0.0.1:9090"}, "URL of a gateway's ops listener; may be given more than once")
	cmd.Flags().StringVar(&f.dimension, "by", "user,key,model", "what to sum up by: some of department, project, user, key and model, with commas between")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON once")
	cmd.Flags().BoolVar(&f.once, "once", false, "print once, also on a terminal")
	cmd.Flags().DurationVar(&f.every, "every", 2*time.Second, "between two looks on a terminal")
	cmd.Flags().IntVar(&f.rows, "rows", 20, "lines of the table at most; 0: all")
	return cmd
}

// topNames are the names by which use can be summed up.
func topNames() []string { return []string{"department", "project", "user", "key", "model"} }

func (p *process) top(ctx context.Context, f topFlags) error {
	for _, name := range strings.Split(f.dimension, ",") {
		if !slices.Contains(topNames(), name) || slices.Contains(f.names, name) {
			return usageError{fmt.Errorf("--by %s: expected some of %s, each once, with commas between", f.dimension, strings.Join(topNames(), ", "))}
		}
		f.names = append(f.names, name)
	}
	if f.every < 100*time.Millisecond {
		return usageError{fmt.Errorf("--every %v: must be at least 100ms, such as 2s", f.every)}
	}
	screen, ok := p.stdout.(*terminal)
	if f.json || f.once || !ok || !screen.interactive() {
		return p.topOnce(ctx, &f)
	}
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	return p.watch(ctx, &f, screen, tick.C)
}

// topOnce prints who uses what once.
func (p *process) topOnce(ctx context.Context, f *topFlags) error {
	uses, err := f.ask(ctx)
	if err != nil {
		return err
	}
	if !f.json {
		return f.write(p.stdout, uses, time.Now())
	}
	rows := []map[string]any{}
	for _, u := range uses {
		row := map[string]any{
			"running": u.Running, "waiting": u.Waiting, "requests": u.Requests, "refused": u.Refused,
			"input_tokens_per_second": u.Input, "output_tokens_per_second": u.Output,
		}
		for i, name := range f.names {
			row[name] = u.names[i]
		}
		rows = append(rows, row)
	}
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(map[string]any{"at": time.Now().UTC(), "by": f.names, "rows": rows})
}

// watch prints who uses what again and again until ctx ends. A gateway that does not
// answer meanwhile is said in place of the table.
func (p *process) watch(ctx context.Context, f *topFlags, screen *terminal, tick <-chan time.Time) error {
	for first := true; ; first = false {
		var page bytes.Buffer
		uses, err := f.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(&page, bounded(err))
		default:
			err = f.write(&page, uses, time.Now())
		}
		if err := errors.Join(screen.clear(), writeAll(screen, page.Bytes())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

func writeAll(out io.Writer, text []byte) error {
	_, err := out.Write(text)
	return err
}

// use is the sum of those who are alike in the chosen names.
type use struct {
	names []string
	activity.Row
}

// ask asks every gateway and sums up, those who use most first.
func (f *topFlags) ask(ctx context.Context) ([]*use, error) {
	sums := map[string]*use{}
	var uses []*use
	for _, ops := range f.ops {
		body, err := askOps(ctx, ops, "/top")
		var t activity.Top
		if err == nil {
			err = json.Unmarshal(body, &t)
		}
		if err == nil && t.Time.IsZero() {
			err = errors.New("the answer is no gateway's")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ops, err)
		}
		for i := range t.Rows {
			r := &t.Rows[i]
			labels := map[string]string{"department": r.Department, "project": r.Project, "user": r.User, "key": r.Key, "model": r.Model}
			names := make([]string, len(f.names))
			for i, name := range f.names {
				names[i] = labels[name]
			}
			id := fmt.Sprintf("%q", names)
			u := sums[id]
			if u == nil {
				u = &use{names: names}
				sums[id] = u
				uses = append(uses, u)
			}
			u.Running += r.Running
			u.Waiting += r.Waiting
			u.Requests += r.Requests
			u.Refused += r.Refused
			u.Input += r.Input
			u.Output += r.Output
		}
	}
	slices.SortFunc(uses, func(a, b *use) int {
		return cmp.Or(cmp.Compare(b.Output, a.Output), cmp.Compare(b.Running+b.Waiting, a.Running+a.Waiting), cmp.Compare(b.Refused, a.Refused),
			cmp.Compare(b.Requests, a.Requests), slices.Compare(a.names, b.names))
	})
	return uses, nil
}

// write prints a table for people.
func (f *topFlags) write(out io.Writer, uses []*use, now time.Time) error {
	var sum activity.Row
	head := []string{}
	for _, name := range f.names {
		head = append(head, strings.ToUpper(name))
	}
	t := table{append(head, "OUT TOKENS/S", "IN TOKENS/S", "RUNNING", "WAITING", "REQUESTS/MIN", "REFUSED/MIN")}
	for i, u := range uses {
		sum.Running += u.Running
		sum.Waiting += u.Waiting
		sum.Requests += u.Requests
		sum.Refused += u.Refused
		sum.Output += u.Output
		sum.Input += u.Input
		if f.rows > 0 && i >= f.rows {
			continue
		}
		line := []string{}
		for i, name := range u.names {
			if name == "" && f.names[i] == "user" {
				name = "(no good key)"
			}
			line = append(line, name)
		}
		t = append(t, append(line, fmt.Sprintf("%.0f", u.Output), fmt.Sprintf("%.0f", u.Input), fmt.Sprint(u.Running), fmt.Sprint(u.Waiting), fmt.Sprint(u.Requests), fmt.Sprint(u.Refused)))
	}
	fmt.Fprintf(out, "%s  %d running, %d waiting, %.0f tokens a second out and %.0f in; in the last minute %d requests and %d refusals\n\n",
		now.Format(time.TimeOnly), sum.Running, sum.Waiting, sum.Output, sum.Input, sum.Requests, sum.Refused)
	if len(uses) == 0 {
		_, err := fmt.Fprintln(out, "nobody has used anything in the last minute")
		return err
	}
	if err := t.write(out); err != nil {
		return err
	}
	if rest := len(uses) - (len(t) - 1); rest > 0 {
		fmt.Fprintf(out, "... and %d more (--rows 0 prints all)\n", rest)
	}
	return nil
}
