// Package gateway is the HTTP front: it takes OpenAI's API from callers and speaks vLLM's
// to the backends.
//
// The whole path of a generation is the function generate in serve.go. Four values travel
// it, each with one writer: request, plan, answerWriter and outcome. A handler returns an
// error; answer (serve.go) turns it into a response, counts the request and logs it once.
// routes.go alone knows the router. docs/architecture.md draws the path.
package gateway

import (
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/activity"
	"tidegate/gateway/admin"
	"tidegate/gateway/alert"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/ledger"
	"tidegate/gateway/openai"
	"tidegate/gateway/ops"
	"tidegate/gateway/qwen"
	"tidegate/nvml"
)

// Parts holds the parts of a gateway.
type Parts struct {
	Log       *slog.Logger
	Fleet     *backend.Fleet
	GPUs      *nvml.Monitor
	Admission *admission.Controller
	Ladder    *degrade.Ladder
	Ledger    *ledger.Ledger
	Alerts    *alert.Alerts // nil where nobody is notified of quotas
	Counter   *qwen.Counter
	Tokenizer *qwen.Tokenizer
	Registry  *prometheus.Registry
	Tracer    Tracer                // nil where requests are not traced
	Gatherers []prometheus.Gatherer // series of other parts on the same page; no name is in two of them
	Version   string
}

// Gateway answers callers. It is safe for concurrent use.
type Gateway struct {
	Parts
	settings atomic.Pointer[settings]
	draining atomic.Bool
	doors    []*door.Door
	admin    *admin.API
	metrics  *metrics
	buffers  sync.Pool      // *[]byte for pending events of streams
	scans    openai.Buffers // read buffers of streams
	unread   unread         // answers to strangers that wait to be read
	bodies   budget         // bytes of bodies under way

	// Samplers of log lines, by the kind of request that strangers can send in any number.
	keyless   sampler // requests without a good key
	badKeys   sampler // requests with a known key that is not good
	lost      sampler // requests for unknown paths
	unchecked sampler // requests that ended before their key was checked

	activity activity.Tracker
	began    time.Time
}

// New returns a gateway; Reload may replace its configuration at any time.
func New(p Parts, c Config, accounts *account.Directory) *Gateway {
	g := &Gateway{Parts: p, admin: &admin.API{Fleet: p.Fleet, Admission: p.Admission, Ledger: p.Ledger}, doors: []*door.Door{door.Chat(), door.Completions()}, metrics: newMetrics(p.Registry, p.Fleet), began: time.Now()}
	g.Reload(c, accounts)
	p.Fleet.Notify(g.metrics.follow)
	return g
}

// Reload replaces the configuration, which must be valid. Requests under way
// keep the one they began with.
func (g *Gateway) Reload(c Config, accounts *account.Directory) {
	set := &settings{Config: c, accounts: accounts}
	set.proxies, set.traced = networks(c.TrustedProxies), networks(c.TraceCallers)
	g.bodies.configure(c.BodyBudget.resolve(c.MaxBody))
	g.settings.Store(set)
	accounts.Enforce()
	g.metrics.keepRules(g.Admission.Rules())
	g.metrics.users.keep(c.PerUser)
}

// Listener returns l with a bound on the time that each write to one of its connections
// takes: write_timeout as it is configured at the time.
func (g *Gateway) Listener(l net.Listener) net.Listener { return &listener{l, g.writeTimeout} }

func (g *Gateway) writeTimeout() time.Duration { return g.settings.Load().WriteTimeout }

// Drain makes the gateway report that it is not ready, so that nothing new is sent to it.
// It goes on serving.
func (g *Gateway) Drain() { g.draining.Store(true) }

// gatherers returns all that have series on the page of metrics; no name is in two of them.
func (g *Gateway) gatherers() prometheus.Gatherers {
	gatherers := append(prometheus.Gatherers{g.Registry}, g.Gatherers...)
	for _, v := range g.metrics.page {
		gatherers = append(gatherers, v)
	}
	return gatherers
}

// OpsHandler returns the handler for operators, on a listener of its own. extra, which may
// be nil, adds to the status what only the process knows.
func (g *Gateway) OpsHandler(extra func() ops.Extra) http.Handler {
	s := &ops.Server{
		Log: g.Log, Fleet: g.Fleet, GPUs: g.GPUs, Ladder: g.Ladder, Alerts: g.Alerts, Activity: &g.activity, Version: g.Version, Began: g.began,
		Accounts: func() *account.Directory { return g.settings.Load().accounts },
		Hosts:    func() []string { return g.settings.Load().OpsHosts },
		NotReady: g.notReady, Gatherers: g.gatherers, Probes: g.probes(),
	}
	return withDeadlines(s.Handler(extra), g.writeTimeout)
}
