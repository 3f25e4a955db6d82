package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/shared"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// goClient is OpenAI's own client for Go, unmodified.
type goClient struct {
	openai.Client
	tries *atomic.Int32 // HTTP requests made
}

func (f *front) goClient(t *testing.T, key string, opts ...option.RequestOption) goClient {
	t.Helper()
	tries := new(atomic.Int32)
	opts = append([]option.RequestOption{
		option.WithBaseURL(f.URL + "/v1"), option.WithAPIKey(key), option.WithHTTPClient(f.Client),
		option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
			tries.Add(1)
			return next(r)
		}),
	}, opts...)
	return goClient{openai.NewClient(opts...), tries}
}

func say(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: stack.LargeModel, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
}

func weather() []openai.ChatCompletionToolUnionParam {
	return []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
		Name: "get_weather", Description: openai.String("Current weather of a city"),
		Parameters: shared.FunctionParameters{
			"type": "object", "required": []string{"city"}, "properties": map[string]any{"city": map[string]any{"type": "string"}},
		},
	})}
}

// thoughts is the reasoning in a message or delta, a field that OpenAI's types
// do not have.
func thoughts(raw string) string {
	var m struct {
		Reasoning string `json:"reasoning_content"`
	}
	_ = json.Unmarshal([]byte(raw), &m) // what the client has parsed is JSON
	return m.Reasoning
}

