package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway"
	"tidegate/gateway/account"
	"tidegate/gateway/alert"
	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
	"tidegate/gateway/qwen"
	"tidegate/nvml"
)

const defaultFile = "tidegate.yaml"

// serveFlags are the flags of tidegate serve.
type serveFlags struct {
	file, listen, ops, log string
	backends               []string
}

func (p *process) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: "Runs the gateway with a configuration file, or in front of the vLLM servers that\n" +
			"--backend names, without any file: then callers need no key and it listens on the\n" +
			"loopback interface only. SIGHUP or a changed file reloads the configuration;\n" +
			"SIGTERM and Ctrl-C drain.",
		Example: "  tidegate serve --backend http://localhost:8000\n  tidegate serve --config tidegate.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.serve(cmd.Context(), f)
		},
	}
	cmd.Flags().StringVar(&f.file, "config", "", "configuration file (default $TIDEGATE_CONFIG, else tidegate.yaml)")
	cmd.Flags().StringArrayVar(&f.backends, "backend", nil, "URL of a vLLM server, instead of a file; may be given more than once")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address for callers, over server.listen")
	cmd.Flags().StringVar(&f.ops, "ops-listen", "", "address for operators, over server.ops_listen")
	cmd.Flags().StringVar(&f.log, "log", "", "json or text, over telemetry.log")
	return cmd
}

// serve loads what the flags name and runs it.
func (p *process) serve(ctx context.Context, f serveFlags) error {
	load, err := p.loader(f)
	if err != nil {
		return err
	}
	c, err := load()
	if err != nil {
		return err
	}
	if len(f.backends) > 0 {
		if err := p.storeHere(&c.Store); err != nil {
			return err
		}
	}
	d, err := newDaemon(ctx, c, p)
	if err != nil {
		return err
	}
	d.load = load
	if d.firstKey != "" {
		fmt.Fprintf(p.stdout, "The store has no administrator's key, so this one was made. It is shown only now:\n\n  %s\n\n", d.firstKey)
	}
	if len(f.backends) > 0 {
		return d.run(ctx, d.discover(f.backends))
	}
	return d.run(ctx, d.watch)
}

// loader returns what reads the configuration, now and again at each reload.
func (p *process) loader(f serveFlags) (func() (config, error), error) {
	over := func(c *config) {
		for _, o := range []struct {
			flag string
			to   *string
		}{{f.listen, &c.Server.Listen}, {f.ops, &c.Server.OpsListen}, {f.log, &c.Telemetry.Log}} {
			if o.flag != "" {
				*o.to = o.flag
			}
		}
	}
	if len(f.backends) > 0 {
		if f.file != "" {
			return nil, usageError{errors.New("--backend and --config exclude each other: put the backend into the file")}
		}
		return func() (config, error) { return p.withoutFile(f.backends, over) }, nil
	}
	file := p.configFile(f.file)
	return func() (config, error) {
		source, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) && f.file == "" {
			return config{}, usageError{fmt.Errorf("there is no %s here: give --config FILE, or --backend URL to run without a file", file)}
		}
		if err != nil {
			return config{}, usageError{err}
		}
		c, err := readConfig(file, source, p.env)
		over(&c)
		if faults := c.Server.listenFaults(); err == nil && len(faults) > 0 {
			return c, usageError{errors.Join(faults...)} // of the flags
		}
		return c, err
	}, nil
}

// configFile returns the configuration file that a flag, the environment or the default
// names.
func (p *process) configFile(flag string) string {
	named, _ := p.env("TIDEGATE_CONFIG")
	return cmp.Or(flag, named, defaultFile)
}

// withoutFile is the configuration of a gateway that is only told its backends.
func (p *process) withoutFile(urls []string, over func(*config)) (config, error) {
	c := defaultConfig()
	c.Server.Listen = "127.0.0.1:8080"
	c.Auth.Mode = account.Open
	c.Telemetry.Log = "text"
	over(&c)
	if faults := c.Server.listenFaults(); len(faults) > 0 {
		return c, usageError{errors.Join(faults...)}
	}
	if err := p.overStore(&c.Store); err != nil {
		return c, err
	}
	for _, url := range urls {
		b := backend.Config{URL: url}
		if err := b.Validate(); err != nil {
			return c, usageError{fmt.Errorf("--backend %w", err)}
		}
	}
	return c, nil
}

