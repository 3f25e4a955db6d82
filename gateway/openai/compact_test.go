package openai

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"weak"
)

// TestCompact checks that a request means the same after Compact, and holds no more
// than it needs.
func TestCompact(t *testing.T) {
	blanks := strings.Repeat(" \n\t\r", 50_000)
	for _, c := range []struct {
		name, body string
		most       int // bytes that may be held after
	}{
		{"white space around", blanks + `{"model":"m"}` + blanks, 100},
		{"white space inside", `{"model":"m",` + blanks + `"messages":[` + blanks + `{"role" : "user", "content":"a  b\\" } ]}`, 200},
		{"escaped names", `{"mod\u0065l":"m","\u0061\u0062":1,"gone":"` + strings.Repeat("x", 100_000) + `","last":2}`, 200},
		{"deleted", `{"model":"m","gone":"` + strings.Repeat("x", 100_000) + `"}`, 100},
		{"white space in text stays", `{"model":"m","prompt":"` + strings.Repeat(" ", 100_000) + `\"  \\"}`, 101_000},
		{"nested", `{"model":"m","extra_body":{"a":[1, 2,` + blanks + `{"b":"\\\" \\\\"}]},"gone":1}`, 200},
		{"replaced", `{"model":"m","prompt":[1` + strings.Repeat(",2.0", 30_000) + `]}`, 61_000},
		{"replaced by more", `{"model":"m","prompt":[1` + strings.Repeat(",1e5", 30_000) + `]}`, 211_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := []byte(c.body)
			q, fault := ParseRequest(Completions, body)
			if fault == nil {
				fault = q.CheckTokens(151936)
			}
			if fault != nil {
				t.Fatal(fault)
			}
			q.Delete("gone")
			want := bytes.Clone(q.Bytes())
			before := weak.Make(&body[0])
			held := q.Compact()
			if runtime.GC(); before.Value() != nil {
				t.Error("the old body is still held")
			}
			if held > c.most || held != cap(q.Bytes()) {
				t.Errorf("%d bytes are held, expected %d at most", held, c.most)
			}
			same(t, want, q.Bytes())
			q.Set("model", []byte(`"other"`)) // it can still be edited
			if name, _, _ := q.Text("model"); name != "other" {
				t.Errorf("the model is %q", name)
			}
			if !json.Valid(q.Bytes()) {
				t.Errorf("no JSON any more: %.200s", q.Bytes())
			}
		})
	}
}

// same checks that two JSON texts differ in white space between tokens alone.
func same(t *testing.T, want, got []byte) {
	t.Helper()
	var a, b bytes.Buffer
	if err := json.Compact(&a, want); err != nil {
		t.Fatal(err)
	}
	if err := json.Compact(&b, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Errorf("got %.200s\nwant %.200s", b.Bytes(), a.Bytes())
	}
}

// FuzzCompact holds Compact against encoding/json on any body.
func FuzzCompact(f *testing.F) {
	f.Add([]byte(`{"a": "b c\\", "d" :[ 1 , {"e":" \" "} ]}`))
	f.Add([]byte("{\"a\\u0020 b\":\t\"\\\\\",\"x\":{ } }"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) == 0 {
			return
		}
		padded := append(bytes.Repeat([]byte(" "), smallBody+looseBytes), body...)
		q, fault := ParseRequest(Chat, padded)
		if fault != nil || !json.Valid(padded) {
			return
		}
		want := bytes.Clone(q.Bytes())
		q.Compact()
		same(t, want, q.Bytes())
	})
}
