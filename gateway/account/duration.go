package account

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// ParseDuration parses a duration as time.ParseDuration does, with an optional number of
// days in front: 30d, 1d12h, 1.5d. A day has 24 hours. Its error describes the expected
// form.
func ParseDuration(text string) (time.Duration, error) {
	days, rest, found := strings.Cut(text, "d")
	if !found {
		days, rest = "", text
	}
	number := strings.TrimPrefix(days, "-")
	h, err := time.ParseDuration(number + "h")
	if !found {
		h, err = 0, nil
	}
	const day = 24
	if err != nil || strings.Trim(number, "0123456789.") != "" || h > math.MaxInt64/day {
		return 0, durationError(text)
	}
	d := h * day
	if found && rest == "" {
		rest = "0"
	}
	remainder, err := time.ParseDuration(rest)
	if err != nil || found && (remainder < 0 || rest[0] == '+' || rest[0] == '-') || remainder > math.MaxInt64-d {
		return 0, durationError(text)
	}
	if d += remainder; strings.HasPrefix(days, "-") {
		d = -d
	}
	return d, nil
}

// durationError returns the error for a text that is no duration.
func durationError(text string) error {
	return fmt.Errorf("expected a duration such as 10s, 1m30s, 12h or 30d, not %.40q", text)
}
