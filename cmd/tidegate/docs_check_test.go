package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"tidegate/admission/limit/redislimit/redistest"
)

// The checks of blocks that no session runs: each language has its own reader.

// checkYAML reads a piece of a configuration as the gateway would, with what every
// configuration needs beside it. Secrets that it names are there.
func checkYAML(text string) error {
	var top map[string]any
	if err := yaml.Unmarshal([]byte(text), &top); err != nil {
		return err
	}
	if top["models"] == nil {
		text += "\nmodels: [{name: Qwen3-1.7B, fallback: Qwen3-0.6B, backends: [{url: 'http://a:1'}]}, {name: Qwen3-0.6B, backends: [{url: 'http://b:1'}]}]\n"
	}
	env := func(name string) (string, bool) {
		if strings.HasPrefix(name, "TIDEGATE_") {
			return "", false
		}
		if strings.Contains(name, "URL") {
			return "https://example.com/hook", true
		}
		return "a secret of more than sixteen characters", true
	}
	_, err := readConfig("block", []byte(text), env)
	return err
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
	if out, err := exec.CommandContext(t.Context(), prometheusTool(t, "promtool"), append(args, file)...).CombinedOutput(); err != nil {
		t.Errorf("%s: %s", b.at(), out)
	}
}
