package main

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"tidegate/gateway/backend"
)

// discoverEvery is the time between two questions to a backend that does not answer yet.
const discoverEvery = 2 * time.Second

// discover asks each backend for the model that it serves. Backends of the same model share
// it.
func (d *daemon) discover(urls []string) loop {
	return func(ctx context.Context) error {
		client := backend.ProbeClient()
		defer client.CloseIdleConnections()
		models := map[string]*backend.ModelConfig{}
		tick := time.NewTicker(discoverEvery)
		defer tick.Stop()
		for warned := false; len(urls) > 0; warned = true {
			urls = slices.DeleteFunc(urls, func(url string) bool {
				facts, err := backend.Discover(ctx, backend.Config{URL: url}, client)
				if err != nil {
					if !warned {
						d.log.Warn("a backend does not say yet what it serves; asking on", "backend", url, "reason", err.Error())
					}
					return false
				}
				d.adopt(models, url, facts)
				return true
			})
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
		<-ctx.Done()
		return nil
	}
}

// adopt adds a backend to the first model that it serves.
func (d *daemon) adopt(models map[string]*backend.ModelConfig, url string, f backend.Facts) {
	name := f.Names[0]
	m := models[name]
	if m == nil {
		c := backend.DefaultModel()
		m = &c
		m.Name = name
		if short := path.Base(name); short != name {
			m.Aliases = append(m.Aliases, short)
		}
		models[name] = m
	}
	m.Backends = append(m.Backends, backend.Config{URL: url})
	var list []backend.ModelConfig
	for _, m := range models {
		list = append(list, *m)
	}
	slices.SortFunc(list, func(a, b backend.ModelConfig) int { return strings.Compare(a.Name, b.Name) })
	d.fleet.Apply(list)
	d.log.Info("backend found", "backend", url, "model", name, "context", f.MaxModelLen)
}
