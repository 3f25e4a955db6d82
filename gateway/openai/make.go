package openai

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// KeepAlive is a chunk that says nothing, for callers that give up on a silent
// stream: an empty delta, which every client reads right (a chunk without
// choices breaks naive loops). The first of a stream carries the role.
func KeepAlive(route Route, id, model string, created time.Time, first bool) []byte {
	b := append(make([]byte, 0, 256), `data: {"id":`...)
	b = appendString(b, id)
	if route == Completions {
		b = append(b, `,"object":"text_completion","created":`...)
	} else {
		b = append(b, `,"object":"chat.completion.chunk","created":`...)
	}
	b = strconv.AppendInt(b, created.Unix(), 10)
	b = append(b, `,"model":`...)
	b = appendString(b, model)
	switch {
	case route == Completions:
		b = append(b, `,"choices":[{"index":0,"text":""`...)
	case first:
		b = append(b, `,"choices":[{"index":0,"delta":{"role":"assistant","content":""}`...)
	default:
		b = append(b, `,"choices":[{"index":0,"delta":{"content":""}`...)
	}
	return append(b, `,"logprobs":null,"finish_reason":null}]}`+"\n\n"...)
}

// Canned is a complete answer without a backend, in one piece: each of choices
// (prompts × n) says text and stops, and nothing was used. In a chat that asked for
// structured output the text stands under refusal, which is where the API says why
// there is none: clients would fail to parse it as content. View.Stream makes a
// stream of it.
func Canned(route Route, id, model string, created time.Time, choices int, structured bool, text string) []byte {
	said := appendString(nil, text)
	object, before, after := `"chat.completion"`, `"message":{"role":"assistant","content":`, `,"refusal":null}`
	switch {
	case route == Completions:
		object, before, after = `"text_completion"`, `"text":`, ``
	case structured:
		before, after = `"message":{"role":"assistant","content":null,"refusal":`, `}`
	}
	b := append(make([]byte, 0, 256+choices*(len(said)+128)), `{"id":`...)
	b = appendString(b, id)
	b = append(append(append(b, `,"object":`...), object...), `,"created":`...)
	b = strconv.AppendInt(b, created.Unix(), 10)
	b = appendString(append(b, `,"model":`...), model)
	b = append(b, `,"choices":[`...)
	for i := range choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"index":`...), int64(i), 10)
		b = append(append(append(append(b, ','), before...), said...), after...)
		b = append(b, `,"logprobs":null,"finish_reason":"stop"}`...)
	}
	return append(b, `],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}`...)
}

// appendString writes s as a JSON string; what is not UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