// read collects a stream.
func read(t *testing.T, s *ssestream.Stream[openai.ChatCompletionChunk]) (acc openai.ChatCompletionAccumulator, thought string) {
	t.Helper()
	defer s.Close()
	for s.Next() {
		c := s.Current()
		if !acc.AddChunk(c) {
			t.Errorf("the accumulator refuses %s", c.RawJSON())
		}
		for _, choice := range c.Choices {
			thought += thoughts(choice.Delta.RawJSON())
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return acc, thought
}

func TestGoClient(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{})
	c := f.goClient(t, stack.AdaKey)
	ctx := t.Context()
	t.Run("invoke", func(t *testing.T) {
		var resp *http.Response
		got, err := c.Chat.Completions.New(ctx, say("Hello"), option.WithResponseInto(&resp))
		if err != nil {
			t.Fatal(err)
		}
		if m := got.Choices[0]; m.Message.Content == "" || m.FinishReason != "stop" || got.Model != stack.LargeModel || got.Usage.TotalTokens != got.Usage.PromptTokens+got.Usage.CompletionTokens {
			t.Errorf("%s", got.RawJSON())
		}
		if resp.Header.Get("X-Request-Id") == "" || resp.Header.Get("X-Tidegate-Level") == "" {
			t.Errorf("headers: %v", resp.Header)
		}
	})
	t.Run("stream", func(t *testing.T) {
		p := say("Hello")
		p.StreamOptions.IncludeUsage = openai.Bool(true)
		acc, thought := read(t, c.Chat.Completions.NewStreaming(ctx, p))
		whole, err := c.Chat.Completions.New(ctx, say("Hello"))
		if err != nil {
			t.Fatal(err)
		}
		if acc.Choices[0].Message.Content != whole.Choices[0].Message.Content || thought != thoughts(whole.Choices[0].Message.RawJSON()) || acc.Usage.TotalTokens != whole.Usage.TotalTokens {
			t.Errorf("streamed %+v, whole %s", acc.ChatCompletion, whole.RawJSON())
		}
	})
	t.Run("completion", func(t *testing.T) {
		p := openai.CompletionNewParams{Model: stack.LargeModel, Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Once")}}
		got, err := c.Completions.New(ctx, p)
		if err != nil || got.Choices[0].Text == "" || got.Usage.CompletionTokens != 16 {
			t.Fatalf("%+v, %v", got, err)
		}
		s := c.Completions.NewStreaming(ctx, p)
		defer s.Close()
		text := ""
		for s.Next() {
			text += s.Current().Choices[0].Text
		}
		if s.Err() != nil || text != got.Choices[0].Text {
			t.Errorf("%q, %v", text, s.Err())
		}
	})
	t.Run("models", func(t *testing.T) {
		var ids []string
		for pages := c.Models.ListAutoPaging(ctx); pages.Next(); {
			ids = append(ids, pages.Current().ID)
		}
		slices.Sort(ids)
		if want := []string{stack.SmallModel, stack.LargeModel, stack.GoneModel, stack.LargeAlias}; !slices.Equal(ids, want) {
			t.Errorf("%v, expected %v", ids, want)
		}
		if m, err := c.Models.Get(ctx, stack.LargeAlias); err != nil || m.ID != stack.LargeAlias {
			t.Errorf("%+v, %v", m, err)
		}
	})
	t.Run("models of a bound key", func(t *testing.T) {
		bob := f.goClient(t, stack.BobKey)
		page, err := bob.Models.List(ctx)
		if err != nil || len(page.Data) != 1 || page.Data[0].ID != stack.SmallModel {
			t.Errorf("%+v, %v", page, err)
		}
	})
}

func TestGoClientTools(t *testing.T) {
	c := startGateway(t, startServers(t, nil), stack.Config{}).goClient(t, stack.AdaKey)
	ctx := t.Context()
	required := openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("required")}
	named := openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "get_weather"})
	for name, choice := range map[string]openai.ChatCompletionToolChoiceOptionUnionParam{
		"auto": {}, "required": required, "named": named,
	} {
		t.Run(name, func(t *testing.T) {
			p := say(`Use get_weather for "Paris"`)
			p.Tools, p.ToolChoice = weather(), choice
			got, err := c.Chat.Completions.New(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			acc, _ := read(t, c.Chat.Completions.NewStreaming(ctx, p))
			for _, m := range []openai.ChatCompletionMessage{got.Choices[0].Message, acc.Choices[0].Message} {
				if len(m.ToolCalls) != 1 || m.ToolCalls[0].ID == "" || m.ToolCalls[0].Function.Name != "get_weather" ||
					strings.ReplaceAll(m.ToolCalls[0].Function.Arguments, " ", "") != `{"city":"Paris"}` {
					t.Errorf("%+v", m.ToolCalls)
				}
			}
			// The answer goes back as the client writes it.
			m := got.Choices[0].Message
			p.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{}
			p.Messages = append(p.Messages, m.ToParam(), openai.ToolMessage("sunny", m.ToolCalls[0].ID))
			if got, err = c.Chat.Completions.New(ctx, p); err != nil || got.Choices[0].Message.Content == "" {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	t.Run("json_schema", func(t *testing.T) {
		p := say(`4 days in "Rome"`)
		var schema any
		if err := json.Unmarshal([]byte(tripSchema), &schema); err != nil {
			t.Fatal(err)
		}
		p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
			JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "trip", Strict: openai.Bool(true), Schema: schema},
		}
		got, err := c.Chat.Completions.New(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		var trip struct {
			City string
			Days int
		}
		if err := json.Unmarshal([]byte(got.Choices[0].Message.Content), &trip); err != nil || trip.City != "Rome" || trip.Days != 4 {
			t.Errorf("%s: %v", got.Choices[0].Message.Content, err)
		}
	})
}

func TestGoClientThinking(t *testing.T) {
	c := startGateway(t, startServers(t, nil), stack.Config{}).goClient(t, stack.AdaKey)
	for _, k := range []struct {
		key    string
		value  any
		thinks bool
	}{
		{"enable_thinking", true, true},
		{"enable_thinking", false, false},
		{"chat_template_kwargs", map[string]any{"enable_thinking": false}, false},
		{"extra_body", map[string]any{"enable_thinking": false}, false},
		{"thinking", map[string]any{"type": "disabled"}, false},
		{"reasoning_effort", "none", false},
		{"return_reasoning", false, false},
		{"return_reasoning", true, true},
	} {
		set := option.WithJSONSet(k.key, k.value)
		got, err := c.Chat.Completions.New(t.Context(), say("Hello"), set)
		if err != nil {
			t.Fatal(k.key, k.value, err)
		}
		_, streamed := read(t, c.Chat.Completions.NewStreaming(t.Context(), say("Hello"), set))
		if whole := thoughts(got.Choices[0].Message.RawJSON()); (whole != "") != k.thinks || whole != streamed || got.Choices[0].Message.Content == "" {
			t.Errorf("%s %v: reasoning %q, streamed %q", k.key, k.value, whole, streamed)
		}
	}
}

func TestGoClientErrors(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{})
	tooMuch := say("Hello")
	tooMuch.MaxTokens = openai.Int(50_000)
	unknown := say("Hello")
	unknown.Model = "gpt-4o"
	wrong := say("Hello")
	wrong.Temperature = openai.Float(-1)
	for _, k := range []struct {
		name, key string
		params    openai.ChatCompletionNewParams
		status    int
		code      string
	}{
		{"unknown key", "EMPTY", say("Hello"), 401, "invalid_api_key"},
		{"model not allowed", stack.BobKey, say("Hello"), 403, "model_not_allowed"},
		{"unknown model", stack.AdaKey, unknown, 404, "model_not_found"},
		{"too long", stack.AdaKey, tooMuch, 400, "context_length_exceeded"},
		{"the server's refusal", stack.AdaKey, wrong, 400, "invalid_request"},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := f.goClient(t, k.key)
			_, err := c.Chat.Completions.New(t.Context(), k.params)
			var e *openai.Error
			if !errors.As(err, &e) || e.StatusCode != k.status || e.Code != k.code || e.Message == "" || e.Type == "" {
				t.Errorf("%v: %+v", err, e)
			}
			s := c.Chat.Completions.NewStreaming(t.Context(), k.params)
			defer s.Close()
			if s.Next() || !errors.As(s.Err(), &e) || e.Code != k.code {
				t.Errorf("streamed: %v", s.Err())
			}
			if n := c.tries.Load(); n != 2 {
				t.Errorf("%d HTTP requests for two calls: what cannot help was tried again", n)
			}
		})
	}
	t.Run("busy, then not", func(t *testing.T) {
		// Both servers refuse once, so the gateway has nobody else to ask, and the
		// client comes again after the time it is told.
		s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault503, Count: 1})
		c := f.goClient(t, stack.AdaKey)
		if got, err := c.Chat.Completions.New(t.Context(), say("Hello")); err != nil || got.Choices[0].Message.Content == "" || c.tries.Load() != 2 {
			t.Errorf("%v after %d tries", err, c.tries.Load())
		}
	})
	for kind, code := range map[gatewaytest.FaultKind]string{gatewaytest.FaultDieMid: "upstream_error", gatewaytest.FaultError: "upstream_error"} {
		t.Run("in the middle: "+string(kind), func(t *testing.T) {
			s.Fault(t, gatewaytest.Fault{Kind: kind, AfterTokens: 5})
			c := f.goClient(t, stack.AdaKey)
			stream := c.Chat.Completions.NewStreaming(t.Context(), say("Hello"), option.WithJSONSet("sim", map[string]any{"tokens": 60}))
			defer stream.Close()
			chunks := 0
			for stream.Next() {
				chunks++
			}
			var e *ssestream.StreamError
			if !errors.As(stream.Err(), &e) || !strings.Contains(e.Message, code) || chunks == 0 {
				t.Errorf("%d chunks, then %v", chunks, stream.Err())
			}
		})
	}
}

