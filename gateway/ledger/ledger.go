// Package ledger counts what was used: requests and tokens by user, key, model
// and day. Every finished request is added once, with the engine's own numbers.
package ledger

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"tidegate/gateway/openai"
)

// What a ledger in memory holds at most.
const (
	keepDays = 62
	maxRows  = 200_000
	other    = "" // the user, whom no account names, that takes what comes when maxRows are there
)

// Record is one finished request.
type Record struct {
	Time      time.Time
	User      string
	Key       string
	Model     string // the model that was served
	Usage     openai.Usage
	Estimated bool // the engine gave no usage; the tokens are an estimate
}

// Row is a sum over records. Fields by which was not grouped are empty.
type Row struct {
	Day       string `json:"day,omitempty"` // YYYY-MM-DD in UTC
	Model     string `json:"model,omitempty"`
	Key       string `json:"key,omitempty"`
	Requests  int64  `json:"requests"`
	Input     int64  `json:"input_tokens"`
	Cached    int64  `json:"cached_tokens"`
	Output    int64  `json:"output_tokens"`
	Reasoning int64  `json:"reasoning_tokens"`
	Total     int64  `json:"total_tokens"`
	Estimated int64  `json:"estimated_requests"`
}

func (r *Row) add(o Row) {
	r.Requests += o.Requests
	r.Input += o.Input
	r.Cached += o.Cached
	r.Output += o.Output
	r.Reasoning += o.Reasoning
	r.Total += o.Total
	r.Estimated += o.Estimated
}

type place struct{ day, user, key, model string }

// Ledger keeps its sums in memory. It is safe for concurrent use.
type Ledger struct {
	mu   sync.Mutex
	rows map[place]*Row
	day  string
}

// New makes an empty ledger.
func New() *Ledger { return &Ledger{rows: map[place]*Row{}} }

// Add counts a record.
func (l *Ledger) Add(r Record) {
	one := Row{
		Requests: 1, Input: int64(r.Usage.Input), Cached: int64(r.Usage.Cached), Output: int64(r.Usage.Output),
		Reasoning: int64(r.Usage.Reasoning), Total: int64(r.Usage.Total()),
	}
	if r.Estimated {
		one.Estimated = 1
	}
	at := place{r.Time.UTC().Format(time.DateOnly), r.User, r.Key, r.Model}
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.day > l.day {
		l.day = at.day
		l.forget(r.Time)
	}
	row := l.rows[at]
	if row == nil && len(l.rows) >= maxRows {
		at.user, at.key = other, other
		row = l.rows[at]
	}
	if row == nil {
		row = &Row{}
		l.rows[at] = row
	}
	row.add(one)
}

// forget drops the days that are too old.
func (l *Ledger) forget(now time.Time) {
	oldest := now.UTC().AddDate(0, 0, -keepDays).Format(time.DateOnly)
	for at := range l.rows {
		if at.day < oldest {
			delete(l.rows, at)
		}
	}
}

// Group is what a report is broken down by.
type Group string

// The groups of a caller's own report.
const (
	ByDay   Group = "day"
	ByModel Group = "model"
	ByKey   Group = "key"
)

// Report sums one user's records from one day to another, both included, broken
// down by a group and in its order.
func (l *Ledger) Report(user string, from, to time.Time, by Group) []Row {
	first, last := from.UTC().Format(time.DateOnly), to.UTC().Format(time.DateOnly)
	sums := map[string]*Row{}
	l.mu.Lock()
	for at, row := range l.rows {
		if at.user != user || at.day < first || at.day > last {
			continue
		}
		head := Row{}
		key := at.day
		switch by {
		case ByModel:
			key, head.Model = at.model, at.model
		case ByKey:
			key, head.Key = at.key, at.key
		default:
			head.Day = at.day
		}
		if sums[key] == nil {
			sums[key] = &head
		}
		sums[key].add(*row)
	}
	l.mu.Unlock()
	out := make([]Row, 0, len(sums))
	for _, row := range sums {
		out = append(out, *row)
	}
	slices.SortFunc(out, func(a, b Row) int { return cmp.Compare(a.Day+a.Model+a.Key, b.Day+b.Model+b.Key) })
	return out
}
