package limit

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// measured is a limiter and what its metrics say: of a counter its value, of a
// histogram NAME_count and NAME_sum.
func measured(t *testing.T, rules []Rule, quotas []QuotaRule, weights map[string]Weights) (l *Limiter, read func() map[string]float64) {
	reg := prometheus.NewRegistry()
	l = New(compile(t, rules, quotas, weights), Options{Store: NewMemory(time.Now), Registry: reg, Random: func() float64 { return 1 }})
	return l, func() map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := ""
				for _, of := range m.GetLabel() {
					name += of.GetValue() + " "
				}
				if h := m.GetHistogram(); h != nil {
					out[name+"count"], out[name+"sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
				} else if v := m.GetCounter().GetValue(); v > 0 {
					out[name+"decided"] = v
				}
			}
		}
		return out
	}
}

// TestDecisionsByRule: a decision counts once for each rule, however many numbers the
// rule has and whichever of them is over.
func TestDecisionsByRule(t *testing.T) {
	l, read := measured(t, []Rule{
		{Name: "watch", Scope: "user", Bounds: Bounds{Requests: perMinute(3), Tokens: perMinute(100)}, Reserve: ReserveMax, Shadow: true},
		{Name: "soft", Scope: "user", Bounds: Bounds{Requests: perMinute(2), Tokens: perMinute(1000)}, Reserve: ReserveMax, Exceed: ExceedDegrade},
		{Name: "hard", Scope: "user", Bounds: Bounds{Requests: perMinute(4), Tokens: perMinute(1000)}, Reserve: ReserveMax},
	}, nil, nil)
	q := alice()
	q.Prompt, q.MaxTokens = 30, 30
	for i, want := range []map[string]float64{
		{"allow watch local decided": 1, "allow soft local decided": 1, "allow hard local decided": 1},
		{"allow watch local decided": 1, "shadow_deny watch local decided": 1, "allow soft local decided": 2, "allow hard local decided": 2}, // its tokens
		{"allow watch local decided": 1, "shadow_deny watch local decided": 2, "allow soft local decided": 2, "degrade soft local decided": 1, "allow hard local decided": 3},
		{"allow watch local decided": 1, "shadow_deny watch local decided": 3, "allow soft local decided": 2, "degrade soft local decided": 2, "allow hard local decided": 4}, // both
		{"allow watch local decided": 1, "shadow_deny watch local decided": 4, "allow soft local decided": 2, "degrade soft local decided": 3, "allow hard local decided": 4, "deny hard local decided": 1},
	} {
		q.ID = fmt.Sprint("r", i)
		_, _ = l.Admit(t.Context(), q)
		if got := read(); !maps.Equal(got, want) {
			t.Errorf("after %d:\n got %v\nwant %v", i+1, got, want)
		}
	}
}

// TestReservationRatio: what was reserved over what was used, by the model that was
// asked for; of requests without a limit of tokens, or without tokens, there is none.
func TestReservationRatio(t *testing.T) {
	weights := map[string]Weights{"qwen": {Input: 1000, Cached: 100, Output: 4000, Reasoning: 4000}, "idle": DefaultWeights()}
	type step struct {
		model string
		used  Usage
		sum   float64 // of all so far
	}
	for name, test := range map[string]struct {
		rules  []Rule
		quotas []QuotaRule
		steps  []step
	}{
		"tokens": {[]Rule{{Name: "r", Scope: "user", Bounds: Bounds{Requests: perMinute(100), Tokens: perMinute(100000), OutputTokens: perMinute(100000)}, Reserve: ReserveMax}}, nil, []step{
			{"qwen", Usage{Input: 100, Output: 300}, 1}, {"qwen", Usage{Input: 100, Output: 100}, 3}, {"qwen", Usage{Input: 100, Output: 700}, 3.5},
		}},
		"units": {nil, []QuotaRule{{Name: "q", Scope: "user", Units: 1000000, Every: "day"}}, []step{
			{"qwen", Usage{Input: 100, Cached: 100, Output: 300}, -1}, // nothing is known yet, so the estimate is not this test's
		}},
		"requests only": {[]Rule{{Name: "r", Scope: "user", Bounds: Bounds{Requests: perMinute(100)}}}, nil, []step{{"qwen", Usage{Input: 100, Output: 300}, 0}}},
		"failed":        {[]Rule{{Name: "r", Scope: "user", Bounds: Bounds{Tokens: perMinute(100000)}, Reserve: ReserveMax}}, nil, []step{{"qwen", Usage{}, 0}}},
		"gone":          {[]Rule{{Name: "r", Scope: "user", Bounds: Bounds{Tokens: perMinute(100000)}, Reserve: ReserveMax}}, nil, []step{{"gone", Usage{Input: 100, Output: 100}, 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			l, read := measured(t, test.rules, test.quotas, weights)
			if got := read(); got["qwen count"] != 0 || got["idle count"] != 0 || len(got) != 4 {
				t.Fatalf("at first %v", got)
			}
			for i, s := range test.steps {
				q := alice()
				q.ID, q.Model, q.Prompt, q.MaxTokens = fmt.Sprint("r", i), s.model, 100, 300
				g, err := l.Admit(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				if err := g.Settle(s.used, ""); err != nil {
					t.Fatal(err)
				}
				model := s.model
				if model == "gone" {
					model = otherModel
				}
				got := read()[model+" sum"]
				if s.sum == -1 {
					s.sum = float64(g.plan.dims[0].Cost) / (100*100 + 300*4000)
				}
				if got != s.sum {
					t.Errorf("after %d: %v, want %v", i+1, got, s.sum)
				}
			}
		})
	}
}

// TestRatioEndsWithItsModel: a request that outlives its model counts for other.
func TestRatioEndsWithItsModel(t *testing.T) {
	rules := []Rule{{Name: "r", Scope: "user", Bounds: Bounds{Tokens: perMinute(100000)}, Reserve: ReserveMax}}
	l, read := measured(t, rules, nil, map[string]Weights{"qwen": DefaultWeights()})
	q := alice()
	q.ID, q.Prompt, q.MaxTokens = "r", 10, 10
	g, err := l.Admit(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	l.Replace(compile(t, nil, nil, map[string]Weights{"new": DefaultWeights()}))
	if err := g.Settle(Usage{Input: 10, Output: 10}, ""); err != nil {
		t.Fatal(err)
	}
	if got, want := read(), (map[string]float64{"new count": 0, "new sum": 0, "other count": 1, "other sum": 1}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