// TestGoClientCancel leaves in the middle: the server must stop at once, which
// only its own record can tell.
func TestGoClientCancel(t *testing.T) {
	const long = 30_000
	s := startServers(t, nil)
	c := startGateway(t, s, stack.Config{}).goClient(t, stack.AdaKey)
	for _, stream := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		tag := "cancel-whole"
		if stream {
			tag = "cancel-stream"
		}
		opts := []option.RequestOption{option.WithJSONSet("sim", map[string]any{"tokens": long}), option.WithJSONSet("user", tag)}
		if stream {
			events := c.Chat.Completions.NewStreaming(ctx, say("Hello"), opts...)
			if !events.Next() {
				t.Fatal(events.Err())
			}
			cancel()
			for events.Next() { // what was on its way
			}
			events.Close()
		} else {
			time.AfterFunc(50*time.Millisecond, cancel)
			if _, err := c.Chat.Completions.New(ctx, say("Hello"), opts...); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if r := s.Record(t, tag); !r.Aborted || r.Output >= long {
			t.Errorf("%s: the server says %d tokens, finish %q, aborted %t", tag, r.Output, r.Finish, r.Aborted)
		}
		cancel()
	}
}

// TestGoClientOpen has a gateway that asks for no key: any is good.
func TestGoClientOpen(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Open: true})
	c := f.goClient(t, "EMPTY")
	got, err := c.Chat.Completions.New(t.Context(), say("Hello"),
		option.WithJSONSet("enable_thinking", true), option.WithJSONSet("return_reasoning", true))
	if err != nil || thoughts(got.Choices[0].Message.RawJSON()) == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// suiteTime bounds a suite of another language.
