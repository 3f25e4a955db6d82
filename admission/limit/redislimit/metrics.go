package redislimit

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics holds the Prometheus metrics of Redis.
type metrics struct{ calls prometheus.Histogram }

func newMetrics(reg prometheus.Registerer, g *Guarded) *metrics {
	store := prometheus.Labels{"store": "redis"}
	m := &metrics{prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "tidegate_store_call_seconds", Help: "How long calls of the limits' store took, those that failed included.", ConstLabels: store,
		Buckets:                     []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
	})}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.calls, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tidegate_store_damaged_total", ConstLabels: store,
		Help: "Calls of the limits' store that read something which is not of the gateway's form. It was taken as not there.",
	}, func() float64 { return float64(g.store.damaged.Load()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_store_breaker_state", ConstLabels: store,
		Help: "0 while the limits' store is asked; 1 while it is not, since it does not answer, and each gateway goes by its share of the limits.",
	}, func() float64 {
		if g.link.alone.Load() {
			return 1
		}
		return 0
	}))
	return m
}

func (m *metrics) called(began time.Time) { m.calls.Observe(time.Since(began).Seconds()) }
