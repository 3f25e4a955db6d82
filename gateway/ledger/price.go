package ledger

import (
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Prices are what tokens cost, by the model that answered. The zero value prices nothing.
type Prices struct {
	Currency string             // of all amounts, such as CNY; empty: nothing is priced
	Models   map[string][]Price // of each model in the order of From
}

// Price is what a million tokens of one model cost from some moment on, in
// millionths of the currency.
type Price struct {
	From      time.Time // a quarter of an hour at the finest; zero: from the beginning
	Input     int64     // of prompt tokens
	Cached    int64     // of prompt tokens that the server had in its cache, instead of Input
	Output    int64     // of answer tokens
	Reasoning int64     // of reasoning tokens, instead of Output
}

// at finds a model's price at a moment, in seconds since 1970.
func (p *Prices) at(model string, moment int64) (price Price, ok bool) {
	for _, next := range p.Models[model] {
		if !next.From.IsZero() && begin(next.From) > moment {
			break
		}
		price, ok = next, true
	}
	return price, ok
}

// cost is what the tokens of sums cost; tokens of a model without a price are counted
// instead.
func (p *Prices) cost(s *Sums, model string, moment int64) {
	if p.Currency == "" {
		return
	}
	s.Cost.Known = true
	price, ok := p.at(model, moment)
	if !ok {
		s.Unpriced = s.Total
		return
	}
	s.Cost.add(s.Input-s.Cached, price.Input)
	s.Cost.add(s.Cached, price.Cached)
	s.Cost.add(s.Output-s.Reasoning, price.Output)
	s.Cost.add(s.Reasoning, price.Reasoning)
}

// Money is an exact amount: the millionth part of a millionth, which is what one token
// costs at the least price. So rows add up to their total, to the last digit.
type Money struct {
	Known bool // some price was asked for; an amount of 0 is one then
	Whole uint64
	Parts uint64 // of 10^12
}

const perWhole = 1_000_000_000_000

// add adds a number of tokens at a price for a million of them, in millionths.
func (m *Money) add(tokens, price int64) {
	if tokens <= 0 || price <= 0 {
		return
	}
	high, low := bits.Mul64(uint64(tokens), uint64(price))
	if high >= perWhole { // beyond any amount; Div64 would panic
		high, low = perWhole-1, 0
	}
	whole, parts := bits.Div64(high, low, perWhole)
	m.sum(Money{Known: true, Whole: whole, Parts: parts})
}

func (m *Money) sum(o Money) {
	parts := m.Parts + o.Parts
	whole, carry := bits.Add64(m.Whole, o.Whole, parts/perWhole)
	if carry != 0 {
		whole = 1<<64 - 1
	}
	*m = Money{Known: m.Known || o.Known, Whole: whole, Parts: parts % perWhole}
}

// IsZero reports whether no price was asked for, so that JSON leaves the amount out.
func (m Money) IsZero() bool { return !m.Known }

// String is the amount as a decimal.
func (m Money) String() string {
	parts := strconv.FormatUint(perWhole+m.Parts, 10)[1:] // with its zeros in front
	return strings.TrimSuffix(strconv.FormatUint(m.Whole, 10)+"."+strings.TrimRight(parts, "0"), ".")
}

// MarshalJSON writes the amount as a number.
func (m Money) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// Milliunits is an amount of quota units, in thousandths. People are shown units.
type Milliunits int64

// String is the amount in units, as a decimal.
func (m Milliunits) String() string { return strconv.FormatFloat(float64(m)/1000, 'f', -1, 64) }

// MarshalJSON writes the amount in units, as a number.
func (m Milliunits) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// span is a part of a query's time, in seconds since 1970, in which the clock of its
// zone and all prices stay as they are.
type span struct {
	from, to int64
	offset   int64 // of the zone's clock, in seconds east of UTC
}

// spanFrom is the first such part of a time that is not empty.
func (t *tally) spanFrom(from, to int64) span {
	local := time.Unix(from, 0).In(t.zone())
	_, offset := local.Zone()
	if _, end := local.ZoneBounds(); !end.IsZero() && slices.ContainsFunc(t.By, Group.OfTime) {
		// On the last day of a leap year that is far away the end is not after now:
		// time.Time.ZoneBounds counts 365 days there.
		to = min(to, max(end.Unix(), from+int64(quarter/time.Second)))
	}
	for _, prices := range t.Prices.Models {
		for _, p := range prices {
			if change := begin(p.From); !p.From.IsZero() && change > from {
				to = min(to, change)
			}
		}
	}
	return span{from, to, int64(offset)}
}

// charge counts one record's tokens with their cost.
func (t *tally) charge(r *Record) (s Sums) {
	s.count(r)
	t.Prices.cost(&s, r.Model, begin(r.Time))
	return s
}
