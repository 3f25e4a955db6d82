package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestSummary reads what `go test -json` wrote of packages that fail in each way:
// the summary of `make test` ends with what failed, each test with its own output
// and no other's, and with the counts.
func TestSummary(t *testing.T) {
	events, err := os.Open("testdata/ci/events.json")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	cmd := exec.CommandContext(t.Context(), "go", "run", "../../.ci/summary", "-")
	cmd.Stdin = events
	raw, err := cmd.Output()
	if err == nil {
		t.Error("it is a success")
	}
	text := string(raw)
	live, rest, _ := strings.Cut(text, "---- the slowest tests\n")
	for _, want := range []string{"ok  \tm/ok", "FAIL\tm/broken", "FAIL\tm/late", "clients: 12 of 12 pass", "--- FAIL: TestAlone"} {
		if !strings.Contains(live, want) {
			t.Errorf("what is shown meanwhile lacks %q:\n%s", want, live)
		}
	}
	slow, failed, _ := strings.Cut(rest, "---- what failed\n")
	for _, want := range []string{"m/fail TestNoisy", "!! SKIPPED-PART: a server: there is none", "!! 1 parts were skipped"} {
		if !strings.Contains(slow, want) {
			t.Errorf("before what failed there is no %q:\n%s", want, slow)
		}
	}
	for _, want := range []string{
		"--- FAIL: m/broken (the package itself)\n    # m/broken [m/broken.test]\n    broken/a_test.go:3:28: undefined: undefined\n",
		"--- FAIL: m/fail TestParent/bad\n        a_test.go:5: the reason of the part\n--- FAIL: m/fail TestAlone\n        a_test.go:8: two\n            lines\n",
		"--- FAIL: m/leaks (the package itself)\n    something leaks\n",
		"--- FAIL: m/panics TestPanics/deep\n--- FAIL: m/panics TestPanics\n    panic: as planned",
		"--- FAIL: m/late TestHangs (did not end)\n        a_test.go:4: before it hangs\n    panic: test timed out after 3s\n",
		"    1 tests were still waiting to run\n",
	} {
		if !strings.Contains(failed, want) {
			t.Errorf("what failed lacks %q:\n%s", want, failed)
		}
	}
	if strings.Contains(failed, "noise of") || !strings.HasSuffix(failed, "\n6 passed, 8 failed, 1 skipped\n") {
		t.Errorf("%s", failed)
	}
}
