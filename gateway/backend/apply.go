package backend

import (
	"tidegate/admission"
	"tidegate/degrade"
)

// Apply replaces the models. Backends whose configuration is as before keep their
// connections, their place in rotation and their counts; requests on the others
// go on to their end. Models that stay keep those that wait for them. The
// configuration must be valid.
func (f *Fleet) Apply(configs []ModelConfig) {
	f.apply.Lock()
	defer f.apply.Unlock()
	type key struct{ model, url string }
	kept, previous := map[key]*Backend{}, map[string]*Model{}
	for b, p := range f.now.Load().probers {
		kept[key{p.names[0], b.config.URL}] = b
	}
	for _, m := range f.now.Load().list {
		previous[m.Name] = m
	}
	next := &models{byName: map[string]*Model{}, probers: map[*Backend]prober{}}
	for _, c := range configs {
		m := c.model(previous[c.Name])
		for _, bc := range c.Backends {
			bc.breaker = c.Breaker
			b := kept[key{c.Name, bc.URL}]
			if b == nil || !b.config.equal(bc) {
				b = New(bc, f.agent)
			} else {
				b.tune(bc)
			}
			b.setGPUs(bc.GPUs, f.gpus)
			b.Pace.SetInitial(c.Pace)
			b.objective.Store(int64(c.Objectives.TTFT))
			known := append([]string{c.Name}, c.Aliases...)
			next.probers[b] = prober{b: b, client: f.client, log: f.log, names: known, every: c.Probe, scrape: c.Scrape}
			m.Backends = append(m.Backends, b)
		}
		for _, b := range m.Backends {
			b.peers.Store(&m.Backends)
		}
		next.list = append(next.list, m)
		next.byName[m.Name] = m
		for _, name := range m.Aliases {
			next.byName[name] = m
		}
	}
	watches := make([]degrade.Watch, 0, len(configs))
	for i, m := range next.list {
		var seats []*admission.Seat
		var gauges []*degrade.Gauge
		for _, b := range m.Backends {
			seats, gauges = append(seats, b.Seat), append(gauges, b.gauge)
		}
		var smaller *admission.Pool
		if m.Fallback = next.byName[configs[i].Fallback]; m.Fallback != nil {
			smaller = m.Fallback.Pool
		}
		m.Pool.Set(seats, smaller)
		watches = append(watches, degrade.Watch{Model: m.Level, Gauges: gauges})
	}
	f.ladder.Watch(watches)
	f.now.Store(next)
	if f.onChange != nil {
		f.onChange(next.list)
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// model returns the model of a configuration. It keeps the pool and the level of old,
// which may be nil.
func (m *ModelConfig) model(old *Model) *Model {
	next := &Model{
		Name: m.Name, Aliases: m.Aliases, Timeouts: m.Timeouts, Weights: m.Weights, AutoTools: m.AutoTools,
		Objective: m.Objectives.TTFT, Attempts: m.Retry.Attempts, Retries: NewRetryBudget(m.Retry.Budget),
	}
	next.Reasoning, _ = reasoningNames(m.Reasoning)
	if old != nil {
		next.Pool, next.Level = old.Pool, old.Level
		return next
	}
	next.Level = degrade.NewModel(m.Name)
	next.Pool = admission.NewPool(m.Name, next.Level)
	return next
}
