package backend

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/nvml"
)

// Config is one vLLM server.
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

// share is the weight, where it is left out 1.
func (c *Config) weight() int {
	if c.Weight == nil {
		return 1
	}
	return *c.Weight
}

// Validate says what is wrong, path first.
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

// same reports whether a backend of either configuration is the same one. What runsOn
// and tune take over can change under it.
func (c Config) equal(d Config) bool {
	for _, c := range []*Config{&c, &d} {
		c.Weight, c.GPUs, c.MaxInFlight, c.MaxWaiting, c.Memory, c.Priority, c.breaker = nil, nil, 0, 0, "", false, Breaker{}
	}
	return reflect.DeepEqual(c, d)
}

// Facts are what a server said of itself when it was last asked.
type Facts struct {
	Serves       string   // the name it knows the model by
	Names        []string // all names it knows
	MaxModelLen  int      // context of the model it knows by that name, in tokens; 0: unknown
	Version      string   // of vLLM; empty: unknown
	Capabilities Capabilities

	NoThinking bool     // it switches thinking off where a chat says nothing of it
	Warnings   []string // what it says that cannot be, or cannot be known
}

// Backend is one server of a model. It is safe for concurrent use.
type Backend struct {
	Name   string          // host:port and path, for people and metrics
	Seat   *admission.Seat // its place in admission
	Pace   Pace            // how fast it makes tokens
	Output Meter           // tokens of its answers, as they pass

	Doubts Doubts // the answers whose usage was not believed

	progress progress
	stall    atomic.Pointer[stall]      // nil: it is not taken to hang
	peers    atomic.Pointer[[]*Backend] // all backends of its model

	config        Config
	gauge         *degrade.Gauge
	tuned         atomic.Pointer[tuning]
	objective     atomic.Int64 // to the first token, in ns; 0: none
	base          string       // URL without a trailing slash
	prefix        string       // path before /v1
	header        string       // header lines that every request has
	dialer        dialer
	pool          pool
	post          *http.Request // tells ReadResponse the method
	facts         atomic.Pointer[Facts]
	outReason     atomic.Pointer[string] // why it is out of rotation
	suspected     atomic.Bool            // a request failed since the last probe began
	moves         moves
	probeRequests chan struct{} // asks for a probe now
	gpus          atomic.Pointer[[]*nvml.View]
	engine        atomic.Pointer[Engine]
	certExpiry    atomic.Int64              // when the certificate that it shows ends, Unix time in s; 0: it has shown none
	loadError     atomic.Pointer[string]    // why the engine's load is not known; nil: it is
	queuedAt      atomic.Pointer[time.Time] // when the engine last said that requests wait or were preempted; nil: never
}

// name is the URL without what tells no server from another.
func (c Config) name() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return c.URL
	}
	return u.Host + trimRoute(u.Path)
}

// withoutRoute takes a trailing slash and the API's own part off the path of a server's
// URL: it is pasted with /v1, as every client wants it, or with a route.
func trimRoute(path string) string {
	path = strings.TrimRight(path, "/")
	for _, route := range []string{"/v1", "/v1/chat/completions", "/v1/completions", "/v1/models"} {
		if trimmed, found := strings.CutSuffix(path, route); found {
			return strings.TrimRight(trimmed, "/")
		}
	}
	return path
}

// New makes a backend that is out of rotation until it has been probed. The
// configuration must be valid.
func New(c Config, agent string) *Backend {
	u, err := url.Parse(c.URL)
	if err != nil {
		u = &url.URL{}
	}
	prefix := trimRoute(u.EscapedPath())
	b := &Backend{
		Name: c.name(), config: c,
		base: u.Scheme + "://" + u.Host + prefix, prefix: prefix,
		post: &http.Request{Method: http.MethodPost}, probeRequests: make(chan struct{}, 1),
	}
	b.progress.base = time.Now()
	b.gauge = degrade.NewGauge(b.Name, 1, b.readings)
	b.Seat = admission.NewSeat(b.gauge, admission.Bounds{})
	b.tune(c)
	port := u.Port()
	if u.Scheme == "https" {
		b.dialer.tls = &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
		if port == "" {
			port = "443"
		}
	} else if port == "" {
		port = "80"
	}
	b.dialer.addr = net.JoinHostPort(u.Hostname(), port)
	b.header = "Host: " + u.Host + "\r\nUser-Agent: " + agent + "\r\nContent-Type: application/json\r\n"
	if c.APIKey != "" {
		b.header += "Authorization: Bearer " + c.APIKey + "\r\n"
	}
	b.facts.Store(&Facts{Serves: c.Serves})
	b.gpus.Store(&[]*nvml.View{})
	b.takeOut("not probed yet")
	return b
}

// Facts are what the server last said of itself.
func (b *Backend) Facts() Facts { return *b.facts.Load() }

// CertificateExpires returns when the first certificate of the chain that the server
// showed to the last probe ends; zero: it has shown none.
func (b *Backend) CertificateExpires() time.Time {
	if ends := b.certExpiry.Load(); ends != 0 {
		return time.Unix(ends, 0)
	}
	return time.Time{}
}

// sawCertificates notes when the first certificate of a server's chain ends.
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

// GPUs are windows on the GPUs that the backend is said to run on.
func (b *Backend) GPUs() []*nvml.View { return *b.gpus.Load() }

// runsOn says which GPUs those are.
func (b *Backend) setGPUs(refs []string, gpus *nvml.Monitor) {
	views := make([]*nvml.View, 0, len(refs))
	for _, ref := range refs {
		views = append(views, gpus.Watch(ref))
	}
	b.gpus.Store(&views)
	b.Seat.SetGPUs(len(views))
}

// Why is the reason for being out of rotation; empty while in it.
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

// suspect takes the backend out of rotation at once where nobody listens, and has it
// probed now in any case. Until that probe has ended others are sent the requests.
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
