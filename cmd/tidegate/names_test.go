package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// metricDoc is what docs/metrics.md says of one metric.
type metricDoc struct {
	Type    string   // counter, gauge or histogram
	Labels  []string // sorted
	Meaning string
	Gateway bool // a gateway exports it
	Agent   bool // an agent does
}

// documentedMetrics reads the tables of docs/metrics.md, by name.
func documentedMetrics(t testing.TB) map[string]metricDoc {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("^\\| `(tidegate_[a-z_]+)` \\| (counter|gauge|histogram) \\|([^|]*)\\|([^|]*)\\|$")
	label := regexp.MustCompile("`([a-z_]+)`")
	all, section := map[string]metricDoc{}, ""
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
		d := metricDoc{Type: m[2], Meaning: strings.TrimSpace(m[4])}
		for _, l := range label.FindAllStringSubmatch(m[3], -1) {
			d.Labels = append(d.Labels, l[1])
		}
		slices.Sort(d.Labels)
		was, twice := all[m[1]]
		if twice {
			if was.Agent || section == "Gateway" || was.Type != d.Type || !slices.Equal(was.Labels, d.Labels) {
				t.Errorf("docs/metrics.md: %s stands twice, or is not the same in both places", m[1])
			}
			d.Meaning = was.Meaning
		} else if d.Meaning == "" {
			t.Errorf("docs/metrics.md: %s has no meaning", m[1])
		}
		d.Gateway, d.Agent = was.Gateway || section == "Gateway", section == "Agent"
		all[m[1]] = d
	}
	if len(all) < 70 {
		t.Fatalf("docs/metrics.md: only %d metrics are found", len(all))
	}
	return all
}

// exportedMetrics reads a page of metrics: type and labels of each of our names.
func exportedMetrics(page string) map[string]metricDoc {
	kind := regexp.MustCompile(`(?m)^# TYPE (tidegate_[a-z_]+) ([a-z]+)$`)
	sample := regexp.MustCompile(`(?m)^(tidegate_[a-z_]+?)(_bucket|_sum|_count)?(?:\{([^}]*)\})? `)
	label := regexp.MustCompile(`([a-z_]+)="(?:[^"\\]|\\.)*"`)
	all := map[string]metricDoc{}
	for _, m := range kind.FindAllStringSubmatch(page, -1) {
		all[m[1]] = metricDoc{Type: m[2]}
	}
	for _, m := range sample.FindAllStringSubmatch(page, -1) {
		name := m[1]
		if _, ok := all[name]; !ok {
			name += m[2]
		}
		d, ok := all[name]
		if !ok {
			continue
		}
		for _, l := range label.FindAllStringSubmatch(m[3], -1) {
			if l[1] != "le" && !slices.Contains(d.Labels, l[1]) {
				d.Labels = append(d.Labels, l[1])
			}
		}
		slices.Sort(d.Labels)
		all[name] = d
	}
	return all
}
