package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit"
	"tidegate/degrade"
	"tidegate/gateway"
	"tidegate/gateway/account"
	"tidegate/gateway/alert/channel"
	"tidegate/gateway/backend"
	"tidegate/gateway/database"
	"tidegate/gateway/ledger"
	"tidegate/nvml"
)

// config is the whole configuration file.
type config struct {
	Server    serverConfig          `yaml:"server"`
	Auth      account.Config        `yaml:"auth"`
	Store     storeConfig           `yaml:"store"`
	Redis     redislimit.Config     `yaml:"redis"`
	Models    []backend.ModelConfig `yaml:"models"`
	Reports   reportsConfig         `yaml:"reports"`
	GPUs      []nvml.Config         `yaml:"gpus"`
	Degrade   degrade.Config        `yaml:"degrade"`
	Queue     admission.QueueConfig `yaml:"queue"`
	Limits    []limit.Rule          `yaml:"limits"`
	Quotas    []limit.QuotaRule     `yaml:"quotas"`
	Alerts    []channel.Config      `yaml:"alerts"`
	Telemetry telemetryConfig       `yaml:"telemetry"`
}

// serverConfig is the listeners and what the face is told.
type serverConfig struct {
	Listen         string        `yaml:"listen"`         // address for callers
	OpsListen      string        `yaml:"ops_listen"`     // address for operators: /metrics, /status, /debug/pprof; empty: none
	HeaderTimeout  time.Duration `yaml:"header_timeout"` // for a caller to send the head of a request
	ShutdownGrace  time.Duration `yaml:"shutdown_grace"` // for streams to finish after SIGTERM
	TLS            tlsConfig     `yaml:"tls"`
	gateway.Config `yaml:",inline"`
}

type tlsConfig struct {
	CertFile     string `yaml:"cert_file"`      // PEM; a changed file is read on reload. Empty: no TLS
	KeyFile      string `yaml:"key_file"`       // PEM
	ClientCAFile string `yaml:"client_ca_file"` // PEM; callers must show a certificate of this authority (mTLS)
}

// storeConfig names the places of accounts and usage.
type storeConfig struct {
	DSN        string        `yaml:"dsn"`         // sqlite://PATH or postgres://USER:PASSWORD@HOST/NAME
	JournalDir string        `yaml:"journal_dir"` // of usage that is not in the store yet; of this gateway alone
	Retention  time.Duration `yaml:"retention"`   // of single usage records; 0: for good. Sums stay
}

// reportsConfig sets the time zone and the currency of usage reports.
type reportsConfig struct {
	Zone     string `yaml:"zone"`     // time zone of months, days and hours where a report names none
	Currency string `yaml:"currency"` // of models[].prices, such as CNY
}

type telemetryConfig struct {
	Log          string   `yaml:"log"`           // json | text, to stderr
	OTLPEndpoint string   `yaml:"otlp_endpoint"` // URL of the collector that is sent traces; empty: none, unless OTEL_EXPORTER_OTLP_ENDPOINT names one
	TraceCallers []string `yaml:"trace_callers"` // networks whose callers decide with traceparent and tracestate which trace a request belongs to and whether it is kept; empty: none
	PerUser      int      `yaml:"per_user"`      // users with metrics of their own, those that use most; 0: none
}

func defaultConfig() config {
	return config{
		Server: serverConfig{
			Listen: ":8080", OpsListen: "127.0.0.1:9090", HeaderTimeout: 10 * time.Second, ShutdownGrace: time.Minute,
			Config: gateway.Default(),
		},
		Auth:      account.Default(),
		Store:     storeConfig{DSN: "sqlite://tidegate.db", JournalDir: "./journal", Retention: 90 * 24 * time.Hour},
		Redis:     redislimit.DefaultConfig(),
		Degrade:   degrade.DefaultConfig(),
		Queue:     admission.DefaultQueue(),
		Reports:   reportsConfig{Zone: "UTC"},
		Telemetry: telemetryConfig{Log: "json"},
	}
}

