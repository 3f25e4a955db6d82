package openai

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk/jsontest"
)

func TestLanguage(t *testing.T) {
	said := func(content string) string {
		return `{"messages":[{"role":"user","content":"Привет"},{"role":"user","content":` + content + `},{"role":"assistant","content":"สวัสดี"}]}`
	}
	all := []string{"zh", "en", "ja", "ko", "ru", "ar", "he", "el", "hi", "th"}
	for _, c := range []struct {
		accept, body string
		have         []string
		want         string
	}{
		{"", `{}`, nil, ""},
		{"en", `{}`, []string{}, ""},
		{"", `{}`, []string{"zh", "en"}, "en"},
		{"", `{}`, []string{"zh", "fr"}, "fr"},
		{"", `{}`, []string{"en-GB", "zh"}, "en-GB"},
		{"zh", `{}`, all, "zh"},
		{"zh-CN,zh;q=0.9,en;q=0.8", `{}`, all, "zh"},
		{"ZH-cn", `{}`, all, "zh"},
		{"zh-Hant-TW", `{}`, []string{"en", "zh", "zh-Hant"}, "zh-Hant"},
		{"zh", `{}`, []string{"en", "zh-TW"}, "zh-TW"},
		{"zh-CN", `{}`, []string{"en", "zh-TW"}, "zh-TW"},
		{"en;q=0.2, fr;q=0.9, ja;q=0.5", `{}`, all, "ja"},
		{"en;q=0.5, ja;q=0.5", `{}`, all, "en"},
		{"xx, zhx", `{}`, all, "en"},
		{"*", said(`"こんにちは"`), all, "ja"},
		{"fr, *;q=0.1", said(`"你好"`), all, "zh"},
		{"zh;q=0", said(`"hello"`), all, "en"},
		{"zh;q=2, ja;q=NaN, ko;q=-1, ru;q=, ar;x=1, th;q=1e999", `{}`, all, "en"},
		{" ; , ,;q=1,", `{}`, all, "en"},
		{"ja ; q = 0.4 , ko;Q=0.3", `{}`, all, "ja"},
		{strings.Repeat("xx,", 1000) + "zh", `{}`, all, "en"},
		{"zh," + strings.Repeat("x", 1<<20), `{}`, all, "zh"},
		{strings.Repeat("zh", 1<<20), `{}`, all, "en"},
		{"", said(`"Hello"`), all, "en"},
		{"", said(`"你好"`), all, "zh"},
		{"", said(`"日本語で話して"`), all, "ja"},
		{"", said(`"カタカナ"`), all, "ja"},
		{"", said(`"漢字와 한글"`), all, "ko"},
		{"", said(`"مرحبا"`), all, "ar"},
		{"", said(`"שלום"`), all, "he"},
		{"", said(`"γειά"`), all, "el"},
		{"", said(`"नमस्ते"`), all, "hi"},
		{"", said(`"สวัสดี"`), all, "th"},
		{"", said(`"\u4f60\u597d"`), all, "zh"},
		{"", said(`"请解释 kubernetes deployment"`), all, "zh"},
		{"", said(`"` + strings.Repeat("a long text ", 30) + `你"`), all, "en"},
		{"", said(`"123 !?"`), all, "en"},
		{"", said(`"123 !?"`), []string{"zh", "fr"}, "fr"},
		{"", said(`"你好"`), []string{"en", "fr"}, "en"},
		{"", said(`[{"type":"image_url","image_url":{"url":"x"}},{"type":"text","text":"你好"},{"type":"text","text":"hello"}]`), all, "zh"},
		{"", said(`[]`), all, "en"},
		{"", said(`null`), all, "en"},
		{"", said(`5`), all, "en"},
		{"", said(`[5,[],{"text":6}]`), all, "en"},
		{"", said(`"` + strings.Repeat(`\ud83d\ude00`, 1000) + `你好"`), all, "en"},
		{"", `{"messages":[{"role":"user"},5,{"role":7,"content":"你好"}]}`, all, "en"},
		{"", `{"messages":5}`, all, "en"},
	} {
		have := slices.Clone(c.have)
		if got := Language(c.accept, parse(t, Chat, c.body), have); got != c.want || !slices.Equal(have, c.have) {
			t.Errorf("%.60q, %.120s, %v: %q; want %q", c.accept, c.body, c.have, got, c.want)
		}
	}
	for body, want := range map[string]string{
		`{"prompt":"你好"}`: "zh", `{"prompt":["你好","b"]}`: "zh", `{"prompt":[1,2]}`: "en", `{"prompt":[[1]]}`: "en", `{"messages":[{"role":"user","content":"你好"}]}`: "en",
	} {
		if got := Language("", parse(t, Completions, body), all); got != want {
			t.Errorf("%s: %q", body, got)
		}
	}
	if got := Language("", nil, all); got != "en" {
		t.Errorf("without a request: %q", got)
	}
}

