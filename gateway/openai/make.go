package openai

import (
	"strconv"
	"time"
)

// KeepAlive is a chunk that says nothing, for callers that give up on a silent
// stream: an empty delta, which every client reads right (a chunk without
// choices breaks naive loops). The first of a stream carries the role.
func KeepAlive(route Route, id, model string, created time.Time, first bool) []byte {
	b := append(make([]byte, 0, 256), `data: {"id":`...)
	b = strconv.AppendQuote(b, id)
	if route == Completions {
		b = append(b, `,"object":"text_completion","created":`...)
	} else {
		b = append(b, `,"object":"chat.completion.chunk","created":`...)
	}
	b = strconv.AppendInt(b, created.Unix(), 10)
	b = append(b, `,"model":`...)
	b = strconv.AppendQuote(b, model)
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
