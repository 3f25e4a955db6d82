package main

import (
	"math"
	"slices"
	"strings"

	"tidegate/admission/limit"
	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
)

// validateReports says what is wrong with the zone and the currency.
func (c *config) validateReports(fault func(ok bool, format string, args ...any)) {
	_, err := limit.LoadZone(c.Reports.Zone)
	fault(err == nil, "reports.zone: %w", err)
	code := c.Reports.Currency
	fault(code == "" || len(code) == 3 && strings.ToUpper(code) == code && strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "",
		"reports.currency: must be three letters of ISO 4217, such as CNY or USD, not %q", code)
	priced := slices.IndexFunc(c.Models, func(m backend.ModelConfig) bool { return len(m.Prices) > 0 })
	fault(code != "" || priced < 0, "reports.currency: is missing, and models[%d] has prices; expected something like CNY", max(priced, 0))
}

// prices are those of a valid configuration. Reports show no cost where no model has any.
func (c *config) prices() ledger.Prices {
	p := ledger.Prices{Models: map[string][]ledger.Price{}}
	for i := range c.Models {
		m := &c.Models[i]
		for j := range m.Prices {
			p.Currency = c.Reports.Currency
			p.Models[m.Name] = append(p.Models[m.Name], priceOf(&m.Prices[j]))
		}
	}
	return p
}

// priceOf is a valid price in whole millionths.
func priceOf(p *backend.Price) ledger.Price {
	millionths := func(price *float64, fallback float64) int64 {
		if price != nil {
			fallback = *price
		}
		return int64(math.Round(fallback * 1e6))
	}
	begin, _ := p.Begin() // it is valid
	return ledger.Price{
		Start: begin, Input: millionths(&p.Input, 0), Cached: millionths(p.Cached, p.Input),
		Output: millionths(&p.Output, 0), Reasoning: millionths(p.Reasoning, p.Output),
	}
}
