package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
)

// Bounds of a list that is imported.
const (
	maxImport = 16 << 20 // bytes
	maxRows   = 100_000
)

// sheet is a CSV file: its lines by the names of their columns.
type sheet struct {
	lines []int // where each row stands, from 1
	rows  []map[string]string
}

// readSheet reads a CSV file, or stdin for -, whose first line names columns among
// those that are known. Its error lists every fault with its line.
func (p *process) readSheet(name string, known, required []string) (*sheet, error) {
	in := p.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usageError{err}
		}
		defer f.Close() //nolint:errcheck // it was only read
		in = f
	}
	if in == nil {
		in = strings.NewReader("")
	}
	text, err := io.ReadAll(io.LimitReader(in, maxImport+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxImport {
		return nil, usageError{fmt.Errorf("%s is larger than %d MiB: split it", name, maxImport>>20)}
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(string(text), "\ufeff")))
	r.TrimLeadingSpace, r.Comment, r.FieldsPerRecord = true, '#', -1
	head, err := r.Read()
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: the first line must name the columns, such as %s: %w", name, strings.Join(known, ","), err)}
	}
	for i := range head {
		head[i] = strings.TrimSpace(head[i])
		if !slices.Contains(known, head[i]) || slices.Contains(head[:i], head[i]) {
			return nil, usageError{fmt.Errorf("%s: line 1: the column %q is unknown or stands twice; columns are %s", name, head[i], strings.Join(known, ", "))}
		}
	}
	for _, column := range required {
		if !slices.Contains(head, column) {
			return nil, usageError{fmt.Errorf("%s: line 1: there is no column %s", name, column)}
		}
	}
	return readRows(name, r, head)
}

func readRows(name string, r *csv.Reader, head []string) (*sheet, error) {
	var (
		s      sheet
		faults []error
	)
	for {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		line, _ := r.FieldPos(0)
		switch {
		case err != nil:
			return nil, usageError{fmt.Errorf("%s: %w", name, err)}
		case len(cells) != len(head):
			faults = append(faults, fmt.Errorf("line %d: has %d cells, and line 1 names %d columns", line, len(cells), len(head)))
			continue
		case len(s.rows) >= maxRows:
			return nil, usageError{fmt.Errorf("%s has more than %d lines: split it", name, maxRows)}
		}
		row := map[string]string{}
		for i, column := range head {
			row[column] = strings.TrimSpace(cells[i])
		}
		s.lines, s.rows = append(s.lines, line), append(s.rows, row)
	}
	if len(faults) > 0 {
		return nil, usageError{nothingDone(faults)}
	}
	return &s, nil
}

// nothingDone joins the faults of an import.
func nothingDone(faults []error) error {
	return errors.Join(append(faults, fmt.Errorf("nothing was changed: mend %d line(s) and run it again", len(faults)))...)
}

// words splits a cell that lists several; all means no restriction.
func words(text string) []string {
	if text == "all" {
		return []string{}
	}
	return strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ';' })
}

func oneFile(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("name one CSV file, or - for stdin; got %d", len(args))}
	}
	return nil
}

// columns of a list of users.
func userColumns() []string {
	return []string{"user", "project", "department", "key", "ttl", "models", "ips", "tier", "max_level"}
}

