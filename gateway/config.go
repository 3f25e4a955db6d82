package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/ledger"
)

// KeepAlive configures the keep-alives of silent streams.
type KeepAlive struct {
	Silence time.Duration `yaml:"after"` // silence before the first keep-alive
	Every   time.Duration `yaml:"every"` // and between two
	Form    string        `yaml:"form"`  // chunk | comment
}

// Config configures the front; it may change while requests run.
type Config struct {
	MaxBody        Size          `yaml:"max_body"` // of a request; a longer one is a 413
	BodyBudget     BodyBudget    `yaml:"body_budget"`
	BodyTimeout    time.Duration `yaml:"body_timeout"`  // for a caller to send its body
	WriteTimeout   time.Duration `yaml:"write_timeout"` // for a caller to take what is sent
	KeepAlive      KeepAlive     `yaml:"keepalive"`
	AuxRequests    limit.Rate    `yaml:"aux_requests"`    // requests of one key that generate nothing: lists, reports, /tokenize
	MaxN           int           `yaml:"max_n"`           // choices per prompt
	MaxPrompts     int           `yaml:"max_prompts"`     // prompts of one request for completions; the engine works on all of them at once
	TrustedProxies []string      `yaml:"trusted_proxies"` // networks whose X-Forwarded-For is believed
	OpsHosts       []string      `yaml:"ops_hosts"`       // names by which operators ask the ops listener, beside its addresses and private names; "*": any
	CORS           CORS          `yaml:"cors"`
	TraceCallers   []string      `yaml:"-"` // networks whose traceparent and tracestate are followed; of the section telemetry
	PerUser        int           `yaml:"-"` // users with metrics of their own, MaxPerUser at most; of the section telemetry
	Prices         ledger.Prices `yaml:"-"` // of the models
	Zone           string        `yaml:"-"` // time zone of reports that name none; empty: UTC
}

// Default returns the configuration of a front that names nothing.
func Default() Config {
	return Config{
		MaxBody: 8 << 20, BodyTimeout: time.Minute, WriteTimeout: time.Minute, AuxRequests: limit.Rate{Count: 120, Window: time.Minute}, MaxN: 8, MaxPrompts: 64,
		KeepAlive: KeepAlive{Silence: 10 * time.Second, Every: 10 * time.Second, Form: "chunk"},
		CORS:      CORS{MaxAge: 10 * time.Minute},
	}
}

// Validate returns all faults at once, each with its path first.
func (c *Config) Validate() error {
	var faults []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(c.MaxBody >= 1<<10 && c.MaxBody <= 1<<30, "max_body: must be from 1KiB to 1GiB, such as 8MiB")
	c.BodyBudget.validate(c.MaxBody, fault)
	fault(c.BodyTimeout >= time.Millisecond, "body_timeout: must be at least 1ms, such as 60s")
	fault(c.WriteTimeout >= time.Millisecond, "write_timeout: must be at least 1ms, such as 60s")
	fault(c.KeepAlive.Silence >= time.Millisecond, "keepalive.after: must be at least 1ms, such as 10s")
	fault(c.KeepAlive.Every >= time.Millisecond, "keepalive.every: must be at least 1ms, such as 10s")
	fault(c.KeepAlive.Form == "chunk" || c.KeepAlive.Form == "comment", "keepalive.form: must be chunk or comment, not %q", c.KeepAlive.Form)
	if c.AuxRequests == (limit.Rate{}) {
		fault(false, "aux_requests: must be a count and a window, such as 120/1m")
	} else if err := c.AuxRule().Validate(); err != nil {
		fault(false, "aux_requests: %s", strings.TrimPrefix(err.Error(), "requests: "))
	}
	fault(c.MaxN >= 1 && c.MaxN <= 128, "max_n: must be from 1 to 128")
	fault(c.MaxPrompts >= 1 && c.MaxPrompts <= 2048, "max_prompts: must be from 1 to 2048")
	for i, host := range c.OpsHosts {
		fault(host != "" && !strings.ContainsAny(host, "/: "), "ops_hosts[%d]: %q is no name of a host; expected something like tidegate.example.com, without scheme and port", i, host)
	}
	for i, p := range c.TrustedProxies {
		_, err := netip.ParsePrefix(p)
		fault(err == nil, "trusted_proxies[%d]: %q is no network; expected something like 10.0.0.0/8", i, p)
	}
	c.CORS.validate(fault)
	return errors.Join(faults...)
}

// AuxRule is the name of the rule that holds callers to aux_requests.
const AuxRule = "aux_requests"

// AuxRule returns the rule that holds callers to aux_requests.
func (c *Config) AuxRule() *limit.Rule {
	return &limit.Rule{Name: AuxRule, Scope: "key", Bounds: limit.Bounds{Requests: c.AuxRequests}, Aux: true}
}

// settings holds what a reload replaces as a whole.
type settings struct {
	Config
	accounts *account.Directory
	proxies  []netip.Prefix
	traced   []netip.Prefix // whose traces are gone on with
}

// networks parses networks that are valid.
func networks(texts []string) (out []netip.Prefix) {
	for _, text := range texts {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			out = append(out, prefix)
		}
	}
	return out
}

// CORS configures which pages in browsers may call the gateway from another origin than its
// own, by the rules of the Fetch standard. Keys come in headers that a page must set
// itself, so no cookie or certificate of a user is ever allowed to be sent along.
type CORS struct {
	Origins []string      `yaml:"origins"` // such as https://chat.example.org; "*": all; empty: none
	MaxAge  time.Duration `yaml:"max_age"` // for which a browser may remember that it may call; browsers bound it by 2h or less
}

// anyOrigin stands for all origins.
const anyOrigin = "*"

// validate reports the faults of the origins.
func (c *CORS) validate(fault func(ok bool, format string, args ...any)) {
	for i, o := range c.Origins {
		scheme, host, ok := strings.Cut(o, "://")
		ok = ok && scheme != "" && host != "" && !strings.ContainsAny(host, "/?#*@ ") && o == strings.ToLower(o)
		fault(ok || o == anyOrigin, "cors.origins[%d]: %q is no origin; expected something like https://chat.example.org, in small letters and without a path or a slash at the end, or \"*\" for all", i, o)
	}
	fault(c.MaxAge >= 0 && c.MaxAge <= 24*time.Hour, "cors.max_age: must be from 0 to 24h, such as 10m")
}

// allows returns what Access-Control-Allow-Origin says to an origin; empty: it may not call.
func (c *CORS) allows(origin string) string {
	switch {
	case slices.Contains(c.Origins, anyOrigin):
		return anyOrigin
	case slices.Contains(c.Origins, origin):
		return origin
	}
	return ""
}
