package redislimit

import (
	"strings"
	"testing"
)

// TestScript: each constant of the scripts has a number, and each number is used.
func TestScript(t *testing.T) {
	used := map[string]bool{}
	for name, text := range map[string]string{"limit.lua": limitLua, "fleet.lua": fleetLua} {
		if left := scriptName().FindAllString(script(text), -1); len(left) > 0 {
			t.Errorf("%s: constants without a number: %v", name, left)
		}
		for _, one := range scriptName().FindAllString(withoutComments(text), -1) {
			used[strings.TrimPrefix(one, "$")] = true
		}
	}
	for name := range scriptConstants() {
		if !used[name] {
			t.Errorf("no script uses the constant %s", name)
		}
	}
}
