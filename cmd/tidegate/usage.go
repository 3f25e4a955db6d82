package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidegate/admission/limit"
	"tidegate/gateway/backend"
	"tidegate/gateway/database"
	"tidegate/gateway/ledger"
)

func (p *process) usageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "usage", Short: "What was used", Args: cobra.NoArgs,
		Example: "  tidegate usage report --by user --from 2026-01-01 --to 2026-01-31",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{errors.New("say which: tidegate usage report")}
		},
	}
	cmd.AddCommand(p.usageReportCommand())
	return cmd
}

// reportFlags are the flags of tidegate usage report.
type reportFlags struct {
	file, begin, end, format string
	zone                     string
	dimensions               []string
	filter                   ledger.Filter
}

func (p *process) usageReportCommand() *cobra.Command {
	var f reportFlags
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Print what was used, from the store of the configuration",
		Long: "Prints requests and tokens from the gateway's database and from this machine's\n" +
			"journal, whether the gateway runs or not. Months, days and hours are those of\n" +
			"--zone, and both ends are included. Units are what quotas were charged; cost is\n" +
			"by models[].prices of the configuration.",
		Example: "  tidegate usage report --by department --from 2026-01-01 --to 2026-01-31\n" +
			"  tidegate usage report --by month,department --zone Asia/Shanghai --from 2026-01-01 --to 2026-12-31\n" +
			"  tidegate usage report --by day,model --user alice --format csv > alice.csv",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.usageReport(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.file, "config", "", "configuration file (default $TIDEGATE_CONFIG, else tidegate.yaml, else the defaults)")
	flags.StringSliceVar(&f.dimensions, "by", []string{string(ledger.ByUser)}, "department, project, user, key, model, month, day or hour; several with commas")
	flags.StringVar(&f.zone, "zone", "", "time zone of months, days and hours, such as Asia/Shanghai (default reports.zone of the configuration)")
	flags.StringVar(&f.begin, "from", "", "first day, such as 2026-01-01 (default 29 days before the last)")
	flags.StringVar(&f.end, "to", "", "last day (default today)")
	flags.StringVar(&f.format, "format", "table", "table, json or csv")
	flags.StringVar(&f.filter.Department, "department", "", "only this department")
	flags.StringVar(&f.filter.Project, "project", "", "only this project")
	flags.StringVar(&f.filter.User, "user", "", "only this user")
	flags.StringVar(&f.filter.Key, "key", "", "only the key of this name")
	flags.StringVar(&f.filter.Model, "model", "", "only this model")
	return cmd
}

// query returns the query of the flags.
func (f *reportFlags) query(today time.Time) (q ledger.Query, err error) {
	q.Filter = f.filter
	if len(f.dimensions) == 0 {
		return q, usageError{errors.New("--by is empty: expected department, project, user, key, model, month, day or hour")}
	}
	for _, dimension := range f.dimensions {
		g := ledger.Group(dimension)
		if !slices.Contains(ledger.Groups(), g) {
			return q, usageError{fmt.Errorf("--by %s: expected department, project, user, key, model, month, day or hour", dimension)}
		}
		if slices.Contains(q.GroupBy, g) {
			return q, usageError{fmt.Errorf("--by names %s twice", dimension)}
		}
		q.GroupBy = append(q.GroupBy, g)
	}
	if q.Zone, err = limit.LoadZone(f.zone); err != nil {
		return q, usageError{fmt.Errorf("--zone: %w", err)}
	}
	day := func(name, text string, fallback time.Time) time.Time {
		if text == "" {
			return fallback
		}
		date, e := time.Parse(time.DateOnly, text)
		if e != nil && err == nil {
			err = usageError{fmt.Errorf("--%s %s: expected a day such as 2026-01-31", name, text)}
		}
		return limit.Dawn(date.Year(), date.Month(), date.Day(), q.Zone)
	}
	last := day("to", f.end, limit.DayOf(today.In(q.Zone), 0))
	q.Start, q.End = day("from", f.begin, limit.DayOf(last, -29)), limit.DayOf(last, 1)
	if err == nil && !q.Start.Before(q.End) {
		err = usageError{errors.New("--from must not be after --to")}
	}
	return q, err
}

func (p *process) usageReport(ctx context.Context, f reportFlags) error {
	if !slices.Contains([]string{"table", "json", "csv"}, f.format) {
		return usageError{fmt.Errorf("--format %s: expected table, json or csv", f.format)}
	}
	c, err := p.storeConfig(f.file)
	if err != nil {
		return err
	}
	f.zone = cmp.Or(f.zone, c.Reports.Zone)
	q, err := f.query(time.Now())
	if err != nil {
		return err
	}
	for i := range c.Models {
		if err := backend.ValidatePrices(c.Models[i].Prices); err != nil {
			return usageError{fmt.Errorf("models[%d].%w", i, err)}
		}
	}
	q.Prices = c.prices()
	store := c.Store
	if file, ok := sqliteFile(store.DSN); ok {
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			absolute, _ := filepath.Abs(file) // it is only shown
			return usageError{fmt.Errorf("there is no database %s: run this where the gateway runs, or name its configuration with --config", absolute)}
		}
	}
	db, err := database.Open(ctx, store.DSN)
	if err != nil {
		return fmt.Errorf("store.dsn: %w", err)
	}
	defer db.Close() //nolint:errcheck // it was only read
	if err := ledger.Migrate(ctx, db); err != nil {
		return err
	}
	rows, err := ledger.Report(ctx, db, store.JournalDir, q)
	if err != nil {
		return err
	}
	switch f.format {
	case "json":
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(q.Answer(rows))
	case "csv":
		return ledger.WriteCSV(p.stdout, q.GroupBy, q.Prices.Currency, rows)
	}
	return writeTable(p.stdout, q.GroupBy, q.Prices.Currency, rows)
}

func writeTable(out io.Writer, groups []ledger.Group, currency string, rows []ledger.Row) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "nothing was used")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(cells []string) { fmt.Fprintln(w, strings.Join(cells, "\t")+"\t") }
	names, _ := new(ledger.Sums).Columns(currency)
	var head []string
	for _, g := range groups {
		head = append(head, string(g))
	}
	line(append(head, names...))
	var sum ledger.Sums
	for i := range rows {
		_, values := rows[i].Columns(currency)
		cells := rows[i].Values(groups)
		for j := range cells {
			if cells[j] = cell(cells[j]); cells[j] == "" {
				cells[j] = "-"
			}
		}
		line(append(cells, values...))
		sum.Add(&rows[i].Sums)
	}
	_, values := sum.Columns(currency)
	line(append(append([]string{"total"}, make([]string, len(groups)-1)...), values...))
	return w.Flush()
}
