package docs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest/stack"

	"github.com/goccy/go-yaml"

	"tidegate/admission/limit/redislimit/redistest"
)

// The checks of blocks that no session runs: each language has its own reader.

// checkYAML lets tidegate check a piece of a configuration, with what every configuration
// needs beside it. Secrets that it names are there.
func checkYAML(t *testing.T, text string) error {
	t.Helper()
	var top map[string]any
	if err := yaml.Unmarshal([]byte(text), &top); err != nil {
		return err
	}
	if top["models"] == nil {
		text += "\nmodels: [{name: Qwen3-1.7B, fallback: Qwen3-0.6B, backends: [{url: 'http://a:1'}]}, {name: Qwen3-0.6B, backends: [{url: 'http://b:1'}]}]\n"
	}
	env := map[string]string{}
	for _, name := range regexp.MustCompile(`\b[A-Z][A-Z0-9_]{2,}\b`).FindAllString(text, -1) {
		switch {
		case strings.HasPrefix(name, "TIDEGATE_"):
		case strings.Contains(name, "URL"):
			env[name] = "https://example.com/hook"
		default:
			env[name] = "a secret of more than sixteen characters"
		}
	}
	file := filepath.Join(t.TempDir(), "block.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	log := stack.NewLog()
	if _, ended := kit.Process(t.Context(), t, log, env, "check", "--config", file); <-ended != 0 {
		return errors.New(log.Text())
	}
	return nil
}

// checkPromQL lets Prometheus's own tool read an expression.
func checkPromQL(t *testing.T, b *block) {
	rule, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "page", "rules": []any{map[string]any{"record": "page", "expr": b.text}}}}})
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, b, string(rule), "check", "rules")
}

// runRedis runs the commands of a page, one a line, on a Redis of its own.
func runRedis(t *testing.T, b *block) {
	client := redistest.Single(t).Client()
	for _, line := range strings.Split(strings.TrimSpace(b.text), "\n") {
		var args []any
		for _, word := range strings.Fields(line) {
			args = append(args, word)
		}
		if err := client.Do(t.Context(), args...).Err(); err != nil {
			t.Errorf("%s: %s: %v", b.at(), line, err)
		}
	}
}

// promtool lets Prometheus's own tool read a file.
func promtool(t *testing.T, b *block, text string, args ...string) {
	file := filepath.Join(t.TempDir(), "page.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), stack.PrometheusTool(t, os.Getenv, "promtool"), append(args, file)...).CombinedOutput(); err != nil {
		t.Errorf("%s: %s", b.at(), out)
	}
}
