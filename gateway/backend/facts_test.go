package backend

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A server's context is that of the model that is meant, and a number of tokens.
func TestContextOf(t *testing.T) {
	long := strings.Repeat("9", 400)
	for _, c := range []struct {
		name, cards string
		want        int
		why         string
	}{
		{"the largest is another", `{"id":"big","max_model_len":131072},{"id":"m","max_model_len":2048}`, 2048, ""},
		{"an adapter has its parent's", `{"id":"big","max_model_len":131072},{"id":"m","parent":"base"},{"id":"base","max_model_len":4096}`, 4096, ""},
		{"an adapter names its parent's path", `{"id":"m","max_model_len":null,"parent":"/models/base"},{"id":"base","root":"/models/base","max_model_len":4096}`, 4096, ""},
		{"an adapter of its own length", `{"id":"m","parent":"base","max_model_len":512},{"id":"base","max_model_len":4096}`, 512, ""},
		{"a parent's parent", `{"id":"m","parent":"b"},{"id":"b","parent":"c"},{"id":"c","max_model_len":9}`, 9, ""},
		{"whole, as a float", `{"id":"m","max_model_len":40960.0}`, 40960, ""},
		{"a parent that is not listed", `{"id":"m","parent":"base"},{"id":"big","max_model_len":131072}`, 0, "no max_model_len of m"},
		{"parents in a ring", `{"id":"m","parent":"b"},{"id":"b","parent":"m"}`, 0, "no max_model_len of m"},
		{"none", `{"id":"m"}`, 0, "no max_model_len of m"},
		{"negative", `{"id":"m","max_model_len":-5}`, 0, "max_model_len of -5, which is no number of tokens from 1 to 134217728"},
		{"zero", `{"id":"m","max_model_len":0}`, 0, "max_model_len of 0,"},
		{"a fraction", `{"id":"m","max_model_len":100.5}`, 0, "max_model_len of 100.5,"},
		{"text", `{"id":"m","max_model_len":"40960"}`, 0, `max_model_len of "40960",`},
		{"absurd", `{"id":"m","max_model_len":1e17}`, 0, "max_model_len of 1e17,"},
		{"past all numbers", `{"id":"m","max_model_len":` + long + `}`, 0, "max_model_len of " + strings.Repeat("9", 40) + "..."},
		{"an object", `{"id":"m","max_model_len":{"a":1}}`, 0, `max_model_len of {"a":1},`},
	} {
		cards, err := readModels([]byte(`{"data":[` + c.cards + `]}`))
		if err != nil {
			t.Fatal(c.name, err)
		}
		n, err := contextOf(cards, "m")
		if n != c.want || (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %d, %v, want %d, %s", c.name, n, err, c.want, c.why)
		}
	}
}

// A context that cannot be is a warning, and keeps no server out of rotation.
func TestProbeWarnsOfContext(t *testing.T) {
	w := newWorld()
	w.set("/v1/models", `{"data":[{"id":"m","max_model_len":"40960"}]}`)
	p := proberOf(w, Config{}, "m")
	p.probe(t.Context())
	if f := p.b.Facts(); !p.b.Seat.InRotation() || f.MaxModelLen != 0 || len(f.Warnings) != 1 {
		t.Errorf("in rotation %v, %+v", p.b.Seat.InRotation(), f)
	}
}

// Whether a server thinks by default is learned from what it counts itself.
func TestProbeLearnsThinking(t *testing.T) {
	count := func(n int) string { return fmt.Sprintf(`{"count":%d,"tokens":[]}`, n) }
	usage := func(n int) string { return fmt.Sprintf(`{"usage":{"prompt_tokens":%d}}`, n) }
	for _, c := range []struct {
		name, version, tokenize, chat string
		off                           bool
		asked                         int // answers of one token
		warnings                      int
	}{
		{"thinks", "0.32.0", count(9), "", false, 0, 0},
		{"does not", "0.32.0", count(13), "", true, 0, 0},
		{"the first version whose /tokenize tells", "0.18.0", count(13), usage(9), true, 0, 0},
		{"one before it", "0.17.1", count(9), usage(13), true, 1, 0},
		{"one before it that thinks", "0.16.0", count(9), usage(9), false, 1, 0},
		{"one before it without /tokenize", "0.14.0", "status 404", usage(13), true, 1, 0},
		{"one before it that does not answer", "0.16.0", count(9), "status 500", false, 1, 0},
		{"one without the flag", "0.13.0", count(9), usage(13), false, 0, 0},
		{"a version that is not known", "nightly", count(13), usage(9), true, 0, 0},
		{"no /tokenize", "0.32.0", "status 404", usage(13), false, 0, 0},
		{"another template", "0.32.0", count(30), "", false, 0, 1},
		{"another template, negative", "0.32.0", count(-1), "", false, 0, 1},
		{"text", "0.32.0", `{"count":"13"}`, "", false, 0, 0},
		{"nothing", "0.32.0", `{}`, "", false, 0, 0},
		{"no JSON", "0.32.0", `<html>`, "", false, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.set("/version", `{"version":"`+c.version+`"}`)
			w.set("/tokenize", c.tokenize)
			w.set("/v1/chat/completions", c.chat)
			p := proberOf(w, Config{APIKey: "k"}, "Qwen3-1.7B")
			p.probe(t.Context())
			f := p.b.Facts()
			if f.NoThinking != c.off || len(f.Warnings) != c.warnings || !p.b.Seat.InRotation() {
				t.Errorf("%+v, in rotation %v", f, p.b.Seat.InRotation())
			}
			if n := w.count("/v1/chat/completions"); n != c.asked {
				t.Errorf("%d answers were asked for, want %d", n, c.asked)
			}
		})
	}
}

