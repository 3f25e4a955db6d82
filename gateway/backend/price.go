package backend

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Price holds the prices of a million tokens of a model from some day on, in the
// currency of the configuration.
type Price struct {
	Start     string   `yaml:"from"`      // day in UTC or point in time, from which it holds; empty: from the beginning
	Input     float64  `yaml:"input"`     // of a million prompt tokens
	Cached    *float64 `yaml:"cached"`    // of a million prompt tokens that the server had in its cache; left out: as input
	Output    float64  `yaml:"output"`    // of a million answer tokens
	Reasoning *float64 `yaml:"reasoning"` // of a million reasoning tokens; left out: as output
}

// maxPrice is the highest price of a million tokens, in the currency.
const maxPrice = 1_000_000

// Begin returns the moment from which the price holds; zero for the beginning of time.
func (p *Price) Begin() (time.Time, error) {
	if p.Start == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if start, err := time.Parse(layout, p.Start); err == nil {
			if start.Unix()%(15*60) != 0 {
				return start, fmt.Errorf("from: %q must be a quarter of an hour, such as 2026-01-01T00:15:00+08:00", p.Start)
			}
			return start, nil
		}
	}
	return time.Time{}, fmt.Errorf("from: %q is no day such as 2026-01-01 and no time such as 2026-01-01T00:00:00+08:00", p.Start)
}

// ValidatePrices returns all faults of a model's prices, each beginning with its path.
func ValidatePrices(prices []Price) error {
	var faults []error
	var last time.Time
	for i := range prices {
		p := &prices[i]
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf("prices[%d]."+format, append([]any{i}, args...)...))
		}
		for _, n := range []struct {
			path  string
			price *float64
		}{{"input", &p.Input}, {"cached", p.Cached}, {"output", &p.Output}, {"reasoning", p.Reasoning}} {
			if n.price == nil {
				continue
			}
			if millionths := *n.price * 1e6; !(*n.price >= 0 && *n.price <= maxPrice) || math.Abs(millionths-math.Round(millionths)) > 1e-3 {
				fault("%s: must be from 0 to %d for a million tokens, with at most six decimals, such as 0.5", n.path, maxPrice)
			}
		}
		begin, err := p.Begin()
		if err != nil {
			fault("%w", err)
			continue
		}
		if i > 0 && !begin.After(last) {
			fault("from: must be later than that of the price before it")
		}
		last = begin
	}
	return errors.Join(faults...)
}
