package gateway

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"tidegate/admission"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// TestOutcome holds what each step of an answer leaves in the outcome.
func TestOutcome(t *testing.T) {
	now := time.Now()
	var begun outcome
	begun.begin(9, now)
	// A process that is killed now has charged the prompt, since progress notes this usage.
	if want := (outcome{answered: true, charged: true, usage: openai.Usage{Input: 9}, firstToken: now}); begun != want {
		t.Errorf("a stream that began: %+v", begun)
	}
	if begun.flow() != 0 {
		t.Errorf("flowed for %v before anything was written", begun.flow())
	}
	if begun.lastWrite = now.Add(time.Second); begun.flow() != time.Second {
		t.Errorf("flowed for %v", begun.flow())
	}
	var unary outcome
	unary.complete(openai.Usage{Input: 9, Output: 2}, true)
	if want := (outcome{charged: true, usage: openai.Usage{Input: 9, Output: 2}, estimated: true}); unary != want {
		t.Errorf("a whole answer: %+v", unary)
	}
	var refused outcome
	r := refusal.New(refusal.RateLimit, "model", "no")
	r.Rule = "rate"
	refused.refuse(r)
	if want := (outcome{status: http.StatusTooManyRequests, code: refusal.RateLimit, param: "model", rule: "rate"}); refused != want {
		t.Errorf("a refusal: %+v", refused)
	}
}

// TestFlight: a request is known to the ledger as under way from its sending to its record,
// so that its progress is noted.
func TestFlight(t *testing.T) {
	g, _ := bare(t, nil)
	c := g.newCall(deadlines{httptest.NewRecorder()}, httptest.NewRequest(http.MethodPost, "/", nil), "/")
	m := g.Fleet.Models()[0]
	c.permit, c.plan = &admission.Permit{}, plan{model: m, served: m.Name, prompt: 9, choices: 1}
	g.beginFlight(c)
	if c.settlement.flight == nil {
		t.Fatal("the ledger does not know that it is under way")
	}
	if !g.record(c) || c.settlement.flight != nil || !c.settlement.recorded {
		t.Errorf("after its record: %+v", c.settlement)
	}
}
