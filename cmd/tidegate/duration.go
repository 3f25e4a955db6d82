package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// parseDuration reads a duration as time.ParseDuration does, and days before it: 30d,
// 1d12h, 1.5d.
func parseDuration(text string) (time.Duration, error) {
	wrong := fmt.Errorf("expected a duration such as 10s, 1m30s, 12h or 30d, not %q", text)
	days, rest, found := strings.Cut(text, "d")
	if !found {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, wrong
		}
		return d, nil
	}
	n, err := strconv.ParseFloat(days, 64)
	if err != nil || days == "" || strings.ContainsAny(days, "eExXpP_iInN+") || n > 1e5 || n < -1e5 {
		return 0, wrong
	}
	d := time.Duration(n * float64(24*time.Hour))
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 || rest[0] == '+' {
		return 0, wrong
	}
	if n < 0 {
		more = -more
	}
	return d + more, nil
}
