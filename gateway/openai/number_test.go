package openai

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestInteger(t *testing.T) {
	for raw, want := range map[string]int64{"0": 0, "-0": 0, "16": 16, "16.0": 16, "16.000": 16, "-3": -3, "999999999999999999": 999999999999999999,
		"1e3": 1000, "1E2": 100, "1e+05": 100_000, "1.5e1": 15, "100e-2": 1, "0.0e9": 0, "0e-99": 0, "1.20e+1": 12,
		"9223372036854775807": math.MaxInt64, "9223372036854775808": math.MaxInt64, "-9223372036854775808": -math.MaxInt64,
		"1e0000000004": 10_000, "1e+0000000004": 10_000, "10e-0000000001": 1, "1e-0000000000": 1, "1e99999999999999999999999": math.MaxInt64, "0e-99999999999999999999999": 0,
		"1e400": math.MaxInt64, "-1e400": -math.MaxInt64, "1e999999999999999999": math.MaxInt64, "0e999999999999999999": 0,
		"1000000000000000000000000e-20": 10_000, "1" + strings.Repeat("0", 1000): math.MaxInt64, "1" + strings.Repeat("0", 1000) + "e-1000": 1} {
		if n, ok := integer([]byte(raw)); !ok || n != want {
			t.Errorf("integer %s = %d, %v", raw, n, ok)
		}
	}
	for _, raw := range []string{"", "-", "1.5", "16.01", "1.55e1", "1e-1", "1e-000000001", "1e-0000000001", "1e-99999999999999999999999", "1e+-5", "1e--5", "1e++5", "1e", "1e+", "e1", ".5", "1.", "1e1.0", "--1", "true", "null", `"1"`, "[1]", "{}", "12345678901234567890e-10"} {
		if n, ok := integer([]byte(raw)); ok {
			t.Errorf("integer %s = %d", raw, n)
		}
	}
}

// TestIntegerIsExact: whatever the spelling of a number, integer reads what math/big does.
func TestIntegerIsExact(t *testing.T) {
	digits := func(most int) *rapid.Generator[string] {
		return rapid.StringOfN(rapid.SampledFrom([]rune("0000123456789")), 1, most, -1)
	}
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SampledFrom([]string{"", "-"}).Draw(t, "sign")
		if whole := strings.TrimLeft(digits(25).Draw(t, "whole"), "0"); whole != "" {
			raw += whole
		} else {
			raw += "0"
		}
		if rapid.Bool().Draw(t, "pointed") {
			raw += "." + digits(25).Draw(t, "fraction")
		}
		if rapid.Bool().Draw(t, "with exponent") {
			raw += rapid.SampledFrom([]string{"e", "E"}).Draw(t, "e") + rapid.SampledFrom([]string{"", "+", "-"}).Draw(t, "exponent's sign") +
				strings.Repeat("0", rapid.IntRange(0, 20).Draw(t, "zeros")) + fmt.Sprint(rapid.IntRange(0, 60).Draw(t, "exponent"))
		}
		exact, ok := new(big.Rat).SetString(raw)
		if !ok || !json.Valid([]byte(raw)) {
			t.Fatalf("%s is no number", raw)
		}
		n, whole := integer([]byte(raw))
		if whole != exact.IsInt() {
			t.Fatalf("integer %s = %d, %v; it is %s", raw, n, whole, exact)
		}
		if !whole {
			return
		}
		want, most := exact.Num(), big.NewInt(math.MaxInt64)
		if want.CmpAbs(most) > 0 {
			want = most.Mul(most, big.NewInt(int64(want.Sign())))
		}
		if want.Cmp(big.NewInt(n)) != 0 {
			t.Fatalf("integer %s = %d, want %s", raw, n, want)
		}
	})
}

// TestPlainNumbers: a number that the gateway has read reaches the server in plain digits,
// so that both go by the same one; all others stay as they are written.
func TestPlainNumbers(t *testing.T) {
	for _, c := range []struct {
		route    Route
		in, want string // members beside the model and the prompt
	}{
		{Chat, `"max_tokens":16,"n":2,"seed":-7`, `"max_tokens":16,"n":2,"seed":-7`},
		{Chat, `"max_tokens":1e0000000004`, `"max_tokens":10000`},
		{Chat, `"max_tokens":5,"max_completion_tokens":16.0`, `"max_tokens":5,"max_completion_tokens":16`},
		{Chat, `"max_tokens":99999999999`, `"max_tokens":2147483647`},
		{Chat, `"max_tokens":1e400`, `"max_tokens":2147483647`},
		{Chat, `"n":2e0`, `"n":2`},
		{Chat, `"seed":-7e+01`, `"seed":-70`},
		{Chat, `"seed":1e18`, `"seed":1000000000000000000`},
		{Chat, `"extra_body":{"max_tokens":1.6e1}`, `"max_tokens":16`},
		{Chat, `"thinking_budget":1e2`, `"thinking_token_budget":100`},
		{Chat, `"temperature":7e-1`, `"temperature":7e-1`},
		{Chat, `"stop_token_ids":[ 1 , 1e+05,2.0 ]`, `"stop_token_ids":[ 1 , 100000,2 ]`},
		{Chat, `"allowed_token_ids":[1,2]`, `"allowed_token_ids":[1,2]`},
		{Chat, `"logit_bias":{"5":1e1,"1e2":-1.5}`, `"logit_bias":{"5":1e1,"100":-1.5}`},
		{Completions, `"prompt":[1e0000000004,7,7.0]`, `"prompt":[10000,7,7]`},
		{Completions, `"prompt":[[1],[2e1, 3]]`, `"prompt":[[1],[20, 3]]`},
		{Chat, `"max_tokens":"100","n":" +2 ","seed":"-7"`, `"max_tokens":100,"n":2,"seed":-7`},
		{Chat, `"max_tokens":true,"min_tokens":"3.0"`, `"max_tokens":1,"min_tokens":"3.0"`},
		{Chat, `"stream":"TRUE","add_generation_prompt":"off","continue_final_message":1`, `"stream":true,"add_generation_prompt":false,"continue_final_message":true`},
		{Chat, `"stream":1.0,"echo":"n"`, `"stream":true,"echo":false`},
		{Chat, `"thinking_budget":"7","truncate_prompt_tokens":"-1"`, `"truncate_prompt_tokens":-1,"thinking_token_budget":7`},
		{Chat, `"enable_thinking":"no"`, `"chat_template_kwargs":{"enable_thinking":false}`},
		{Chat, `"stop_token_ids":["1", 2.0 ,"3"]`, `"stop_token_ids":[1, 2 ,3]`},
		{Completions, `"prompt":[[true,"2"]],"max_tokens":"0","echo":"yes"`, `"prompt":[[1,2]],"max_tokens":0,"echo":true`},
		{Completions, `"prompt":["1e1"],"logprobs":1e0,"echo":true`, `"prompt":["1e1"],"logprobs":1,"echo":true`},
	} {
		more := `"messages":[{"role":"user","content":"1e1"}],`
		if c.route == Completions {
			more = ""
		}
		q := parse(t, c.route, `{"model":"m",`+more+c.in+`}`)
		if _, err := q.Translate(8); err != nil {
			t.Errorf("%s: %v", c.in, err)
		}
		if err := q.CheckTokens(151936); err != nil {
			t.Errorf("%s: %v", c.in, err)
		}
		if got, want := string(q.Bytes()), `{"model":"m",`+more+c.want+`}`; got != want {
			t.Errorf("%s: %s, want %s", c.in, got, want)
		}
	}
}

