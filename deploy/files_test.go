package deploy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/backend"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// deployDir is where users start the stack.
const deployDir = "."

// project is what the tests look at of a Compose project.
type project struct {
	Services map[string]service
	Networks map[string]*struct{ Internal bool }
	Volumes  map[string]any
}

type service struct {
	Image, User string
	Build       *struct{ Context, Dockerfile, Target string }
	Restart     string
	ReadOnly    bool     `json:"read_only"`
	CapDrop     []string `json:"cap_drop"`
	CapAdd      []string `json:"cap_add"`
	Privileged  bool
	SecurityOpt []string `json:"security_opt"`
	Logging     struct{ Options map[string]string }
	Environment map[string]*string
	Command     []string
	Ports       []string
	Volumes     []string
	Networks    []string
	Profiles    []string
	DependsOn   map[string]struct{ Condition string } `json:"depends_on"`
	Healthcheck struct {
		Test []string
	}
	StopGracePeriod string `json:"stop_grace_period"`
	Deploy          struct {
		Resources struct {
			Limits       struct{ CPUs, Memory string }
			Reservations struct {
				Devices []struct{ Capabilities []string }
			}
		}
	}
}

// secrets stand for those that a user puts into .env.
func secrets() map[string]string {
	return map[string]string{"POSTGRES_PASSWORD": "pgsecret", "REDIS_PASSWORD": "redissecret", "VLLM_API_KEY": "vllmsecret", "GRAFANA_PASSWORD": "grafanasecret"}
}

// interpolate puts variables into a value as Compose does: ${NAME:-default},
// ${NAME:?message}, $$.
func interpolate(v any, env map[string]string) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = interpolate(value, env)
		}
	case []any:
		for i := range v {
			v[i] = interpolate(v[i], env)
		}
	case string:
		return composeVariable().ReplaceAllStringFunc(v, func(found string) string {
			m := composeVariable().FindStringSubmatch(found)
			switch value := env[m[1]]; {
			case found == "$$":
				return "$"
			case value == "" && m[2] == ":-":
				return m[3]
			default:
				return value
			}
		})
	}
	return v
}

func composeVariable() *regexp.Regexp {
	return regexp.MustCompile(`\$\$|\$\{([A-Z_]+)(?:(:[-?])([^}]*))?\}`)
}

// merge puts what a later file says over what an earlier one does, as Compose does
// with the kinds of values that are in ours.
func merge(below, above map[string]any) map[string]any {
	for key, value := range above {
		if lower, ok := below[key].(map[string]any); ok {
			if upper, ok := value.(map[string]any); ok {
				value = merge(lower, upper)
			}
		}
		below[key] = value
	}
	return below
}

