package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Behaviour says what the mock answers. It is immutable once in use; a new one
// replaces the old one as a whole, and running streams finish with the old.
type Behaviour struct {
	Model   string
	Content int           // bytes of text in a non-stream answer
	Chunks  int           // content chunks in a stream
	TTFT    time.Duration // wait before the first byte of any answer
	Delay   time.Duration // wait between two content chunks
	Status  int           // HTTP status of a completion; not 200 answers an error

	answer []byte   // a whole non-stream response, headers included
	head   []byte   // response headers of a stream
	events [][]byte // role event and content events, each one HTTP chunk
	usage  []byte   // usage event
	done   []byte   // data: [DONE] and the end of the body
}

// DefaultBehaviour returns the behaviour of a short answer without any delay.
func DefaultBehaviour() Behaviour {
	return Behaviour{Model: "mock-model", Content: 400, Chunks: 20, Status: 200}
}

// Parse returns a copy with the query parameters model, content, chunks,
// ttft, delay and status.
func (b Behaviour) Parse(q url.Values) (Behaviour, error) {
	var err error
	num := func(key string, target *int) {
		if v := q.Get(key); v != "" && err == nil {
			*target, err = strconv.Atoi(v)
		}
	}
	dur := func(key string, target *time.Duration) {
		if v := q.Get(key); v != "" && err == nil {
			*target, err = time.ParseDuration(v)
		}
	}
	if v := q.Get("model"); v != "" {
		b.Model = v
	}
	num("content", &b.Content)
	num("chunks", &b.Chunks)
	num("status", &b.Status)
	dur("ttft", &b.TTFT)
	dur("delay", &b.Delay)
	if err == nil && (b.Content < 0 || b.Chunks < 1 || b.Status < 200 || b.Status > 599 || b.TTFT < 0 || b.Delay < 0) {
		err = fmt.Errorf("a setting is out of range: %s", q.Encode())
	}
	return b, err
}

const (
	promptTokens = 16
	created      = 1_700_000_000
	answerID     = "chatcmpl-0123456789abcdef0123456789abcdef"
)

type object = map[string]any

// render prepares every byte that the mock will send.
func (b Behaviour) render() *Behaviour {
	usage := func(n int) object {
		return object{"prompt_tokens": promptTokens, "completion_tokens": n, "total_tokens": promptTokens + n, "prompt_tokens_details": nil}
	}
	event := func(choices []object, usage any) []byte {
		e := object{"id": answerID, "object": "chat.completion.chunk", "created": created, "model": b.Model, "choices": choices}
		if usage != nil {
			e["usage"] = usage
		}
		return httpChunk("data: " + compact(e) + "\n\n")
	}
	delta := func(d object, finish any) []object {
		return []object{{"index": 0, "delta": d, "logprobs": nil, "finish_reason": finish}}
	}

	b.events = [][]byte{event(delta(object{"role": "assistant", "content": ""}, nil), nil)}
	for i := range b.Chunks {
		var finish any
		if i == b.Chunks-1 {
			finish = "stop"
		}
		b.events = append(b.events, event(delta(object{"content": " token"}, finish), nil))
	}
	b.usage = event([]object{}, usage(b.Chunks))
	b.done = append(httpChunk("data: [DONE]\n\n"), "0\r\n\r\n"...)
	b.head = []byte("HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n" +
		"cache-control: no-cache\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n")

	body := compact(object{
		"id": answerID, "object": "chat.completion", "created": created, "model": b.Model,
		"choices": []object{{
			"index":         0,
			"message":       object{"role": "assistant", "content": strings.Repeat("lorem ip", b.Content/8+1)[:b.Content], "tool_calls": []any{}},
			"logprobs":      nil,
			"finish_reason": "stop", "stop_reason": nil,
		}},
		"usage": usage(b.Content/4 + 1), "prompt_logprobs": nil,
	})
	if b.Status != 200 {
		body = compact(object{"object": "error", "message": "mock error", "type": "MockError", "param": nil, "code": b.Status})
	}
	b.answer = httpResponse(b.Status, body)
	return &b
}

func compact(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // only plain maps of plain values come here
	}
	return string(raw)
}

func httpChunk(data string) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data) }

func httpResponse(status int, body string) []byte {
	var w bytes.Buffer
	fmt.Fprintf(&w, "HTTP/1.1 %d Mock\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", status, len(body), body)
	return w.Bytes()
}
