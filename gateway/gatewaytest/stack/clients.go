package stack

import "testing"

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
