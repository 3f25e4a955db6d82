package main

import (
	"regexp"
	"slices"

	"tidegate/gateway/gatewaytest/stack"
)

// exportedMetrics reads a page of metrics: type and labels of each of our names.
func exportedMetrics(page string) map[string]stack.MetricDoc {
	kind := regexp.MustCompile(`(?m)^# TYPE (tidegate_[a-z_]+) ([a-z]+)$`)
	sample := regexp.MustCompile(`(?m)^(tidegate_[a-z_]+?)(_bucket|_sum|_count)?(?:\{([^}]*)\})? `)
	label := regexp.MustCompile(`([a-z_]+)="(?:[^"\\]|\\.)*"`)
	all := map[string]stack.MetricDoc{}
	for _, m := range kind.FindAllStringSubmatch(page, -1) {
		all[m[1]] = stack.MetricDoc{Type: m[2]}
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
