package gateway_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest/stack"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"
)

// levelOf is who answers at a level, and what a text must be.
func levelOf(level int) (name, model string, says func(text string) bool) {
	model = []string{stack.LargeModel, stack.LargeModel, stack.LargeModel, stack.SmallModel, cannedModel}[level]
	return fmt.Sprint("L", level), model, func(text string) bool { return text != "" && (level < 4 || text == cannedText) }
}

// TestGoClientLevels makes the usual calls of OpenAI's client at every level.
func TestGoClientLevels(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Laddered(""))
	c := f.goClient(t, stack.AdaKey, option.WithMaxRetries(0))
	for level := range 5 {
		name, _, _ := levelOf(level)
		f.Pin(t, stack.LargeModel, name)
		t.Run(name, func(t *testing.T) {
			t.Run("chat", func(t *testing.T) { goChatAt(t, c, level) })
			t.Run("tools", func(t *testing.T) { goToolsAt(t, c, level) })
			t.Run("structured output", func(t *testing.T) { goTripAt(t, c, level) })
			t.Run("completion", func(t *testing.T) { goCompletionAt(t, c, level) })
			t.Run("refused", func(t *testing.T) {
				_, err := c.Chat.Completions.New(t.Context(), say("Hello"), option.WithHeader("X-Tidegate-Max-Level", "L1"))
				var e *openai.Error
				if level <= 1 && err != nil || level > 1 && (!errors.As(err, &e) || e.StatusCode != 503 || e.Code != "overloaded") {
					t.Error(err)
				}
			})
		})
	}
}

func goChatAt(t *testing.T, c goClient, level int) {
	name, model, says := levelOf(level)
	var resp *http.Response
	got, err := c.Chat.Completions.New(t.Context(), say("Hello"), option.WithResponseInto(&resp))
	if err != nil {
		t.Fatal(err)
	}
	p := say("Hello")
	p.StreamOptions.IncludeUsage = openai.Bool(true)
	acc, thought := read(t, c.Chat.Completions.NewStreaming(t.Context(), p))
	whole := got.Choices[0].Message
	if resp.Header.Get("X-Tidegate-Level") != name || got.Model != model || acc.Model != model {
		t.Errorf("%s, %s, streamed %s", resp.Header.Get("X-Tidegate-Level"), got.Model, acc.Model)
	}
	if !says(whole.Content) || acc.Choices[0].Message.Content != whole.Content || acc.Choices[0].FinishReason != "stop" {
		t.Errorf("streamed %+v, whole %s", acc.Choices[0], whole.RawJSON())
	}
	if said := thoughts(whole.RawJSON()); said != thought || (said != "") != (level < 2) {
		t.Errorf("reasoning %q, streamed %q", said, thought)
	}
	if n := got.Usage.TotalTokens; acc.Usage.TotalTokens != n || (n == 0) != (level == 4) {
		t.Errorf("%d tokens, streamed %d", n, acc.Usage.TotalTokens)
	}
}

func goToolsAt(t *testing.T, c goClient, level int) {
	for _, choice := range []string{"auto", "required"} {
		p := say(`Use get_weather for "Paris"`)
		p.Tools, p.ToolChoice = weather(), openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String(choice)}
		got, err := c.Chat.Completions.New(t.Context(), p)
		if level == 4 && choice == "required" {
			isBusy(t, err)
			isBusy(t, c.Chat.Completions.NewStreaming(t.Context(), p).Err())
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		acc, _ := read(t, c.Chat.Completions.NewStreaming(t.Context(), p))
		for _, m := range []openai.ChatCompletionMessage{got.Choices[0].Message, acc.Choices[0].Message} {
			if level == 4 {
				if len(m.ToolCalls) > 0 || m.Content != cannedText {
					t.Errorf("%s: %+v", choice, m)
				}
			} else if len(m.ToolCalls) != 1 || m.ToolCalls[0].ID == "" || strings.ReplaceAll(m.ToolCalls[0].Function.Arguments, " ", "") != `{"city":"Paris"}` {
				t.Errorf("%s: %+v", choice, m.ToolCalls)
			}
		}
	}
}

func goTripAt(t *testing.T, c goClient, level int) {
	p := say(`4 days in "Rome"`)
	p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "trip", Strict: openai.Bool(true), Schema: json.RawMessage(tripSchema)},
	}
	got, err := c.Chat.Completions.New(t.Context(), p)
	if level == 4 {
		isBusy(t, err)
		isBusy(t, c.Chat.Completions.NewStreaming(t.Context(), p).Err())
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	acc, _ := read(t, c.Chat.Completions.NewStreaming(t.Context(), p))
	for _, m := range []openai.ChatCompletionMessage{got.Choices[0].Message, acc.Choices[0].Message} {
		var trip struct {
			City string
			Days int
		}
		if err := json.Unmarshal([]byte(m.Content), &trip); err != nil || trip.City != "Rome" || trip.Days != 4 || m.Refusal != "" {
			t.Errorf("%q, %v", m.Content, err)
		}
	}
}

// isBusy checks that a client was told that no model answers at the moment.
func isBusy(t *testing.T, err error) {
	t.Helper()
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != 503 || e.Code != "overloaded" || !strings.HasPrefix(e.Message, cannedText) {
		t.Error(err)
	}
}

func goCompletionAt(t *testing.T, c goClient, level int) {
	_, model, says := levelOf(level)
	p := openai.CompletionNewParams{Model: stack.LargeModel, Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Once")}}
	got, err := c.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Completions.NewStreaming(t.Context(), p)
	defer s.Close()
	text := ""
	for s.Next() {
		text += s.Current().Choices[0].Text
	}
	if s.Err() != nil || got.Model != model || !says(text) || text != got.Choices[0].Text {
		t.Errorf("%s: %q, streamed %q, %v", got.Model, got.Choices[0].Text, text, s.Err())
	}
}

// TestCurlLevels asks with curl: the answer on standard output, the headers, and the
// status by which -f fails.
func TestCurlLevels(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("SKIPPED-PART: curl: it is not installed")
	}
	f := startGateway(t, startServers(t, nil), stack.Laddered(""))
	ask := func(body string, args ...string) (string, error) {
		args = append([]string{"-sSfN", "--noproxy", "*", "-D", "-", "-H", "Authorization: Bearer " + stack.AdaKey, "-H", "Content-Type: application/json", "--data-binary", body, f.URL + stack.ChatPath}, args...)
		out, err := exec.CommandContext(t.Context(), curl, args...).Output()
		return string(out), err
	}
	for level := range 5 {
		name, model, says := levelOf(level)
		f.Pin(t, stack.LargeModel, name)
		for _, stream := range []string{"", `,"stream":true`} {
			out, err := ask(chatOf("Hello", stream))
			head, body, _ := strings.Cut(out, "\r\n\r\n")
			if err != nil || !strings.Contains(strings.ToLower(head), "x-tidegate-level: "+strings.ToLower(name)) || !strings.Contains(body, `"model":"`+model+`"`) ||
				!says(cannedIn(body)) || stream != "" && !strings.HasSuffix(body, "data: [DONE]\n\n") {
				t.Errorf("%s%s: %v\n%s", name, stream, err, out)
			}
		}
		if _, err := ask(chatOf("Hello", ""), "-H", "X-Tidegate-Max-Level: L0"); (err != nil) != (level > 0) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// cannedIn is the canned text where a body has it, else the body.
func cannedIn(body string) string {
	if strings.Contains(body, `"content":"`+cannedText+`"`) {
		return cannedText
	}
	return body
}
