package stack

import (
	"bytes"
	"net/http/httptest"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest"
)

// Servers are the simulated vLLM servers behind a gateway: two of the large model, one
// of the small.
type Servers []*gatewaytest.Running

// Record waits for the record of the ended request whose body contains tag.
func (s Servers) Record(t *testing.T, tag string) (found gatewaytest.Record) {
	t.Helper()
	Eventually(t, "the record of "+tag, func() bool {
		for _, server := range s {
			for _, r := range server.Requests() {
				if bytes.Contains(r.Body, []byte(tag)) {
					found = r
					return true
				}
			}
		}
		return false
	})
	return found
}

// Fault makes every server fail until Heal or the end of the test.
func (s Servers) Fault(t *testing.T, f gatewaytest.Fault) {
	t.Helper()
	for _, server := range s {
		if err := server.SetFault(f); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { s.Heal(t) })
}

// Heal ends all faults.
func (s Servers) Heal(t *testing.T) {
	t.Helper()
	for _, server := range s {
		if err := server.ClearFaults(); err != nil {
			t.Error(err)
		}
	}
}

// Controls serves the control surface of each server, for tests in other processes, and
// returns their URLs, separated by commas.
func (s Servers) Controls(t *testing.T) string {
	t.Helper()
	var urls []string
	for _, server := range s {
		c := httptest.NewServer(server.Control())
		t.Cleanup(c.Close)
		urls = append(urls, c.URL)
	}
	return strings.Join(urls, ",")
}

// Tokens are sums of tokens, and the number of their requests.
type Tokens struct{ Requests, Input, Cached, Output, Reasoning int64 }

// Delivered returns what the engines sent, and how many requests were aborted.
func (s Servers) Delivered() (sum Tokens, aborted int) {
	for _, server := range s {
		for _, r := range server.Requests() {
			sum.Requests++
			sum.Input += int64(r.Prompt)
			sum.Output += int64(r.Delivered)
			if r.Aborted {
				aborted++
				continue // cached and reasoning tokens stand only in a whole answer
			}
			sum.Cached += int64(r.Cached)
			sum.Reasoning += int64(r.Reasoning)
		}
	}
	return sum, aborted
}
