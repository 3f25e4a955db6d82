package stack

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// MetricDoc is a row of docs/metrics.md.
type MetricDoc struct {
	Type    string   // counter, gauge or histogram
	Labels  []string // sorted
	Meaning string
	Gateway bool // whether a gateway exports it
	Agent   bool // whether an agent does
}

// DocumentedMetrics reads the tables of docs/metrics.md, by name. root is the path of the
// repository.
func DocumentedMetrics(t testing.TB, root string) map[string]MetricDoc {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("^\\| `(tidegate_[a-z_]+)` \\| (counter|gauge|histogram) \\|([^|]*)\\|([^|]*)\\|$")
	label := regexp.MustCompile("`([a-z_]+)`")
	all, section := map[string]MetricDoc{}, ""
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		if !strings.HasPrefix(line, "| `tidegate_") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("docs/metrics.md: this row is not | name | type | labels | meaning |: %s", line)
		}
		d := MetricDoc{Type: m[2], Meaning: strings.TrimSpace(m[4])}
		for _, l := range label.FindAllStringSubmatch(m[3], -1) {
			d.Labels = append(d.Labels, l[1])
		}
		slices.Sort(d.Labels)
		known, twice := all[m[1]]
		if twice {
			if known.Agent || section == "Gateway" || known.Type != d.Type || !slices.Equal(known.Labels, d.Labels) {
				t.Errorf("docs/metrics.md: %s stands twice, or is not the same in both places", m[1])
			}
			d.Meaning = known.Meaning
		} else if d.Meaning == "" {
			t.Errorf("docs/metrics.md: %s has no meaning", m[1])
		}
		d.Gateway, d.Agent = known.Gateway || section == "Gateway", section == "Agent"
		all[m[1]] = d
	}
	if len(all) < 70 {
		t.Fatalf("docs/metrics.md: only %d metrics are found", len(all))
	}
	return all
}
