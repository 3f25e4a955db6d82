package openai

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestQuick(t *testing.T) {
	for _, s := range []string{`{}`, `{"a":1}`, ` {"a" : [1,2,{"b":null}] , "c":"x\"y"} `, `{"a":1,}`, `{"a":1`, `{"a":01}`, `{"a":-}`, `{"a":1e5}`, "{\"a\":\"\x01\"}", `{"a":"\u12g4"}`, `{"a":tru}`, `{} x`} {
		w := members([]byte(s))
		for w.next() {
			w.value()
		}
		if (w.failure() == nil) != json.Valid([]byte(s)) {
			t.Errorf("%s: %v", s, w.failure())
		}
	}
	in := "data: a\n\ndata: b\r\n\r\n: c\n\ndata:d\rdata: e\r\rdata: [DONE]\n\n"
	sc := NewScanner(iotest.OneByteReader(strings.NewReader(in)))
	var got []string
	for {
		d, err := sc.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(d))
	}
	if strings.Join(got, "|") != "a|b|d\ne|[DONE]" {
		t.Errorf("%q", got)
	}
}

func BenchmarkTap(b *testing.B) {
	data := []byte(`{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"mock-model","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}`)
	usage := []byte(`{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"mock-model","choices":[{"index":0,"delta":{"reasoning":" token"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":16,"total_tokens":200,"completion_tokens":184}}`)
	for name, d := range map[string][]byte{"plain": data, "usage+reasoning": usage} {
		b.Run(name, func(b *testing.B) {
			tap := Tap{View: View{Model: "mock-model"}}
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				out, err = tap.Event(out[:0], d)
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
