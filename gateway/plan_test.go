package gateway

import (
	"reflect"
	"testing"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
)

// effectOf returns what a level does by default.
func effectOf(level degrade.Level) degrade.Effect {
	c := degrade.DefaultConfig()
	return c.Effect(level)
}

// asked returns a streamed request of 2 prompts with 3 choices each, 100 and 60 tokens long,
// with a limit and thinking on. What renders its tools may differ by 10 tokens.
func asked(limit, truncate int) request {
	return request{
		Parsed: door.Parsed{Wish: openai.Wish{Stream: true, N: 3, MaxTokens: limit}, Growth: 4, Margin: 10},
		model:  &backend.Model{Name: "m"}, prompt: 160, longest: 100, choices: 6, limit: limit, truncate: truncate,
	}
}

// TestPlanAtCanned: no model answers, one choice per prompt, and nothing is read.
func TestPlanAtCanned(t *testing.T) {
	q := asked(50, 0)
	got := planFor(&q, &admission.Permit{Level: degrade.Canned, Reason: "kv_cache"}, effectOf(degrade.Canned), nil, 0)
	want := plan{served: cannedModel, level: degrade.Canned, reason: "kv_cache", stream: true, choices: 2, limit: 50}
	if got != want {
		t.Errorf("%+v; expected %+v", got, want)
	}
}

// TestFallback: only a model of the request's own chain may answer in its place.
func TestFallback(t *testing.T) {
	small := &backend.Model{Name: "small", Pool: admission.NewPool("small", nil)}
	q := &request{model: &backend.Model{Name: "m", Pool: admission.NewPool("m", nil), Fallback: small}}
	for pool, want := range map[*admission.Pool]*backend.Model{q.model.Pool: q.model, small.Pool: small, admission.NewPool("m", nil): nil} {
		if got := q.fallback(pool); got != want {
			t.Errorf("%s: %v", pool.Name, got)
		}
	}
}

// TestPlanLimits: the limit that is sent at each level fits the context, and the thinking
// that is switched off costs what the limits have reserved and no more.
func TestPlanLimits(t *testing.T) {
	for name, c := range map[string]struct {
		level               degrade.Level
		reserved            degrade.Level
		context             int
		limit               int
		truncate            int
		wantLimit, wantLong int
		wantStop            bool
	}{
		"L0":                                {0, 0, 4096, 50, 0, 50, 100, false},
		"L0, context not known":             {0, 0, 0, 50, 0, 50, 100, false},
		"L1 lowers a long limit":            {1, 1, 40_960, 9000, 0, 2048, 100, false},
		"L1 leaves a short limit":           {1, 1, 40_960, 50, 0, 50, 100, false},
		"L2, reserved at L2":                {2, 2, 4096, 50, 0, 50, 104, true},
		"L2, reserved at L0":                {2, 0, 4096, 50, 0, 46, 104, true},
		"L2, and the limit is tiny":         {2, 0, 4096, 4, 0, 4, 104, true},
		"L2, a cut prompt does not grow":    {2, 0, 4096, 50, 100, 50, 100, true},
		"L2, no room to grow":               {2, 2, 104, 50, 0, 1, 100, false},
		"a smaller context cuts":            {0, 0, 130, 50, 0, 20, 100, false}, // less the margin of the tools
		"a full context leaves one":         {0, 0, 100, 50, 0, 1, 100, false},
		"a context below the prompt":        {0, 0, 90, 50, 0, 1, 100, false},
		"nothing is raised by a long one":   {0, 0, 1 << 20, 50, 0, 50, 100, false},
		"a context that is not known at L2": {2, 2, 0, 50, 0, 50, 104, true},
	} {
		t.Run(name, func(t *testing.T) {
			q := asked(c.limit, c.truncate)
			before := q
			p := planFor(&q, &admission.Permit{Level: c.level, ReservedLevel: c.reserved}, effectOf(c.level), q.model, c.context)
			if !reflect.DeepEqual(before, q) {
				t.Errorf("the request was changed: %+v, and it was %+v", q, before)
			}
			if p.limit != c.wantLimit || p.longest != c.wantLong || p.stopThinking != c.wantStop || p.prompt-160 != c.wantLong-100 {
				t.Errorf("limit %d, longest prompt %d of %d tokens, thinking stopped %v", p.limit, p.longest, p.prompt, p.stopThinking)
			}
			if single := c.level >= degrade.StreamingOff; p.stream == single || p.oneChoice != single || p.choices != map[bool]int{false: 6, true: 2}[single] {
				t.Errorf("streamed %v, one choice %v, %d choices", p.stream, p.oneChoice, p.choices)
			}
			if p.noThinking != c.wantStop || p.model != q.model || p.served != "m" {
				t.Errorf("%+v", p)
			}
		})
	}
}

// TestPlanEdits: a limit is written only where the plan differs from what the caller wrote,
// and the priority only for a backend that schedules by it.
func TestPlanEdits(t *testing.T) {
	m := modelOf("m", "http://127.0.0.1:1")
	m.Backends[0].Serves = "its-name"
	g, _ := bare(t, nil)
	g.Fleet.Apply([]backend.ModelConfig{m})
	of, _ := g.Fleet.Model("m")
	q := &request{Parsed: door.Parsed{Wish: openai.Wish{N: 1, MaxTokens: 50, Truncate: 7}}, truncate: 5}
	for name, c := range map[string]struct {
		plan plan
		want door.Edits
	}{
		"as the caller wrote": {plan{stream: true, limit: 50}, door.Edits{Model: "its-name", Priority: 10, Stream: true, Truncates: true, Truncate: 5}},
		"a lower limit":       {plan{stream: true, limit: 49}, door.Edits{Model: "its-name", Priority: 10, Stream: true, Limit: 49, Truncates: true, Truncate: 5}},
		"in one piece":        {plan{oneChoice: true, limit: 50}, door.Edits{Model: "its-name", Priority: 10, OneChoice: true, Limit: 50, Truncates: true, Truncate: 5}},
		"without thinking":    {plan{oneChoice: true, stopThinking: true, limit: 50}, door.Edits{Model: "its-name", Priority: 10, OneChoice: true, StopThinking: true, Limit: 50, Truncates: true, Truncate: 5}},
	} {
		if got := c.plan.edits(q, of.Backends[0], 10); got != c.want {
			t.Errorf("%s: %+v, expected %+v", name, got, c.want)
		}
	}
}

// TestPlanEstimate: of an answer in one piece that nobody has seen, all choices have what
// one is estimated to have, within the limit; of a stream only the prompt is known.
func TestPlanEstimate(t *testing.T) {
	for _, c := range []struct {
		plan   plan
		tokens int
		want   openai.Usage
	}{
		{plan{stream: true, prompt: 9, limit: 10, choices: 3}, 5, openai.Usage{Input: 9}},
		{plan{prompt: 9, limit: 10, choices: 3}, 5, openai.Usage{Input: 9, Output: 15}},
		{plan{prompt: 9, limit: 10, choices: 3}, 50, openai.Usage{Input: 9, Output: 30}},
		{plan{prompt: 9, choices: 1}, 50, openai.Usage{Input: 9, Output: 50}},
	} {
		if got := c.plan.estimate(c.tokens); got != c.want {
			t.Errorf("%+v after %d tokens: %+v, expected %+v", c.plan, c.tokens, got, c.want)
		}
	}
}
