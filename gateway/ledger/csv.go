package ledger

import (
	"encoding/csv"
	"io"
	"strconv"
	"strings"
)

// Columns are the sums by name, in order. Units are written as a decimal.
func (s *Sums) Columns() (names, values []string) {
	for _, c := range []struct {
		name string
		n    int64
	}{
		{"requests", s.Requests}, {"failed_requests", s.Failed}, {"input_tokens", s.Input}, {"cached_tokens", s.Cached}, {"output_tokens", s.Output},
		{"reasoning_tokens", s.Reasoning}, {"total_tokens", s.Total}, {"estimated_requests", s.Estimated},
	} {
		names, values = append(names, c.name), append(values, strconv.FormatInt(c.n, 10))
	}
	return append(names, "units"), append(values, strconv.FormatFloat(float64(s.Milliunits)/1000, 'f', -1, 64))
}

// WriteCSV writes a report with a line of names. A name that a spreadsheet would
// take for a formula gets an apostrophe before it (CWE-1236): users choose names.
func WriteCSV(out io.Writer, by []Group, rows []Row) error {
	w := csv.NewWriter(out)
	var head []string
	for _, g := range by {
		head = append(head, string(g))
	}
	names, _ := new(Sums).Columns()
	lines := [][]string{append(head, names...)}
	for i := range rows {
		cells := rows[i].Values(by)
		for j, cell := range cells {
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
				cells[j] = "'" + cell
			}
		}
		_, values := rows[i].Columns()
		lines = append(lines, append(cells, values...))
	}
	return w.WriteAll(lines)
}
