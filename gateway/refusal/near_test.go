package refusal

import (
	"strings"
	"testing"
)

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"same", "same", 0}, {"ab", "ba", 2}, {strings.Repeat("a", 100), strings.Repeat("b", 70), 64}} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, expected %d", c.a, c.b, got, c.want)
		}
	}
}
