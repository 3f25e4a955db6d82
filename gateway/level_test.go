package gateway

import (
	"math"
	"net/http/httptest"
	"strings"
	"testing"

	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
)

// TestUnknownContext: an answer with a limit is not cut because nobody knows the context,
// one without has a limit, which the server gets and the limits reserve, and what
// the prompt grows by after the limits have reserved is taken from the answer.
func TestUnknownContext(t *testing.T) {
	const chat, completion = `{"model":"m","messages":[{"role":"user","content":"hi"}]`, `{"model":"m","prompt":"hi"`
	for _, c := range []struct {
		level    degrade.Level
		kind     openai.Route
		body     string
		reserved int64
		want     string
	}{
		{degrade.Full, openai.Chat, chat + `,"max_tokens":100}`, 100, "100"},
		{degrade.ThinkingOff, openai.Chat, chat + `,"max_tokens":100}`, 100, "96"},
		// Nobody said a limit: one is sent, and it is the one that is reserved.
		{degrade.Full, openai.Chat, chat + `}`, 2048, "2048"},
		{degrade.Full, openai.Chat, chat + `,"max_tokens":null}`, 2048, "2048"},
		{degrade.StreamingOff, openai.Chat, chat + `}`, 2048, "2048"},
		{degrade.ThinkingOff, openai.Chat, chat + `}`, 2048, "2044"},
		{degrade.Full, openai.Completions, completion + `}`, 16, "16"},
		{degrade.Full, openai.Completions, completion + `,"max_tokens":5000}`, 5000, "5000"},
	} {
		g, _ := bare(t, nil)
		m := backend.DefaultModel()
		m.Name, m.Backends = "m", []backend.Config{{URL: "http://127.0.0.1:1"}}
		g.Fleet.Apply([]backend.ModelConfig{m})
		of, _ := g.Fleet.Model("m")
		of.Backends[0].Seat.SetRotation(true)
		r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		one := newGeneration(g, r, newDoor(c.kind))
		if err := g.parse(one); err != nil {
			t.Fatal(err)
		}
		d := g.demand(one)
		p, err := g.Admission.Admit(r.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		p.Level = c.level // it rose while the request waited
		one.permit = p
		if err := g.applyLevel(one); err != nil {
			t.Fatal(err)
		}
		edits := one.plan.edits(&one.request, of.Backends[0], 0)
		body, fault := openai.ParseRequest(c.kind, one.door.Write(one.request.Body, edits))
		if fault != nil {
			t.Fatal(fault)
		}
		limit, _ := body.Raw("max_tokens")
		switched, _ := body.Raw("chat_template_kwargs")
		if string(limit) != c.want || d.Request.MaxTokens != c.reserved || (string(switched) == `{"enable_thinking":false}`) != (c.level >= degrade.ThinkingOff) {
			t.Errorf("%v, %s: max_tokens %s, %d reserved, chat_template_kwargs %s", c.level, c.body, limit, d.Request.MaxTokens, switched)
		}
		g.settle(one)
	}
}

// TestTooManyAnswers: a body cannot ask for more answers than anybody could make.
func TestTooManyAnswers(t *testing.T) {
	g, _ := bare(t, func(c *Config) { c.MaxPrompts, c.MaxN = 2048, 16 })
	m := backend.DefaultModel()
	m.Name, m.Backends = "m", []backend.Config{{URL: "http://127.0.0.1:1"}}
	g.Fleet.Apply([]backend.ModelConfig{m})
	r := httptest.NewRequest("POST", "/v1/completions", strings.NewReader(`{"model":"m","n":16,"prompt":[`+strings.Repeat(`"a",`, 2000)+`"a"]}`))
	r.Header.Set("Content-Type", "application/json")
	c := newGeneration(g, r, door.Completions())
	if err := g.parse(c); err == nil || !strings.Contains(err.Error(), "16384") {
		t.Error(err)
	}
}

// TestAccept: of the key's level and of all headers the lowest holds.
func TestAccept(t *testing.T) {
	for _, c := range []struct {
		key     int
		headers []string
		want    degrade.Level // -1: refused
	}{
		{4, nil, 4}, {2, nil, 2}, {4, []string{""}, 4}, {4, []string{"L1"}, 1}, {1, []string{"L3"}, 1},
		{4, []string{"L4", "L0"}, 0}, {4, []string{"L0", "L4"}, 0}, {4, []string{"L4", "x"}, -1}, {4, []string{"L5"}, -1},
	} {
		r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
		for _, h := range c.headers {
			r.Header.Add("x-tidegate-max-level", h)
		}
		got, err := maxLevel(r.Header, &account.Identity{MaxLevel: c.key})
		if (err != nil) != (c.want < 0) || err == nil && got != c.want {
			t.Errorf("key L%d, headers %q: %v, %v", c.key, c.headers, got, err)
		}
	}
}

// TestHugeLimit: what a caller writes into max_tokens, n and prompts is multiplied for the
// limits without running over, also where no context bounds it.
func TestHugeLimit(t *testing.T) {
	g := reader(t)
	for _, huge := range []string{"460000000000000000", "9223372036854775807", "1e300", strings.Repeat("9", 1000)} {
		c, err := readWhole(g, []byte(`{"model":"m","n":8,"prompt":["a","b","c","d","e","f","g","h"],"max_tokens":`+huge+`}`))
		if err != nil {
			t.Fatal(err)
		}
		const least = math.MaxInt32 * 8 * 8
		if d := g.demand(c); d.Request.MaxTokens < least {
			t.Errorf("%.30s asks the limits for %d tokens, less than %d", huge, d.Request.MaxTokens, int64(least))
		}
	}
}