const suiteTime = 4 * time.Minute

// suite runs the tests of another language against gateways of its own, with
// keys, open, and one to be pinned to a level, and returns what they print.
func suite(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	s := startServers(t, nil)
	keyed, open, ladder := startGateway(t, s, stack.Config{}), startGateway(t, s, stack.Config{Open: true}), startGateway(t, s, stack.Laddered(""))
	ctx, cancel := context.WithTimeout(t.Context(), suiteTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	// What the developer has set for OpenAI or for a proxy must not lead the
	// clients elsewhere.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(v), "=")
		return strings.HasPrefix(name, "OPENAI_") || strings.HasPrefix(name, "LANGCHAIN_") || strings.HasPrefix(name, "LANGSMITH_") ||
			strings.HasSuffix(name, "_PROXY") || name == "NODE_OPTIONS" || strings.HasPrefix(name, "PYTEST_")
	})
	cmd.Env = append(cmd.Env,
		"TIDEGATE_URL="+keyed.URL+"/v1", "TIDEGATE_OPEN_URL="+open.URL+"/v1",
		"TIDEGATE_LADDER_URL="+ladder.URL+"/v1", "TIDEGATE_LADDER_ADMIN_KEY="+stack.AdminKey, "TIDEGATE_SIMS="+s.Controls(t),
		"TIDEGATE_KEY="+stack.AdaKey, "TIDEGATE_SMALL_KEY="+stack.BobKey, "TIDEGATE_MODEL="+stack.LargeModel, "TIDEGATE_SMALL_MODEL="+stack.SmallModel,
		"PYTHONDONTWRITEBYTECODE=1", "LANGSMITH_TRACING=false", "NO_COLOR=1",
	)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

// count finds a number in what a suite printed; 0: it is not there.
func count(out, pattern string) string {
	if m := regexp.MustCompile(pattern).FindStringSubmatch(out); m != nil {
		return m[1]
	}
	return "0"
}

func TestPythonClients(t *testing.T) {
	python := stack.Clients(t, os.Getenv, "python", "TIDEGATE_TEST_PYTHON")
	out := suite(t, filepath.Join("testdata", "clients", "python"), python, "-m", "pytest", "-q", "-rs", "--durations=3",
		"--benchmark-storage=file://"+t.TempDir()) // which it would make beside the tests
	passed := count(out, `(\d+) passed`)
	if passed == "0" {
		t.Fatalf("no test ran:\n%s", out)
	}
	t.Logf("python clients: %s passed, %s skipped", passed, count(out, `(\d+) skipped`))
	t.Logf("%s", out)
}

func TestNodeClients(t *testing.T) {
	modules := stack.Clients(t, os.Getenv, "node", "TIDEGATE_TEST_NODE_MODULES")
	modules, err := filepath.Abs(filepath.Join(modules, "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	// Node looks for packages beside the file that imports them.
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join("testdata", "clients", "node", "*.mjs"))
	if err != nil || len(files) == 0 {
		t.Fatal("no tests found", err)
	}
	// One file after the other, since the faults they ask for are everybody's.
	args := []string{"--test", "--test-concurrency=1", "--test-reporter=tap"}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(file)), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".test.mjs") {
			args = append(args, filepath.Base(file))
		}
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	out := suite(t, dir, "node", args...)
	passed := count(out, `(?m)^# pass (\d+)`)
	if passed == "0" || count(out, `(?m)^# fail (\d+)`) != "0" {
		t.Fatalf("not all passed:\n%s", out)
	}
	t.Logf("node clients: %s passed, %s skipped", passed, count(out, `(?m)^# skipped (\d+)`))
	t.Logf("%s", out)
}
