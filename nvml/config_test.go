package nvml

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigFaults(t *testing.T) {
	dir := t.TempDir()
	noPEM := filepath.Join(dir, "no.pem")
	if err := os.WriteFile(noPEM, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		c    Config
		want string // how the fault begins; empty: none
	}{
		{"agent", Config{Name: "a", Agent: "http://gpu-a:9410"}, ""},
		{"agent behind TLS", Config{Name: "a", Agent: "https://gpu-a:9410/x/", TokenEnv: "T", Token: "secret"}, ""},
		{"agent at a socket", Config{Name: "a", Agent: "unix:///run/agent.sock"}, ""},
		{"dcgm", Config{Name: "b.c_d-1", DCGM: "http://gpu-b:9400/metrics?x=y"}, ""},
		{"local", Config{Name: "here", Local: true, Command: []string{"agent", "-v"}}, ""},
		{"replay", Config{Name: "rec", Replay: "testdata/heat.jsonl"}, ""},
		{"no name", Config{Local: true}, "name: must be"},
		{"a slash", Config{Name: "a/b", Local: true}, "name: must be"},
		{"like a UUID", Config{Name: "GPU-a", Local: true}, "name: must be"},
		{"long", Config{Name: strings.Repeat("x", 65), Local: true}, "name: must be"},
		{"none", Config{Name: "a"}, `name: "a" needs exactly one of agent, dcgm, local and replay, not 0`},
		{"two", Config{Name: "a", Local: true, DCGM: "http://a"}, `name: "a" needs exactly one of agent, dcgm, local and replay, not 2`},
		{"no scheme", Config{Name: "a", Agent: "gpu-a:9410"}, "agent: "},
		{"another scheme", Config{Name: "a", Agent: "ftp://gpu-a"}, "agent: "},
		{"a password", Config{Name: "a", Agent: "http://u:p@gpu-a"}, "agent: "},
		{"a relative socket", Config{Name: "a", Agent: "unix://agent.sock"}, "agent: "},
		{"dcgm at a socket", Config{Name: "a", DCGM: "unix:///a"}, "dcgm: "},
		{"no trace", Config{Name: "a", Replay: filepath.Join(dir, "none")}, "replay: there is no file"},
		{"a directory", Config{Name: "a", Replay: dir}, "replay: there is no file"},
		{"often", Config{Name: "a", Local: true, Every: time.Millisecond}, "every: "},
		{"seldom", Config{Name: "a", Local: true, Every: 2*time.Second + 1}, "every: must be from 100ms to 2s"},
		{"as seldom as may be", Config{Name: "a", Local: true, Every: 2 * time.Second}, ""},
		{"a command", Config{Name: "a", Agent: "http://a", Command: []string{"x"}}, "command: "},
		{"an empty command", Config{Name: "a", Local: true, Command: []string{""}}, "command: "},
		{"two tokens", Config{Name: "a", Agent: "http://a", TokenEnv: "a", TokenFile: "b"}, "token_env: excludes"},
		{"a token for nobody", Config{Name: "a", Local: true, TokenFile: "b"}, "token_env: belongs"},
		{"an odd token", Config{Name: "a", Agent: "http://a", Token: "a\r\nb"}, "token_env: the token"},
		{"an authority for nobody", Config{Name: "a", Agent: "http://a", CAFile: noPEM}, "ca_file: belongs"},
		{"no authority", Config{Name: "a", Agent: "https://a", CAFile: noPEM}, "ca_file: " + noPEM + " holds no"},
		{"no file", Config{Name: "a", Agent: "https://a", CAFile: dir + "/none"}, "ca_file: open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.c.Every == 0 {
				c.c.Every = time.Second
			}
			err := c.c.Validate()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%v; want %s", err, c.want)
			}
		})
	}
}

func TestValidateAll(t *testing.T) {
	d := DefaultConfig()
	a, b, c := d, d, d
	a.Name, a.Local = "a", true
	b.Name, b.Agent = "a", "x"
	c.Name, c.Every = "c", 0
	err := Validate([]Config{a, b, c})
	var lines []string
	if err != nil {
		lines = strings.Split(err.Error(), "\n")
	}
	want := []string{"gpus[1].agent: ", "gpus[1].name: is that of gpus[0]", "gpus[2].name: ", "gpus[2].every: "}
	if len(lines) != len(want) {
		t.Fatalf("%q", lines)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("%q; want %q", lines[i], want[i])
		}
	}
	if err := Validate([]Config{a}); err != nil {
		t.Error(err)
	}
}

func TestCheckRef(t *testing.T) {
	sources := []Config{{Name: "gpu-a"}, {Name: "gpu-b"}}
	for _, c := range []struct {
		ref     string
		sources []Config
		want    string
	}{
		{"gpu-a/0", sources, ""},
		{"gpu-b/15", sources, ""},
		{"GPU-5f4e", sources, ""},
		{"MIG-5f4e", sources, ""},
		{"GPU-5f4e", nil, "no source"},
		{"gpu-c/0", sources, `there is no source "gpu-c" under gpus; expected one of gpu-a, gpu-b`},
		{"gpu-c/0", nil, `there is no source "gpu-c": none is configured`},
		{"gpu-a", sources, "expected SOURCE/INDEX"},
		{"gpu-a/", sources, "expected SOURCE/INDEX"},
		{"gpu-a/-1", sources, "expected SOURCE/INDEX"},
		{"gpu-a/00", sources, "expected SOURCE/INDEX"},
		{"gpu-a/0/1", sources, "expected SOURCE/INDEX"},
		{"", sources, "expected SOURCE/INDEX"},
		{"GPU-" + strings.Repeat("x", 200), sources, "must be a UUID"},
	} {
		err := CheckRef(c.ref, c.sources)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v; want %q", c.ref, err, c.want)
		}
	}
}
