package stack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// Build builds the command tidegate with the tags of the test that calls it, under the
// race detector if that is, and returns the path of the binary. Where the test measures
// coverage, the binary counts its own: see Binary. Packages that build at the same time
// replace it by an equal one.
func Build() (path string, err error) {
	module, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	dir := filepath.Join(filepath.Dir(strings.TrimSpace(string(module))), ".cache", "stack")
	name, args := "tidegate", []string{"build"}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "-tags":
				args = append(args, "-tags", s.Value)
			case s.Key == "-race" && s.Value == "true":
				name, args = name+"-race", append(args, "-race")
			}
		}
	}
	if testing.CoverMode() != "" {
		name, args = name+"-cover", append(args, "-cover", "-coverpkg", "tidegate/...")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	next, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(next)
	built := filepath.Join(next, name)
	if out, err := exec.Command("go", append(args, "-o", built, "tidegate/cmd/tidegate")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w\n%s", args, err, out)
	}
	path = filepath.Join(dir, name)
	return path, os.Rename(built, path)
}
