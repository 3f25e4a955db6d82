package gateway

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for _, one := range []struct {
		after, ms string
		want      time.Duration
	}{
		{"", "", 0}, {"30", "", 30 * time.Second}, {" 30 ", "", 30 * time.Second}, {"0", "", 0}, {"-5", "", 0}, {"1.5", "", 1500 * time.Millisecond},
		{"Mon, 30 Nov 2026 12:00:45 GMT", "", 45 * time.Second}, {"Mon, 30 Nov 2026 11:00:00 GMT", "", 0},
		{"soon", "", 0}, {"NaN", "", 0}, {"Inf", "", maxRetryAfter}, {"1e300", "", maxRetryAfter}, {"99999999999", "", maxRetryAfter},
		{"", "2500", 2500 * time.Millisecond}, {"2", "2500", 2500 * time.Millisecond}, {"3", "2500", 3 * time.Second}, {"", "x", 0},
	} {
		h := http.Header{}
		h.Set("Retry-After", one.after)
		h.Set("Retry-After-Ms", one.ms)
		if got := retryAfter(h, now); got != one.want {
			t.Errorf("%q, %q: %v, want %v", one.after, one.ms, got, one.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("30", "30000")
	f.Add("Mon, 30 Nov 2026 12:00:45 GMT", "-1")
	f.Add("NaN", "1e999")
	f.Fuzz(func(t *testing.T, after, ms string) {
		h := http.Header{"Retry-After": {after}, "Retry-After-Ms": {ms}}
		if got := retryAfter(h, time.Unix(1_800_000_000, 0)); got < 0 || got > maxRetryAfter {
			t.Errorf("%v", got)
		}
	})
}
