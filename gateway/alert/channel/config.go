package channel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types of channels.
const (
	Webhook  = "webhook"
	DingTalk = "dingtalk"
	WeCom    = "wecom"
	Feishu   = "feishu"
	Slack    = "slack"
	Email    = "email"
)

// Types returns all types of channels.
func Types() []string { return []string{Webhook, DingTalk, WeCom, Feishu, Slack, Email} }

// Languages of messages.
const (
	English = "en"
	Chinese = "zh"
)

// Modes of encryption for e-mail.
const (
	StartTLS    = "starttls" // plain text, then TLS before any command; without TLS nothing is sent
	ImplicitTLS = "implicit" // TLS from the first byte
	NoTLS       = "none"     // plain text
)

// Config is one channel, an entry of the section alerts.
type Config struct {
	Name string `yaml:"name"` // name in status, metrics and commands; empty: the type
	Type string `yaml:"type"` // webhook | dingtalk | wecom | feishu | slack | email

	URL        string `yaml:"url"`         // URL of a webhook; all others carry a token and are given by one of the next two
	URLEnv     string `yaml:"url_env"`     // environment variable that holds the URL
	URLFile    string `yaml:"url_file"`    // file that holds it, in place of the variable
	SecretEnv  string `yaml:"secret_env"`  // environment variable that holds the key of signatures: required for a webhook, optional for DingTalk and Feishu
	SecretFile string `yaml:"secret_file"` // file that holds it, in place of the variable
	Secret     string `yaml:"-"`           // value of the variable or the file

	Min          Severity `yaml:"min"`           // lowest severity that is sent: warning | severe | blocked; empty: warning
	Language     string   `yaml:"language"`      // en | zh; empty: en
	AllowPrivate bool     `yaml:"allow_private"` // whether an address that is not public is allowed, and plain http
	CAFile       string   `yaml:"ca_file"`       // PEM of the authority of the receiver's certificate; empty: the system's

	// For e-mail only.
	Server       string   `yaml:"server"`        // host:port
	TLS          string   `yaml:"tls"`           // starttls | implicit | none; empty: starttls
	Username     string   `yaml:"username"`      // empty: without authentication
	PasswordEnv  string   `yaml:"password_env"`  // environment variable that holds its password
	PasswordFile string   `yaml:"password_file"` // file that holds it, in place of the variable
	Password     string   `yaml:"-"`             // value of the variable or the file
	From         string   `yaml:"from"`          // sender, such as Tidegate <tidegate@example.com>
	To           []string `yaml:"to"`            // recipients; each gets a message of its own
}

// UnmarshalYAML reads an entry and sets the defaults of what it leaves out.
func (c *Config) UnmarshalYAML(decode func(any) error) error {
	type plain Config
	var p plain
	if err := decode(&p); err != nil {
		return err
	}
	*c = Config(p).withDefaults()
	return nil
}

// withDefaults returns the configuration with the defaults of what it leaves out.
func (c Config) withDefaults() Config {
	fill := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	fill(&c.Name, c.Type)
	fill(&c.Language, English)
	if c.Type == Email {
		fill(&c.TLS, StartTLS)
	}
	return c
}

// secrets returns the texts that no message to people may contain, the longest first.
func (c *Config) secrets() (out []string) {
	add := func(s string, minimum int) { // to hide a shorter one would hide half of a text
		if len(s) >= minimum {
			out = append(out, s)
		}
	}
	add(c.URL, 4)
	add(c.Secret, 4)
	add(c.Password, 4)
	if u, err := url.Parse(c.URL); err == nil {
		add(u.RawQuery, 4)
		for _, values := range u.Query() {
			for _, v := range values {
				add(v, 4)
				add(url.QueryEscape(v), 4)
			}
		}
		// Slack's and Feishu's tokens are the end of the path.
		add(strings.TrimPrefix(u.Path, "/"), 8)
		add(u.Path[strings.LastIndexByte(u.Path, '/')+1:], 8)
	}
	slices.SortFunc(out, func(a, b string) int { return len(b) - len(a) })
	return out
}