// daemon is a running gateway.
type daemon struct {
	config   config
	log      *slog.Logger
	gateway  *gateway.Gateway
	fleet    *backend.Fleet
	gpus     *nvml.Monitor
	ladder   *degrade.Ladder
	doors    *admission.Controller
	counters *counters
	load     func() (config, error)
	names    []string // of all environment variables
	cert     atomic.Pointer[tls.Certificate]
	accounts *account.Store
	ledger   *ledger.Ledger
	alerts   *alert.Alerts
	close    func() error         // of the ledger and the database
	firstKey string               // an administrator's, where the store had none
	reloaded *prometheus.GaugeVec // whether the last reload worked
	loadedAt prometheus.Gauge
	failure  atomic.Pointer[string]   // of the last reload; nil: it worked
	restart  atomic.Pointer[[]string] // keys that changed and that only a restart applies
	expiries atomic.Pointer[[]expiry] // of the certificates in files
	damage   atomic.Pointer[damage]   // seen last among the limits' keys in Redis; nil: none
	traces   tracing
	front    net.Listener // where callers reach it, once it listens
	ops      net.Listener
}

// newDaemon builds every part and starts nothing but the listeners, so that a
// taken port is said at once. Who runs it closes it.
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
	registry := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tidegate_build_info", Help: "1, with the version as a label."}, []string{"version"})
	info.WithLabelValues(version()).Set(1)
	d.reloaded = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tidegate_config_reload_success", Help: "1 if the last reading of the configuration succeeded.",
	}, nil)
	d.reloaded.WithLabelValues().Set(1)
	d.loadedAt = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tidegate_config_reload_timestamp_seconds", Help: "When the configuration in force was read, in Unix time.",
	})
	d.loadedAt.SetToCurrentTime()
	registry.MustRegister(info, d.reloaded, d.loadedAt, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
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

// face is what the gateway's face is told.
func (c *config) face() gateway.Config {
	f := c.Server.Config
	f.PerUser, f.TraceCallers, f.Prices, f.Zone = c.Telemetry.PerUser, c.Telemetry.TraceCallers, c.prices(), c.Reports.Zone
	return f
}

// waiting is how requests wait: a ladder that only looks on makes nothing smaller.
func (c *config) waiting() admission.QueueConfig {
	q := c.Queue
	q.Degrade = q.Degrade && !c.Degrade.Observe
	return q
}

// countedMessages is how many messages keep their token counts in memory.
const countedMessages = 1 << 16

func newLog(form string, p *process) *slog.Logger {
	if form == "text" {
		return slog.New(slog.NewTextHandler(p.stderr, nil))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, nil))
}

// listen listens on the address of a setting, which a flag sets too.
func listen(key, flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		host, _, _ := net.SplitHostPort(address)
		return nil, fmt.Errorf("%s: another process listens on %s: stop it, or choose another address with %s, such as %s %s for a free port, which the log names", key, address, flag, flag, net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// run serves until ctx ends, and closes what newDaemon opened. source is the loop
// that keeps the configuration fresh.
func (d *daemon) run(ctx context.Context, source loop) (err error) {
	defer func() { err = errors.Join(err, d.close()) }()
	defer d.traces.close()
	s := d.config.Server
	front, err := d.frontServer()
	if err != nil {
		d.front.Close()
		return err
	}
	servers := []*server{front}
	if d.ops != nil {
		ops := &http.Server{Handler: d.gateway.OpsHandler(d.status), ReadHeaderTimeout: s.HeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader}
		servers = append(servers, &server{
			name: "ops listener", http: ops, cut: func() {},
			listen: func(h *http.Server) error { return h.Serve(d.gateway.Listener(d.ops)) },
		})
		d.log.Info("listening for operators", "address", d.ops.Addr().String())
	}
	d.log.Info("listening", "address", d.front.Addr().String(), "auth", d.config.Auth.Mode, "version", version())
	d.warn(&d.config)
	return supervise(ctx, d.log, s.ShutdownGrace, d.gateway.Drain, servers, d.gpus.Run, d.fleet.Run, d.ladder.Run, d.counters.run, d.accounts.Run, d.ledger.Run, d.alerts.Run, source)
}

// warn logs what of a configuration is probably not meant.
func (d *daemon) warn(c *config) {
	for _, w := range c.warnings(d.names, time.Now()) {
		d.log.Warn("the configuration may not be meant so", "reason", w.Error())
	}
}

// Bounds of what one connection may hold.
const (
	maxHeader   = 64 << 10 // bytes of a request's head
	maxStreams  = 100      // HTTP/2 requests at a time; RFC 9113 advises no fewer
	idleTimeout = 2 * time.Minute
)

// frontServer is the server for callers: HTTP/1.1 and HTTP/2, the latter with
// TLS or in clear text by prior knowledge.
func (d *daemon) frontServer() (*server, error) {
	s := d.config.Server
	alive, cut := context.WithCancel(context.Background())
	h := &http.Server{
		Handler: d.gateway.Handler(), ReadHeaderTimeout: s.HeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return alive },
		ErrorLog:    slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		Protocols:   new(http.Protocols),
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	out := &server{name: "listener", http: h, cut: cut, listen: func(h *http.Server) error { return h.Serve(d.gateway.Listener(d.front)) }}
	if s.TLS.CertFile == "" {
		return out, nil
	}
	if err := d.readCertificate(); err != nil {
		return nil, err
	}
	authorities, err := loadClientCAs(s.TLS)
	if err != nil {
		return nil, err
	}
	h.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.cert.Load(), nil },
	}
	if authorities != nil {
		h.TLSConfig.ClientCAs, h.TLSConfig.ClientAuth = authorities, tls.RequireAndVerifyClientCert
	}
	out.listen = func(h *http.Server) error { return h.ServeTLS(d.gateway.Listener(d.front), "", "") }
	return out, nil
}

