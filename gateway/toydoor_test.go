package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// This file is a whole door with a grammar of its own, and all that the path does with it:
// levels, errors, usage and keep-alives. It holds that an API is added without touching
// generate, forward or finish.
//
// A request is {"text":…,"model":…,"answers":…,"cap":…,"live":…}. A live answer is events
// "word …", then "sum IN OUT"; a whole one is {"words":…,"in":…,"out":…}. A refusal is
// "no CODE: MESSAGE" and a keep-alive is "wait".

// toyBody is a request of the toy API.
type toyBody struct {
	Text    string `json:"text"`
	Model   string `json:"model"`
	Answers int    `json:"answers,omitempty"`
	Cap     int    `json:"cap,omitempty"`
	Live    bool   `json:"live"`
	Mute    bool   `json:"mute,omitempty"` // think no more
}

// Compact does nothing: such a body wastes no bytes.
func (b *toyBody) Compact() int { return len(b.Text) }

// toyAnswer is a whole answer of the toy API.
type toyAnswer struct {
	Words string `json:"words"`
	In    int    `json:"in"`
	Out   int    `json:"out"`
	Note  string `json:"note,omitempty"`
}

// toyStream reads the events of the toy API.
type toyStream struct {
	bounds openai.Bounds
	usage  openai.Usage
	done   bool
}

func (s *toyStream) Event(dst, data []byte) ([]byte, error) {
	kind, rest, _ := strings.Cut(string(data), " ")
	switch kind {
	case "word":
		s.usage.Output++
	case "sum":
		_, _ = fmt.Sscan(rest, &s.usage.Input, &s.usage.Output)
		s.done = true
	default:
		return dst, openai.ErrGarbage
	}
	return fmt.Appendf(dst, "data: %s\n\n", data), nil
}

func (s *toyStream) Holding() bool          { return false }
func (s *toyStream) Rest(dst []byte) []byte { return dst }
func (s *toyStream) Done() bool             { return s.done }
func (s *toyStream) Longest() int           { return s.usage.Output }
func (s *toyStream) Faults() openai.Faults  { return 0 }
func (s *toyStream) Usage() (openai.Usage, bool) {
	u := s.usage
	if !s.done {
		u.Input = s.bounds.Input
	}
	return u, false
}

// toyDoor returns the door of the toy API.
func toyDoor() *door.Door {
	refuse := func(r *refusal.Refusal) []byte { return fmt.Appendf(nil, "no %s: %s", r.Code, r.Message) }
	return &door.Door{
		Pattern: "/toy", Path: "/toy/backend", Operation: "toy",
		Read: func(raw []byte, limits door.Limits) (p door.Parsed, err error) {
			b := &toyBody{Answers: 1}
			if err := json.Unmarshal(raw, b); err != nil || b.Answers > limits.MaxN {
				return p, refusal.New(refusal.InvalidRequest, "answers", "this is no toy")
			}
			p.Body, p.PromptParam, p.LimitParam, p.Growth = b, "text", "cap", 1
			p.Wish = openai.Wish{Model: b.Model, Stream: b.Live, N: b.Answers, MaxTokens: b.Cap, NoThinking: b.Mute}
			return p, nil
		},
		Prompt: func(b door.Body, _ door.Limits) (door.Prompt, error) {
			return door.Prompt{Texts: []openai.Prompt{{Text: b.(*toyBody).Text}}}, nil
		},
		Write: func(b door.Body, e door.Edits) []byte {
			sent := *b.(*toyBody)
			sent.Model, sent.Live, sent.Mute = e.Model, e.Stream, sent.Mute || e.StopThinking
			if e.Limit > 0 {
				sent.Cap = e.Limit
			}
			if e.OneChoice {
				sent.Answers = 1
			}
			raw, _ := json.Marshal(sent)
			return raw
		},
		Needs:    func(door.Body) door.Needs { return door.Needs{} },
		Language: func(_ string, _ door.Body, languages []string) string { return slices.Min(languages) },
		Stream: func(_ openai.View, bounds openai.Bounds, _ func() openai.Tally) door.Stream {
			return &toyStream{bounds: bounds}
		},
		Answer: func(_ openai.View, body []byte, bounds openai.Bounds, _ func() openai.Tally) (openai.Answer, error) {
			var a toyAnswer
			if err := json.Unmarshal(body, &a); err != nil {
				return openai.Answer{}, openai.ErrNoAnswer
			}
			return openai.Answer{Body: body, Usage: openai.Usage{Input: a.In, Output: min(a.Out, bounds.Limit*bounds.Choices)}}, nil
		},
		BackendError: func(body []byte) openai.Error { return openai.Error{Message: string(body)} },
		AnswerID:     func(attempt string) string { return "toy-" + attempt },
		KeepAlive: func(_, model string, _ time.Time, _ bool) []byte {
			return fmt.Appendf(nil, "data: wait %s\n\n", model)
		},
		Events: func(_ openai.View, answer []byte, _ string) ([]byte, error) {
			var a toyAnswer
			if err := json.Unmarshal(answer, &a); err != nil {
				return nil, err
			}
			var out []byte
			for word := range strings.FieldsSeq(a.Words) {
				out = fmt.Appendf(out, "data: word %s\n\n", word)
			}
			return fmt.Appendf(out, "data: sum %d %d\n\n", a.In, a.Out), nil
		},
		Canned: func(_, _ string, _ time.Time, choices int, _ bool, text string) []byte {
			raw, _ := json.Marshal(toyAnswer{Words: strings.Repeat(text, choices)})
			return raw
		},
		Announce: func(answer []byte, notice openai.Notice) []byte {
			var a toyAnswer
			_ = json.Unmarshal(answer, &a)
			a.Note = notice.Level + " " + notice.Served
			raw, _ := json.Marshal(a)
			return raw
		},
		Error:      refuse,
		ErrorEvent: func(r *refusal.Refusal) []byte { return fmt.Appendf(nil, "data: %s\n\n", refuse(r)) },
	}
}

