package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway"
	"tidegate/gateway/account"
	"tidegate/gateway/alert"
	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
	"tidegate/gateway/qwen"
	"tidegate/nvml"
)

// daemon is a running gateway.
type daemon struct {
	listeners
	reloads
	config   config
	log      *slog.Logger
	gateway  *gateway.Gateway
	fleet    *backend.Fleet
	gpus     *nvml.Monitor
	ladder   *degrade.Ladder
	doors    *admission.Controller
	counters *counters
	names    []string // names of all environment variables
	accounts *account.Store
	ledger   *ledger.Ledger
	alerts   *alert.Alerts
	close    func() error             // closes the ledger and the database
	firstKey string                   // administrator's key that was made for an empty store; empty: none
	expiries atomic.Pointer[[]expiry] // certificates in files
	damage   atomic.Pointer[damage]   // last seen among the limits' keys in Redis; nil: none
	traces   tracing
}

// newDaemon builds every part and starts nothing but the listeners, so that a taken port
// is an error at once. The caller runs the daemon, which closes it.
func newDaemon(ctx context.Context, c config, p *process) (*daemon, error) {
	d := &daemon{config: c, names: p.names, log: newLog(c.Telemetry.Log, p), close: func() error { return nil }}
	if err := d.build(ctx, p); err != nil {
		for _, l := range []net.Listener{d.front, d.ops} {
			if l != nil {
				l.Close()
			}
		}
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// build makes the parts from the bottom up: what one needs stands before it.
func (d *daemon) build(ctx context.Context, p *process) (err error) {
	c := &d.config
	if d.front, err = listen("server.listen", "--listen", c.Server.Listen); err != nil {
		return err
	}
	if c.Server.OpsListen != "" {
		if d.ops, err = listen("server.ops_listen", "--ops-listen", c.Server.OpsListen); err != nil {
			return err
		}
	}
	d.bound(descriptorLimit())
	tokenizer, err := qwen.New()
	if err != nil {
		return err
	}
	registry := d.newRegistry()
	ladder := prometheus.NewRegistry() // has many series, and is read beside the others
	d.ladder = degrade.New(c.Degrade, d.log, ladder)
	if err := d.openCounters(registry); err != nil {
		return err
	}
	if err := d.openStore(ctx, registry); err != nil {
		return err
	}
	d.counters.first(ctx)
	if d.traces, err = newTracing(ctx, c.Telemetry.OTLPEndpoint, p, d.log); err != nil {
		return err
	}
	d.gpus = nvml.New(d.log)
	d.gpus.Replace(c.GPUs)
	d.doors = admission.New(d.counters.Limiter, c.waiting())
	d.fleet = backend.NewFleet(d.log, "tidegate/"+version(), d.gpus, d.ladder)
	d.gateway = gateway.New(gateway.Parts{
		Log: d.log, Fleet: d.fleet, GPUs: d.gpus, Admission: d.doors, Ladder: d.ladder, Ledger: d.ledger, Alerts: d.alerts, Tokenizer: tokenizer,
		Counter: qwen.NewCounter(tokenizer, countedMessages), Registry: registry, Tracer: d.traces.tracer(), Version: version(), Gatherers: []prometheus.Gatherer{ladder, d.gpus},
	}, c.face(), account.New(c.Auth, d.accounts))
	d.fleet.Apply(c.Models)
	d.readExpiries(c)
	registry.MustRegister(newCertificateMetric(d.certificates))
	return nil
}

// face returns the configuration of the HTTP face.
func (c *config) face() gateway.Config {
	f := c.Server.Config
	f.PerUser, f.TraceCallers, f.Prices, f.Zone = c.Telemetry.PerUser, c.Telemetry.TraceCallers, c.prices(), c.Reports.Zone
	return f
}

// waiting returns the configuration of the queue. A ladder that only observes makes no
// answer smaller.
func (c *config) waiting() admission.QueueConfig {
	q := c.Queue
	q.Degrade = q.Degrade && !c.Degrade.Observe
	return q
}

// countedMessages is the number of messages whose token counts stay in memory.
const countedMessages = 1 << 16

// newLog returns a log in JSON, or in text for people, to stderr.
func newLog(form string, p *process) *slog.Logger {
	if form == "text" {
		return slog.New(slog.NewTextHandler(p.stderr, nil))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, nil))
}

// newRegistry returns the registry of the metrics that every part adds to, with those of
// the process and of reloads.
func (d *daemon) newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tidegate_build_info", Help: "1, with the version as a label."}, []string{"version"})
	info.WithLabelValues(version()).Set(1)
	d.success = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tidegate_config_reload_success", Help: "1 if the last reading of the configuration succeeded.",
	}, nil)
	d.success.WithLabelValues().Set(1)
	d.loaded = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tidegate_config_reload_timestamp_seconds", Help: "When the configuration in force was read, in Unix time.",
	})
	d.loaded.SetToCurrentTime()
	registry.MustRegister(info, d.success, d.loaded, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}
