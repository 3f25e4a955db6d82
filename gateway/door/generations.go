package door

import (
	"strconv"
	"time"

	"tidegate/gateway/openai"
	"tidegate/gateway/qwen"
	"tidegate/gateway/refusal"
)

// Chat returns the door of POST /v1/chat/completions.
func Chat() *Door {
	return generation(openai.Chat, Door{
		Pattern: "/v1/chat/completions", Path: "/v1/chat/completions", Operation: "chat",
		AnswerID: func(attempt string) string { return "chatcmpl-" + attempt },
	})
}

// Completions returns the door of POST /v1/completions.
func Completions() *Door {
	return generation(openai.Completions, Door{
		Pattern: "/v1/completions", Path: "/v1/completions", Operation: "text_completion",
		AnswerID: func(attempt string) string { return "cmpl-" + attempt },
	})
}

// generation fills in what the two doors of OpenAI's older API share: their functions
// differ by the route alone.
func generation(route openai.Route, d Door) *Door {
	d.Read = func(raw []byte, limits Limits) (Parsed, error) { return readGeneration(route, raw, limits) }
	d.Prompt = func(body Body, limits Limits) (Prompt, error) { return readPrompt(route, request(body), limits) }
	d.Needs = func(body Body) Needs {
		_, guided := request(body).Raw("structured_outputs")
		return Needs{request(body).Needs(), guided}
	}
	d.Write = writeGeneration
	d.Language = func(acceptLanguage string, body Body, languages []string) string {
		return openai.Language(acceptLanguage, request(body), languages)
	}
	d.Stream = func(view openai.View, bounds openai.Bounds, tally func() openai.Tally) Stream {
		return &openai.Tap{View: view, Route: route, Bounds: bounds, NewTally: tally, DelayEnd: true}
	}
	d.Answer = func(view openai.View, body []byte, bounds openai.Bounds, tally func() openai.Tally) (openai.Answer, error) {
		return openai.ReadAnswer(route, view, body, bounds, tally)
	}
	d.BackendError = openai.ReadError
	d.KeepAlive = func(id, model string, created time.Time, first bool) []byte {
		return openai.KeepAlive(route, id, model, created, first)
	}
	d.Events = func(view openai.View, answer []byte, begun string) ([]byte, error) {
		return view.Stream(nil, route, answer, begun)
	}
	d.Canned = func(id, model string, created time.Time, choices int, structured bool, text string) []byte {
		return openai.Canned(route, id, model, created, choices, structured, text)
	}
	d.Announce = openai.AddNotice
	d.Error = OpenAIError
	d.ErrorEvent = func(r *refusal.Refusal) []byte {
		return append(append([]byte("data: "), OpenAIError(r)...), '\n', '\n')
	}
	return &d
}

// OpenAIError returns the body of a refusal in OpenAI's form, in which every route
// without a door answers as well.
func OpenAIError(r *refusal.Refusal) []byte {
	e := openai.Error{Message: r.Message, Type: r.Type, Param: r.Param, Code: string(r.Code)}
	return e.Body()
}

// request returns the body of one of OpenAI's routes.
func request(body Body) *openai.Request {
	r, _ := body.(*openai.Request)
	return r
}

// perTool is by how many tokens versions of vLLM differ in rendering a tool.
const perTool = 16

// readGeneration reads the body of a chat or a completion.
func readGeneration(route openai.Route, raw []byte, limits Limits) (p Parsed, err error) {
	body, fault := openai.ParseRequest(route, raw)
	if fault != nil {
		return p, fault
	}
	p.Body = body
	if p.Wish, fault = body.Translate(limits.MaxN); fault != nil {
		return p, fault
	}
	if fault = body.CheckTokens(qwen.Vocabulary); fault != nil {
		return p, fault
	}
	p.Growth = body.Growth()
	p.LimitParam, p.PromptParam = body.LimitName(), "messages"
	if route == openai.Completions {
		echo, _ := body.Raw("echo")
		p.Echo = string(echo) == "true"
		p.PromptParam, p.DefaultLimit = "prompt", openai.CompletionDefault
	} else if tools, ok := body.Raw("tools"); ok {
		p.Margin = perTool * openai.Count(tools)
	}
	return p, nil
}

// readPrompt reads the conversation of a chat or the prompts of a completion.
func readPrompt(route openai.Route, body *openai.Request, limits Limits) (p Prompt, err error) {
	if route == openai.Chat {
		p.Chat = ChatOf(body)
		return p, nil
	}
	raw, _ := body.Raw("prompt")
	texts, fault := openai.Prompts(raw, limits.MaxPrompts)
	if fault != nil {
		return p, fault
	}
	p.Texts = texts
	return p, nil
}

// ChatOf returns the conversation in a body, as the chat template is given it.
func ChatOf(body *openai.Request) (chat qwen.Chat) {
	chat.Messages, _ = body.Raw("messages")
	chat.Tools, _ = body.Raw("tools")
	chat.NoGenerationPrompt = hasWord(body, "add_generation_prompt", "false")
	chat.Continue = hasWord(body, "continue_final_message", "true")
	return chat
}

// hasWord reports whether a member is the JSON word given.
func hasWord(body *openai.Request, member, word string) bool {
	raw, _ := body.Raw(member)
	return string(raw) == word
}

// writeGeneration writes the edits into the body of a chat or a completion.
func writeGeneration(b Body, e Edits) []byte {
	body := request(b)
	if e.HasPriority {
		body.Set("priority", strconv.AppendInt(nil, e.Priority, 10))
	} else {
		body.Delete("priority")
	}
	switch {
	case e.OneChoice:
		body.MakeUnary(e.Limit)
	case e.Stream:
		body.Set("stream_options", []byte(`{"include_usage":true,"continuous_usage_stats":true}`))
	default:
		body.Delete("stream_options")
	}
	if e.StopThinking {
		body.StopThinking()
	}
	if e.Limit > 0 {
		body.LimitTokens(e.Limit)
	}
	if e.Truncates {
		body.SetTruncation(e.Truncate)
	}
	fitVersion(body, &e)
	name := strconv.AppendQuote(nil, e.Model)
	if raw, _ := body.Raw("model"); string(raw) != string(name) {
		body.Set("model", name)
	}
	return body.Bytes()
}

// fitVersion puts a chat into the words that the backend's version reads.
func fitVersion(body *openai.Request, e *Edits) {
	if body.Route != openai.Chat || !e.Known {
		return
	}
	if !e.ReasoningEffort {
		body.Delete("reasoning_effort") // it would do nothing, or be refused; the thinking switch stands in its place
	}
	if e.OnlyReasoningField {
		body.RenameReasoning("reasoning")
	} else {
		body.RenameReasoning("reasoning_content")
	}
}