// toyFleet is a gateway with the toy door and the models m and, for L3, small, whose
// backends speak the toy grammar. sent is what they were sent.
func toyFleet(t *testing.T, answer func(w http.ResponseWriter, b toyBody)) (g *Gateway, front *httptest.Server, sent chan toyBody) {
	t.Helper()
	sent = make(chan toyBody, 10)
	g, _ = behind(t, func(w http.ResponseWriter, r *http.Request) {
		var b toyBody
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil || r.URL.Path != "/toy/backend" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		sent <- b
		answer(w, b)
	}, nil)
	m, _ := g.Fleet.Model("m")
	large, small := modelOf("m", "http://"+m.Backends[0].Name), modelOf("small", "http://"+m.Backends[0].Name)
	large.Fallback, large.Backends[0].Serves, small.Backends[0].Serves = "small", "toy-m", "toy-small"
	g.Fleet.Apply([]backend.ModelConfig{large, small})
	for _, m := range g.Fleet.Models() {
		m.Backends[0].Seat.SetRotation(true)
	}
	g.doors = append(g.doors, toyDoor())
	front = httptest.NewServer(g.Handler())
	t.Cleanup(front.Close)
	return g, front, sent
}

// speakToy answers as a good backend of the toy API.
func speakToy(w http.ResponseWriter, b toyBody) {
	if !b.Live {
		fmt.Fprint(w, `{"words":"one two three","in":3,"out":3}`)
		return
	}
	for _, event := range []string{"word one", "word two", "word three", "sum 3 3"} {
		fmt.Fprintf(w, "data: %s\n\n", event)
		_ = http.NewResponseController(w).Flush()
	}
}

// askToy sends a request and returns the answer.
func askToy(t *testing.T, front *httptest.Server, body string) (resp *http.Response, text string) {
	t.Helper()
	resp, err := front.Client().Post(front.URL+"/toy", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body) // a stream that is cut has an error
	return resp, string(raw)
}

// TestToyDoorLevels: what each level makes of a request goes through the door.
func TestToyDoorLevels(t *testing.T) {
	const events = "data: word one\n\ndata: word two\n\ndata: word three\n\ndata: sum 3 3\n\n"
	for level, want := range map[degrade.Level]struct {
		sent         *toyBody
		whole, lived string
	}{
		degrade.Full:         {&toyBody{Text: "a b c", Model: "toy-m", Answers: 2, Cap: 5}, `{"words":"one two three","in":3,"out":3}`, events},
		degrade.StreamingOff: {&toyBody{Text: "a b c", Model: "toy-m", Answers: 1, Cap: 5}, `{"words":"one two three","in":3,"out":3,"note":"L1 m"}`, events},
		degrade.ThinkingOff:  {&toyBody{Text: "a b c", Model: "toy-m", Answers: 1, Cap: 5, Mute: true}, `{"words":"one two three","in":3,"out":3,"note":"L2 m"}`, events},
		degrade.SmallerModel: {&toyBody{Text: "a b c", Model: "toy-small", Answers: 1, Cap: 5, Mute: true}, `{"words":"one two three","in":3,"out":3,"note":"L3 small"}`, events},
		degrade.Canned:       {nil, "", ""},
	} {
		g, front, sent := toyFleet(t, speakToy)
		g.Ladder.SetPins(map[string]degrade.Pin{"m": {Level: level}})
		for _, live := range []bool{false, true} {
			resp, text := askToy(t, front, fmt.Sprintf(`{"text":"a b c","model":"m","answers":2,"cap":5,"live":%v}`, live))
			if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Tidegate-Level") != level.String() {
				t.Fatalf("%v: status %d at %s: %s", level, resp.StatusCode, resp.Header.Get("X-Tidegate-Level"), text)
			}
			if want.sent == nil {
				if canned := g.Ladder.Canned().Text["en"]; !strings.Contains(text, strings.Fields(canned)[0]) {
					t.Errorf("%v, live %v: %s", level, live, text)
				}
				continue
			}
			got, expected := <-sent, *want.sent
			expected.Live = live && level == degrade.Full
			got.Cap, expected.Cap = min(got.Cap, 5), min(expected.Cap, 5)
			if got != expected {
				t.Errorf("%v, live %v: the backend was sent %+v, expected %+v", level, live, got, expected)
			}
			if answer := map[bool]string{false: want.whole, true: want.lived}[live]; text != answer {
				t.Errorf("%v, live %v: %q, expected %q", level, live, text, answer)
			}
		}
	}
}

