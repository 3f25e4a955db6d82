package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"tidegate/gateway/backend"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
)

// behind is a gateway whose model m has one backend, in rotation, that answers with h.
func behind(t *testing.T, h http.HandlerFunc, edit func(*backend.ModelConfig)) (*Gateway, *backend.Backend) {
	t.Helper()
	g, _ := bare(t, nil)
	engine := httptest.NewServer(h)
	m := modelOf("m", engine.URL)
	if edit != nil {
		edit(&m)
	}
	g.Fleet.Apply([]backend.ModelConfig{m})
	t.Cleanup(func() {
		// Idle connections end with the fleet's loop, which ends at once.
		ctx, stop := context.WithCancel(context.Background())
		stop()
		if err := g.Fleet.Run(ctx); err != nil {
			t.Error(err)
		}
		engine.Close()
	})
	of, _ := g.Fleet.Model("m")
	of.Backends[0].Seat.SetRotation(true)
	return g, of.Backends[0]
}

// generated is what became of one request to g.
type generated struct {
	*call
	body string
	err  error
}

// generateOne sends g one request and settles it.
func generateOne(ctx context.Context, g *Gateway, kind openai.Route, body string) generated {
	return generateInto(ctx, g, httptest.NewRecorder(), func([]byte) {}, kind, body)
}

// watched is a recorder that shows what is written to it.
type watched struct {
	*httptest.ResponseRecorder
	wrote func([]byte)
}

// Write records a part of the answer, then shows it.
func (w watched) Write(p []byte) (int, error) {
	defer w.wrote(p)
	return w.ResponseRecorder.Write(p)
}

// SetReadDeadline is that of a connection.
func (watched) SetReadDeadline(time.Time) error { return nil }

// generateInto sends g one request, whose answer goes into w and is shown as it is
// written, and settles it.
func generateInto(ctx context.Context, g *Gateway, w *httptest.ResponseRecorder, wrote func([]byte), kind openai.Route, body string) generated {
	d := newDoor(kind)
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, d.Pattern, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	c := g.newCall(watched{w, wrote}, r, d.Pattern)
	c.door = d
	err := g.guarded(c, g.generate)
	if err != nil {
		g.fail(c, err)
	}
	g.finish(c, err)
	return generated{c, w.Body.String(), err}
}

// TestUnseenAnswersAreCharged: an answer in one piece that nobody saw the end of is
// charged for all its choices, also before anything has shown the server's speed.
func TestUnseenAnswersAreCharged(t *testing.T) {
	const two = `{"model":"m","max_tokens":1,"n":3,"messages":[{"role":"user","content":"hi"}]}`
	const eight = `{"model":"m","max_tokens":1,"n":2,"prompt":["a","a","a","a","a","a","a","a"]}`
	for _, c := range []struct {
		name   string
		kind   openai.Route
		body   string
		leaves bool
		output int
	}{
		{"a caller leaves three choices", openai.Chat, two, true, 3},
		{"a caller leaves eight prompts with two choices each", openai.Completions, eight, true, 16},
		{"the time for three choices is over", openai.Chat, two, false, 3},
		{"the time for eight prompts is over", openai.Completions, eight, false, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			g, _ := behind(t, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if c.leaves {
					leave()
				}
				<-r.Context().Done()
			}, func(m *backend.ModelConfig) {
				if !c.leaves {
					m.Timeouts.Total = 50 * time.Millisecond
				}
			})
			got := generateOne(ctx, g, c.kind, c.body)
			if !got.outcome.charged || !got.outcome.estimated || got.outcome.usage != (openai.Usage{Input: got.request.prompt, Output: c.output}) || got.request.prompt == 0 {
				t.Errorf("charged %v, estimated %v: %+v, %v", got.outcome.charged, got.outcome.estimated, got.outcome.usage, got.err)
			}
			var timeout *exchange.TimeoutError
			if c.leaves != errors.Is(got.err, exchange.ErrLeft) || c.leaves == errors.As(got.err, &timeout) {
				t.Errorf("%v", got.err)
			}
		})
	}
}

// TestPaceOfSeveralPrompts: a stream of several prompts teaches the pace of one choice,
// not of all of them together.
func TestPaceOfSeveralPrompts(t *testing.T) {
	const prompts, tokens = 8, 10
	g, b := behind(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 1; n <= tokens; n++ {
			for i := range prompts {
				finish := "null"
				if n == tokens {
					finish = `"length"`
				}
				fmt.Fprintf(w, `data: {"id":"x","object":"text_completion","created":1,"model":"m","choices":[{"index":%d,"text":" a","logprobs":null,"finish_reason":%s}],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}`+"\n\n", i, finish, n, n+1)
			}
			_ = http.NewResponseController(w).Flush()
		}
		io.WriteString(w, "data: [DONE]\n\n")
	}, nil)
	got := generateOne(t.Context(), g, openai.Completions, `{"model":"m","max_tokens":10,"stream":true,"prompt":["a","a","a","a","a","a","a","a"]}`)
	if got.err != nil || got.outcome.usage.Output != prompts*tokens {
		t.Fatalf("%+v, %v", got.outcome.usage, got.err)
	}
	decode, known := b.Pace.Decode(tokens)
	if want := got.outcome.flow() / (tokens - 1) * (tokens - 1); !known || decode != want {
		t.Errorf("%d tokens of each choice took %v, and the pace says %v", tokens, want, decode)
	}
}