// validate says all that is wrong, path first.
func (c *config) validate() error {
	var faults []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	prefixed := func(path string, err error) {
		for _, e := range flatten(err) {
			faults = append(faults, fmt.Errorf("%s%w", path, e))
		}
	}
	s := &c.Server
	faults = append(faults, s.listenFaults()...)
	fault(s.HeaderTimeout >= time.Millisecond, "server.header_timeout: must be at least 1ms, such as 10s")
	fault(s.ShutdownGrace >= 0, "server.shutdown_grace: must not be negative")
	fault((s.TLS.CertFile == "") == (s.TLS.KeyFile == ""), "server.tls: cert_file and key_file belong together")
	fault(s.TLS.ClientCAFile == "" || s.TLS.CertFile != "", "server.tls.client_ca_file: needs cert_file and key_file")
	fault(c.Telemetry.PerUser >= 0 && c.Telemetry.PerUser <= gateway.MaxPerUser, "telemetry.per_user: must be from 0 to %d: each user is four series", gateway.MaxPerUser)
	for i, network := range c.Telemetry.TraceCallers {
		_, err := netip.ParsePrefix(network)
		fault(err == nil, "telemetry.trace_callers[%d]: %q is no network; expected something like 10.0.0.0/8", i, network)
	}
	fault(c.Telemetry.Log == "json" || c.Telemetry.Log == "text", "telemetry.log: must be json or text, not %q", c.Telemetry.Log)
	fault(c.Telemetry.OTLPEndpoint == "" || httpURL(c.Telemetry.OTLPEndpoint), "telemetry.otlp_endpoint: %q is no URL; expected something like http://localhost:4318", c.Telemetry.OTLPEndpoint)
	prefixed("server.", s.Validate())
	prefixed("auth.", c.Auth.Validate())
	c.Store.validate(fault)
	prefixed("redis.", c.Redis.Validate())
	fault(len(c.Models) > 0, "models: is empty; expected at least one model with a name and backends")
	owner := map[string]string{}
	for i := range c.Models {
		m := &c.Models[i]
		path := fmt.Sprintf("models[%d]", i)
		prefixed(path+".", m.Validate())
		for j, name := range append([]string{m.Name}, m.Aliases...) {
			place := path + ".name"
			if j > 0 {
				place = fmt.Sprintf("%s.aliases[%d]", path, j-1)
			}
			fault(owner[name] == "", "%s: %q already names %s", place, name, owner[name])
			owner[name] = path
		}
		for j := range m.Backends {
			for k, ref := range m.Backends[j].GPUs {
				if err := nvml.CheckRef(ref, c.GPUs); err != nil {
					fault(false, "%s.backends[%d].gpus[%d]: %w", path, j, k, err)
				}
			}
		}
	}
	c.validateFallbacks(owner, fault)
	c.validateReports(fault)
	prefixed("", nvml.Validate(c.GPUs))
	prefixed("degrade.", c.Degrade.Validate())
	prefixed("queue.", c.Queue.Validate())
	for i, k := range c.Auth.Keys {
		for j, name := range k.Models {
			fault(owner[name] != "", "auth.keys[%d].models[%d]: there is no model %q", i, j, name)
		}
	}
	prefixed("", limit.Validate(c.Limits, c.Quotas))
	for i := range c.Limits {
		fault(c.Limits[i].Name != gateway.AuxRule, "limits[%d].name: %s is the name of what server.aux_requests says; choose another", i, gateway.AuxRule)
	}
	for i := range c.Quotas {
		fault(c.Quotas[i].Name != gateway.AuxRule, "quotas[%d].name: %s is the name of what server.aux_requests says; choose another", i, gateway.AuxRule)
	}
	prefixed("", channel.ValidateAll(c.Alerts))
	return errors.Join(faults...)
}

// validateFallbacks makes sure that each model's fallback is another model, and that
// the way from one to the next ends.
func (c *config) validateFallbacks(owner map[string]string, fault func(ok bool, format string, args ...any)) {
	next := map[string]string{} // by path
	for i := range c.Models {
		path, name := fmt.Sprintf("models[%d]", i), c.Models[i].Fallback
		if name != "" {
			fault(owner[name] != "", "%s.fallback: there is no model %q", path, name)
			next[path] = owner[name]
		}
	}
	for i := range c.Models {
		path := fmt.Sprintf("models[%d]", i)
		index := next[path]
		for range c.Models {
			if index == path {
				fault(false, "%s.fallback: leads back to %s itself; expected a way that ends at the smallest model", path, c.Models[i].Name)
				break
			}
			index = next[index]
		}
	}
	for i := range c.Limits {
		fault(c.Limits[i].Exceed != limit.ExceedDegrade || len(next) > 0, "limits[%d].exceed: degrade needs a model with a fallback, since nothing would be limited without a smaller model; use reject, or name one", i)
	}
}

