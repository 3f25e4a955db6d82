package deploy

import (
	"debug/elf"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// dockerfile is a Dockerfile's stages, in order.
type dockerfile []*buildStage

type buildStage struct {
	name, from   string
	instructions [][2]string // the word, and what follows it
}

func (d dockerfile) stage(name string) *buildStage {
	for _, s := range d {
		if s.name == name {
			return s
		}
	}
	return nil
}

// all lists what follows a word in a stage.
func (s *buildStage) all(word string) (out []string) {
	for _, in := range s.instructions {
		if in[0] == word {
			out = append(out, in[1])
		}
	}
	return out
}

// parseDockerfile reads the instructions; none, if there is no such file.
func parseDockerfile(file string) (d dockerfile) {
	source, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	text := regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(string(source), "")
	text = regexp.MustCompile(`\s*\\\n\s*`).ReplaceAllString(text, " ")
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "":
		case word == "FROM":
			from, name, _ := strings.Cut(rest, " AS ")
			d = append(d, &buildStage{name: name, from: from})
		case len(d) > 0:
			d[len(d)-1].instructions = append(d[len(d)-1].instructions, [2]string{word, rest})
		}
	}
	return d
}

// flagsOf takes the leading --flags off an instruction.
func flagsOf(rest string) (flags map[string]string, args string) {
	flags = map[string]string{}
	for strings.HasPrefix(rest, "--") {
		flag, more, _ := strings.Cut(rest, " ")
		key, value, _ := strings.Cut(flag, "=")
		flags[key], rest = value, strings.TrimSpace(more)
	}
	return flags, rest
}