// ValidateAll returns all faults of the section alerts, each with its path first. The
// secrets must have been read.
func ValidateAll(configs []Config) error {
	var faults []error
	seen := map[string]int{}
	for i := range configs {
		c := configs[i].withDefaults()
		if err := c.Validate(); err != nil {
			for _, fault := range unjoin(err) {
				faults = append(faults, fmt.Errorf("alerts[%d].%w", i, fault))
			}
		}
		if j, twice := seen[c.Name]; twice && c.Name != "" {
			faults = append(faults, fmt.Errorf("alerts[%d].name: %q is also alerts[%d]; expected a name of its own", i, c.Name, j))
		} else {
			seen[c.Name] = i
		}
	}
	return errors.Join(faults...)
}

// unjoin returns the errors of errors.Join, or the error alone.
func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// Validate returns all faults of the entry, each with its path first.
func (c Config) Validate() error {
	c = c.withDefaults()
	f := &faults{}
	f.check(slices.Contains(Types(), c.Type), "type: %q is no channel; expected one of %s", c.Type, strings.Join(Types(), ", "))
	f.check(c.Name == "" || validName(c.Name), "name: must be 1 to 64 letters, digits, dots, dashes or underscores, not %q", c.Name)
	f.check(c.Language == English || c.Language == Chinese, "language: must be en or zh, not %q", c.Language)
	f.check(c.Min >= Warning && c.Min <= Blocked, "min: must be warning, severe or blocked")
	if c.CAFile != "" {
		_, err := loadCA(c.CAFile)
		f.check(err == nil, "ca_file: %v", err)
	}
	switch c.Type {
	case Webhook, DingTalk, WeCom, Feishu, Slack:
		c.validateURL(f)
		for _, field := range []struct{ path, value string }{
			{"server", c.Server}, {"tls", c.TLS}, {"username", c.Username}, {"password_env", c.PasswordEnv},
			{"password_file", c.PasswordFile}, {"from", c.From}, {"to", strings.Join(c.To, "")},
		} {
			f.check(field.value == "", "%s: belongs to type: email", field.path)
		}
	case Email:
		c.validateMail(f)
		for _, field := range []struct{ path, value string }{
			{"url", c.URL}, {"url_env", c.URLEnv}, {"url_file", c.URLFile}, {"secret_env", c.SecretEnv}, {"secret_file", c.SecretFile},
		} {
			f.check(field.value == "", "%s: does not belong to type: email", field.path)
		}
	}
	return errors.Join(f.list...)
}

// faults collects the faults of an entry.
type faults struct{ list []error }

// check adds a fault unless ok.
func (f *faults) check(ok bool, format string, args ...any) {
	if !ok {
		f.list = append(f.list, fmt.Errorf(format, args...))
	}
}

// validateURL checks the URL and the secret. It never shows the URL, which may hold a
// token.
func (c *Config) validateURL(f *faults) {
	named := c.URLEnv != "" || c.URLFile != ""
	f.check(c.URLEnv == "" || c.URLFile == "", "url_env: excludes url_file")
	switch {
	case c.URL == "" && !named:
		f.check(c.Type != Webhook, "url: is missing; expected something like https://alerts.example.com/tidegate")
		f.check(c.Type == Webhook, "url_env: is missing; expected the name of the environment variable that holds the robot's URL, or url_file")
	case c.Type != Webhook && !named:
		f.check(false, "url: carries the robot's token, which does not belong into this file; expected url_env or url_file")
	case c.URL != "":
		u, err := url.Parse(c.URL)
		path := "url"
		switch {
		case c.URLEnv != "":
			path = "url_env"
		case c.URLFile != "":
			path = "url_file"
		}
		ok := err == nil && u.Hostname() != "" && (u.Scheme == "https" || u.Scheme == "http") && u.User == nil && u.Fragment == ""
		f.check(ok, "%s: holds no http or https URL; expected something like https://alerts.example.com/tidegate", path)
		f.check(!ok || c.AllowPrivate || !privateHost(u.Hostname()), "%s: is at an address that is not public; expected another, or allow_private: true", path)
		f.check(!ok || u.Scheme == "https" || c.AllowPrivate, "%s: is in the clear; expected https://, or allow_private: true for a receiver in your own network", path)
	}
	f.check(c.SecretEnv == "" || c.SecretFile == "", "secret_env: excludes secret_file")
	hasSecret := c.SecretEnv != "" || c.SecretFile != ""
	f.check(!hasSecret || c.Type == Webhook || c.Type == DingTalk || c.Type == Feishu, "secret_env: a %s channel is not signed; its URL is its secret", c.Type)
	if c.Type == Webhook {
		f.check(hasSecret || c.Secret != "", "secret_env: is missing; a webhook is signed: expected the name of an environment variable that holds a key of 16 characters or more, or secret_file")
		f.check(c.Secret == "" || len(c.Secret) >= minSecret, "secret_env: the key must have %d characters or more, such as printed by: openssl rand -hex 32", minSecret)
	}
}

