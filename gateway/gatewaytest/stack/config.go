package stack

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"
)

// Config holds what the gateway of a test has beside the usual configuration.
type Config struct {
	Open          bool              // auth.mode: open
	DefaultServer bool              // nothing but Server in the section server
	DSN           string            // of the store; empty: a file of the test's own
	JournalDir    string            // empty: a directory of the test's own
	Server        []string          // lines of the section server
	Model         []string          // lines of every model
	Large         []string          // lines of the large model alone
	Backend       string            // members of every backend, each with a comma before
	GPUs          string            // GPUs of the first backend
	Extra         string            // other sections
	Env           map[string]string // variables of the process
}

// YAML returns the configuration file for these servers. What the gateway stores is in
// dir.
func (c Config) YAML(s Servers, dir string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("server:\n  listen: 127.0.0.1:0\n  ops_listen: 127.0.0.1:0\n  shutdown_grace: 2s")
	if !c.DefaultServer {
		line("  aux_requests: 100000/1s") // tests ask again and again
	}
	for _, l := range c.Server {
		line("  %s", l)
	}
	if c.Open {
		line("auth: {mode: open}")
	} else {
		line("auth:\n  keys:\n    - {user: ada, key_env: KEY_OF_ADA}\n    - {user: bob, key_env: KEY_OF_BOB, models: [%s]}", SmallModel)
	}
	dsn := cmp.Or(c.DSN, "sqlite://"+filepath.Join(dir, "tidegate.db"))
	line("store: {dsn: '%s', journal_dir: %s}", dsn, cmp.Or(c.JournalDir, filepath.Join(dir, "journal")))
	line("models:")
	model := func(name, lines string, urls ...string) {
		line("  - name: %s\n    probe: 50ms%s", name, lines)
		for _, l := range c.Model {
			line("    %s", l)
		}
		line("    backends:")
		for _, u := range urls {
			gpus := ""
			if u == s[0].URL {
				gpus = c.GPUs
			}
			line("      - {url: '%s', gpus: [%s]%s}", u, gpus, c.Backend)
		}
	}
	model(LargeModel, "\n    aliases: ["+LargeAlias+"]"+strings.Join(append([]string{""}, c.Large...), "\n    "), s[0].URL, s[1].URL)
	model(SmallModel, "", s[2].URL)
	model(GoneModel, "", "http://127.0.0.1:1")
	b.WriteString(c.Extra)
	return b.String()
}

// LevelCap is degrade.l1.max_tokens of Laddered, in tokens.
const LevelCap = 1500

// Laddered returns the configuration of a gateway whose large model falls back on the
// small one.
func Laddered(sections string) Config {
	return Config{
		Large: []string{"fallback: " + SmallModel}, Env: map[string]string{"TIDEGATE_ADMIN_KEY": AdminKey},
		Extra: fmt.Sprintf("degrade:\n  l1: {max_tokens: %d}\n%s", LevelCap, sections),
	}
}