func (d *daemon) readCertificate() error {
	s := d.config.Server.TLS
	if s.CertFile == "" {
		return nil
	}
	cert, err := loadCertificate(s)
	if err != nil {
		return err
	}
	d.cert.Store(cert)
	return nil
}

// watchEvery is how often the file is looked at for changes. Its content is
// compared, since a mounted file changes by a switched link.
const watchEvery = 2 * time.Second

// watch reloads on SIGHUP and when the file has changed.
func (d *daemon) watch(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	seen := fingerprint(d.config, nil) // of what runs: the file may have changed since
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			d.reload()
			seen = fingerprint(d.load())
		case <-tick.C:
			if now := fingerprint(d.load()); !bytes.Equal(now, seen) {
				seen = now
				d.reload()
			}
		}
	}
}

// fingerprint changes when what the configuration says changes, or its fault does.
func fingerprint(c config, err error) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%+v %v", c, err))
	return sum[:]
}

// reload replaces the configuration; one that is invalid keeps the old running.
func (d *daemon) reload() {
	c, err := d.load()
	var set *limit.Set
	if err == nil {
		set, err = c.limitSet()
	}
	var channels []alert.Channel
	if err == nil {
		channels, err = c.alertChannels()
	}
	if err == nil {
		err = d.readCertificate()
	}
	if err != nil {
		text := err.Error()
		d.failure.Store(&text)
		d.reloaded.WithLabelValues().Set(0)
		d.log.Error("the new configuration is not used; the old one stays", "error", text)
		return
	}
	d.failure.Store(nil)
	d.readExpiries(&c)
	d.reloaded.WithLabelValues().Set(1)
	d.loadedAt.SetToCurrentTime()
	keys := d.config.restartOnly(&c)
	d.restart.Store(&keys)
	if len(keys) > 0 {
		d.log.Warn("changed, but only a restart applies it", "keys", strings.Join(keys, ", "))
	}
	d.counters.reconfigure(set)
	d.gateway.Reload(c.face(), account.New(c.Auth, d.accounts))
	d.gpus.Replace(c.GPUs)
	d.ladder.Reload(c.Degrade)
	d.doors.Reload(c.waiting())
	d.alerts.Reload(channels)
	d.fleet.Apply(c.Models)
	d.warn(&c)
	d.log.Info("configuration reloaded", "models", len(c.Models))
}

// discoverEvery is how often a server that is not there yet is asked again.
const discoverEvery = 2 * time.Second

// discover learns from each server what model it serves; servers of the same
// model share it.
func (d *daemon) discover(urls []string) loop {
	return func(ctx context.Context) error {
		client := backend.ProbeClient()
		defer client.CloseIdleConnections()
		models := map[string]*backend.ModelConfig{}
		tick := time.NewTicker(discoverEvery)
		defer tick.Stop()
		for said := false; len(urls) > 0; said = true {
			urls = slices.DeleteFunc(urls, func(url string) bool {
				facts, err := backend.Discover(ctx, backend.Config{URL: url}, client)
				if err != nil {
					if !said {
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

// adopt adds a server to the model that it serves first.
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
	var all []backend.ModelConfig
	for _, m := range models {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b backend.ModelConfig) int { return strings.Compare(a.Name, b.Name) })
	d.fleet.Apply(all)
	d.log.Info("backend found", "backend", url, "model", name, "context", f.MaxModelLen)
}
