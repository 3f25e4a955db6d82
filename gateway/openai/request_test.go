package openai

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk"
	"tidegate/gateway/jsonwalk/jsontest"
)

func parse(t *testing.T, route Route, body string) *Request {
	t.Helper()
	q, err := ParseRequest(route, []byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return q
}

// TestEditsKeepTheRest makes random edits and compares with the same edits on a
// list of members: what was not edited stays byte for byte.
func TestEditsKeepTheRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var names, values []string
		var model []jsontest.Pair
		for i := range rapid.IntRange(0, 8).Draw(t, "members") {
			raw := fmt.Sprintf(`"k%d%s`, i, jsontest.String(t)[1:])
			name, _ := jsonwalk.Text([]byte(raw))
			names, values = append(names, raw), append(values, jsontest.Value(t, 3))
			model = append(model, jsontest.Pair{Name: name, Value: values[i]})
		}
		body := jsontest.Space(t) + jsontest.Object(t, names, values) + jsontest.Space(t)
		q, err := ParseRequest(Chat, []byte(body))
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if string(q.Bytes()) != body {
			t.Fatalf("not edited, yet %s became %s", body, q.Bytes())
		}
		for range rapid.IntRange(0, 6).Draw(t, "edits") {
			name := rapid.SampledFrom([]string{"model", "n", "max_tokens", "new"}).Draw(t, "name")
			if len(model) > 0 && rapid.Bool().Draw(t, "known") {
				name = model[rapid.IntRange(0, len(model)-1).Draw(t, "which")].Name
			}
			at := slices.IndexFunc(model, func(p jsontest.Pair) bool { return p.Name == name })
			if rapid.Bool().Draw(t, "delete") {
				q.Delete(name, "never there")
				if at >= 0 {
					model = slices.Delete(model, at, at+1)
				}
				continue
			}
			if at < 0 && strings.HasPrefix(name, "k") {
				continue // Set is given plain names
			}
			value := jsontest.Value(t, 2)
			if q.Set(name, []byte(value)); at < 0 {
				model = append(model, jsontest.Pair{Name: name, Value: value})
			} else {
				model[at].Value = value
			}
		}
		for _, p := range model {
			if raw, ok := q.Raw(p.Name); ok == (p.Value == "null") || ok && string(raw) != p.Value {
				t.Fatalf("Raw(%q) = %s, %v; want %s", p.Name, raw, ok, p.Value)
			}
		}
		out := q.Bytes()
		if got := jsontest.Pairs(t, out); !json.Valid(out) || !slices.Equal(got, model) {
			t.Fatalf("%s\ngot  %q\nwant %q", out, got, model)
		}
		again, err := ParseRequest(Chat, out)
		if err != nil || string(again.Bytes()) != string(out) {
			t.Fatalf("%s does not parse to itself: %v", out, err)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"k%d":0`, i)
		}
		return b.String()[1:]
	}
	for name, c := range map[string]struct{ body, param, says string }{
		"nothing":                  {``, "", "not a JSON object"},
		"no object":                {`[1]`, "", "not a JSON object"},
		"a string":                 {`"model"`, "", "not a JSON object"},
		"cut":                      {`{"model":"a"`, "", "end of JSON"},
		"something behind":         {`{"model":"a"} {}`, "", "not a JSON object"},
		"too deep":                 {`{"a":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`, "", "nested"},
		"no UTF-8":                 {"{\"model\":\"\xff\"}", "", "UTF-8"},
		"no UTF-8 in a key":        {"{\"\xc3\x28\":1}", "", "UTF-8"},
		"twice":                    {`{"model":"a","n":1,"model":"b"}`, "model", "twice"},
		"twice, second escaped":    {`{"model":"a","mod\u0065l":"b"}`, "model", "twice"},
		"twice, first escaped":     {`{"mod\u0065l":"a","model":"b"}`, "model", "twice"},
		"twice, both escaped":      {`{"mod\u0065l":"a","\u006dodel":"b"}`, "model", "twice"},
		"twice, capital hex":       {`{"max_tokens":1,"max\u005Ftokens":2}`, "max_tokens", "twice"},
		"twice, unknown":           {`{"é":1,"\u00e9":1}`, "é", "twice"},
		"too many":                 {`{` + many(maxMembers+1) + `}`, "", "more than"},
		"extra_body no object":     {`{"extra_body":[1]}`, "extra_body", "object"},
		"extra_body a string":      {`{"extra_body":"{}"}`, "extra_body", "object"},
		"too many with extra_body": {`{` + many(maxMembers-1) + `,"extra_body":{"x":1,"y":2}}`, "extra_body", "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRequest(Chat, []byte(c.body))
			if err == nil || err.Param != c.param || !strings.Contains(err.Message, c.says) {
				t.Fatalf("%+v", err)
			}
			if err.Code != "invalid_request" || err.Type != "invalid_request_error" || !json.Valid(err.Body()) {
				t.Errorf("%+v", err)
			}
		})
	}
	parse(t, Chat, `{`+many(maxMembers)+`}`)
	parse(t, Chat, `{"Model":"a","model":"b","models":"c","":1}`)
}

func TestExtraBody(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"merged":              {`{"model":"a","extra_body":{"top_k":20,"x":{"y": 1}}}`, `{"model":"a","top_k":20,"x":{"y": 1}}`},
		"wins":                {`{"extra_body":{"n":2},"n":1}`, `{"n":2}`},
		"wins over escaped":   {`{"\u006e":1,"extra_body":{"n":2}}`, `{"\u006e":2}`},
		"the last of it wins": {`{"extra_body":{"n":2,"n":3}}`, `{"n":3}`},
		"null is none":        {`{"n":1,"extra_body":null}`, `{"n":1,"extra_body":null}`},
		"empty":               {`{"n":1,"extra_body":{}}`, `{"n":1}`},
		"alone":               {`{"extra_body":{ }}`, `{}`},
		"long integers":       {`{"extra_body":{"seed":12345678901234567890}}`, `{"seed":12345678901234567890}`},
		"odd keys":            {`{"extra_body":{"\u0001\u000b":1,"\u00ad":2,"é":3,"` + "\U000e0001" + `":4,"\"":5}}`, `{"\u0001\u000b":1,"\u00ad":2,"é":3,"` + "\U000e0001" + `":4,"\"":5}`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(parse(t, Chat, c.body).Bytes()); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestAccessors(t *testing.T) {
	q := parse(t, Chat, `{"s":"x\u0041","i":16.0,"neg":-1,"big":1e3,"t":true,"f":false,"z":null,"o":{}}`)
	if s, ok, err := q.Text("s"); s != "xA" || !ok || err != nil {
		t.Error(s, ok, err)
	}
	if n, ok, err := q.Int("i", 16); n != 16 || !ok || err != nil {
		t.Error(n, ok, err)
	}
	if b, ok, err := q.Bool("t"); !b || !ok || err != nil {
		t.Error(b, ok, err)
	}
	if b, ok, err := q.Bool("f"); b || !ok || err != nil {
		t.Error(b, ok, err)
	}
	for _, absent := range []string{"z", "nothing"} {
		if _, ok, err := q.Text(absent); ok || err != nil {
			t.Error(absent, ok, err)
		}
		if _, ok, err := q.Int(absent, 0); ok || err != nil {
			t.Error(absent, ok, err)
		}
		if _, ok, err := q.Bool(absent); ok || err != nil {
			t.Error(absent, ok, err)
		}
	}
	for _, wrong := range []string{"i", "t", "o"} {
		if _, ok, err := q.Text(wrong); ok || err == nil || err.Param != wrong {
			t.Error(wrong, ok, err)
		}
	}
	for _, wrong := range []string{"s", "o", "neg"} {
		if _, ok, err := q.Int(wrong, 0); ok || err == nil || err.Param != wrong {
			t.Error(wrong, ok, err)
		}
	}
	if n, ok, err := q.Int("big", 0); n != 1000 || !ok || err != nil {
		t.Error("big", n, ok, err)
	}
	for _, huge := range []string{"2147483648", "1e10", "99999999999999999999", "1e999999"} {
		if n, ok, err := parse(t, Chat, `{"n":`+huge+`}`).Int("n", 0); n != math.MaxInt32 || !ok || err != nil {
			t.Error(huge, n, ok, err)
		}
	}
	for _, wrong := range []string{"s", "i", "o"} {
		if _, ok, err := q.Bool(wrong); ok || err == nil || err.Param != wrong {
			t.Error(wrong, ok, err)
		}
	}
}

// TestNames: a name is known however it is written, and no long one is read at all.
func TestNames(t *testing.T) {
	q := parse(t, Chat, `{"\u006dodel":"m","extra_body":{"m\u006fdel":"n","\u0078":1}}`)
	if s, ok, err := q.Text("model"); s != "n" || !ok || err != nil {
		t.Error(s, ok, err)
	}
	if string(q.Bytes()) != `{"\u006dodel":"n","\u0078":1}` {
		t.Errorf("%s", q.Bytes())
	}
	for name, good := range map[string]bool{
		strings.Repeat("n", 256): true, strings.Repeat("n", 257): false, strings.Repeat(`\u006e`, 256): true, strings.Repeat(`\u006e`, 257): false,
		strings.Repeat("é", 128): true, strings.Repeat("é", 129): false, strings.Repeat(`\u006e`, 100_000): false,
	} {
		for _, body := range []string{`{"` + name + `":1}`, `{"extra_body":{"` + name + `":1}}`} {
			if _, err := ParseRequest(Chat, []byte(body)); (err == nil) != good || err != nil && len(err.Message) > 300 {
				t.Errorf("%.50s, %d bytes: %v", body, len(name), err)
			}
		}
	}
	if _, err := ParseRequest(Chat, []byte(`{"a":1,"\u0061":2}`)); err == nil || err.Param != "a" {
		t.Error(err)
	}
}

func TestPrompts(t *testing.T) {
	for raw, want := range map[string][]Prompt{
		`"hello"`:         {{Text: "hello"}},
		`""`:              {{Text: ""}},
		`"a\u0041"`:       {{Text: "aA"}},
		`["a"]`:           {{Text: "a"}},
		`["a", "" ,"c"]`:  {{Text: "a"}, {Text: ""}, {Text: "c"}},
		`[1,2,3]`:         {{Tokens: 3}},
		`[0]`:             {{Tokens: 1}},
		`[true,1e1]`:      {{Tokens: 2}},
		`[["1","2"]]`:     {{Tokens: 2}},
		`[1,2,3,4,5,6]`:   {{Tokens: 6}},
		`[[1,2],[3]]`:     {{Tokens: 2}, {Tokens: 1}},
		`[ [1] , [2,3] ]`: {{Tokens: 1}, {Tokens: 2}},
	} {
		if got, err := Prompts([]byte(raw), 5); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", raw, got, err)
		}
	}
	for _, raw := range []string{`[]`, `[[]]`, `[1,"a"]`, `["a",1]`, `[[1],2]`, `[1.5]`, `[null]`, `[{}]`, `{"a":1}`, `1`, `true`, `["a",[]]`, `["a",[1]]`, `[["a"]]`, `[[1,[2]]]`, `[[1.5]]`,
		`["a","a","a","a","a","a"]`, `[[1],[1],[1],[1],[1],[1]]`} {
		if got, err := Prompts([]byte(raw), 5); err == nil || err.Param != "prompt" {
			t.Errorf("%s: %v, %v", raw, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(rapid.String(), 1, 5).Draw(t, "texts")
		raw, _ := json.Marshal(texts)
		got, err := Prompts(raw, 5)
		if err != nil || len(got) != len(texts) {
			t.Fatalf("%s: %v, %v", raw, got, err)
		}
		for i := range got {
			if got[i] != (Prompt{Text: texts[i]}) {
				t.Fatalf("%s: %v", raw, got)
			}
		}
	})
}

// FuzzParse: whatever comes in, what goes out is valid JSON without what callers
// may not say, and says the same when it is read again.
func FuzzParse(f *testing.F) {
	for _, c := range translations() {
		f.Add(c.route == Completions, []byte(c.body))
	}
	for _, s := range jsontest.Seeds(200)[:40] {
		f.Add(false, []byte(`{"model":"m","messages":[{"role":"developer"}],"extra_body":`+s+`}`))
	}
	for _, m := range []string{`{"reasoning_content":"a","role":"x"}`, `{ "re\u0061soning" : null , "reasoning_content":"a","reasoning":"b"}`, `{"reasoning_content":null}, {"reasoning":"r","reasoning":null}`} {
		f.Add(false, []byte(`{"model":"m","chat_template_kwargs":{"enable_thinking":null,"a":1},"reasoning_effort":"none","messages":[`+m+`]}`))
	}
	f.Fuzz(func(t *testing.T, completions bool, body []byte) {
		route := Chat
		if completions {
			route = Completions
		}
		q, fault := ParseRequest(route, body)
		if fault == nil {
			if !json.Valid(body) || !utf8.Valid(body) || !json.Valid(q.Bytes()) {
				t.Fatalf("%q was let pass as %q", body, q.Bytes())
			}
			var w Wish
			if w, fault = q.Translate(8); fault == nil {
				checkTranslated(t, q, w)
				q.RenameReasoning("reasoning_content") // as for an older server
				if !json.Valid(q.Bytes()) {
					t.Fatalf("%q becomes %q for an older server", body, q.Bytes())
				}
			}
		}
		if fault != nil && (!json.Valid(fault.Body()) || fault.Message == "") {
			t.Fatalf("%+v", fault)
		}
	})
}

func checkTranslated(t *testing.T, q *Request, w Wish) {
	out := q.Bytes()
	if !json.Valid(out) || !utf8.Valid(out) {
		t.Fatalf("makes %q", out)
	}
	if w.Model == "" || w.N < 1 || w.N > 8 || w.MaxTokens < 0 || w.ContinuousUsage && !w.IncludeUsage || w.IncludeUsage && !w.Stream {
		t.Fatalf("%+v", w)
	}
	if q.index("extra_body") >= 0 { // one inside another means nothing, here as there
		return
	}
	again, fault := ParseRequest(q.Route, out)
	if fault != nil {
		t.Fatalf("%s: %v", out, fault)
	}
	gone := []string{"guided_json", "guided_regex", "return_reasoning", "include_reasoning"}
	for _, m := range Members() {
		if m.Use == Stripped || m.Use == Refused {
			gone = append(gone, m.Name)
		}
	}
	for _, name := range gone {
		if again.index(name) >= 0 {
			t.Fatalf("%s is left in %s", name, out)
		}
	}
	second, fault := again.Translate(8)
	w.HideReasoning = false // is the gateway's to do, and was taken out
	if fault != nil || second != w {
		t.Fatalf("%s: %+v, then %+v, %v", out, w, second, fault)
	}
	if q.Route == Chat {
		messages, _ := again.Raw("messages")
		for e := jsonwalk.Elements(messages); e.Next(); {
			if m := e.Value(); strings.Contains(string(m), strconv.Quote("developer")) {
				if role, _ := jsonwalk.Text(jsonwalk.Find(m, "role")); role == "developer" {
					t.Fatalf("%s keeps its role", m)
				}
			}
		}
	}
}