// TestLenient reads texts and booleans as pydantic 2.14 does in its lax mode, which vLLM's
// request models use: what is listed was taken by it, or not.
func TestLenient(t *testing.T) {
	for raw, want := range map[string]int64{`"100"`: 100, `" 100 "`: 100, `"+100"`: 100, `"-1"`: -1, `"1_000"`: 1000, `"100.0"`: 100, `"0100"`: 100, `true`: 1, `false`: 0,
		`1`: 1, `0.0`: 0, `"0"`: 0, `"-0"`: 0, `"1.0"`: 1, `"\u0031"`: 1, `"1111111111111111111111111111111"`: math.MaxInt64} {
		if n, ok := lenientInteger([]byte(raw)); !ok || n != want {
			t.Errorf("%s = %d, %v", raw, n, ok)
		}
	}
	for _, raw := range []string{`"1e2"`, `"0x10"`, `""`, `" "`, `"abc"`, `"100."`, `".5"`, `"1.5"`, `"--1"`, `"+-1"`, `"_1"`, `"1_"`, `"1__0"`, `"true"`, `"١"`, `"NaN"`, `null`, `[]`, `{}`, `"1 0"`, `1.5`} {
		if n, ok := lenientInteger([]byte(raw)); ok {
			t.Errorf("%s = %d", raw, n)
		}
	}
	for raw, want := range map[string]bool{`true`: true, `1`: true, `1.0`: true, `"true"`: true, `"TRUE"`: true, `"yes"`: true, `"on"`: true, `"t"`: true, `"y"`: true, `"1"`: true,
		`false`: false, `0`: false, `0e5`: false, `"False"`: false, `"no"`: false, `"off"`: false, `"f"`: false, `"n"`: false, `"0"`: false} {
		if got, ok := lenientBoolean([]byte(raw)); !ok || got != want {
			t.Errorf("%s = %v, %v", raw, got, ok)
		}
	}
	for _, raw := range []string{`2`, `-1`, `" true"`, `"2"`, `"1.0"`, `""`, `null`, `[]`, `{}`, `0.5`, `"auto"`} {
		if got, ok := lenientBoolean([]byte(raw)); ok {
			t.Errorf("%s = %v", raw, got)
		}
	}
}

// TestByteOrderMark: what some programs put before the text is no part of it.
func TestByteOrderMark(t *testing.T) {
	q, err := ParseRequest(Chat, []byte("\uFEFF{\"model\":\"m\"}"))
	if err != nil || string(q.Bytes()) != `{"model":"m"}` {
		t.Errorf("%v", err)
	}
	for _, body := range []string{"\xff\xfe{\x00}\x00", "\xfe\xff\x00{\x00}"} {
		if _, err := ParseRequest(Chat, []byte(body)); err == nil || !strings.Contains(err.Message, "UTF-16") {
			t.Error(err)
		}
	}
	for _, body := range []string{"\uFEFF\uFEFF{}", "{\uFEFF}", "\uFEFF"} {
		if _, err := ParseRequest(Chat, []byte(body)); err == nil {
			t.Errorf("%q", body)
		}
	}
}

// TestEchoAlone: a completion that wants its prompt back keeps its max_tokens 0 through
// every level, and one token is what it can take.
func TestEchoAlone(t *testing.T) {
	const body = `{"model":"m","prompt":"one two","max_tokens":0,"echo":true,"logprobs":1}`
	q := parse(t, Completions, body)
	w, err := q.Translate(8)
	if err != nil || w.MaxTokens != 1 || !w.ScoresPrompt {
		t.Fatalf("%+v, %v", w, err)
	}
	if got := q.MakeUnary(50); got != 1 {
		t.Error(got)
	}
	if got := q.LimitTokens(1); got != 1 || string(q.Bytes()) != body {
		t.Errorf("%d, %s", got, q.Bytes())
	}
}