// buildContext copies what .dockerignore leaves of the repository.
func buildContext(t *testing.T) string {
	t.Helper()
	root := filepath.Join("..")
	source, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	// The rules that ours are made of: all is left out but the paths after a "!",
	// and of these what the names after "**/" match.
	var keep, drop []string
	for line := range strings.Lines(string(source)) {
		switch line = strings.TrimSpace(line); {
		case line == "" || line[0] == '#' || line == "*":
		case line[0] == '!':
			keep = append(keep, line[1:])
		case strings.HasPrefix(line, "**/"):
			drop = append(drop, line[3:])
		default:
			t.Fatalf(".dockerignore: this test does not know rules such as %s", line)
		}
	}
	dir := t.TempDir()
	for _, from := range keep {
		err := filepath.WalkDir(filepath.Join(root, from), func(file string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			dropped := slices.ContainsFunc(drop, func(p string) bool { ok, _ := path.Match(p, d.Name()); return ok })
			switch {
			case d.IsDir() && dropped:
				return filepath.SkipDir
			case d.IsDir() || dropped:
				return nil
			}
			rel, _ := filepath.Rel(root, file)
			to := filepath.Join(dir, rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			return os.WriteFile(to, raw, info.Mode())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestDockerfiles runs the very commands that build the images, on what the images
// are built from, and looks at what comes out.
func TestDockerfiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(deployDir, "docker", "*.Dockerfile"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	from := buildContext(t)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			d := parseDockerfile(file)
			out := t.TempDir()
			for _, s := range d {
				s.check(t, d, from)
				for _, command := range s.all("RUN") {
					_, command = flagsOf(command)
					if command == "go mod download" {
						continue // the tests run, so all is there
					}
					if strings.HasPrefix(command, ".ci/agent") {
						if _, err := exec.LookPath("gcc"); err != nil || runtime.GOOS != "linux" {
							t.Skip("SKIPPED-PART: the agent's image: there is no gcc on this machine (apt-get install gcc libc6-dev)")
						}
					}
					c := exec.CommandContext(t.Context(), "sh", "-ec", strings.ReplaceAll(command, "/out", out))
					c.Dir = from
					c.Env = append(os.Environ(), "GOFLAGS=-p=2")
					if said, err := c.CombinedOutput(); err != nil {
						t.Fatalf("RUN %s: %v\n%s", command, err, said)
					}
				}
			}
			for _, s := range d {
				s.ships(t, d, out)
			}
		})
	}
}

// check looks at a stage's sources; those of a last stage also at its user.
func (s *buildStage) check(t *testing.T, d dockerfile, from string) {
	t.Helper()
	if d.stage(s.from) == nil && !pinnedImage(s.from) {
		t.Errorf("FROM %s: names no tag and digest", s.from)
	}
	for _, line := range s.all("COPY") {
		flags, args := flagsOf(line)
		paths := strings.Fields(args)
		for _, p := range paths[:len(paths)-1] {
			if other := flags["--from"]; other != "" {
				if d.stage(other) == nil {
					t.Errorf("COPY %s: there is no stage %s", line, other)
				}
			} else if _, err := os.Stat(filepath.Join(from, p)); err != nil {
				t.Errorf("COPY %s: %v", line, err)
			}
		}
	}
}

// ships looks at what a stage without successors takes along.
func (s *buildStage) ships(t *testing.T, d dockerfile, out string) {
	t.Helper()
	entry := s.all("ENTRYPOINT")
	if len(entry) == 0 {
		return
	}
	if users := s.all("USER"); len(users) != 1 || !regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`).MatchString(users[0]) {
		t.Errorf("%s: USER %v: expected one that is not root, as a number", entry, users)
	}
	var command []string
	if err := json.Unmarshal([]byte(entry[0]), &command); err != nil {
		t.Fatalf("ENTRYPOINT %s: %v", entry[0], err)
	}
	shipped := false
	for _, line := range s.all("COPY") {
		_, args := flagsOf(line)
		p := strings.Fields(args)
		if _, err := os.Stat(strings.Replace(p[0], "/out", out, 1)); err != nil {
			t.Errorf("COPY %s: %v", line, err)
		}
		if p[1] != command[0] {
			continue
		}
		shipped = true
		binary, err := elf.Open(strings.Replace(p[0], "/out", out, 1))
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		libraries, _ := binary.ImportedLibraries() // none of a static one
		static := !slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		if strings.Contains(s.from, "/static") != static || static && len(libraries) > 0 {
			t.Errorf("%s in %s: static is %v, libraries %v", command[0], s.from, static, libraries)
		}
		if slices.ContainsFunc(libraries, func(l string) bool { return strings.Contains(l, "nvidia") }) {
			t.Errorf("%s does not start without the driver: %v", command[0], libraries)
		}
	}
	if !shipped {
		t.Errorf("nobody copies %s", command[0])
	}
	for _, line := range s.all("HEALTHCHECK") {
		_, args := flagsOf(line)
		var test []string
		if err := json.Unmarshal([]byte(strings.TrimPrefix(args, "CMD ")), &test); err != nil {
			t.Errorf("HEALTHCHECK %s: %v: expected a list, since there may be no shell", args, err)
		}
	}
}

// TestAgentHealthCheck runs the health check of the agent's image against an
// answer of either kind.
func TestAgentHealthCheck(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("SKIPPED-PART: the agent's health check: there is no bash on this machine")
	}
	d := parseDockerfile(filepath.Join(deployDir, "docker", "agent.Dockerfile"))
	_, args := flagsOf(d[len(d)-1].all("HEALTHCHECK")[0])
	var test []string
	if err := json.Unmarshal([]byte(strings.TrimPrefix(args, "CMD ")), &test); err != nil {
		t.Fatal(err)
	}
	for status, healthy := range map[int]bool{200: true, 503: false} {
		agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/healthz" {
				status = 404
			}
			w.WriteHeader(status)
		}))
		defer agent.Close()
		command := strings.Replace(test[2], "/127.0.0.1/9410", strings.Replace(strings.TrimPrefix(agent.URL, "http:/"), ":", "/", 1), 1)
		if command == test[2] {
			t.Fatalf("it asks somebody else: %s", command)
		}
		if said, err := exec.CommandContext(t.Context(), test[0], test[1], command).CombinedOutput(); (err == nil) != healthy {
			t.Errorf("%d: %v\n%s", status, err, said)
		}
	}
}

// TestUnits has systemd check the units, and the gateway the configuration that
// comes with them.
func TestUnits(t *testing.T) {
	kit.Command(t, 0, "check", "--config", filepath.Join(deployDir, "systemd", "tidegate.yaml"))
	grace := readSettings(t, "tidegate.example.yaml").Server.ShutdownGrace + settling // the default, which that file leaves as it is
	units, err := filepath.Glob(filepath.Join(deployDir, "systemd", "*.service"))
	if err != nil || len(units) != 2 {
		t.Fatal(units, err)
	}
	dir := t.TempDir()
	var copies []string
	for _, unit := range units {
		source, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\S+)$`).FindSubmatch(source)
		if stop == nil || lasts(t, string(stop[1])) <= grace {
			t.Errorf("%s: it is killed after %s, and may need %v", unit, stop, grace)
		}
		// The binaries need not be here; this one is.
		here := regexp.MustCompile(`/usr/local/bin/[a-z-]+`).ReplaceAll(source, []byte(os.Args[0]))
		copies = append(copies, filepath.Join(dir, filepath.Base(unit)))
		if err := os.WriteFile(copies[len(copies)-1], here, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIPPED-PART: systemd units: there is no systemd-analyze on this machine (apt-get install systemd)")
	}
	said, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"verify", "--man=no"}, copies...)...).CombinedOutput()
	if err != nil || len(said) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, said)
	}
}