func (p *process) userImportCommand() *cobra.Command {
	var (
		file string
		dry  bool
	)
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make and change users and keys as a CSV file says, all or nothing",
		Long: "The first line names columns: " + strings.Join(userColumns(), ", ") + ".\n" +
			"Only user must be there. A user who is not there is made, with project and department;\n" +
			"one in another project is moved. With key, the user gets a key of that name, or the one\n" +
			"that is there is changed; an empty cell leaves what it has. Lists have spaces or\n" +
			"semicolons between; all takes a restriction away. ttl is for new keys alone, so that\n" +
			"the same file can be imported again without any change.\n\n" +
			"New keys go to stdout as CSV (user,key,secret), once; all else to stderr. If a line is\n" +
			"wrong, every wrong line is named and nothing is changed.",
		Example: "  tidegate user import users.csv --dry-run\n  tidegate user import users.csv > keys.csv\n" +
			"  printf 'user,project,key,ttl\\nann,apollo,ann-ci,30d\\n' | tidegate user import -",
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			sheet, err := p.readSheet(args[0], userColumns(), []string{"user"})
			if err != nil {
				return err
			}
			c, err := p.storeConfig(file)
			if err != nil {
				return err
			}
			lines, err := userLines(sheet, c.modelNames())
			if err != nil {
				return err
			}
			return p.withStore(cmd.Context(), &c, true, func(s *account.Store) error {
				done, err := account.New(c.Auth, s).Import(cmd.Context(), operator(), lines, dry)
				if err != nil {
					return importFault(err)
				}
				p.tellImported(done, dry)
				return p.writeSecrets(done, dry)
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

// userLines reads the rows of a list of users.
func userLines(s *sheet, models []string) (lines []account.ImportLine, err error) {
	var faults []error
	for i, row := range s.rows {
		l := account.ImportLine{Line: s.lines[i], NewKey: account.NewKey{
			User: row["user"], Project: row["project"], Department: row["department"], Name: row["key"], TTL: row["ttl"],
			Tier: account.Tier(row["tier"]), MaxLevel: row["max_level"],
		}}
		if list := row["models"]; list != "" {
			l.Models = words(list)
			l.Change.Models = &l.Models
			if err := checkKnown(l.Models, models); err != nil {
				faults = append(faults, &account.LineError{Line: l.Line, Err: err})
			}
		}
		if list := row["ips"]; list != "" {
			l.IPs = words(list)
			l.Change.IPs = &l.IPs
		}
		if l.Tier != "" {
			l.Change.Tier = &l.Tier
		}
		if l.MaxLevel != "" {
			l.Change.MaxLevel = &l.MaxLevel
		}
		for column, list := range map[string][]string{"models": l.Models, "ips": l.IPs} {
			if row[column] != "" && row[column] != "all" && len(list) == 0 {
				faults = append(faults, &account.LineError{Line: l.Line, Err: fmt.Errorf("%s: %q lists nothing: name what is allowed, or say all for no restriction", column, row[column])})
			}
		}
		for _, column := range []string{"ttl", "models", "ips", "tier", "max_level"} {
			if row[column] != "" && row["key"] == "" {
				faults = append(faults, &account.LineError{Line: l.Line, Err: fmt.Errorf("%s: is of a key, and the column key names none", column)})
				break
			}
		}
		lines = append(lines, l)
	}
	if len(faults) > 0 {
		return nil, usageError{nothingDone(faults)}
	}
	return lines, nil
}

// importFault lists what is wrong with an import; else it returns the error.
func importFault(err error) error {
	if !errors.As(err, new(*account.LineError)) {
		return err
	}
	return usageError{nothingDone(flatten(err))}
}

// tellImported says what was done, line by line, and what was not needed.
func (p *process) tellImported(done []account.ImportResult, dry bool) {
	equal, prefix := 0, ""
	if dry {
		prefix = "would have "
	}
	for _, d := range done {
		if len(d.Actions) == 0 {
			equal++
			continue
		}
		for _, change := range d.Actions {
			fmt.Fprintf(p.stderr, "line %d: %s%s\n", d.Line, prefix, cell(change))
		}
	}
	if dry {
		fmt.Fprintf(p.stderr, "%d line(s), %d of them are so already; nothing was changed (--dry-run)\n", len(done), equal)
		return
	}
	fmt.Fprintf(p.stderr, "%d line(s), %d of them were so already\n", len(done), equal)
}

// writeSecrets prints the new keys.
func (p *process) writeSecrets(done []account.ImportResult, dry bool) error {
	w := csv.NewWriter(p.stdout)
	rows := [][]string{{"user", "key", "secret"}}
	for _, d := range done {
		if d.Key != nil {
			rows = append(rows, []string{d.Key.User, d.Key.Name, d.Secret})
		}
	}
	if dry || len(rows) == 1 {
		return nil
	}
	return w.WriteAll(rows) // which flushes
}

func overrideColumns() []string {
	return []string{"rule", "of", "name", "requests", "tokens", "input_tokens", "output_tokens", "reasoning_tokens", "concurrency", "burst", "units"}
}

func (p *process) overrideImportCommand() *cobra.Command {
	var (
		file string
		dry  bool
	)
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Set overrides as a CSV file says, all or nothing",
		Long: "The first line names columns: rule, of (department, project, user or key), name, and the\n" +
			"numbers. Each line makes or replaces one override; those that are not named stay. If a\n" +
			"line is wrong, every wrong line is named and nothing is changed. The same file can be\n" +
			"imported again without any change.",
		Example: "  tidegate override import overrides.csv --dry-run\n" +
			"  printf 'rule,of,name,requests\\nuser-rate,user,ann,200/1m\\n' | tidegate override import -",
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			sheet, err := p.readSheet(args[0], overrideColumns(), []string{"rule", "of", "name"})
			if err != nil {
				return err
			}
			c, err := p.storeConfig(file)
			if err != nil {
				return err
			}
			lines, err := overrideLines(sheet, &c)
			if err != nil {
				return err
			}
			return p.withStore(cmd.Context(), &c, false, func(s *account.Store) error {
				done, err := s.ImportOverrides(cmd.Context(), operator(), lines, dry)
				if err != nil {
					return importFault(err)
				}
				p.tellImported(done, dry)
				return nil
			})
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

// overrideLines reads the rows of a list of overrides.
func overrideLines(s *sheet, c *config) (lines []account.ImportOverride, err error) {
	check, err := c.overrideCheck()
	if err != nil {
		return nil, err
	}
	var faults []error
	seen := map[string]int{}
	for i, row := range s.rows {
		l := account.ImportOverride{Line: s.lines[i], Override: account.Override{Rule: row["rule"], Scope: row["of"], Name: row["name"]}}
		for name, amount := range amounts(&l.Override) {
			*amount = account.Amount(row[name])
		}
		err := check(&l.Override)
		if first, twice := seen[l.Path()]; twice {
			err = fmt.Errorf("the same rule and subject stand in line %d", first)
		}
		seen[l.Path()] = l.Line
		if err != nil {
			faults = append(faults, &account.LineError{Line: l.Line, Err: err})
		}
		lines = append(lines, l)
	}
	if len(faults) > 0 {
		return nil, usageError{nothingDone(faults)}
	}
	return lines, nil
}
