package limit

import (
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	maxCount = 1_000_000_000_000 // largest limit; in thousandths still exact in a double, which is what Lua counts in
	maxExact = 1 << 52           // integers up to here are exact in a double, with a bit to spare
	maxMilli = 1_000_000         // a weight of 1000
)

// Bounds of what a store counts, so that a double holds every number exactly.
const (
	MaxCharge = maxExact  // charge of one request on one counter
	MaxSum    = 1 << 47   // sum of a bucket: above every limit, and those of a window add up
	MaxDebt   = 1<<53 - 1 // sum of a quota's counter, and debt of a token bucket in tokens times milliseconds
)

// Values that stand for what cannot be read; Validate refuses them, where it is
// known in which line they stand.
const (
	badCount  Count  = math.MinInt64
	zeroCount Count  = math.MinInt64 + 1 // 0 was written, which is not the same as nothing
	badMilli  Milli  = -1
	badFactor Factor = -1
)

// Rate is a count in each window of time, written 50/1m. The zero value is no limit.
type Rate struct {
	Count  int64
	Window time.Duration
}

// ParseRate reads COUNT/WINDOW; false where it is not of that form.
func ParseRate(text string) (Rate, bool) {
	count, window, ok := strings.Cut(text, "/")
	if !ok {
		return Rate{}, false
	}
	n, ok := parseInteger(strings.TrimSpace(count))
	if !ok {
		return Rate{}, false
	}
	window = strings.TrimSpace(window)
	if window != "" && (window[0] < '0' || window[0] > '9') {
		window = "1" + window // 50/m
	}
	w, err := time.ParseDuration(window)
	if err != nil || w <= 0 {
		return Rate{}, false
	}
	return Rate{n, w}, true
}

// parseInteger reads a decimal integer without a plus sign.
func parseInteger(text string) (int64, bool) {
	if strings.HasPrefix(text, "+") {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// UnmarshalText reads a rate.
func (r *Rate) UnmarshalText(text []byte) error {
	read, ok := ParseRate(string(text))
	if !ok {
		read = Rate{Count: math.MinInt64}
	}
	*r = read
	return nil
}

// MarshalText writes a rate as it is read.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	if r == (Rate{}) {
		return ""
	}
	return strconv.FormatInt(r.Count, 10) + "/" + windowText(r.Window)
}

// windowText writes a window without zeros behind it: 1m, not 1m0s.
func windowText(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	}
	return d.String()
}

// fault returns what is wrong with a rate that is set; empty for nothing.
func (r Rate) fault() string {
	switch {
	case r.Count == math.MinInt64:
		return "must be a count and a window, such as 50/1m"
	case r.Window < time.Second || r.Window > time.Hour || r.Window%time.Second != 0:
		return "the window must be whole seconds from 1s to 1h, such as 50/1m; longer ones are quotas"
	}
	return countFault(r.Count)
}

func countFault(n int64) string {
	switch {
	case n == 0:
		return "is 0, so that no request could ever pass; leave it out, or use a deny list"
	case n < 0:
		return "must not be negative"
	case n > maxCount:
		return "must be at most 1000000000000"
	}
	return ""
}

// Count is a positive whole number; 0 means that none is set.
type Count int64

// UnmarshalText reads a count.
func (c *Count) UnmarshalText(text []byte) error {
	n, ok := parseInteger(strings.TrimSpace(string(text)))
	switch {
	case !ok || n == math.MinInt64 || n == math.MinInt64+1:
		*c = badCount
	case n == 0:
		*c = zeroCount
	default:
		*c = Count(n)
	}
	return nil
}

// MarshalText writes a count as it is read.
func (c Count) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(c), 10), nil }

// fault returns what is wrong with a count that is set; empty for nothing.
func (c Count) fault() string {
	switch c {
	case badCount:
		return "must be a whole number, such as 8"
	case zeroCount:
		return countFault(0)
	}
	return countFault(int64(c))
}

// Milli is a weight in thousandths, written as a decimal with at most three
// places.
type Milli int64

// UnmarshalText reads a weight.
func (m *Milli) UnmarshalText(text []byte) error {
	if n, ok := parseThousandths(string(text)); ok {
		*m = Milli(n)
		return nil
	}
	*m = badMilli
	return nil
}

// MarshalText writes a weight as it is read.
func (m Milli) MarshalText() ([]byte, error) { return []byte(thousandths(int64(m))), nil }

// Factor is a part of a limit in thousandths, written as a decimal with at most three places;
// 0 means that none is set.
type Factor int64

// UnmarshalText reads a factor.
func (f *Factor) UnmarshalText(text []byte) error {
	if n, ok := parseThousandths(string(text)); ok && n != 0 {
		*f = Factor(n)
		return nil
	}
	*f = badFactor
	return nil
}

// MarshalText writes a factor as it is read.
func (f Factor) MarshalText() ([]byte, error) { return []byte(thousandths(int64(f))), nil }

// parseThousandths reads a decimal that is not negative and has at most three
// places.
func parseThousandths(text string) (int64, bool) {
	whole, places, dot := strings.Cut(strings.TrimSpace(text), ".")
	if dot && (places == "" || len(places) > 3) || !digits(whole) || dot && !digits(places) || len(whole) > 12 {
		return 0, false
	}
	n, err := strconv.ParseInt(whole+(places + "000")[:3], 10, 64)
	return n, err == nil
}

func digits(text string) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return text != ""
}

func thousandths(n int64) string {
	text := strconv.FormatFloat(float64(n)/1000, 'f', 3, 64)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}
