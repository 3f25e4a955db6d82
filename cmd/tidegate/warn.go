package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"tidegate/gateway/account"
)

// warnings says what of a valid configuration is probably not meant, or will not work
// for long, path first. It reads files, but asks nobody. names are those of all
// environment variables.
func (c *config) warnings(names []string, now time.Time) (out []error) {
	s := &c.Server
	for i, p := range s.TrustedProxies {
		if prefix, err := netip.ParsePrefix(p); err == nil && (prefix.Addr().Is4() && prefix.Bits() < 8 || prefix.Addr().Is6() && prefix.Bits() < 16) {
			out = append(out, fmt.Errorf("server.trusted_proxies[%d]: %s lets anyone say with X-Forwarded-For which address it has, and so pass limits per ip, networks of keys and bans of those who guess; name the proxies' own network", i, p))
		}
	}
	if host, _, err := net.SplitHostPort(s.OpsListen); err == nil && everyAddress(host) {
		out = append(out, fmt.Errorf("server.ops_listen: %s is reachable at every address of this machine, without a key: /status, /metrics and /debug/pprof/ show names, loads and memory; bind it to 127.0.0.1 or to a network for monitoring", s.OpsListen))
	}
	if c.Auth.Mode == account.Open && !loopback(s.Listen) {
		out = append(out, fmt.Errorf("auth.mode: is open, and server.listen is %s: anyone who reaches it may use the models", s.Listen))
	}
	out = append(out, ending(namedFile{"server.tls.cert_file", s.TLS.CertFile}, soonest, now)...)
	out = append(out, ending(namedFile{"server.tls.client_ca_file", s.TLS.ClientCAFile}, latest, now)...)
	for i, g := range c.GPUs {
		out = append(out, ending(namedFile{fmt.Sprintf("gpus[%d].ca_file", i), g.CAFile}, latest, now)...)
	}
	for i, a := range c.Alerts {
		out = append(out, ending(namedFile{fmt.Sprintf("alerts[%d].ca_file", i), a.CAFile}, latest, now)...)
	}
	for _, f := range c.secretFiles() {
		if err := openToOthers(f.file); err != nil {
			out = append(out, fmt.Errorf("%s: %w", f.path, err))
		}
	}
	return append(out, c.unknownVariables(names)...)
}

// ending warns of a file whose certificates have ended, end soon or are not good yet;
// ends says which of their ends counts.
func ending(f namedFile, ends func([]*x509.Certificate) time.Time, now time.Time) []error {
	certs := readCertificates(f.file)
	if len(certs) == 0 {
		return nil // whoever uses it says why
	}
	end := ends(certs)
	switch left := end.Sub(now); {
	case left <= 0:
		return []error{fmt.Errorf("%s: a certificate in %s expired on %s, and no other side accepts it: renew it", f.path, f.file, end.UTC().Format(time.RFC3339))}
	case left < expiresSoon:
		return []error{fmt.Errorf("%s: a certificate in %s expires in %s, on %s: renew it", f.path, f.file, days(left), end.UTC().Format(time.RFC3339))}
	case now.Before(certs[0].NotBefore):
		return []error{fmt.Errorf("%s: a certificate in %s is good only from %s on; is the clock of this machine right?", f.path, f.file, certs[0].NotBefore.UTC().Format(time.RFC3339))}
	}
	return nil
}

// namedFile is a file that the configuration names at a path.
type namedFile struct{ path, file string }

// secretFiles lists the files that hold a secret.
func (c *config) secretFiles() []namedFile {
	out := []namedFile{
		{"server.tls.key_file", c.Server.TLS.KeyFile}, {"auth.admin_key_file", c.Auth.AdminKeyFile}, {"redis.password_file", c.Redis.PasswordFile},
	}
	for i, k := range c.Auth.Keys {
		out = append(out, namedFile{fmt.Sprintf("auth.keys[%d].key_file", i), k.KeyFile})
	}
	for i, m := range c.Models {
		for j, b := range m.Backends {
			out = append(out, namedFile{fmt.Sprintf("models[%d].backends[%d].api_key_file", i, j), b.APIKeyFile})
		}
	}
	for i, g := range c.GPUs {
		out = append(out, namedFile{fmt.Sprintf("gpus[%d].token_file", i), g.TokenFile})
	}
	for i, a := range c.Alerts {
		out = append(out, namedFile{fmt.Sprintf("alerts[%d].url_file", i), a.URLFile}, namedFile{fmt.Sprintf("alerts[%d].secret_file", i), a.SecretFile},
			namedFile{fmt.Sprintf("alerts[%d].password_file", i), a.PasswordFile})
	}
	return slices.DeleteFunc(out, func(f namedFile) bool { return f.file == "" })
}

