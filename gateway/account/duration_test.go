package account

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"30d": 30 * day, "1d12h": 36 * time.Hour, "1.5d": 36 * time.Hour, "-2d1s": -2*day - time.Second, "0d": 0, "7d0s": 7 * day,
		"168h": 7 * day, "1m30s": 90 * time.Second, "-5m": -5 * time.Minute, "0": 0, "100000d": 100000 * day,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; expected %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "d1h", "1h1d", "1d-1h", "1d+1h", "1 d", "1dd", "1d1", "1e3d", "+1d", "--1d", "1.d.", "200000d", "106751d24h", "5 minutes", "1:30", "1D", "∞d", ".d"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q: %v; expected an error", text, got)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, text := range []string{"30d", "1d12h", "-1.5d", "1h", "9223372036854775807ns", "106751d23h47m16s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDuration(text)
		if want, plain := time.ParseDuration(text); plain == nil && (err != nil || d != want) {
			t.Errorf("%q: %v, %v; expected %v", text, d, err, want)
		}
		if err == nil && d < 0 && text[0] != '-' {
			t.Errorf("%q became %v", text, d)
		}
	})
}
