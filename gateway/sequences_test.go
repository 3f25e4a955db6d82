package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tidegate/admission"
)

// TestMaxPrompts: a request has at most so many prompts, and is told how many.
func TestMaxPrompts(t *testing.T) {
	g := reader(t)
	for prompts, want := range map[int]string{1: "", 64: "", 65: "more than 64 prompts, the most that this gateway takes at a time (server.max_prompts)", 2000: "more than 64 prompts"} {
		body := `{"prompt":["a"` + strings.Repeat(`,"a"`, prompts-1) + `],"model":"m","max_tokens":1}`
		_, err := readWhole(g, []byte(body))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d prompts: %v", prompts, err)
		}
	}
}

// TestSequencesOfDemand: admission is asked for prompts times n, and for one answer to
// each prompt from L1 on.
func TestSequencesOfDemand(t *testing.T) {
	g := reader(t)
	for body, want := range map[string]string{
		`{"prompt":["a","b","c"],"n":2,"model":"m"}`:                               "6 3",
		`{"prompt":"a","n":4,"model":"m"}`:                                         "4 1",
		`{"prompt":"a","model":"m"}`:                                               "1 1",
		`{"prompt":[[1,2],[3]],"max_tokens":460000000000000000,"n":8,"model":"m"}`: "16 2",
		`{"model":"m","messages":[{"role":"user","content":"a"}],"n":3}`:           "3 1",
	} {
		c, err := readWhole(g, []byte(body))
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		d := g.demand(c)
		if got := fmt.Sprint(d.Request.Sequences, " ", d.Prompts); got != want || d.Request.MaxTokens < 0 || d.CappedTokens < 0 {
			t.Errorf("%s: %s, want %s; %+v", body, got, want, d.Request)
		}
	}
}

// TestTooManyForServers: who can never have a place is told the numbers, and not to wait;
// who can have none of the servers in rotation is told to try again.
func TestTooManyForServers(t *testing.T) {
	g := reader(t)
	f := &facts{asked: g.Fleet.Models()[0].Name}
	r := explain(fmt.Errorf("admit: %w", &admission.TooMany{Sequences: 48, Max: 32}), f)
	if r.Status != http.StatusBadRequest || r.Code != "request_too_large_for_limit" || r.RetryAfter != 0 ||
		!strings.Contains(r.Message, "48 sequences") || !strings.Contains(r.Message, "takes 32 at a time") {
		t.Errorf("%+v", r)
	}
	r = explain(fmt.Errorf("admit: %w", &admission.TooMany{Sequences: 48, Max: 8, Temporary: true}), f)
	if r.Status != http.StatusServiceUnavailable || r.Code != "overloaded" || r.RetryAfter != retryNoBackend ||
		!strings.Contains(r.Message, "48 sequences") || !strings.Contains(r.Message, "at the moment take 8 at a time") {
		t.Errorf("%+v", r)
	}
}
