package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter is the longest wait that a server's refusal is believed to ask for.
const maxRetryAfter = 24 * time.Hour

// retryAfter returns how long a server asks to be left alone before another try, as
// RFC 9110 10.2.3 writes it (seconds or a date) and as OpenAI's retry-after-ms does; the
// longer of both, maxRetryAfter at most. 0: it asks for nothing, or for what cannot be read.
func retryAfter(h http.Header, now time.Time) (wait time.Duration) {
	if text := strings.TrimSpace(h.Get("Retry-After")); text != "" {
		if seconds, err := strconv.ParseFloat(text, 64); err == nil {
			wait = bounded(seconds, time.Second)
		} else if date, err := http.ParseTime(text); err == nil {
			wait = min(max(date.Sub(now), 0), maxRetryAfter)
		}
	}
	if ms, err := strconv.ParseFloat(strings.TrimSpace(h.Get("Retry-After-Ms")), 64); err == nil {
		wait = max(wait, bounded(ms, time.Millisecond))
	}
	return wait
}

// bounded returns so many units of time, from 0 to maxRetryAfter.
func bounded(n float64, unit time.Duration) time.Duration {
	switch bound := float64(maxRetryAfter / unit); {
	case n > bound:
		return maxRetryAfter
	case n > 0: // false for what is no number
		return time.Duration(n * float64(unit))
	}
	return 0
}
