package stack

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Clients returns the directory or program in a variable, where the packages of other
// languages' clients are. Without it the test is skipped.
func Clients(t *testing.T, getenv func(string) string, language, variable string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("other languages' clients are not part of -short")
	}
	path := getenv(variable)
	if path == "" {
		t.Skipf("SKIPPED-PART: %s clients: %s is not set; `make test` sets it where it can install the packages", language, variable)
	}
	return path
}

// PrometheusTool returns the path of prometheus or promtool, of the folder in
// TIDEGATE_TEST_PROMETHEUS or of the system. Without it the test is skipped.
func PrometheusTool(t *testing.T, getenv func(string) string, name string) string {
	t.Helper()
	if dir := getenv("TIDEGATE_TEST_PROMETHEUS"); dir != "" {
		return filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip("SKIPPED-PART: dashboards and rules on a real Prometheus: it is not installed; `make test` fetches it where it may (Debian: apt-get install prometheus)")
	}
	return path
}