// validateMail checks the settings of e-mail.
func (c *Config) validateMail(f *faults) {
	host, port, err := net.SplitHostPort(c.Server)
	n, portErr := strconv.Atoi(port)
	f.check(err == nil && host != "" && portErr == nil && n > 0 && n < 65536, "server: must be host:port, such as smtp.example.com:587, not %q", c.Server)
	f.check(c.AllowPrivate || !privateHost(host), "server: is at an address that is not public; expected another, or allow_private: true")
	f.check(c.TLS == StartTLS || c.TLS == ImplicitTLS || c.TLS == NoTLS, "tls: must be starttls, implicit or none, not %q", c.TLS)
	f.check(c.PasswordEnv == "" || c.PasswordFile == "", "password_env: excludes password_file")
	password := c.PasswordEnv != "" || c.PasswordFile != "" || c.Password != ""
	f.check(c.Username == "" || password, "password_env: is missing; expected the name of the environment variable that holds the password of username, or password_file")
	f.check(c.Username != "" || !password, "username: is missing beside its password")
	f.check(c.Username == "" || c.TLS != NoTLS, "tls: none would send the password in the clear; expected starttls or implicit")
	f.check(c.From != "", "from: is missing; expected an address such as tidegate@example.com")
	if c.From != "" {
		_, err := mail.ParseAddress(c.From)
		f.check(err == nil && isOneLine(c.From), "from: %q is no e-mail address", c.From)
	}
	f.check(len(c.To) > 0, "to: is missing; expected a list of addresses such as [ops@example.com]")
	for i, address := range c.To {
		_, err := mail.ParseAddress(address)
		f.check(err == nil && isOneLine(address), "to[%d]: %q is no e-mail address", i, address)
		f.check(!slices.Contains(c.To[:i], address), "to[%d]: %q is named twice", i, address)
	}
}

// privateHost reports whether a host is private, as far as its text shows: it resolves no
// name.
func privateHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && !public(ip) || strings.EqualFold(host, "localhost")
}

// minSecret is the shortest key of a webhook, in characters.
const minSecret = 16 // characters of a webhook's key

// isOneLine reports whether a text has no line break and no NUL.
func isOneLine(s string) bool { return !strings.ContainsAny(s, "\r\n\x00") }

// validName reports whether a text may name a channel.
func validName(s string) bool {
	invalid := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
	}
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, invalid)
}

// loadCA reads the certificates of a PEM file.
func loadCA(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// New returns the channel of an entry whose secrets have been read. It opens no
// connection.
func New(c Config) (*Channel, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	for _, secret := range []struct{ path, value, env, file string }{
		{"url", c.URL, c.URLEnv, c.URLFile}, {"secret", c.Secret, c.SecretEnv, c.SecretFile}, {"password", c.Password, c.PasswordEnv, c.PasswordFile},
	} {
		if secret.value == "" && (secret.env != "" || secret.file != "") {
			return nil, fmt.Errorf("%s_env: has not been read, or is empty", secret.path)
		}
	}
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pool, err := loadCA(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		tc.RootCAs = pool
	}
	ch := &Channel{config: c, now: time.Now, pacer: pacer{interval: paceInterval(c.Type)}, dialer: dialer{private: c.AllowPrivate, tls: tc}}
	if c.Type != Email {
		ch.client = ch.dialer.client()
	}
	return ch, nil
}
