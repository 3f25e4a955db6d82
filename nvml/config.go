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

// DefaultConfig is what a source has that says nothing.
func DefaultConfig() Config { return Config{Every: time.Second} }

// UnmarshalYAML lets a source say only what differs from the defaults.
func (c *Config) UnmarshalYAML(decode func(any) error) error {
	type plain Config
	p := plain(DefaultConfig())
	if err := decode(&p); err != nil {
		return err
	}
	*c = Config(p)
	return nil
}

// kind is the source in one word.
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

// address is what is asked.
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

// command is what a local source starts: unless told, the agent beside this
// program, or the one that the PATH finds.
func (c *Config) command() []string {
	if len(c.Command) > 0 {
		return c.Command
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), agentProgram)
		if _, err := os.Stat(beside); err == nil {
			return []string{beside}
		}
	}
	return []string{agentProgram}
}

// Validate says all that is wrong, path first. A trace must be there to be read.
func (c *Config) Validate() error {
	var faults []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(sourceName(c.Name), "name: must be 1 to 64 letters, digits, dots, dashes or underscores, and not begin with GPU- or MIG-, not %q", c.Name)
	kinds := 0
	for _, given := range []bool{c.Agent != "", c.DCGM != "", c.Local, c.Replay != ""} {
		if given {
			kinds++
		}
	}
	fault(kinds == 1, "name: %q needs exactly one of agent, dcgm, local and replay, not %d of them", c.Name, kinds)
	fault(c.Agent == "" || webAddress(c.Agent) || socketAddress(c.Agent), "agent: %q is no address of an agent; expected something like http://gpu-a:9410 or unix:///run/agent.sock", c.Agent)
	fault(c.DCGM == "" || webAddress(c.DCGM), "dcgm: %q is no http or https URL; expected something like http://gpu-a:9400/metrics", c.DCGM)
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
		_, err := authority(c.CAFile)
		fault(err == nil, "ca_file: %v", err)
	}
	return errors.Join(faults...)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func sourceName(s string) bool {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
	}
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, odd) && !isUUID(s)
}

func isUUID(ref string) bool { return strings.HasPrefix(ref, "GPU-") || strings.HasPrefix(ref, "MIG-") }

func webAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && u.Fragment == ""
}

func socketAddress(s string) bool {
	path, ok := strings.CutPrefix(s, "unix://")
	return ok && filepath.IsAbs(path) && !strings.ContainsAny(path, "?#")
}

// Validate says all that is wrong with the sources, path first.
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

// CheckRef says why ref cannot name a GPU of the sources: it must be NAME/INDEX
// of one of them, or a UUID, which any of them may turn out to report.
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
