package backend

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend/exchange"
	"tidegate/nvml"
)

// Config configures one backend.
type Config struct {
	URL        string `yaml:"url"`          // http(s)://host:port, with a path where it is behind one; /v1 at its end is left out
	Serves     string `yaml:"serves"`       // what it calls the model; empty: found out
	Weight     *int   `yaml:"weight"`       // its share of the requests beside the model's other backends; left out: 1; 0: it gets no new requests, and what it has goes on
	APIKeyEnv  string `yaml:"api_key_env"`  // environment variable that holds its --api-key
	APIKeyFile string `yaml:"api_key_file"` // or the file
	APIKey     string `yaml:"-"`            // what either held

	GPUs []string `yaml:"gpus"` // those it runs on, SOURCE/INDEX or UUID; none: not known

	MaxInFlight int    `yaml:"max_in_flight"` // sequences (prompts x n) it is given at a time; 0: 1024
	MaxWaiting  int    `yaml:"max_waiting"`   // requests that wait in its engine, the rest waits here; 0: 4
	Memory      string `yaml:"memory"`        // preallocated, as vLLM does, or absolute; empty: preallocated
	Priority    bool   `yaml:"priority"`      // it runs with --scheduling-policy priority

	breaker Breaker // its model's
}

const (
	defaultInFlight = 1024 // the most sequences that vLLM runs at a time unless told otherwise
	defaultWaiting  = 4    // so that who goes first is decided in the gateway
	memoryReserved  = "preallocated"
	memoryAbsolute  = "absolute"
)

// maxWeight is the largest weight of a backend.
const maxWeight = 1000

// weight returns the configured weight; 1 if there is none.
func (c *Config) weight() int {
	if c.Weight == nil {
		return 1
	}
	return *c.Weight
}

// Validate returns an error that begins with the path of the faulty setting.
func (c *Config) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		return errors.New("url: is missing; expected something like http://gpu-a:8000")
	case err != nil, u.Host == "", u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("url: %q is no http or https URL; expected something like http://gpu-a:8000", c.URL)
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return errors.New("url: may hold a scheme, a host, a port and a path, nothing else")
	case c.Weight != nil && (*c.Weight < 0 || *c.Weight > maxWeight):
		return fmt.Errorf("weight: must be from 0 to %d, not %d; 0: it gets no new requests", maxWeight, *c.Weight)
	case c.APIKeyEnv != "" && c.APIKeyFile != "":
		return errors.New("api_key_env: excludes api_key_file")
	case c.MaxInFlight < 0:
		return errors.New("max_in_flight: must be 1 or more, such as 64")
	case c.MaxWaiting < 0:
		return errors.New("max_waiting: must be 1 or more, such as 4")
	case c.Memory != "" && c.Memory != memoryReserved && c.Memory != memoryAbsolute:
		return fmt.Errorf("memory: must be preallocated or absolute, not %q", c.Memory)
	}
	for i, ref := range c.GPUs {
		if slices.Contains(c.GPUs[:i], ref) {
			return fmt.Errorf("gpus[%d]: %q is named twice", i, ref)
		}
	}
	return nil
}

// equal reports whether c and d describe the same backend. It ignores the settings that
// setGPUs and tune apply while the backend serves.
func (c Config) equal(d Config) bool {
	for _, c := range []*Config{&c, &d} {
		c.Weight, c.GPUs, c.MaxInFlight, c.MaxWaiting, c.Memory, c.Priority, c.breaker = nil, nil, 0, 0, "", false, Breaker{}
	}
	return reflect.DeepEqual(c, d)
}

// Facts holds the identity of a backend, as it last stated it.
type Facts struct {
	Serves       string   // the name it knows the model by
	Names        []string // all names of models that it serves
	MaxModelLen  int      // context of that model, in tokens; 0 if unknown
	Version      string   // version of vLLM; empty if unknown
	Capabilities Capabilities

	NoThinking bool     // thinking is off by default
	Warnings   []string // contradictions and gaps in what the backend states
}

// Backend is one vLLM server of a model. It is safe for concurrent use.
type Backend struct {
	Name   string          // host, port and path, for people and metrics
	Seat   *admission.Seat // seat in admission
	Pace   Pace            // speed of its answers
	Output Meter           // output tokens of its answers, as they pass
	Doubts Doubts          // answers whose usage was not believed

	client   // set by New alone
	rotation // written by probes, the watcher, the breaker and failed requests
	load     // written by the scraper

	base       string // URL without a trailing slash
	config     Config
	gauge      *degrade.Gauge
	progress   progress
	moves      moves
	tuned      atomic.Pointer[tuning]
	objective  atomic.Int64               // objective of the time to the first token, in ns; 0 if there is none
	peers      atomic.Pointer[[]*Backend] // all backends of its model
	gpus       atomic.Pointer[[]*nvml.View]
	facts      atomic.Pointer[Facts]
	certExpiry atomic.Int64 // expiry of its certificate, Unix time in s; 0 before the first one
}

// client sends requests to a backend: see exchange.Client.
type client interface {
	Send(ctx context.Context, q *exchange.Request) (*exchange.Answer, error)
	Prune(now time.Time)
	Close()
	Closed() bool
}