func (s *storeConfig) validate(fault func(ok bool, format string, args ...any)) {
	err := database.Validate(s.DSN)
	fault(err == nil, "store.dsn: %w", err)
	fault(s.JournalDir != "", "store.journal_dir: is empty; expected a directory such as ./journal")
	fault(s.Retention == 0 || s.Retention >= ledger.MinRetention, "store.retention: must be at least %v, such as 2160h, or 0s for good", ledger.MinRetention)
}

// flatten lists the errors that errors.Join joined, those within joined ones too.
func flatten(err error) (out []error) {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || errors.Join(joined.Unwrap()...).Error() != err.Error() { // a text of its own around several
		return []error{err}
	}
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// configError holds the faults of a configuration, as lines for people.
type configError struct{ lines []string }

func (e *configError) Error() string { return strings.Join(e.lines, "\n") }

// readConfig reads a configuration strictly: the file, then the environment over
// it. Each fault names file, line and column, shows the line and says what was
// expected. env looks up an environment variable.
func readConfig(file string, source []byte, env func(string) (string, bool)) (config, error) {
	c, err := readSettings(file, source, env)
	if err != nil {
		return c, err
	}
	if err := c.faults(env); err != nil {
		return c, &configError{locate(file, source, err)}
	}
	return c, nil
}

// readSettings reads what a file and the environment hold, without a look at what it
// means. Its error is a configError that says all that cannot be read.
func readSettings(file string, source []byte, env func(string) (string, bool)) (config, error) {
	c := defaultConfig()
	var lines []string
	if err := decode(source, &c); err != nil {
		lines = explainYAML(file, source, err)
	}
	for _, err := range overlay(reflect.ValueOf(&c).Elem(), "TIDEGATE", env) {
		lines = append(lines, err.Error())
	}
	if len(lines) > 0 {
		return c, &configError{lines}
	}
	return c, nil
}

// faults reads the secrets that the configuration names and says all that is wrong with
// it, path first. What follows from a secret that cannot be read is not said again.
func (c *config) faults(env func(string) (string, bool)) error {
	unread := flatten(c.resolve(env))
	secret := func(err error) string {
		path, _, _ := strings.Cut(err.Error(), ": ")
		return strings.TrimSuffix(strings.TrimSuffix(path, "_env"), "_file")
	}
	seen := map[string]bool{}
	for _, err := range unread {
		seen[secret(err)] = true
	}
	invalid := slices.DeleteFunc(flatten(c.validate()), func(err error) bool { return seen[secret(err)] })
	return errors.Join(append(unread, invalid...)...)
}

// overlay sets from the environment what it names: TIDEGATE_SERVER_LISTEN for
// server.listen. A list or mapping is given as YAML. It returns all that cannot be read.
func overlay(v reflect.Value, name string, env func(string) (string, bool)) (faults []error) {
	if text, ok := env(name); ok && v.CanAddr() && name != "TIDEGATE" {
		if v.Kind() == reflect.String {
			v.SetString(text)
			return nil
		}
		if text == "" {
			return nil // as good as unset
		}
		if err := decode([]byte(text), v.Addr().Interface()); err != nil {
			// What it holds may be a secret, so it is not shown.
			for _, line := range explainYAML("value", []byte(text), err) {
				message, _, _ := strings.Cut(line, "\n")
				faults = append(faults, fmt.Errorf("environment variable %s: %s", name, strings.TrimPrefix(message, "value:1:1: ")))
			}
		}
		return faults
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	for i := range v.NumField() {
		switch key := yamlKey(v.Type().Field(i)); key {
		case "-":
		case "": // inlined
			faults = append(faults, overlay(v.Field(i), name, env)...)
		default:
			faults = append(faults, overlay(v.Field(i), name+"_"+strings.ToUpper(key), env)...)
		}
	}
	return faults
}

// reader reads a secret from the environment variable or the file that a
// configuration names, if it names one. A name that does not look like one may be the
// secret itself, so it is not shown.
func reader(env func(string) (string, bool), faults *[]error) func(path, variable, file string, target *string) {
	return func(path, variable, file string, target *string) {
		switch {
		case variable != "":
			value, ok := env(variable)
			switch {
			case ok && value != "":
				*target = value
			case plainVariable(variable):
				*faults = append(*faults, fmt.Errorf("%s_env: the environment variable %s is not set", path, variable))
			default:
				*faults = append(*faults, fmt.Errorf("%s_env: names an environment variable that is not set; expected the name of a variable such as VLLM_API_KEY, not what it holds", path))
			}
		case file != "":
			raw, err := os.ReadFile(file)
			var cause *os.PathError
			switch {
			case err != nil && !plainFile(file) && errors.As(err, &cause):
				*faults = append(*faults, fmt.Errorf("%s_file: names a file that cannot be read: %w; expected a path such as /run/secrets/key, not what the file holds", path, cause.Err))
			case err != nil:
				*faults = append(*faults, fmt.Errorf("%s_file: %w", path, err))
			}
			*target = strings.TrimSpace(string(raw))
		}
	}
}

// resolve reads the secrets that the configuration names.
func (c *config) resolve(env func(string) (string, bool)) error {
	var faults []error
	read := reader(env, &faults)
	// The usual variable may be missing; one that is named must be there.
	if c.Auth.AdminKeyFile != "" && c.Auth.AdminKeyEnv == account.DefaultAdminKeyEnv {
		c.Auth.AdminKeyEnv = ""
	}
	if key, _ := env(c.Auth.AdminKeyEnv); key != "" || c.Auth.AdminKeyEnv != account.DefaultAdminKeyEnv {
		read("auth.admin_key", c.Auth.AdminKeyEnv, c.Auth.AdminKeyFile, &c.Auth.AdminKey)
	}
	if c.Redis.PasswordFile != "" && c.Redis.PasswordEnv == redislimit.DefaultPasswordEnv {
		c.Redis.PasswordEnv = ""
	}
	if password, _ := env(c.Redis.PasswordEnv); len(c.Redis.Addrs) > 0 && (password != "" || c.Redis.PasswordEnv != redislimit.DefaultPasswordEnv) {
		read("redis.password", c.Redis.PasswordEnv, c.Redis.PasswordFile, &c.Redis.Password)
	}
	for i := range c.Auth.Keys {
		k := &c.Auth.Keys[i]
		read(fmt.Sprintf("auth.keys[%d].key", i), k.KeyEnv, k.KeyFile, &k.Key)
	}
	for i := range c.Models {
		for j := range c.Models[i].Backends {
			b := &c.Models[i].Backends[j]
			read(fmt.Sprintf("models[%d].backends[%d].api_key", i, j), b.APIKeyEnv, b.APIKeyFile, &b.APIKey)
		}
	}
	for i := range c.GPUs {
		s := &c.GPUs[i]
		read(fmt.Sprintf("gpus[%d].token", i), s.TokenEnv, s.TokenFile, &s.Token)
	}
	c.resolveAlerts(read)
	return errors.Join(faults...)
}

// restartOnly lists what a reload cannot change but which differs.
func (c *config) restartOnly(next *config) (keys []string) {
	for _, s := range []struct {
		key  string
		same bool
	}{
		{"server.listen", c.Server.Listen == next.Server.Listen},
		{"server.ops_listen", c.Server.OpsListen == next.Server.OpsListen},
		{"server.header_timeout", c.Server.HeaderTimeout == next.Server.HeaderTimeout},
		{"server.shutdown_grace", c.Server.ShutdownGrace == next.Server.ShutdownGrace},
		{"server.tls", c.Server.TLS == next.Server.TLS},
		{"store", c.Store == next.Store},
		{"redis", reflect.DeepEqual(c.Redis, next.Redis)},
		{"telemetry.log", c.Telemetry.Log == next.Telemetry.Log},
		{"telemetry.otlp_endpoint", c.Telemetry.OTLPEndpoint == next.Telemetry.OTLPEndpoint},
	} {
		if !s.same {
			keys = append(keys, s.key)
		}
	}
	slices.Sort(keys)
	return keys
}
