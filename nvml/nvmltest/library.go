// Package nvmltest builds a driver's library in C, whose faults a test can set and which is
// loaded like the real one, and the agent that loads it.
package nvmltest

import (
	_ "embed"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

//go:embed testdata/nvml.c
var source []byte

// Library is a libnvidia-ml.so.1 built from C, and the file that sets its behaviour. A program
// loads it by Path, with Env in its environment.
type Library struct {
	Path  string
	Env   string // FAKE_NVML=file
	state string
}

// Build builds the library with gcc, with these macros set: none, OLD or BARE (see
// testdata/nvml.c). Where there is no gcc, the test is skipped loudly.
func Build(t testing.TB, macros ...string) *Library {
	t.Helper()
	gcc := compiler(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "nvml.c")
	l := &Library{Path: filepath.Join(dir, "libnvidia-ml.so.1"), state: filepath.Join(dir, "state")}
	l.Env = "FAKE_NVML=" + l.state
	if err := os.WriteFile(file, source, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", l.Path, file}
	for _, m := range macros {
		args = append(args, "-D"+m)
	}
	if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	l.Set(t, nil)
	t.Cleanup(func() {
		if misuse, err := os.ReadFile(l.state + ".misuse"); err == nil {
			t.Errorf("NVML's rules were broken:\n%s", misuse)
		}
	})
	return l
}

// Agent builds the agent as it ships into a directory, and returns its path. A compiler warning
// fails the test. Where it cannot be built, the test is skipped loudly.
func Agent(t testing.TB, dir string) string {
	t.Helper()
	compiler(t)
	binary := filepath.Join(dir, "tidegate-gpu-agent")
	cmd := exec.Command("../../.ci/agent", binary, "-tags", "nomsgpack", "-p", "2")
	cmd.Env = append(cmd.Environ(), "CC=gcc")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// compiler returns the path of gcc, or skips the test where there is none.
func compiler(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED-PART: the GPU agent over NVML: it is for Linux only")
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("SKIPPED-PART: the GPU agent over NVML: there is no gcc on this machine (apt-get install gcc libc6-dev)")
	}
	return gcc
}

// Set replaces the behaviour of the library; keys that are not set have their defaults.
func (l *Library) Set(t testing.TB, state map[string]int64) {
	t.Helper()
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(state)) {
		fmt.Fprintf(&b, "%s=%d\n", key, state[key])
	}
	// The file is renamed, so that no call reads half of it.
	if err := os.WriteFile(l.state+".new", []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.state+".new", l.state); err != nil {
		t.Fatal(err)
	}
}