// rotation holds the reasons for being out of rotation.
type rotation struct {
	outReason     atomic.Pointer[string] // reason for being out of rotation
	stall         atomic.Pointer[stall]  // current hang; nil if there is none
	suspected     atomic.Bool            // whether a request failed since the last probe began
	probeRequests chan struct{}          // requests for an immediate probe
}

// load holds the results of the scrapes.
type load struct {
	engine    atomic.Pointer[Engine]
	loadError atomic.Pointer[string]    // error of the last scrape; nil before the first error
	queuedAt  atomic.Pointer[time.Time] // time of the last report of waiting or preempted requests; nil before the first
}

// name returns the URL without the parts that distinguish no backends.
func (c Config) name() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return c.URL
	}
	return u.Host + trimRoute(u.Path)
}

// trimRoute removes a trailing slash and an API route from the path of a backend's URL.
// People paste it with /v1, as every client wants it, or with a route.
func trimRoute(path string) string {
	path = strings.TrimRight(path, "/")
	for _, route := range []string{"/v1", "/v1/chat/completions", "/v1/completions", "/v1/models"} {
		if trimmed, found := strings.CutSuffix(path, route); found {
			return strings.TrimRight(trimmed, "/")
		}
	}
	return path
}

// New returns a backend that is out of rotation until its first probe. The configuration
// must be valid.
func New(c Config, agent string) *Backend {
	u, err := url.Parse(c.URL)
	if err != nil {
		u = &url.URL{}
	}
	b := &Backend{
		Name: c.name(), config: c, base: u.Scheme + "://" + u.Host + trimRoute(u.EscapedPath()),
		rotation: rotation{probeRequests: make(chan struct{}, 1)},
	}
	b.progress.base = time.Now()
	b.gauge = degrade.NewGauge(b.Name, 1, b.readings)
	b.Seat = admission.NewSeat(b.gauge, admission.Bounds{})
	b.tune(c)
	b.client = exchange.NewClient(c.exchange(u, agent), observer{b})
	b.facts.Store(&Facts{Serves: c.Serves})
	b.gpus.Store(&[]*nvml.View{})
	b.takeOut("not probed yet")
	return b
}

// exchange returns how to reach the backend at its URL. agent is the User-Agent.
func (c *Config) exchange(u *url.URL, agent string) exchange.Config {
	e := exchange.Config{
		Prefix: trimRoute(u.EscapedPath()),
		Header: "Host: " + u.Host + "\r\nUser-Agent: " + agent + "\r\nContent-Type: application/json\r\n",
	}
	if c.APIKey != "" {
		e.Header += "Authorization: Bearer " + c.APIKey + "\r\n"
	}
	port := u.Port()
	if u.Scheme == "https" {
		e.TLS = &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
		port = cmp.Or(port, "443")
	}
	e.Address = net.JoinHostPort(u.Hostname(), cmp.Or(port, "80"))
	return e
}

// Facts returns the last known identity of the backend.
func (b *Backend) Facts() Facts { return *b.facts.Load() }

// CertificateExpires returns the earliest expiry in the certificate chain that the last
// probe saw; zero before the first TLS probe.
func (b *Backend) CertificateExpires() time.Time {
	if ends := b.certExpiry.Load(); ends != 0 {
		return time.Unix(ends, 0)
	}
	return time.Time{}
}

// setCertificates records the earliest expiry in a certificate chain.
func (b *Backend) setCertificates(state *tls.ConnectionState) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return
	}
	ends := state.PeerCertificates[0].NotAfter
	for _, cert := range state.PeerCertificates[1:] {
		if cert.NotAfter.Before(ends) {
			ends = cert.NotAfter
		}
	}
	b.certExpiry.Store(ends.Unix())
}

// GPUs returns views of the GPUs that the backend is configured to run on.
func (b *Backend) GPUs() []*nvml.View { return *b.gpus.Load() }

// setGPUs sets the GPUs that the backend runs on.
func (b *Backend) setGPUs(refs []string, gpus *nvml.Monitor) {
	views := make([]*nvml.View, 0, len(refs))
	for _, ref := range refs {
		views = append(views, gpus.Watch(ref))
	}
	b.gpus.Store(&views)
	b.Seat.SetGPUs(len(views))
}

// OutReason returns the reason for being out of rotation; empty while in rotation.
func (b *Backend) OutReason() string {
	if b.Seat.InRotation() {
		out := b.gauge.Verdict().Out
		if out == "" && b.Seat.Drained() {
			return "weight 0: it gets no new requests, and what it has goes on"
		}
		return out
	}
	return *b.outReason.Load()
}

func (b *Backend) takeOut(reason string) (changed bool) {
	b.outReason.Store(&reason)
	return b.Seat.SetRotation(false)
}

// suspect requests a probe and keeps requests from the backend until that has ended. A
// refused connection takes the backend out of rotation at once.
func (b *Backend) suspect(err error) {
	if errors.Is(err, syscall.ECONNREFUSED) {
		b.takeOut("connection refused")
	}
	b.suspected.Store(true)
	b.Seat.SetDoubt(true)
	b.probeNow()
}

func (b *Backend) probeNow() {
	select {
	case b.probeRequests <- struct{}{}:
	default:
	}
}
