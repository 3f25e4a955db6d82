package jsonwalk

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// benchEvent is the data of a stream event as vLLM sends it, with usage.
const benchEvent = `{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"qwen3-32b","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":16,"total_tokens":200,"completion_tokens":184}}`

// benchRequest returns the body of a chat of about 1 KiB.
func benchRequest() string {
	return `{"model":"qwen3-32b","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"` +
		strings.Repeat("Is this a word? \\n", 42) + `"}],"stream":true,"stream_options":{"include_usage":true},"temperature":0.7,"top_p":0.8,"max_tokens":512}`
}

// figures are what is read out of a benchEvent, and fields out of a benchRequest.
type figures struct {
	Usage struct {
		Input  int `json:"prompt_tokens"`
		Output int `json:"completion_tokens"`
	} `json:"usage"`
}

type fields struct {
	Model     string `json:"model"`
	Stream    bool   `json:"stream"`
	MaxTokens int    `json:"max_tokens"`
}

func walkEvent(raw []byte) (f figures, err error) {
	w := Members(raw)
	for w.Next() {
		if string(w.Key) != "usage" || !w.Enter('{') {
			continue
		}
		for w.Next() {
			switch string(w.Key) {
			case "prompt_tokens":
				f.Usage.Input, err = strconv.Atoi(string(w.Value()))
			case "completion_tokens":
				f.Usage.Output, err = strconv.Atoi(string(w.Value()))
			}
			if err != nil {
				return f, err
			}
		}
	}
	return f, w.Err()
}

// walkRequest also refuses bytes that are not UTF-8 and a member that comes twice, as
// openai.ParseRequest does.
func walkRequest(raw []byte) (f fields, err error) {
	if !utf8.Valid(raw) {
		return f, errors.New("not UTF-8")
	}
	var seen [16][]byte
	n := 0
	w := Members(raw)
	for w.Next() {
		for _, key := range seen[:n] {
			if string(key) == string(w.Key) {
				return f, errors.New("twice")
			}
		}
		if n == len(seen) {
			return f, errors.New("too many members")
		}
		seen[n] = w.Key
		n++
		switch string(w.Key) {
		case "model":
			f.Model, _ = Text(w.Value())
		case "stream":
			f.Stream = string(w.Value()) == "true"
		case "max_tokens":
			if f.MaxTokens, err = strconv.Atoi(string(w.Value())); err != nil {
				return f, err
			}
		}
	}
	return f, w.Err()
}

func benchmarkReader[T comparable](b *testing.B, text string, want T, read func([]byte) (T, error)) {
	b.Helper()
	raw := []byte(text)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if got, err := read(raw); err != nil || got != want {
			b.Fatal(got, err)
		}
	}
}

func wantFigures() (f figures) {
	f.Usage.Input, f.Usage.Output = 16, 184
	return f
}

func wantFields() fields { return fields{"qwen3-32b", true, 512} }

func decode[T any](raw []byte) (v T, err error) { return v, json.Unmarshal(raw, &v) }

func BenchmarkEvent(b *testing.B) {
	b.Run("walker", func(b *testing.B) { benchmarkReader(b, benchEvent, wantFigures(), walkEvent) })
	b.Run("json", func(b *testing.B) { benchmarkReader(b, benchEvent, wantFigures(), decode[figures]) })
}

func BenchmarkRequest(b *testing.B) {
	b.Run("walker", func(b *testing.B) { benchmarkReader(b, benchRequest(), wantFields(), walkRequest) })
	b.Run("json", func(b *testing.B) { benchmarkReader(b, benchRequest(), wantFields(), decode[fields]) })
}

// BenchmarkLongString passes over an object with a string of 32 KiB.
func BenchmarkLongString(b *testing.B) {
	text := `{"role":"user","content":"` + strings.Repeat("word ", 6554) + `"}`
	b.Run("walker", func(b *testing.B) {
		benchmarkReader(b, text, 2, func(raw []byte) (n int, err error) {
			w := Members(raw)
			for w.Next() {
				n++
			}
			return n, w.Err()
		})
	})
	b.Run("borders", func(b *testing.B) {
		benchmarkReader(b, text, 2, func(raw []byte) (n int, err error) {
			err = EachMember(raw, func(_, _ []byte) error { n++; return nil })
			return n, err
		})
	})
}
