package main

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit"
	"tidegate/degrade"
	"tidegate/gateway/ledger"
	"tidegate/gateway/ops"
)

// condition holds the state that only the process knows of itself.
type condition struct {
	Reload       string            // why the last reload failed; empty: it did not
	RestartOnly  []string          // keys that changed and that only a restart applies
	Ledger       ledger.Status     // of the journal and its way into the database
	Redis        *redislimit.State // nil: the limits are this process's own
	Damage       *damage           // seen last in Redis; nil: none
	Certificates []expiry          // soonest end first
}

// damage describes values in Redis that no gateway wrote.
type damage struct {
	time time.Time
	keys []string // some of them
}

// damageFor is the time for which damage is warned of after it was seen last.
const damageFor = time.Hour

const (
	expiresSoon = 14 * 24 * time.Hour // before a certificate's end it is warned of
	longBacklog = 10_000              // records, as the alert TidegateLedgerBacklog has it
)

// warnings says what is wrong, the most urgent first, and what to do about it.
func (c *condition) warnings(now time.Time) (warnings []string) {
	warn := func(is bool, format string, args ...any) {
		if is {
			warnings = append(warnings, fmt.Sprintf(format, args...))
		}
	}
	warn(c.Reload != "", "the last reload failed, and the configuration before it stays in force: %s", c.Reload)
	warn(len(c.RestartOnly) > 0, "changed in the configuration, but only a restart applies it: %s", strings.Join(c.RestartOnly, ", "))
	l := &c.Ledger
	warn(l.Journal != "", "the journal of usage cannot be written, and records wait in memory (%d bytes of %d): %s", l.Buffer, ledger.BufferBytes, l.Journal)
	warn(l.Lost > 0, "%d usage records were lost since the start, because the journal's disk took nothing and the buffer was full", l.Lost)
	warn(l.Failure != "", "usage does not reach the database, and %d records wait in the journal: %s", l.Pending, l.Failure)
	warn(l.Failure == "" && l.Pending > longBacklog, "%d usage records wait in the journal for the database", l.Pending)
	if r := c.Redis; r != nil {
		warn(r.Alone, "Redis has not answered for %v: this gateway enforces %s of each limit alone, or what on_store_failure says: %s",
			now.Sub(r.ChangedAt).Round(time.Second), ownShare(r), cmp.Or(r.Error, "no reason is known"))
		warn(!r.Alone && r.Waiting > 0, "%d settlements of a time without Redis are still to be handed in to it", r.Waiting)
		warn(!r.Alone && r.Recounted, "%s", r.Action)
		warn(r.Dropped > 0, "%d settlements were dropped since the start, because Redis was away for too long: limits count too little for them", r.Dropped)
	}
	if b := c.Damage; b != nil && now.Sub(b.time) <= damageFor {
		warn(true, "values of the limits in Redis were read %v ago that no gateway wrote, and count as not there: see who else writes to this Redis: %s",
			now.Sub(b.time).Round(time.Second), strings.Join(b.keys, " "))
	}
	for _, e := range c.Certificates {
		left := e.Expires.Sub(now)
		warn(left <= 0, "the certificate %s expired on %s: put a new one in its place and reload (SIGHUP)", e.Certificate, e.Expires.UTC().Format(time.DateTime+" UTC"))
		warn(left > 0 && left < expiresSoon, "the certificate %s expires in %s, on %s", e.Certificate, days(left), e.Expires.UTC().Format(time.DateTime+" UTC"))
	}
	return warnings
}

// shrunkWarnings says which limits are smaller because of the level of a model: a caller
// is then refused below what the configuration allows.
func shrunkWarnings(rules *limit.Set, models []degrade.ModelStatus) (warnings []string) {
	for _, m := range models {
		level, ok := degrade.ParseLevel(m.Level)
		if !ok || level == degrade.Full {
			continue
		}
		var parts []string
		for _, one := range rules.Shrunken(int(level)) {
			parts = append(parts, fmt.Sprintf("%s (%v of it is left)", one.Rule, one.Factor))
		}
		if len(parts) > 0 {
			warnings = append(warnings, fmt.Sprintf("model %s: at %s (%s), and limits are smaller for its callers meanwhile: %s; see docs/operating.md, \"Limits and quotas\"",
				m.Model, m.Level, cmp.Or(m.Reason, "no reason is known"), strings.Join(parts, ", ")))
		}
	}
	return warnings
}

// ownShare says how much of each limit a replica enforces alone.
func ownShare(r *redislimit.State) string {
	if r.PerMille <= 0 {
		return "an unknown share"
	}
	return fmt.Sprintf("%.4g %% (1 of %d gateways)", float64(r.PerMille)/10, max(r.Replicas, 1))
}

