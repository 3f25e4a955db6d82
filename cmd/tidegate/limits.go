package main

import (
	"sync"
	"time"
	_ "time/tzdata" // quotas and schedules know every zone, also in an image without any

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
	"tidegate/gateway/account"
)

// openLimits makes the limiter of a configuration.
func (d *daemon) openLimits(registry prometheus.Registerer) error {
	set, err := d.config.limitSet()
	if err != nil {
		return err
	}
	d.rules.Store(set)
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

// override puts the rules in force with the overrides that the store has now.
func (d *daemon) override() {
	if d.accounts == nil {
		return // the store is being opened
	}
	var list []limit.Override
	for _, o := range d.accounts.Overrides() {
		numbers := map[string]string{}
		for metric, amount := range map[string]account.Amount{
			"requests": o.Requests, "tokens": o.Tokens, "input_tokens": o.InputTokens, "output_tokens": o.OutputTokens,
			"reasoning_tokens": o.ReasoningTokens, "concurrency": o.Concurrency, "burst": o.Burst, "units": o.Units,
		} {
			if amount != "" {
				numbers[metric] = string(amount)
			}
		}
		list = append(list, limit.Override{Rule: o.Rule, Of: o.Of, Name: o.Name, Numbers: numbers})
	}
	set, err := d.rules.Load().With(list)
	for _, e := range flatten(err) {
		d.log.Warn("an override does not hold", "error", e.Error())
	}
	d.limiter.Replace(set)
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
