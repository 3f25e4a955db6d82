package ledger

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"pgregory.net/rapid"

	"tidegate/gateway/openai"
)

// TestMoney: amounts are exact, whatever is added to them.
func TestMoney(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Money
		want := new(big.Int)
		for range rapid.IntRange(0, 20).Draw(t, "terms") {
			tokens, price := rapid.Int64Range(0, 1<<50).Draw(t, "tokens"), rapid.Int64Range(0, 1e12).Draw(t, "price")
			m.add(tokens, price)
			want.Add(want, new(big.Int).Mul(big.NewInt(tokens), big.NewInt(price)))
		}
		whole, parts := new(big.Int).DivMod(want, big.NewInt(perWhole), new(big.Int))
		got, ok := new(big.Rat).SetString(m.String())
		exact := new(big.Rat).SetFrac(want, big.NewInt(perWhole))
		if m.Whole != whole.Uint64() || m.Parts != parts.Uint64() || !ok || got.Cmp(exact) != 0 {
			t.Fatalf("%v, want %v", m, exact)
		}
	})
	for _, c := range []struct {
		m    Money
		want string
	}{
		{Money{}, "0"}, {Money{Whole: 3}, "3"}, {Money{Whole: 3, Parts: 50_000_000_000}, "3.05"}, {Money{Parts: 1}, "0.000000000001"},
	} {
		if got := c.m.String(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	var most Money
	for range 40 {
		most.add(1<<62, 1<<62)
	}
	if most.Whole != 1<<64-1 {
		t.Errorf("beyond any amount: %v", most)
	}
}

// testCalendar compares months, days and hours of several zones, with prices that change
// in the middle, with the same sums made record by record.
func testCalendar(t *testing.T, db *bun.DB) {
	l := open(t, t.TempDir(), db)
	random := rand.New(rand.NewPCG(1, 2))
	change := time.Date(2026, 3, 29, 0, 0, 0, 0, time.UTC) // the night in which Berlin's clock goes on
	prices := Prices{Currency: "EUR", Models: map[string][]Price{
		"big":   {{Input: 500_000, Cached: 50_000, Output: 2_000_000, Reasoning: 1_000_000}, {Start: change, Input: 1_000_000, Cached: 1, Output: 3, Reasoning: 7}},
		"later": {{Start: change, Input: 10, Cached: 10, Output: 10, Reasoning: 10}},
	}}
	var all []Record
	for i := range 600 {
		r := Record{
			ID: fmt.Sprint("calendar", i), Department: "calendar", User: fmt.Sprint("user", i%3), Status: 200, GPU: time.Duration(i) * time.Millisecond, Units: int64(i),
			Time:  time.Date(2026, 3, 27, 20, 0, 0, 0, time.UTC).Add(time.Duration(random.Int64N(int64(5 * 24 * time.Hour)))),
			Model: [...]string{"big", "later", "free"}[random.IntN(3)],
			Usage: openai.Usage{Input: 100 + random.IntN(1000), Cached: random.IntN(100), Output: 100 + random.IntN(1000), Reasoning: random.IntN(100)},
		}
		all = append(all, r)
		l.Add(r, nil)
		if i == 400 { // the rest stays in the journal and in memory
			if err := l.journal.commit(); err != nil {
				t.Fatal(err)
			}
			shipAll(t, l)
		}
	}
	for _, name := range []string{"UTC", "Asia/Shanghai", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for g, layout := range map[Group]string{ByMonth: "2006-01", ByDay: "2006-01-02", ByHour: "2006-01-02T15:00Z07:00"} {
			q := Query{Filter: Filter{Department: "calendar"}, GroupBy: []Group{g, ByUser}, Zone: zone, Prices: prices, Start: time.Unix(0, 0), End: time.Date(9999, 1, 1, 0, 0, 0, 0, zone)}
			rows, err := l.Report(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]Sums{}
			for i := range all {
				r := &all[i]
				at := r.Time.In(zone).Format(layout) + " " + r.User
				s := want[at]
				one := Sums{}
				one.count(r)
				prices.addCost(&one, r.Model, r.Time.Unix())
				s.Add(&one)
				want[at] = s
			}
			got := map[string]Sums{}
			for i := range rows {
				got[strings.Join(rows[i].Values(q.GroupBy), " ")] = rows[i].Sums
			}
			if len(got) != len(want) || len(rows) != len(want) {
				t.Errorf("%s by %s: %d rows, want %d", name, g, len(rows), len(want))
			}
			for at, s := range want {
				if got[at] != s {
					t.Errorf("%s by %s: %s\ngot  %+v\nwant %+v", name, g, at, got[at], s)
				}
			}
		}
	}
}

// TestForms: JSON, CSV and the table say the same of a row, by the same names.
func TestForms(t *testing.T) {
	row := Row{Day: "2026-03-01", Sums: Sums{
		Requests: 3, Failed: 1, Input: 10, Cached: 2, Output: 20, Reasoning: 5, Total: 30, Estimated: 1, Milliunits: 1234, GPUMillis: 56,
		Cost: Money{Known: true, Whole: 1, Parts: 250_000_000_000}, Unpriced: 7,
	}}
	text, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := WriteCSV(&out, []Group{ByDay}, "EUR", []Row{row}); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	object["currency"] = "EUR" // which JSON says once, of all rows
	if len(lines) != 2 || len(lines[0]) != len(object) {
		t.Fatalf("%v\n%s", lines, text)
	}
	for i, name := range lines[0] {
		if fmt.Sprint(object[name]) != lines[1][i] {
			t.Errorf("%s is %v in JSON and %s in CSV", name, object[name], lines[1][i])
		}
	}
	if names, _ := new(Sums).Columns(""); slices.Contains(names, "cost") {
		t.Error("a cost without prices")
	}
}
