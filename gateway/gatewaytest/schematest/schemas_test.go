package schematest

import "testing"

func TestExceptions(t *testing.T) {
	s, err := NewSchemas()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		def, body      string
		strict, vllmOK bool
	}{
		{"ErrorResponse", `{"error":{"message":"m","type":"t","param":null,"code":"c"}}`, true, true},
		{"ErrorResponse", `{"error":{"message":"m","type":"t","param":null,"code":400}}`, false, true},
		{"ErrorResponse", `{"error":{"message":"m","type":"t"}}`, false, false},
		{"ErrorResponse", `{"error":"Unauthorized"}`, false, false},
		{"CreateChatCompletionResponse", `{"id":"a","object":"chat.completion","created":1,"model":"m","system_fingerprint":null,"choices":[{"index":0,"finish_reason":"stop","logprobs":{"content":[]},"message":{"role":"assistant","content":"x","refusal":null,"function_call":null,"annotations":null}}]}`, false, true},
		{"CreateChatCompletionResponse", `{"id":"a","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"abort","logprobs":null,"message":{"role":"assistant","content":"x","refusal":null}}]}`, false, false},
		{"CreateCompletionResponse", `{"id":"a","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":null,"logprobs":null,"text":"x"}]}`, false, true},
		{"NoSuchDefinition", `{}`, false, false},
		{"ErrorResponse", `{`, false, false},
	} {
		if err := s.Strict(c.def, []byte(c.body)); (err == nil) != c.strict {
			t.Errorf("strict %s: %v", c.body, err)
		}
		if err := s.Check(c.def, []byte(c.body)); (err == nil) != c.vllmOK {
			t.Errorf("check %s: %v", c.body, err)
		}
	}
}
