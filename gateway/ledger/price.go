package ledger

import (
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Prices holds the prices of tokens by the model that answered. The zero value prices
// nothing.
type Prices struct {
	Currency string             // currency of all amounts, such as CNY; empty: nothing is priced
	Models   map[string][]Price // prices of each model, sorted by Start
}

// Price is the price of a million tokens of one model from a time on, in millionths of the
// currency.
type Price struct {
	Start     time.Time // first moment, a multiple of a quarter of an hour; zero: always
	Input     int64     // price of prompt tokens
	Cached    int64     // price of prompt tokens in the backend's prefix cache, instead of Input
	Output    int64     // price of output tokens
	Reasoning int64     // price of reasoning tokens, instead of Output
}

// lookup returns a model's price at a moment, in seconds since 1970.
func (p *Prices) lookup(model string, moment int64) (price Price, ok bool) {
	for _, next := range p.Models[model] {
		if !next.Start.IsZero() && quarterStart(next.Start) > moment {
			break
		}
		price, ok = next, true
	}
	return price, ok
}

// addCost adds the cost of the tokens in s. The tokens of a model without a price are
// counted as unpriced instead.
func (p *Prices) addCost(s *Sums, model string, moment int64) {
	if p.Currency == "" {
		return
	}
	s.Cost.Known = true
	price, ok := p.lookup(model, moment)
	if !ok {
		s.Unpriced = s.Total
		return
	}
	s.Cost.add(s.Input-s.Cached, price.Input)
	s.Cost.add(s.Cached, price.Cached)
	s.Cost.add(s.Output-s.Reasoning, price.Output)
	s.Cost.add(s.Reasoning, price.Reasoning)
}

// Money is an exact amount in steps of 10^-12, the smallest price of one token. So rows
// add up to their total, to the last digit.
type Money struct {
	Known bool // prices were configured; 0 is an amount then
	Whole uint64
	Parts uint64 // fraction, in 10^-12
}

const perWhole = 1_000_000_000_000

// add adds the cost of tokens at a price for a million of them, in millionths.
func (m *Money) add(tokens, price int64) {
	if tokens <= 0 || price <= 0 {
		return
	}
	high, low := bits.Mul64(uint64(tokens), uint64(price))
	if high >= perWhole { // beyond any amount; Div64 would panic
		high, low = perWhole-1, 0
	}
	whole, parts := bits.Div64(high, low, perWhole)
	m.addMoney(Money{Known: true, Whole: whole, Parts: parts})
}

func (m *Money) addMoney(o Money) {
	parts := m.Parts + o.Parts
	whole, carry := bits.Add64(m.Whole, o.Whole, parts/perWhole)
	if carry != 0 {
		whole = 1<<64 - 1
	}
	*m = Money{Known: m.Known || o.Known, Whole: whole, Parts: parts % perWhole}
}

// IsZero reports whether no prices were configured, so that JSON leaves the amount out.
func (m Money) IsZero() bool { return !m.Known }

// String returns the amount as a decimal.
func (m Money) String() string {
	parts := strconv.FormatUint(perWhole+m.Parts, 10)[1:] // with its zeros in front
	return strings.TrimSuffix(strconv.FormatUint(m.Whole, 10)+"."+strings.TrimRight(parts, "0"), ".")
}

// MarshalJSON writes the amount as a number.
func (m Money) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// Milliunits is an amount of quota units, in thousandths. Pages and files show units.
type Milliunits int64

// String returns the amount in units, as a decimal.
func (m Milliunits) String() string { return strconv.FormatFloat(float64(m)/1000, 'f', -1, 64) }

// MarshalJSON writes the amount in units, as a number.
func (m Milliunits) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// span is a part of a query's time, in seconds since 1970, in which the offset of its
// zone and all prices are constant.
type span struct {
	start, end int64
	offset     int64 // offset of the zone, in seconds east of UTC
}

// firstSpan returns the longest span at the beginning of a time.
func (t *tally) firstSpan(start, end int64) span {
	local := time.Unix(start, 0).In(t.zone())
	_, offset := local.Zone()
	if _, zoneEnd := local.ZoneBounds(); !zoneEnd.IsZero() && slices.ContainsFunc(t.GroupBy, Group.IsTime) {
		// On the last day of a leap year that is far away the end is not after now:
		// time.Time.ZoneBounds counts 365 days there.
		end = min(end, max(zoneEnd.Unix(), start+int64(quarter/time.Second)))
	}
	for _, prices := range t.Prices.Models {
		for _, p := range prices {
			if change := quarterStart(p.Start); !p.Start.IsZero() && change > start {
				end = min(end, change)
			}
		}
	}
	return span{start, end, int64(offset)}
}

// sumsWithCost returns the sums of one record, with its cost.
func (t *tally) sumsWithCost(r *Record) (s Sums) {
	s.count(r)
	t.Prices.addCost(&s, r.Model, quarterStart(r.Time))
	return s
}
