package jsonwalk

import "testing"

func TestScalars(t *testing.T) {
	for raw, want := range map[string]string{`""`: "", `"a"`: "a", `"\u0041\n"`: "A\n", `"é"`: "é", "\"\xff\"": "\ufffd", `"\ud83d\ude00"`: "\U0001f600"} {
		if s, ok := Text([]byte(raw)); !ok || s != want {
			t.Errorf("text %s = %q, %v", raw, s, ok)
		}
	}
	for _, raw := range []string{``, `"`, `1`, `null`, `{}`, `[]`} {
		if s, ok := Text([]byte(raw)); ok || s != "" {
			t.Errorf("text %s = %q", raw, s)
		}
	}
	if v := Find([]byte(`{"a":1,"\u0061":2,"b":3}`), "a"); string(v) != "2" {
		t.Errorf("of members of one name find takes %s", v)
	}
	for _, raw := range []string{``, `[]`, `"a"`, `{"b":1}`, `{`} {
		if v := Find([]byte(raw), "a"); v != nil {
			t.Errorf("find in %q = %s", raw, v)
		}
	}
	for raw, name := range map[string]string{`\u0061b`: "ab", `a\u0062`: "ab", `\n\/\"\\`: "\n/\"\\", `\u00e9\ud83d\uDE00`: "é😀", `\ud83d`: "\ufffd", `\ud83dx`: "\ufffdx"} {
		if !KeyIs([]byte(raw), name) || KeyIs([]byte(raw), name+"a") || KeyIs([]byte(raw+"a"), name) || KeyIs([]byte(raw), "") || KeyIs([]byte(raw), name[1:]) {
			t.Errorf("keyIs %s, %q", raw, name)
		}
	}
	if KeyIs([]byte(`a\u0062`), "a") || KeyIs([]byte("ab"), "a") || !KeyIs([]byte(`\u0061`), "a") {
		t.Error("keyIs")
	}
}
