package openai

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Error is OpenAI's error object. All four fields are always sent: clients lose
// the code and the message of anything else.
type Error struct {
	Message string
	Type    string
	Param   string // empty: null
	Code    string // empty: null
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Body is the error as a response body or as the data of a stream event.
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

// maxMessage bounds what is quoted of a server's error text, in bytes.
const maxMessage = 2000

// ReadError reads what vLLM and its web framework answer when they refuse: an
// error object, an error string, {"detail": …}, or the old flat shape. The message is
// empty where the body is none of these: then something else has answered, such as a
// proxy with a page of HTML, and its words are not for the caller. Code is left empty:
// vLLM's code is only the HTTP status again.
func ReadError(body []byte) Error {
	object := body
	if inner := find(body, "error"); inner != nil {
		object = inner
		if s, ok := text(inner); ok {
			return Error{Message: clip(s)}
		}
	}
	var e Error
	e.Message, _ = text(find(object, "message"))
	e.Type, _ = text(find(object, "type"))
	e.Param, _ = text(find(object, "param"))
	if e.Message == "" {
		if detail := find(object, "detail"); detail != nil {
			if s, ok := text(detail); ok {
				e.Message = s
			} else {
				e.Message = string(detail)
			}
		}
	}
	e.Message, e.Param, e.Type = clip(e.Message), clip(e.Param), clip(e.Type)
	return e
}

func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "…"
}
