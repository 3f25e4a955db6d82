package ops

import (
	"strings"
	"testing"
	"time"
)

// TestClockStep holds by how much a clock was set, in either direction, and that nothing is
// said of a step too small or taken back.
func TestClockStep(t *testing.T) {
	for _, c := range []struct {
		set  time.Duration
		want string
	}{
		{0, ""}, {time.Second, ""}, {time.Hour, "set ahead by 1h0m0s"}, {-24 * time.Hour, "set back by 24h0m0s"},
	} {
		warning := clockWarning(time.Hour+c.set, time.Hour)
		if (warning != "") != (c.want != "") || !strings.Contains(warning, c.want) {
			t.Errorf("set by %v: %q", c.set, warning)
		}
	}
}
