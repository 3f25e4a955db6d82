package main

import (
	"sync"
	"time"
	_ "time/tzdata" // quotas and schedules know every zone, also in an image without any

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
)

// openLimits makes the limiter of a configuration.
func (d *daemon) openLimits(c *config, registry prometheus.Registerer) error {
	set, err := c.limitSet()
	if err != nil {
		return err
	}
	shadows := seldom{every: time.Minute}
	d.limiter = limit.New(set, limit.Options{
		Store: limit.NewMemory(time.Now), Registry: registry,
		Shadow: func(b limit.Breach) {
			if shadows.now(b.Rule, time.Now()) {
				d.log.Info("a shadow limit would have refused", "rule", b.Rule, "per", b.Per, "metric", b.Metric.String(), "limit", b.Limit)
			}
		},
		Trouble: func(err error) {
			d.log.Warn("the store of the limits does not answer; trying on", "error", err.Error())
		},
	})
	return nil
}

// limitSet compiles the rules and quotas of a configuration that is valid.
func (c *config) limitSet() (*limit.Set, error) {
	weights := map[string]limit.Weights{}
	for i := range c.Models {
		weights[c.Models[i].Name] = c.Models[i].Weights
	}
	return limit.Compile(c.Limits, c.Quotas, weights)
}

// seldom lets the same thing be said once in a while only.
type seldom struct {
	every time.Duration
	mu    sync.Mutex
	last  map[string]time.Time
}

func (s *seldom) now(what string, at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.Sub(s.last[what]) < s.every {
		return false
	}
	if s.last == nil {
		s.last = map[string]time.Time{}
	}
	s.last[what] = at
	return true
}
