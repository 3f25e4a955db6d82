package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/nvml"
	"tidegate/nvml/device"
)

// TestMetricNames compares what an agent exports of a GPU that tells everything with
// its table in docs/metrics.md, both ways.
func TestMetricNames(t *testing.T) {
	n, big, yes := 40, uint64(1<<30), true
	full := nvml.Report{GPUs: []nvml.Reading{{
		UUID: "u", Name: "n", Margin: &n, Temperature: &n, HBM: &n, Memory: nvml.Memory{MemoryTotal: &big, MemoryUsed: &big, MemoryFree: &big, MemoryReserved: &big},
		Power: &big, PowerLimit: &big, Utilisation: &n, Reasons: []string{"sw_thermal"}, ThrottleNs: map[string]uint64{"sw_thermal": 1}, ECCUncorrected: &big, RowsPending: &yes,
	}}}
	reg := prometheus.NewRegistry()
	newCalls(reg).observe(device.Sample{Calls: []device.Call{{Name: "c", Took: time.Second}}})
	reg.MustRegister(newReadings(func() nvml.Report { return full }))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var exported []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "tidegate_") {
			row := "`" + f.GetName() + "` | " + strings.ToLower(f.GetType().String()) + " |"
			for _, l := range f.GetMetric()[0].GetLabel() {
				row += " " + l.GetName()
			}
			exported = append(exported, row)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n## Agent\n")
	table, _, _ = strings.Cut(table, "\n## ")
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| (`tidegate_[a-z_]+` \\| [a-z]+ \\|)([^|]*)").FindAllStringSubmatch(table, -1) {
		labels := regexp.MustCompile("[a-z_]+").FindAllString(m[2], -1)
		slices.Sort(labels)
		documented = append(documented, strings.TrimSpace(m[1]+" "+strings.Join(labels, " ")))
	}
	slices.Sort(documented)
	if !slices.Equal(exported, documented) {
		t.Errorf("exported:\n%s\ndocumented:\n%s", strings.Join(exported, "\n"), strings.Join(documented, "\n"))
	}
}