// TestUsageIsNotBelieved: whatever an engine states of an answer, its caller gets the
// answer, it is charged for what can be true, and operators are told of the backend.
func TestUsageIsNotBelieved(t *testing.T) {
	const chat = `{"model":"m","max_tokens":50,"stream":%v,"messages":[{"role":"user","content":"Hi"}]}`
	const text = "The quick brown fox jumps over the lazy dog."
	for _, c := range []struct {
		usage  string
		fault  string
		output int // 0: what the tokenizer counts, and the end
	}{
		{`{"prompt_tokens":9,"completion_tokens":7,"total_tokens":16}`, "", 7},
		{`{"prompt_tokens":-9,"completion_tokens":-7}`, "invalid", 0},
		{`{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":-1}}`, "invalid", 7},
		{`{"prompt_tokens":9,"completion_tokens":100000000000000000}`, "excessive", 0},
		{`{"prompt_tokens":"9","completion_tokens":"7"}`, "invalid", 0},
		{`{}`, "missing", 0}, {`null`, "missing", 0},
	} {
		for _, stream := range []bool{false, true} {
			g, b := behind(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if !stream {
					fmt.Fprintf(w, `{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}],"usage":%s}`, text, c.usage)
					return
				}
				w.Header().Set("Content-Type", "text/event-stream")
				for i, word := range strings.SplitAfter(text, " ") {
					finish := "null"
					if i == strings.Count(text, " ") {
						finish = `"stop"`
					}
					fmt.Fprintf(w, `data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":%q},"logprobs":null,"finish_reason":%s}],"usage":%s}`+"\n\n", word, finish, c.usage)
				}
				io.WriteString(w, "data: [DONE]\n\n")
			}, nil)
			got := generateOne(t.Context(), g, openai.Chat, fmt.Sprintf(chat, stream))
			want := openai.Usage{Input: 9, Output: c.output}
			if c.output == 0 {
				want.Output = g.Counter.Text(text) + 1
			}
			if got.err != nil || got.outcome.status != http.StatusOK || got.outcome.usage != want || got.outcome.estimated != (c.fault != "") || !strings.Contains(got.body, "fox") {
				t.Errorf("%s, stream %v: %+v, estimated %v, status %d, %v", c.usage, stream, got.outcome.usage, got.outcome.estimated, got.outcome.status, got.err)
			}
			for _, fault := range openai.FaultNames() {
				var read dto.Metric
				if err := g.metrics.usageCorrected.WithLabelValues(b.Name, fault).Write(&read); err != nil {
					t.Fatal(err)
				}
				n := read.GetCounter().GetValue()
				if (n == 1) != (fault == c.fault) {
					t.Errorf("%s, stream %v: %s counted %v times", c.usage, stream, fault, n)
				}
			}
			warning := b.Doubts.Warning(time.Now())
			if (warning != "") != (c.fault != "") || !strings.Contains(warning, c.fault) {
				t.Errorf("%s, stream %v: %q", c.usage, stream, warning)
			}
		}
	}
}

// TestLeavingAfterDone: a client that closes the connection once it has read [DONE], as
// GuideLLM and OpenAI's Python client do, has had its whole answer.
func TestLeavingAfterDone(t *testing.T) {
	for _, last := range []string{"[DONE]", `"finish_reason":"stop"`} {
		t.Run(last, func(t *testing.T) {
			g, _ := behind(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, `data: {"id":"a","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}`+"\n\n")
				_ = http.NewResponseController(w).Flush()
				if last == "[DONE]" {
					_, _ = io.WriteString(w, "data: [DONE]\n\n")
					_ = http.NewResponseController(w).Flush()
				}
				<-r.Context().Done() // the end of the answer comes late
			}, nil)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			got := generateInto(ctx, g, httptest.NewRecorder(), func(p []byte) {
				if bytes.Contains(p, []byte(last)) {
					leave()
				}
			}, openai.Chat, `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`)
			want := map[bool]int{true: http.StatusOK, false: clientClosed}[last == "[DONE]"]
			if got.outcome.status != want || (got.err == nil) != (want == http.StatusOK) || got.outcome.usage.Output != 1 {
				t.Errorf("status %d, %v, %+v, %s", got.outcome.status, got.err, got.outcome.usage, got.body)
			}
		})
	}
}
