package admin

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// TestStrictBodies holds that a body of administration says one thing to every reader.
func TestStrictBodies(t *testing.T) {
	for body, want := range map[string]string{
		`{"User":"ann"}`:                           "unknown field `User`: write it user",
		`{"user":"ann","User":"bob"}`:              "unknown field `User`: write it user",
		`{"user":"ann","user":"ann"}`:              "`user` stands twice",
		`{"user":"ann","\u0075ser":"bob"}`:         "`user` stands twice",
		`{"user":"a\u0000b"}`:                      "user: holds the character NUL",
		`{"user":"ann","models":["a","b\u0000"]}`:  "models[1]: holds the character NUL",
		`{"user":"ann","models":[{"a":1,"a":2}]}`:  "`models[0].a` stands twice",
		"{\"user\":\"a\xff\"}":                     "no valid UTF-8",
		`{"user":"ann","colour":1}`:                "unknown field `colour`",
		`{"user":"ann"} {}`:                        "nothing after it",
		`{"models":` + strings.Repeat("[", 50_000): "more than 8 lists and objects",
		strings.Repeat(`{"user":`, 50_000):         "more than 8 lists and objects",
		`{"` + strings.Repeat("u", 300) + `":1}`:   "a name of more than 256 bytes",
		`{"user":"ann"`:                            "no valid JSON",
		`{"user":"ann",}`:                          "no valid JSON",
		``:                                         "no valid JSON",
		`[[[[[`:                                    "no valid JSON",
		`{"user":["ann"]}`:                         "user: expected text, not array",
		`"ann"`:                                    "the body: expected an object, not string",
		`{"user":"ann","admin":1}`:                 "admin: expected true or false",
	} {
		var n account.NewKey
		err := decodeStrict([]byte(body), &n)
		if r := (*refusal.Refusal)(nil); !errors.As(err, &r) || r.Status != 400 || !strings.Contains(r.Message, want) {
			t.Errorf("%s: %v; expected %s", body, err, want)
		}
	}
	var n account.NewKey
	if err := decodeStrict([]byte(`{"user":"ann","models":["a","a"],"ttl":null}`), &n); err != nil || n.User != "ann" || len(n.Models) != 2 {
		t.Error(n, err)
	}
}

// FuzzStrictBodies holds that what is taken is what every other reader of JSON takes.
func FuzzStrictBodies(f *testing.F) {
	for _, body := range []string{`{"user":"ann"}`, `{"rule":"r","of":"user","burst":5}`, `{"user":"\ud800"}`, `{"user":null}`, `[1,{"a":{}}]`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var n account.NewKey
		if decodeStrict(body, &n) != nil {
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			t.Fatal("took what is no object")
		}
		for name := range members {
			if name != strings.ToLower(name) {
				t.Errorf("took the member %q", name)
			}
		}
		if strings.ContainsRune(n.User+n.Name+strings.Join(n.Models, ""), 0) {
			t.Errorf("took NUL: %q", body)
		}
	})
}