// compose reads files of deploy, each checked against the specification, as one
// project.
func compose(t *testing.T, env map[string]string, files ...string) project {
	t.Helper()
	whole := map[string]any{}
	for _, name := range files {
		source, err := os.ReadFile(filepath.Join(deployDir, name))
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := yaml.Unmarshal(source, &doc); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		interpolate(doc, env)
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if err := composeSchema(t).Validate(unmarshalled(t, raw)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if services, ok := whole["services"].(map[string]any); ok {
			for _, m := range regexp.MustCompile(`(?m)^  ([a-z0-9-]+): !override$`).FindAllSubmatch(source, -1) {
				delete(services, string(m[1]))
			}
		}
		whole = merge(whole, doc)
	}
	raw, err := json.Marshal(whole)
	var s project
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(s.Services, func(_ string, one service) bool { return len(one.Profiles) > 0 })
	return s
}

func unmarshalled(t *testing.T, raw []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// composeSchema is the Compose Specification's.
func composeSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	source, err := os.ReadFile("testdata/compose/compose-spec.json")
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("compose-spec.json", unmarshalled(t, source)); err != nil {
		t.Fatal(err)
	}
	return c.MustCompile("compose-spec.json")
}

// projects are the ways to start the stack that deploy/README.md shows.
func projects() map[string][]string {
	return map[string][]string{"gpu": {"compose.yaml"}, "simulated": {"compose.yaml", "compose.sim.yaml"}}
}

// TestCompose: whatever a service names is there, and none is more open than it
// must be.
func TestCompose(t *testing.T) {
	for name, files := range projects() {
		t.Run(name, func(t *testing.T) {
			s := compose(t, secrets(), files...)
			used := map[string]bool{}
			published := map[string]string{}
			for name, one := range s.Services {
				for _, fault := range slices.Concat(s.dangling(name, used), one.open()) {
					t.Errorf("%s: %s", name, fault)
				}
				for _, port := range one.Ports {
					host := port[:strings.LastIndexByte(port, ':')]
					if other := published[host]; other != "" {
						t.Errorf("%s: %s is published by %s too", name, host, other)
					}
					published[host] = name
				}
			}
			if got := slices.Sorted(maps.Values(published)); !slices.Equal(got, []string{"balancer", "grafana"}) {
				t.Errorf("published are %v", got)
			}
			for volume := range s.Volumes {
				if !used[volume] && (name == "gpu" || volume != "models") {
					t.Errorf("no service uses the volume %s", volume)
				}
			}
			for _, inner := range []string{"ops", "data"} {
				if s.Networks[inner] == nil || !s.Networks[inner].Internal {
					t.Errorf("the network %s has a way out", inner)
				}
			}
			for _, store := range []string{"redis", "postgres"} {
				if got := s.Services[store].Networks; !slices.Equal(got, []string{"data"}) {
					t.Errorf("%s is in the networks %v", store, got)
				}
			}
			for _, engine := range []string{"vllm-large", "vllm-small"} {
				if !slices.Contains(s.Services[engine].Command, "--enable-prompt-tokens-details") {
					t.Errorf("%s does not say which tokens were cached, and none is counted as such", engine)
				}
			}
			s.patient(t)
		})
	}
}

// dangling lists what a service names that is not there.
func (s *project) dangling(name string, used map[string]bool) (faults []string) {
	one := s.Services[name]
	for _, network := range one.Networks {
		if _, ok := s.Networks[network]; !ok {
			faults = append(faults, "there is no network "+network)
		}
	}
	if len(one.Networks) == 0 {
		faults = append(faults, "names no network")
	}
	for other, on := range one.DependsOn {
		it, ok := s.Services[other]
		if !ok {
			faults = append(faults, "depends on "+other+", which is not started")
		}
		if on.Condition == "service_healthy" && len(it.Healthcheck.Test) == 0 {
			faults = append(faults, "waits for the health of "+other+", which nobody checks")
		}
	}
	for _, mount := range one.Volumes {
		from, _, _ := strings.Cut(mount, ":")
		used[from] = true
		if !strings.HasPrefix(from, ".") {
			if _, ok := s.Volumes[from]; !ok {
				faults = append(faults, "there is no volume "+from)
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(deployDir, from)); err != nil {
			faults = append(faults, err.Error())
		}
		if !strings.HasSuffix(mount, ":ro") {
			faults = append(faults, from+" is mounted to be written to")
		}
	}
	if b := one.Build; b != nil {
		if _, err := os.Stat(filepath.Join(deployDir, b.Context, b.Dockerfile)); err != nil {
			faults = append(faults, err.Error())
		} else if d := parseDockerfile(filepath.Join(deployDir, b.Context, b.Dockerfile)); b.Target != "" && d.stage(b.Target) == nil {
			faults = append(faults, "its Dockerfile has no stage "+b.Target)
		}
	}
	return faults
}

// open lists where a service is more open than it must be.
func (s *service) open() (faults []string) {
	engine := strings.HasPrefix(s.Image, "vllm/")                 // it writes under its root, and is as large as its GPU
	simulated := strings.HasPrefix(s.Image, "tidegate-vllm-sim:") // it takes its key as a flag alone
	for what, ok := range map[string]bool{
		"has capabilities":            slices.Equal(s.CapDrop, []string{"ALL"}) && len(s.CapAdd) == 0 && !s.Privileged,
		"may get new privileges":      slices.Contains(s.SecurityOpt, "no-new-privileges:true"),
		"has a root to write to":      s.ReadOnly || engine,
		"has no limit of memory":      s.Deploy.Resources.Limits.Memory != "" || engine,
		"needs more than 2 CPUs":      !regexp.MustCompile(`^([3-9]|\d\d)`).MatchString(s.Deploy.Resources.Limits.CPUs), // Docker refuses a limit beyond what the machine has
		"logs without bound":          s.Logging.Options["max-size"] != "" && s.Logging.Options["max-file"] != "",
		"is not started again":        s.Restart == "unless-stopped",
		"has an image without digest": s.Build != nil || pinnedImage(s.Image),
		"runs as root":                s.User != "root" && s.User != "0",
		"has a secret in its command": simulated || !strings.Contains(strings.Join(s.Command, " "), "secret"),
	} {
		if !ok {
			faults = append(faults, what)
		}
	}
	return faults
}

// pinnedImage reports whether an image is named by tag and digest: a tag may stand for other
// bytes tomorrow.
func pinnedImage(image string) bool {
	return regexp.MustCompile(`^[a-z0-9./-]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}$`).MatchString(image) && !strings.Contains(image, ":latest@")
}

// TestPinnedImages: a tag alone, a digest alone and one that is cut are no pins.
func TestPinnedImages(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for image, want := range map[string]bool{
		"redis:7.4.11-alpine" + digest: true, "gcr.io/distroless/static-debian12:nonroot" + digest: true,
		"redis:7.4.11-alpine": false, "redis" + digest: false, "redis:latest" + digest: false, "redis:7@sha256:0a": false, "": false,
	} {
		if pinnedImage(image) != want {
			t.Errorf("%q: %v", image, !want)
		}
	}
}

// settling is the time that a request that was cut may take to settle (cmd/tidegate).
const settling = 2 * time.Second

// settings holds the settings of a configuration file that these tests compare.
type settings struct {
	Server struct {
		ShutdownGrace time.Duration `yaml:"shutdown_grace"`
	}
	Redis  struct{ Addrs []string }
	Models []struct {
		Name     string
		Timeouts struct{ Total time.Duration }
		Backends []struct{ URL string }
	}
	GPUs []struct{ Agent string } `yaml:"gpus"`
}

// readSettings reads a configuration file of this folder.
func readSettings(t *testing.T, file string) (s settings) {
	t.Helper()
	readYAML(t, filepath.Join(deployDir, file), &s)
	return s
}

// patient makes sure that nothing is killed while it still lets streams end.
func (s *project) patient(t *testing.T) {
	t.Helper()
	c := readSettings(t, "compose/tidegate.yaml")
	cfg, err := os.ReadFile(filepath.Join(deployDir, "compose/haproxy.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	hard := regexp.MustCompile(`hard-stop-after (\S+)`).FindSubmatch(cfg)
	if hard == nil {
		t.Fatal("the balancer waits for ever")
	}
	balancer := lasts(t, string(hard[1]))
	for name, least := range map[string]time.Duration{"gateway-1": c.Server.ShutdownGrace + settling, "gateway-2": c.Server.ShutdownGrace + settling, "balancer": balancer, "agent": time.Minute} {
		if one, ok := s.Services[name]; ok && lasts(t, one.StopGracePeriod) <= least {
			t.Errorf("%s is killed after %s, and may need %v", name, one.StopGracePeriod, least)
		}
	}
	server := regexp.MustCompile(`timeout server (\S+)`).FindSubmatch(cfg)
	for i := range c.Models {
		if total := cmp.Or(c.Models[i].Timeouts.Total, backend.DefaultModel().Timeouts.Total); server == nil || lasts(t, string(server[1])) <= total {
			t.Errorf("the balancer gives up an answer of %s before the gateway does, after %v", c.Models[i].Name, total)
		}
	}
}

func lasts(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestComposeEnv: .env.example names the variables of the Compose files, all of
// them and no others, and sets no secret.
func TestComposeEnv(t *testing.T) {
	asked := map[string]bool{}
	for _, file := range []string{"compose.yaml", "compose.sim.yaml"} {
		source, err := os.ReadFile(filepath.Join(deployDir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range composeVariable().FindAllStringSubmatch(string(source), -1) {
			if m[0] == "$$" {
				continue
			}
			asked[m[1]] = true
			if m[2] == "" || (m[2] == ":?") != (secrets()[m[1]] != "") {
				t.Errorf("%s: %s: secrets are required, all else has a default", file, m[0])
			}
		}
		for _, m := range regexp.MustCompile(`(?m)^    ([A-Z_]+):(?: *#.*)?$`).FindAllStringSubmatch(string(source), -1) {
			asked[m[1]] = true // taken over from .env as it is
		}
	}
	source, err := os.ReadFile(filepath.Join(deployDir, ".env.example"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`).FindAllStringSubmatch(string(source), -1) {
		if !asked[m[1]] {
			t.Errorf(".env.example: no Compose file asks for %s", m[1])
		}
		delete(asked, m[1])
		if secrets()[m[1]] != "" && m[2] != "" {
			t.Errorf(".env.example: %s is set", m[1])
		}
	}
	if len(asked) > 0 {
		t.Errorf(".env.example does not name %v", slices.Sorted(maps.Keys(asked)))
	}
}

// environment is that of a service's container, with files of the host where it
// names those that are mounted.
func (s *project) environment(name string) map[string]string {
	env := map[string]string{}
	for key, value := range s.Services[name].Environment {
		if value == nil {
			continue
		}
		env[key] = *value
		for _, mount := range s.Services[name].Volumes {
			if at := strings.Split(mount, ":"); strings.HasPrefix(at[0], ".") {
				env[key] = strings.ReplaceAll(env[key], at[1]+"/", filepath.Join(deployDir, at[0])+"/")
			}
		}
	}
	return env
}

// TestComposeConfig: the gateways' configuration is good with the environment that
// Compose gives them, and names no machine but those beside them.
func TestComposeConfig(t *testing.T) {
	for name, files := range projects() {
		t.Run(name, func(t *testing.T) {
			s := compose(t, secrets(), files...)
			for _, gateway := range []string{"gateway-1", "gateway-2"} {
				env := s.environment(gateway)
				for name, value := range env {
					t.Setenv(name, value)
				}
				kit.Command(t, 0, "check", "--config", filepath.Join(deployDir, "compose/tidegate.yaml"))
				c := readSettings(t, "compose/tidegate.yaml")
				if gpus, ok := env["TIDEGATE_GPUS"]; ok {
					c.GPUs = nil
					if err := yaml.Unmarshal([]byte(gpus), &c.GPUs); err != nil {
						t.Fatal(err)
					}
				}
				addresses := append([]string{env["TIDEGATE_STORE_DSN"]}, c.Redis.Addrs...)
				for i := range c.Models {
					for _, b := range c.Models[i].Backends {
						addresses = append(addresses, b.URL)
					}
				}
				for _, g := range c.GPUs {
					if g.Agent == "" {
						continue // a recording, which check has read
					}
					addresses = append(addresses, g.Agent)
				}
				for _, a := range addresses {
					if err := s.reaches(gateway, a); err != nil {
						t.Errorf("%s: %v", gateway, err)
					}
				}
			}
		})
	}
}

// reaches says why a service cannot talk to an address.
func (s *project) reaches(from, address string) error {
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	to, ok := s.Services[u.Hostname()]
	if !ok {
		return fmt.Errorf("there is no service %s", u.Hostname())
	}
	if !slices.ContainsFunc(to.Networks, func(n string) bool { return slices.Contains(s.Services[from].Networks, n) }) {
		return fmt.Errorf("%s is in none of its networks", u.Hostname())
	}
	return nil
}

// TestComposePrometheus: what Prometheus is told to scrape are the services of the
// stack, and none is left out that has metrics.
func TestComposePrometheus(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(deployDir, "prometheus/prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Scrapes []struct {
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(source, &c); err != nil {
		t.Fatal(err)
	}
	s := compose(t, secrets(), "compose.yaml")
	var all []string
	for _, job := range c.Scrapes {
		for _, static := range job.Static {
			for _, target := range static.Targets {
				all = append(all, target)
				if host, _, _ := strings.Cut(target, ":"); host == "localhost" || host == "127.0.0.1" {
					continue // itself
				}
				if err := s.reaches("prometheus", target); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, want := range []string{"gateway-1:9090", "gateway-2:9090", "agent:9410", "vllm-large:8000", "vllm-small:8000"} {
		if !slices.Contains(all, want) {
			t.Errorf("Prometheus does not scrape %s", want)
		}
	}
}