// openToOthers says that every user of the machine may read or write a file; nil: not so,
// or it cannot be known.
func openToOthers(file string) error {
	info, err := os.Stat(file)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o006 == 0 {
		return nil
	}
	access := "read"
	if info.Mode().Perm()&0o002 != 0 {
		access = "change"
	}
	return fmt.Errorf("every user of this machine may %s %s (mode %04o); chmod 0600 %s", access, file, info.Mode().Perm(), file)
}

// unknownVariables warns of environment variables that begin as those of settings and
// are none. What orchestrators set for a service that is called tidegate is left out
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
func (c *config) unknownVariables(names []string) (out []error) {
	service := regexp.MustCompile(`^TIDEGATE(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	known := []string{"TIDEGATE_CONFIG"}
	for _, path := range pathsOf(reflect.TypeFor[config](), "") {
		if !strings.Contains(path, "[]") {
			known = append(known, "TIDEGATE_"+strings.ToUpper(strings.ReplaceAll(path, ".", "_")))
		}
	}
	used := c.usedVariables()
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "TIDEGATE_") || slices.Contains(known, name) || slices.Contains(used, name) ||
			strings.HasPrefix(name, "TIDEGATE_TEST_") || service.MatchString(name) {
			continue
		}
		if near := nearest(name, append(slices.Clone(used), known...)); near != "" {
			out = append(out, fmt.Errorf("environment variable %s: names no setting and is ignored; is %s meant?", name, near))
			continue
		}
		out = append(out, fmt.Errorf("environment variable %s: names no setting and is ignored; the settings' variables are in docs/reference.md", name))
	}
	return out
}

// usedVariables lists the variables that the configuration itself names for its secrets.
func (c *config) usedVariables() []string {
	out := []string{account.DefaultAdminKeyEnv, c.Auth.AdminKeyEnv, c.Redis.PasswordEnv}
	for _, k := range c.Auth.Keys {
		out = append(out, k.KeyEnv)
	}
	for _, m := range c.Models {
		for _, b := range m.Backends {
			out = append(out, b.APIKeyEnv)
		}
	}
	for _, g := range c.GPUs {
		out = append(out, g.TokenEnv)
	}
	for _, a := range c.Alerts {
		out = append(out, a.URLEnv, a.SecretEnv, a.PasswordEnv)
	}
	return slices.DeleteFunc(out, func(name string) bool { return name == "" })
}

// startFaults says what of a valid configuration would keep serve from starting: files
// that cannot be used. It starts nothing and asks nobody.
func (c *config) startFaults() (faults []error) {
	if s := c.Server.TLS; s.CertFile != "" {
		if _, err := loadCertificate(s); err != nil {
			faults = append(faults, err)
		}
		if _, err := loadClientCAs(s); err != nil {
			faults = append(faults, err)
		}
	}
	if _, err := c.limitSet(); err != nil {
		faults = append(faults, err)
	}
	if _, err := c.alertChannels(); err != nil {
		faults = append(faults, err)
	}
	return faults
}

// loadCertificate reads the certificate and its key; its error names the file that is
// the matter.
func loadCertificate(s tlsConfig) (*tls.Certificate, error) {
	for _, f := range []namedFile{{"server.tls.cert_file", s.CertFile}, {"server.tls.key_file", s.KeyFile}} {
		if _, err := os.ReadFile(f.file); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, reason(err))
		}
	}
	cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("server.tls.cert_file: %s and %s are no certificate and its key: %w", s.CertFile, s.KeyFile, err)
	}
	return &cert, nil
}

// loadClientCAs reads the authorities of callers' certificates; nil: callers need none.
func loadClientCAs(s tlsConfig) (*x509.CertPool, error) {
	if s.ClientCAFile == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(s.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("server.tls.client_ca_file: %w", reason(err))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("server.tls.client_ca_file: %s holds no certificate in PEM", s.ClientCAFile)
	}
	return pool, nil
}

// reason says why a file cannot be read, and what to do where that is known.
func reason(err error) error {
	var cause *fs.PathError
	if errors.As(err, &cause) && errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s cannot be read: %w; give it to the gateway's user", cause.Path, cause.Err)
	}
	return err
}
