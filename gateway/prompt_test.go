package gateway_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// prompts are chats that releases of vLLM render differently, or whose prompt is not
// what its messages alone would be.
func prompts() map[string]string {
	const hi = `"messages":[{"role":"user","content":"Hello"}]`
	tool := func(function, more string) string {
		return hi + `,"tools":[{"type":"function","function":{"name":"f"` + function + `}` + more + `}]`
	}
	loop := func(call string) string {
		return `"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":null` + call + `},{"role":"tool","tool_call_id":"c","content":"1"}]`
	}
	calls := func(arguments string) string {
		return loop(`,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":` + arguments + `}}]`)
	}
	const last = `"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"The sky is"}]`
	return map[string]string{
		"plain":                  hi,
		"thinking on":            hi + `,"enable_thinking":true`,
		"thinking off":           hi + `,"enable_thinking":false`,
		"kwargs null":            hi + `,"chat_template_kwargs":{"enable_thinking":null}`,
		"kwargs auto":            hi + `,"chat_template_kwargs":{"enable_thinking":"auto"}`,
		"effort none":            hi + `,"reasoning_effort":"none"`,
		"effort low":             hi + `,"reasoning_effort":"low"`,
		"effort xhigh":           hi + `,"reasoning_effort":"xhigh"`,
		"strict null":            tool(`,"strict":null`, ``),
		"strict true":            tool(`,"strict":true`, ``),
		"unknown keys":           tool(`,"x":[1]`, `,"cache_control":{"type":"ephemeral"}`),
		"defer_loading":          tool(``, `,"defer_loading":true`),
		"arguments cut":          calls(`"{\"city\": \"Par"`),
		"arguments a list":       calls(`"[1, 2]"`),
		"arguments null":         calls(`"null"`),
		"reasoning":              loop(`,"reasoning":"hm hm"`),
		"reasoning_content":      loop(`,"reasoning_content":"hm hm"`),
		"billing header":         `"messages":[{"role":"system","content":"x-anthropic-billing-header: cch=1;\nBe short."},{"role":"user","content":"Hello"}]`,
		"continued":              last + `,"add_generation_prompt":false,"continue_final_message":true`,
		"no generation prompt":   last + `,"add_generation_prompt":false`,
		"truncated":              hi + `,"truncate_prompt_tokens":4`,
		"truncated to more":      hi + `,"truncate_prompt_tokens":4000`,
		"truncated to what fits": hi + `,"truncate_prompt_tokens":-1`,
	}
}

// TestPromptByRelease: what is counted is what the release that answers makes of a chat,
// with thinking as its command line says.
func TestPromptByRelease(t *testing.T) {
	for _, version := range []string{"0.13.0", "0.15.1", "0.16.0", "0.18.0", "0.21.0", "0.23.0", "0.24.0", "0.27.0", "0.29.0", "0.32.0"} {
		for _, off := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, thinking off by default: %v", version, off), func(t *testing.T) {
				s := startServers(t, func(o *gatewaytest.Options) { o.Version, o.NoThinking, o.Tokens = version, off, 3 })
				f := startGateway(t, s, stack.Config{})
				for name, body := range prompts() {
					body = `{"model":"` + stack.LargeModel + `","max_tokens":3,` + body + `}`
					counted, answered := f.number(t, "/tokenize", body, "count"), f.number(t, "/v1/chat/completions", body, "usage.prompt_tokens")
					refused := name == "arguments cut" && version < "0.29"
					if counted != answered || (answered < 0) != refused {
						t.Errorf("%s: %d tokens are counted, the server has %d", name, counted, answered)
					}
				}
			})
		}
	}
}

// number asks for an answer and returns a number in it; -1: it is a 400.
func (f *front) number(t *testing.T, path, body, field string) int {
	t.Helper()
	status, text := f.Call(t, stack.AdaKey, "POST", path, body)
	if status == 400 {
		return -1
	}
	var answer struct {
		Count int
		Usage struct {
			Input int `json:"prompt_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(text), &answer); status != 200 || err != nil {
		t.Fatalf("%s %s: %d %s, %v", path, body, status, text, err)
	}
	if strings.HasPrefix(field, "usage") {
		return answer.Usage.Input
	}
	return answer.Count
}
