package nvml

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is one source of readings: exactly one of Agent, DCGM, Local and Replay.
type Config struct {
	Name      string        `yaml:"name"`       // by which backends name its GPUs: NAME/INDEX
	Agent     string        `yaml:"agent"`      // URL of a tidegate-gpu-agent: http(s)://host:port or unix:///path
	DCGM      string        `yaml:"dcgm"`       // URL of a dcgm-exporter's metrics
	Local     bool          `yaml:"local"`      // start tidegate-gpu-agent here
	Replay    string        `yaml:"replay"`     // file of a recorded trace, in JSON lines; it begins again at its end
	Command   []string      `yaml:"command"`    // of local, instead of tidegate-gpu-agent; --socket PATH is appended
	Every     time.Duration `yaml:"every"`      // between two questions
	TokenEnv  string        `yaml:"token_env"`  // environment variable that holds the bearer token of the agent or exporter
	TokenFile string        `yaml:"token_file"` // or the file
	CAFile    string        `yaml:"ca_file"`    // PEM of the authority of an https:// source; empty: the system's
	Token     string        `yaml:"-"`          // what either held
}

// DefaultConfig returns the settings of a source that sets none.
func DefaultConfig() Config { return Config{Every: time.Second} }

// UnmarshalYAML reads a source over the defaults.
func (c *Config) UnmarshalYAML(decode func(any) error) error {
	type plain Config
	p := plain(DefaultConfig())
	if err := decode(&p); err != nil {
		return err
	}
	*c = Config(p)
	return nil
}

// kind returns the kind of the source: agent, dcgm, local or replay.
func (c *Config) kind() string {
	switch {
	case c.Agent != "":
		return "agent"
	case c.DCGM != "":
		return "dcgm"
	case c.Local:
		return "local"
	}
	return "replay"
}

// address returns the address, command or file of the source.
func (c *Config) address() string {
	switch c.kind() {
	case "agent":
		return c.Agent
	case "dcgm":
		return c.DCGM
	case "local":
		return strings.Join(c.command(), " ")
	}
	return c.Replay
}

// agentProgram is the agent that a local source starts.
const agentProgram = "tidegate-gpu-agent"

// command returns the command that a local source starts. The default is the agent beside this
// program, or else the one in the PATH.
func (c *Config) command() []string {
	if len(c.Command) > 0 {
		return c.Command
	}
	if executable, err := os.Executable(); err == nil {
		neighbour := filepath.Join(filepath.Dir(executable), agentProgram)
		if _, err := os.Stat(neighbour); err == nil {
			return []string{neighbour}
		}
	}
	return []string{agentProgram}
}

// Validate returns all faults at once, each with its path first. A trace must exist.
func (c *Config) Validate() error {
	var faults []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(validSourceName(c.Name), "name: must be 1 to 64 letters, digits, dots, dashes or underscores, and not begin with GPU- or MIG-, not %q", c.Name)
	kinds := 0
	for _, configured := range []bool{c.Agent != "", c.DCGM != "", c.Local, c.Replay != ""} {
		if configured {
			kinds++
		}
	}
	fault(kinds == 1, "name: %q needs exactly one of agent, dcgm, local and replay, not %d of them", c.Name, kinds)
	fault(c.Agent == "" || validWebAddress(c.Agent) || validSocketAddress(c.Agent), "agent: %q is no address of an agent; expected something like http://gpu-a:9410 or unix:///run/agent.sock", c.Agent)
	fault(c.DCGM == "" || validWebAddress(c.DCGM), "dcgm: %q is no http or https URL; expected something like http://gpu-a:9400/metrics", c.DCGM)
	if c.Replay != "" {
		info, err := os.Stat(c.Replay)
		fault(err == nil && info.Mode().IsRegular(), "replay: there is no file %q", c.Replay)
	}
	fault(c.Every >= 100*time.Millisecond && c.Every <= 2*time.Second, "every: must be from 100ms to 2s, such as 1s: a reading counts in full for %v", freshFor)
	fault(c.Local || len(c.Command) == 0, "command: belongs to local: true")
	fault(len(c.Command) == 0 || c.Command[0] != "", "command: must begin with a program")
	fault(c.TokenEnv == "" || c.TokenFile == "", "token_env: excludes token_file")
	web := c.Agent != "" || c.DCGM != ""
	fault(web || c.TokenEnv == "" && c.TokenFile == "", "token_env: belongs to agent or dcgm")
	fault(printable(c.Token), "token_env: the token must be printable ASCII")
	fault(c.CAFile == "" || strings.HasPrefix(c.Agent+c.DCGM, "https://"), "ca_file: belongs to an https:// address")
	if c.CAFile != "" {
		_, err := readCertificates(c.CAFile)
		fault(err == nil, "ca_file: %v", err)
	}
	return errors.Join(faults...)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func validSourceName(s string) bool {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
	}
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, odd) && !isUUID(s)
}

func isUUID(ref string) bool { return strings.HasPrefix(ref, "GPU-") || strings.HasPrefix(ref, "MIG-") }

func validWebAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && u.Fragment == ""
}

func validSocketAddress(s string) bool {
	path, ok := strings.CutPrefix(s, "unix://")
	return ok && filepath.IsAbs(path) && !strings.ContainsAny(path, "?#")
}

// Validate returns all faults of the sources at once, each with its path first.
func Validate(sources []Config) error {
	var faults []error
	seen := map[string]int{}
	for i := range sources {
		if err := sources[i].Validate(); err != nil {
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				faults = append(faults, fmt.Errorf("gpus[%d].%w", i, e))
			}
		}
		if j, twice := seen[sources[i].Name]; twice {
			faults = append(faults, fmt.Errorf("gpus[%d].name: is that of gpus[%d]", i, j))
		}
		seen[sources[i].Name] = i
	}
	return errors.Join(faults...)
}

// CheckRef returns an error unless ref can name a GPU of the sources: NAME/INDEX of one of
// them, or a UUID, which any of them may report later.
func CheckRef(ref string, sources []Config) error {
	if isUUID(ref) {
		if len(sources) == 0 {
			return fmt.Errorf("%q: no source of readings is configured under gpus", ref)
		}
		if len(ref) > maxText || !printable(ref) {
			return errors.New("must be a UUID as nvidia-smi -L shows it")
		}
		return nil
	}
	name, index, ok := strings.Cut(ref, "/")
	n, err := strconv.Atoi(index)
	if !ok || err != nil || n < 0 || strconv.Itoa(n) != index {
		return fmt.Errorf("%q: expected SOURCE/INDEX such as gpu-a/0, or a UUID as nvidia-smi -L shows it", ref)
	}
	if slices.ContainsFunc(sources, func(c Config) bool { return c.Name == name }) {
		return nil
	}
	var names []string
	for _, c := range sources {
		names = append(names, c.Name)
	}
	if len(names) == 0 {
		return fmt.Errorf("there is no source %q: none is configured under gpus", name)
	}
	return fmt.Errorf("there is no source %q under gpus; expected one of %s", name, strings.Join(names, ", "))
}