// TestToyDoorWithoutChoices: a door whose API has no number of choices leaves it zero.
func TestToyDoorWithoutChoices(t *testing.T) {
	_, front, _ := toyFleet(t, speakToy)
	if resp, text := askToy(t, front, `{"text":"a b c","model":"m","answers":0,"cap":5}`); resp.StatusCode != http.StatusOK || !strings.Contains(text, "one two three") {
		t.Errorf("status %d, %s", resp.StatusCode, text)
	}
}

// TestToyDoorUsage: what passes through the door is charged as its stream says.
func TestToyDoorUsage(t *testing.T) {
	g, _, _ := toyFleet(t, speakToy)
	for _, live := range []bool{false, true} {
		r := httptest.NewRequest(http.MethodPost, "/toy", strings.NewReader(fmt.Sprintf(`{"text":"a b c","model":"m","live":%v}`, live)))
		r.Header.Set("Content-Type", "application/json")
		c := newGeneration(g, r, toyDoor())
		if err := g.generate(c); err != nil {
			t.Fatal(err)
		}
		if want := (openai.Usage{Input: 3, Output: 3}); c.outcome.usage != want || !c.outcome.charged || !c.settlement.settled || !c.settlement.recorded {
			t.Errorf("live %v: %+v, %+v", live, c.outcome, c.settlement)
		}
	}
}

// TestToyDoorErrors: refusals of the gateway and of a backend come in the door's own form,
// and so does one in the middle of a stream.
func TestToyDoorErrors(t *testing.T) {
	_, front, _ := toyFleet(t, func(w http.ResponseWriter, b toyBody) {
		if !b.Live {
			http.Error(w, "that text is no toy's", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, "data: word one\n\ndata: nonsense\n\n")
	})
	for body, want := range map[string]string{
		`{"answers":1000}`:                     "no invalid_request: this is no toy",
		`{"text":"a","model":"x"}`:             "no model_not_found: ",
		`{"text":"a","model":"m"}`:             "no invalid_request: that text is no toy's",
		`{"text":"a","model":"m","live":true}`: "data: word one\n\ndata: no upstream_error: ",
	} {
		if resp, text := askToy(t, front, body); !strings.HasPrefix(text, want) {
			t.Errorf("%s: status %d, %q, expected %q", body, resp.StatusCode, text, want)
		}
	}
}

// TestToyDoorKeepAlive: a silent backend's stream is kept alive in the door's own form.
func TestToyDoorKeepAlive(t *testing.T) {
	heard := make(chan struct{})
	g, front, _ := toyFleet(t, func(w http.ResponseWriter, b toyBody) {
		<-heard
		speakToy(w, b)
	})
	c := Default()
	c.KeepAlive.Silence, c.KeepAlive.Every = time.Millisecond, time.Hour
	g.Reload(c, g.settings.Load().accounts)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, front.URL+"/toy", strings.NewReader(`{"text":"a","model":"m","live":true}`))
	r.Header.Set("Content-Type", "application/json")
	resp, err := front.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	first, err := lines.ReadString('\n')
	close(heard)
	rest, restErr := io.ReadAll(lines)
	if first != "data: wait m\n" || err != nil || restErr != nil || !strings.HasSuffix(string(rest), "data: sum 3 3\n\n") {
		t.Errorf("%q, %v; %q, %v", first, err, rest, restErr)
	}
}
