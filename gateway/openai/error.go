package openai

import (
	"bytes"
	"encoding/json"
	"strings"

	"tidegate/gateway/jsonwalk"
)

// An Error is OpenAI's error object. All four fields are always sent: clients lose the
// code and the message of any other shape.
type Error struct {
	Message string
	Type    string
	Param   string // name of the parameter; empty for null
	Code    string // code; empty for null
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Body returns the error as a response body, or as the data of a stream event.
func (e *Error) Body() []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	nullable := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	// Encoding strings cannot fail.
	_ = enc.Encode(map[string]any{"error": struct {
		Message string `json:"message"`
		Type    string `json:"type"`
		Param   any    `json:"param"`
		Code    any    `json:"code"`
	}{e.Message, e.Type, nullable(e.Param), nullable(e.Code)}})
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// maxMessage bounds the quoted part of a backend's error text, in bytes.
const maxMessage = 2000

// ReadError reads an error body of vLLM or its web framework: an error object, an error
// string, {"detail": …}, or the old flat shape. The message is empty if the body is none
// of these. Then something else has answered, such as a proxy with a page of HTML, and its
// words are not for the caller. Code stays empty: vLLM's code only repeats the HTTP status.
func ReadError(body []byte) Error {
	object := body
	if inner := jsonwalk.Find(body, "error"); inner != nil {
		object = inner
		if s, ok := jsonwalk.Text(inner); ok {
			return Error{Message: clip(strings.TrimSpace(s))}
		}
	}
	var e Error
	e.Message, _ = jsonwalk.Text(jsonwalk.Find(object, "message"))
	e.Type, _ = jsonwalk.Text(jsonwalk.Find(object, "type"))
	e.Param, _ = jsonwalk.Text(jsonwalk.Find(object, "param"))
	if e.Message == "" {
		if detail := jsonwalk.Find(object, "detail"); detail != nil {
			if s, ok := jsonwalk.Text(detail); ok {
				e.Message = s
			} else {
				e.Message = string(detail)
			}
		}
	}
	e.Message, e.Param, e.Type = clip(strings.TrimSpace(e.Message)), clip(e.Param), clip(e.Type)
	return e
}

// Overflows reports whether the backend refused the request because it does not fit the
// context. vLLM names the parameter from 0.12 on. Earlier releases, and the checks of the
// engine itself, show it only in the wording.
func (e *Error) Overflows() bool {
	switch {
	case e.Param == "input_tokens", e.Param == "input_text":
		return true
	case strings.Contains(e.Message, "truncate_prompt_tokens"): // the requested truncation is too large
		return false
	}
	message := strings.ToLower(e.Message)
	for _, words := range overflowWordings() {
		if strings.Contains(message, words) {
			return true
		}
	}
	return false
}

// overflowWordings returns texts, in lower case, that occur only in vLLM's errors about the
// context, of 0.4 to 0.33 and of its Rust frontend. They are parts of the messages in
// entrypoints/openai/serving_engine.py, renderers/params.py, entrypoints/utils.py,
// engine/llm_engine.py and v1/engine/input_processor.py.
func overflowWordings() [7]string {
	return [...]string{
		"maximum context length",               // "This model's maximum context length is N tokens. …", "Input length (N) exceeds model's maximum context length (M)."
		"model's context length is only",       // "You passed N input tokens …", 0.13 to 0.17
		"longer than the maximum model length", // "The decoder prompt (length N) is …"
		"too long to fit into the model",       // "The prompt (total length N) is …", before 0.7
		"cannot be greater than max_model_len", // "max_tokens=N cannot be …"
		"exceeds the max_model_len",            // "The engine prompt length N exceeds …"
		"max_tokens must be at least 1, got -", // the rest of the context is negative; the gateway sends no such limit
	}
}

// clip shortens s to maxMessage bytes.
func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "…"
}