// TestLanguageIsOneOfThem, whatever the caller sends.
func TestLanguageIsOneOfThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have := rapid.SliceOfN(rapid.StringMatching(`[a-z]{2}(-[A-Z]{2})?`), 1, 4).Draw(t, "have")
		accept := rapid.OneOf(rapid.String(), rapid.StringMatching(`([a-zA-Z*-]{0,5}(;q=[0-9.]{0,3})?,? ?){0,6}`)).Draw(t, "accept")
		body := fmt.Sprintf(`{"messages":[{"role":"user","content":%s}]}`, jsontest.Value(t, 2))
		q, fault := ParseRequest(Chat, []byte(body))
		if fault != nil {
			t.Fatal(fault)
		}
		if got := Language(accept, q, have); !slices.Contains(have, got) {
			t.Fatalf("%q: %q is none of %v", accept, got, have)
		}
	})
}

func TestCanned(t *testing.T) {
	at := time.Unix(1700000000, 0)
	const said = "Sorry,\n\"busy\" \\ 忙 \x00\xff"
	const raw = `"Sorry,\u000a\"busy\" \\ 忙 \u0000` + "\ufffd" + `"`
	chat := Canned(Chat, "chatcmpl-1", "qwen", at, 1, false, said)
	want := `{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"qwen","choices":[{"index":0,"message":{"role":"assistant","content":` + raw + `,"refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}`
	if string(chat) != want {
		t.Errorf("got  %s\nwant %s", chat, want)
	}
	completion := Canned(Completions, "cmpl-1", "qwen", at, 2, true, said)
	want = `{"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"qwen","choices":[{"index":0,"text":` + raw + `,"logprobs":null,"finish_reason":"stop"},{"index":1,"text":` + raw + `,"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}`
	if string(completion) != want {
		t.Errorf("got  %s\nwant %s", completion, want)
	}
	none := Canned(Chat, "chatcmpl-1", "qwen", at, 1, true, said)
	if !strings.Contains(string(none), `"message":{"role":"assistant","content":null,"refusal":`+raw+`}`) {
		t.Errorf("%s", none)
	}
	schemas := newSchemas(t)
	for _, body := range [][]byte{chat, none, completion} {
		route := Chat
		if string(body) == string(completion) {
			route = Completions
		}
		if err := schemas.Strict(wholeSchema(route), body); err != nil {
			t.Error(err)
		}
		if a, err := ReadAnswer(route, View{}, body, Bounds{}, nil); err != nil || a.Faults != 0 || a.Usage != (Usage{}) || string(a.Body) != string(body) {
			t.Errorf("%+v, %v", a, err)
		}
		for _, begun := range []string{"", "chatcmpl-0"} {
			events := streamed(t, View{IncludeUsage: true}, route, body, begun)
			for _, e := range events[:len(events)-1] {
				if err := schemas.Strict(streamSchema(route), []byte(e)); err != nil {
					t.Error(err)
				}
			}
		}
	}
}
