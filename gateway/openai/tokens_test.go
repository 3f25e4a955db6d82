package openai

import (
	"strings"
	"testing"
)

// TestCheckTokens: an id without a row in the vocabulary reaches no engine, wherever it
// stands, and one with a row does.
func TestCheckTokens(t *testing.T) {
	const vocabulary = 151936
	chat := func(more string) string {
		return `{"model":"m","messages":[{"role":"user","content":"hi"}],` + more + `}`
	}
	for _, c := range []struct {
		route Route
		body  string
		param string // empty: it is taken
	}{
		{Completions, `{"model":"m","prompt":[-1]}`, "prompt"},
		{Completions, `{"model":"m","prompt":[0,151935]}`, ""},
		{Completions, `{"model":"m","prompt":[151936]}`, "prompt"},
		{Completions, `{"model":"m","prompt":[1,2,99999999999999999999]}`, "prompt"},
		{Completions, `{"model":"m","prompt":[1e99]}`, "prompt"},
		{Completions, `{"model":"m","prompt":[[1,2],[3,-4]]}`, "prompt"},
		{Completions, `{"model":"m","prompt":[[1,2],[3,4]]}`, ""},
		{Completions, `{"model":"m","prompt":[[1,[2]]]}`, "prompt"},
		{Completions, `{"model":"m","prompt":["-1"]}`, ""},
		{Completions, `{"model":"m","prompt":[{}]}`, "prompt"},
		{Completions, `{"model":"m","prompt":["hi"],"stop_token_ids":[-1]}`, "stop_token_ids"},
		{Completions, `{"model":"m","prompt":["hi","ho"],"allowed_token_ids":[151936]}`, "allowed_token_ids"},
		{Completions, `{"model":"m","prompt":["hi"],"logprob_token_ids":[-1]}`, "logprob_token_ids"},
		{Completions, `{"model":"m","prompt":["hi"],"logit_bias":{"-1":1}}`, "logit_bias"},
		{Completions, `{"model":"m","prompt":"hi","stop_token_ids":[-1]}`, "stop_token_ids"},
		{Completions, `{"model":"m","prompt":[1],"stop_token_ids":[-1]}`, "stop_token_ids"},
		{Completions, `{"model":"m","prompt":["hi"],"stop_token_ids":[1]}`, ""},
		{Completions, `{"model":"m","prompt":"-1"}`, ""},
		{Chat, chat(`"prompt":[-1]`), ""}, // a chat has none
		{Chat, chat(`"stop_token_ids":[151645]`), ""},
		{Chat, chat(`"stop_token_ids":[]`), ""},
		{Chat, chat(`"stop_token_ids":null`), ""},
		{Chat, chat(`"stop_token_ids":[-1]`), "stop_token_ids"},
		{Chat, chat(`"stop_token_ids":[1.5]`), "stop_token_ids"},
		{Chat, chat(`"stop_token_ids":["x"]`), "stop_token_ids"},
		{Chat, chat(`"stop_token_ids":[[1]]`), "stop_token_ids"},
		{Chat, chat(`"stop_token_ids":151645`), "stop_token_ids"},
		{Chat, chat(`"stop\u005ftoken_ids":[-1]`), "stop_token_ids"},
		{Chat, chat(`"extra_body":{"stop_token_ids":[-1]}`), "stop_token_ids"},
		{Chat, chat(`"allowed_token_ids":[1,151936]`), "allowed_token_ids"},
		{Chat, chat(`"logprob_token_ids":[200000]`), "logprob_token_ids"},
		{Chat, chat(`"logit_bias":{"50256":-100}`), ""},
		{Chat, chat(`"logit_bias":{"151936":-100}`), "logit_bias"},
		{Chat, chat(`"logit_bias":{"-1":1}`), "logit_bias"},
		{Chat, chat(`"logit_bias":{"x":1}`), "logit_bias"},
		{Chat, chat(`"logit_bias":{"` + strings.Repeat("9", 5000) + `":1}`), "logit_bias"},
		{Chat, chat(`"logit_bias":[1]`), "logit_bias"},
	} {
		err := parse(t, c.route, c.body).CheckTokens(vocabulary)
		if (err == nil) != (c.param == "") || err != nil && (err.Param != c.param || err.Code != "invalid_request" || len(err.Message) > 200) {
			t.Errorf("%.100s: %v", c.body, err)
		}
	}
}

// TestOutOfVocabulary: a refusal names each wrong key of logit_bias, up to 8, and the size
// of the vocabulary, in vLLM's words.
func TestOutOfVocabulary(t *testing.T) {
	const vocabulary = 151936
	chat := func(bias string) string {
		return `{"model":"m","messages":[{"role":"user","content":"hi"}],"logit_bias":{` + bias + `}}`
	}
	for _, c := range []struct {
		route Route
		body  string
		want  string
	}{
		{Completions, `{"model":"m","prompt":[1,999999]}`, "prompt: 999999 is out of vocabulary: the 151936 token ids go from 0 to 151935"},
		{Chat, chat(`"151937":1`), `logit_bias: "151937" is out of vocabulary: the 151936 token ids go from 0 to 151935`},
		{Chat, chat(`"bad1":50,"7":1,"bad2":20`), `logit_bias: "bad1", "bad2" are out of vocabulary: the 151936 token ids go from 0 to 151935`},
		{Chat, chat(`"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1`),
			`logit_bias: "a", "b", "c", "d", "e", "f", "g", "h" and 2 more are out of vocabulary: the 151936 token ids go from 0 to 151935`},
	} {
		if err := parse(t, c.route, c.body).CheckTokens(vocabulary); err == nil || err.Message != c.want {
			t.Errorf("%s: %v, want %s", c.body, err, c.want)
		}
	}
}
