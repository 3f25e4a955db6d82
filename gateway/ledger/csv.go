package ledger

import (
	"encoding/csv"
	"fmt"
	"io"
	"strings"
)

// Columns returns the names and values of the sums, in order, as people read them. The
// cost is among them where tokens have prices in a currency.
func (s *Sums) Columns(currency string) (names, values []string) {
	for _, c := range []struct {
		name  string
		value any
	}{
		{"requests", s.Requests}, {"failed_requests", s.Failed}, {"input_tokens", s.Input}, {"cached_tokens", s.Cached}, {"output_tokens", s.Output},
		{"reasoning_tokens", s.Reasoning}, {"total_tokens", s.Total}, {"estimated_requests", s.Estimated}, {"units", s.Milliunits}, {"gpu_ms", s.GPUMillis},
		{"cost", s.Cost}, {"currency", currency}, {"unpriced_tokens", s.Unpriced},
	} {
		if c.name == "cost" && currency == "" {
			break
		}
		names, values = append(names, c.name), append(values, fmt.Sprint(c.value))
	}
	return names, values
}

// WriteCSV writes a report with a header line. A name that a spreadsheet would take for
// a formula gets an apostrophe in front (CWE-1236), because users choose names.
func WriteCSV(out io.Writer, groups []Group, currency string, rows []Row) error {
	w := csv.NewWriter(out)
	var head []string
	for _, g := range groups {
		head = append(head, string(g))
	}
	names, _ := new(Sums).Columns(currency)
	lines := [][]string{append(head, names...)}
	for i := range rows {
		cells := rows[i].Values(groups)
		for j, cell := range cells {
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
				cells[j] = "'" + cell
			}
		}
		_, values := rows[i].Columns(currency)
		lines = append(lines, append(cells, values...))
	}
	return w.WriteAll(lines)
}