// An old server is asked for a token once since it came up; one that was started anew
// with another default is asked again.
func TestProbeLearnsThinkingOnce(t *testing.T) {
	w := newWorld()
	set := func(tokens int) {
		w.set("/v1/chat/completions", fmt.Sprintf(`{"usage":{"prompt_tokens":%d}}`, tokens))
	}
	w.set("/version", `{"version":"0.16.0"}`)
	w.set("/tokenize", `{"count":9}`)
	set(13)
	p := proberOf(w, Config{}, "Qwen3-1.7B")
	learn := func(off bool, asked int) {
		t.Helper()
		if err := p.learn(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := w.count("/v1/chat/completions"); p.b.Facts().NoThinking != off || n != asked {
			t.Errorf("no thinking: %v, %d answers asked for; want %v, %d", p.b.Facts().NoThinking, n, off, asked)
		}
	}
	learn(true, 1)
	set(9)
	learn(true, 0) // nothing has happened
	p.factsTime = time.Time{}
	learn(false, 1) // it was down
	set(13)
	p.b.setRestarted(time.Now())
	learn(true, 1) // it says itself that it was started
	w.set("/v1/chat/completions", "status 503")
	p.b.setRestarted(time.Now())
	learn(true, 1) // what was known holds
	set(9)
	learn(false, 1) // and it is asked on
	w.set("/version", `{"version":"0.32.0"}`)
	w.set("/tokenize", "status 404")
	learn(false, 0)
}

// TestThinkingIsKept: what is known of a server's default outlasts a failed probe after
// which the server does not tell, and no other server, release or template inherits it.
func TestThinkingIsKept(t *testing.T) {
	const before, from018 = "0.16.0", "0.18.0"
	for _, c := range []struct {
		name, version, now, model string
		tokenize, chat            string // after the probe that failed
		kept                      bool
	}{
		{"/tokenize does not answer", from018, from018, "m", "status 503", "", true},
		{"the chat does not answer", before, before, "m", `{"count":9}`, "status 503", true},
		{"neither answers", before, before, "m", "status 503", "status 503", true},
		{"another release", from018, "0.19.0", "m", "status 503", "", false},
		{"another name", from018, from018, "org/m", "status 503", "", false},
		{"another template", from018, from018, "m", `{"count":30}`, "", false},
		{"another default", from018, from018, "m", `{"count":9}`, "", false},
		{"another default of an old one", before, before, "m", `{"count":9}`, `{"usage":{"prompt_tokens":9}}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.set("/v1/models", `{"data":[{"id":"m","max_model_len":4096}]}`)
			w.set("/version", `{"version":"`+c.version+`"}`)
			w.set("/tokenize", `{"count":13}`)
			w.set("/v1/chat/completions", `{"usage":{"prompt_tokens":13}}`)
			p := proberOf(w, Config{}, "m")
			p.probe(t.Context())
			if !p.b.Facts().NoThinking {
				t.Fatal("not learned")
			}
			w.set("/health", "status 503")
			p.probe(t.Context())
			w.set("/health", "")
			w.set("/v1/models", `{"data":[{"id":"`+c.model+`","max_model_len":4096}]}`)
			w.set("/version", `{"version":"`+c.now+`"}`)
			w.set("/tokenize", c.tokenize)
			w.set("/v1/chat/completions", c.chat)
			p.probe(t.Context())
			if f := p.b.Facts(); f.NoThinking != c.kept || f.Version != c.now || f.Serves != c.model {
				t.Errorf("%+v, want no thinking: %v", f, c.kept)
			}
		})
	}
}