// days is a time of days or hours for people.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// condition is the state of the process now.
func (d *daemon) condition() condition {
	c := condition{Ledger: d.ledger.Status(), Certificates: d.certificates(), Damage: d.damage.Load()}
	if p := d.failure.Load(); p != nil {
		c.Reload = *p
	}
	if keys := d.restart.Load(); keys != nil {
		c.RestartOnly = *keys
	}
	if d.counters.guard != nil {
		state := d.counters.guard.State()
		c.Redis = &state
	}
	return c
}

// status adds to /status what only the process knows.
func (d *daemon) status() ops.Extra {
	c := d.condition()
	d.counters.mu.Lock()
	rules := d.counters.rules
	d.counters.mu.Unlock()
	warnings := append(c.warnings(time.Now()), shrunkWarnings(rules, d.ladder.Status().Models)...)
	return ops.Extra{Warnings: warnings, Members: map[string]any{
		"config_reload_ok": c.Reload == "", "config_reload_error": c.Reload, "restart_needed_for": append([]string{}, c.RestartOnly...),
		"ledger": c.Ledger, "limits": d.counters.status(), "certificates": append([]expiry{}, c.Certificates...),
	}}
}

// expiry is the end of a certificate.
type expiry struct {
	Certificate string    `json:"certificate"` // the setting that names its file, or the backend that shows it
	Expires     time.Time `json:"expires"`
}

// certificates returns when those end that the gateway shows, that it checks others by,
// and that its backends show, the soonest first.
func (d *daemon) certificates() (expiries []expiry) {
	if held := d.expiries.Load(); held != nil {
		expiries = append(expiries, *held...)
	}
	for _, m := range d.fleet.Models() {
		for _, b := range m.Backends {
			if ends := b.CertificateExpires(); !ends.IsZero() {
				expiries = append(expiries, expiry{"of backend " + b.Name, ends})
			}
		}
	}
	slices.SortFunc(expiries, func(a, b expiry) int {
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.Certificate, b.Certificate))
	})
	return slices.CompactFunc(expiries, func(a, b expiry) bool { return a == b })
}

// readExpiries reads when the certificates in files end. A file that cannot be read is
// the fault of who uses it, and has no line here.
func (d *daemon) readExpiries(c *config) {
	var expiries []expiry
	add := func(setting, file string, ends func([]*x509.Certificate) time.Time) {
		if file == "" {
			return
		}
		if certs := readCertificates(file); len(certs) > 0 {
			expiries = append(expiries, expiry{setting, ends(certs)})
		}
	}
	add("server.tls.cert_file", d.config.Server.TLS.CertFile, soonest) // a change of its name needs a restart
	add("server.tls.client_ca_file", d.config.Server.TLS.ClientCAFile, latest)
	for i := range c.GPUs {
		add("gpus "+c.GPUs[i].Name+" ca_file", c.GPUs[i].CAFile, latest)
	}
	for i := range c.Alerts {
		add("alerts "+c.Alerts[i].Name+" ca_file", c.Alerts[i].CAFile, latest)
	}
	d.expiries.Store(&expiries)
}

// readCertificates reads the certificates of a file in PEM.
func readCertificates(file string) (certs []*x509.Certificate) {
	rest, err := os.ReadFile(file)
	for err == nil {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}

// soonest returns the end of the first certificate of a chain to end, and of the chain with it.
func soonest(chain []*x509.Certificate) time.Time {
	return slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
}

// latest returns the end of the last of several authorities: an old one beside it does no harm.
func latest(authorities []*x509.Certificate) time.Time {
	return slices.MaxFunc(authorities, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
}

// certificateMetric tells Prometheus when certificates end; a series ends with its
// certificate.
type certificateMetric struct {
	desc *prometheus.Desc
	read func() []expiry
}

func newCertificateMetric(read func() []expiry) *certificateMetric {
	return &certificateMetric{read: read, desc: prometheus.NewDesc("tidegate_certificate_expiry_timestamp_seconds",
		"When the certificate ends, in Unix time.", []string{"certificate"}, nil)}
}

// Describe implements prometheus.Collector.
func (m *certificateMetric) Describe(out chan<- *prometheus.Desc) { out <- m.desc }

// Collect implements prometheus.Collector.
func (m *certificateMetric) Collect(out chan<- prometheus.Metric) {
	seen := map[string]bool{} // two series of one name would fail the whole page
	for _, e := range m.read() {
		if !seen[e.Certificate] {
			seen[e.Certificate] = true
			out <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(e.Expires.Unix()), e.Certificate)
		}
	}
}
