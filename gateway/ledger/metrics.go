package ledger

import "github.com/prometheus/client_golang/prometheus"

// metrics holds the Prometheus metrics of the ledger.
type metrics struct {
	records       prometheus.Counter
	lost          prometheus.Counter
	written       prometheus.Counter
	writeFailures prometheus.Counter
	shipFailures  prometheus.Counter
	corrupt       prometheus.Counter
	torn          prometheus.Counter
	missing       prometheus.Counter
	sync          prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, l *Ledger) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, read func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	m := &metrics{
		records:       counter("tidegate_ledger_records_total", "Usage records taken."),
		lost:          counter("tidegate_ledger_lost_records_total", "Usage records lost because the journal's disk took nothing and the buffer was full."),
		written:       counter("tidegate_ledger_written_total", "Usage records written to the database; those that are written again after a crash count twice here and once there."),
		writeFailures: counter("tidegate_ledger_write_failures_total", "Failed attempts to write the journal."),
		shipFailures:  counter("tidegate_ledger_ship_failures_total", "Failed attempts to reach the database with usage records."),
		corrupt:       counter("tidegate_ledger_corrupt_segments_total", "Segments of the journal of which a part cannot be read; they are kept beside."),
		torn:          counter("tidegate_ledger_torn_segments_total", "Segments that ended in the middle of a record, as after a kill."),
		missing:       counter("tidegate_ledger_missing_segments_total", "Segments of the journal that somebody took away before they were shipped."),
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_ledger_sync_seconds", Help: "Time that the journal's disk took to sync.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
	}
	reg.MustRegister(m.sync)
	gauge("tidegate_ledger_pending_records", "Usage records that were taken and are not in the database yet.", func() float64 { return float64(l.Status().Pending) })
	gauge("tidegate_ledger_backlog_bytes", "Of the journal, not yet in the database.", func() float64 { return float64(l.Status().Backlog) })
	gauge("tidegate_ledger_buffer_bytes", "Of records that wait in memory for the journal's disk.", func() float64 { return float64(l.Status().Buffer) })
	return m
}
