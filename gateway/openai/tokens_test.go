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
