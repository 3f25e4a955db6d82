package main

import (
	"math"
	"slices"
	"strings"

	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
)

// validateCurrency says what is wrong with the currency of the prices.
func (c *config) validateCurrency(fault func(ok bool, format string, args ...any)) {
	code := c.Currency
	fault(code == "" || len(code) == 3 && strings.ToUpper(code) == code && strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "",
		"currency: must be three letters of ISO 4217, such as CNY or USD, not %q", code)
	priced := slices.IndexFunc(c.Models, func(m backend.ModelConfig) bool { return len(m.Prices) > 0 })
	fault(code != "" || priced < 0, "currency: is missing, and models[%d] has prices; expected something like CNY", max(priced, 0))
}

// prices are those of a valid configuration. Reports show no cost where no model has any.
func (c *config) prices() ledger.Prices {
	p := ledger.Prices{Models: map[string][]ledger.Price{}}
	for i := range c.Models {
		m := &c.Models[i]
		for j := range m.Prices {
			p.Currency = c.Currency
			p.Models[m.Name] = append(p.Models[m.Name], priceOf(&m.Prices[j]))
		}
	}
	return p
}

// priceOf is a valid price in whole millionths.
func priceOf(p *backend.Price) ledger.Price {
	millionths := func(price *float64, otherwise float64) int64 {
		if price != nil {
			otherwise = *price
		}
		return int64(math.Round(otherwise * 1e6))
	}
	from, _ := p.Begin() // it is valid
	return ledger.Price{
		From: from, Input: millionths(&p.Input, 0), Cached: millionths(p.Cached, p.Input),
		Output: millionths(&p.Output, 0), Reasoning: millionths(p.Reasoning, p.Output),
	}
}
