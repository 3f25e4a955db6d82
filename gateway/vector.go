package gateway

import (
	"fmt"

	dto "github.com/prometheus/client_model/go"

	"github.com/prometheus/client_golang/prometheus"
)

// vector is one metric with hundreds of series, of which it sees itself that no two
// are alike. A registry would hash, compare and sort every one, which takes longer
// than all the rest of a page.
type vector struct {
	name, help string
	kind       dto.MetricType
	series     prometheus.Collector
}

// Gather is prometheus.Gatherer's.
func (v vector) Gather() ([]*dto.MetricFamily, error) {
	f := &dto.MetricFamily{Name: &v.name, Help: &v.help, Type: &v.kind}
	series := make(chan prometheus.Metric, 1<<10)
	go func() {
		v.series.Collect(series)
		close(series)
	}()
	var wrong error
	for s := range series { // to its end, or the collector would wait for ever
		m := &dto.Metric{}
		if err := s.Write(m); err != nil {
			wrong = fmt.Errorf("%s: %w", v.name, err)
		}
		f.Metric = append(f.Metric, m)
	}
	if wrong != nil || len(f.Metric) == 0 {
		return nil, wrong
	}
	return []*dto.MetricFamily{f}, nil
}
