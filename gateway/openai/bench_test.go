package openai

import (
	"bytes"
	"strings"
	"testing"
)

func BenchmarkTap(b *testing.B) {
	plain := []byte(`{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"mock-model","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}`)
	usage := []byte(`{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"mock-model","choices":[{"index":0,"delta":{"reasoning":" token"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":16,"total_tokens":200,"completion_tokens":184}}`)
	run := func(name string, tap *Tap, data []byte) {
		b.Run(name, func(b *testing.B) {
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if out, err = tap.Event(out[:0], data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	v := View{Model: "mock-model"}
	run("plain", &Tap{View: v}, plain)
	run("usage+reasoning", &Tap{View: v}, usage)
	run("usage+reasoning/slow", slow(v, Chat), usage)
}

func BenchmarkScanner(b *testing.B) {
	s := newScanner(&endless{text: bytes.Repeat([]byte("data: "+strings.Repeat("x", 250)+"\n\n"), 100)})
	b.ReportAllocs()
	b.SetBytes(258)
	for b.Loop() {
		if _, err := s.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAndTranslate(b *testing.B) {
	body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 400) + `"}],"stream":true,"stream_options":{"include_usage":true},"temperature":0.7,"max_tokens":100,"enable_thinking":false}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		q, err := ParseRequest(Chat, body)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := q.Translate(8); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLevels(b *testing.B) {
	body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 400) + `"}],"stream":true,"stream_options":{"include_usage":true},"temperature":0.7,"max_tokens":4096,"chat_template_kwargs":{"enable_thinking":true,"other":1}}`)
	run := func(name string, edit func(q *Request)) {
		b.Run(name, func(b *testing.B) {
			q, err := ParseRequest(Chat, body)
			if err != nil {
				b.Fatal(err)
			}
			var fields []member
			fields = append(fields, q.fields...)
			b.ReportAllocs()
			for b.Loop() {
				q.fields = append(q.fields[:0], fields...)
				edit(q)
			}
		})
	}
	run("whole", func(q *Request) { q.MakeUnary(2048) })
	run("thinking", func(q *Request) { q.StopThinking() })
	run("needs", func(q *Request) { q.Needs() })
	run("language", func(q *Request) { Language("", q, []string{"en", "zh"}) })
}

func BenchmarkStream(b *testing.B) {
	for name, text := range map[string]string{
		"1KiB": strings.Repeat("word ", 200), "100KiB": strings.Repeat("word ", 20<<10), "100KiB/escapes": strings.Repeat(`\n\t\u00e9 `, 10<<10), "1MiB": strings.Repeat("word ", 200<<10),
	} {
		answer := unaryAnswer("stop", `{"role":"assistant","content":"`+text+`","tool_calls":[]}`)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(answer)))
			for b.Loop() {
				if _, err := (View{IncludeUsage: true}).Stream(nil, Chat, answer, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
