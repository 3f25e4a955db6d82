package main

import (
	"errors"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit"
)

// TestRefill: quotas are restored a minute after Redis last missed something, and at
// once where it has lost everything.
func TestRefill(t *testing.T) {
	failed := errors.New("the database is away")
	type second struct {
		at      int // seconds
		alone   bool
		waiting int
		empty   bool
		want    bool
		err     error
	}
	for name, seconds := range map[string][]second{
		"start":                   {{at: 1}, {at: 59}, {at: 60, want: true}, {at: 61}, {at: 600}},
		"empty":                   {{at: 1, empty: true, want: true}, {at: 2}, {at: 60}, {at: 61, empty: true, want: true}},
		"outage":                  {{at: 30, alone: true}, {at: 60, alone: true, empty: true}, {at: 61, waiting: 3}, {at: 62}, {at: 120}, {at: 121, want: true}, {at: 122}},
		"again":                   {{at: 60, want: true}, {at: 100, alone: true}, {at: 159}, {at: 160, want: true}},
		"failure":                 {{at: 60, want: true, err: failed}, {at: 61}, {at: 69}, {at: 70, want: true}, {at: 71}},
		"failure of an empty one": {{at: 1, empty: true, want: true, err: failed}, {at: 2, empty: true}, {at: 11, empty: true, want: true}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			r := refill{need: true, calm: start}
			for _, s := range seconds {
				now := start.Add(time.Duration(s.at) * time.Second)
				if got := r.due(now, redislimit.State{Alone: s.alone, Waiting: s.waiting}, s.empty); got != s.want {
					t.Errorf("%+v: %v", s, got)
				}
				if s.want {
					r.done(now, s.err)
				}
			}
		})
	}
}
