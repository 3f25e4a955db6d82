package gateway

import (
	"strings"
	"testing"
	"time"
)

// TestClockWarning: the status tells by how much the clock of the machine was set, in
// either direction, and nothing once it is right again.
func TestClockWarning(t *testing.T) {
	g, _ := bare(t, nil)
	right := g.beganWall
	for _, c := range []struct {
		set  time.Duration
		want string
	}{
		{0, ""}, {time.Second, ""}, {time.Hour, "set ahead by 1h0m0s"}, {-24 * time.Hour, "set back by 24h0m0s"}, {0, ""},
	} {
		g.beganWall = right.Add(-c.set) // as the wall clock of now would have it
		if told := g.clockWarning(time.Now()); (told != "") != (c.want != "") || !strings.Contains(told, c.want) {
			t.Errorf("set by %v: %q", c.set, told)
		}
	}
}
