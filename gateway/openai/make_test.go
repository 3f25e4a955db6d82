package openai

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestAnnounce checks where the notice stands in answers of all shapes.
func TestAnnounce(t *testing.T) {
	const note = `"tidegate":{"level":"L3","reason":"gpu_temperature","served":"small"}`
	n := Notice{"L3", "gpu_temperature", "small"}
	for _, c := range [][2]string{
		{`{"id":"a","choices":[]}`, `{"id":"a","choices":[],` + note + `}`},
		{`{"id":"a","usage":{"prompt_tokens":1}}`, `{"id":"a","usage":{"prompt_tokens":1,` + note + `},` + note + `}`},
		{"{\"id\":\"a\",\"usage\":{\"prompt_tokens\":1\n}\n}", `{"id":"a","usage":{"prompt_tokens":1,` + note + "}\n," + note + "}"},
		{`{"id":"a","usage":{}}`, `{"id":"a","usage":{` + note + `},` + note + `}`},
		{`{"usage":null,"id":"a"}`, `{"usage":null,"id":"a",` + note + `}`},
		// Another gateway stands behind this one, and says something else.
		{`{"id":"a","usage":{"tidegate":{"level":"L1"}},"tidegate":{"level":"L1"}}`, `{"id":"a","usage":{` + note + `},` + note + `}`},
		{`{"tidegate":{"level":"L1"},"id":"a"}`, `{"id":"a",` + note + `}`},
		{`[]`, `[]`},
		{`{"id":`, `{"id":`},
	} {
		if got := string(AddNotice([]byte(c[0]), n)); got != c[1] {
			t.Errorf("%s: %s", c[0], got)
		}
	}
}

// TestNoticeInStream checks that a stream made of an answer has the notice too, in its chunks and
// in the usage.
func TestNoticeInStream(t *testing.T) {
	body := AddNotice([]byte(`{"id":"a","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}`), Notice{"L1", "queue", "m"})
	events, err := View{IncludeUsage: true}.Stream(nil, Chat, body, "")
	if err != nil {
		t.Fatal(err)
	}
	chunks := strings.Split(strings.TrimSuffix(string(events), "\n\n"), "\n\n")
	for _, c := range chunks[:len(chunks)-1] {
		if !strings.Contains(c, `"tidegate":{"level":"L1","reason":"queue","served":"m"}`) {
			t.Error(c)
		}
	}
	if last := chunks[len(chunks)-2]; !strings.Contains(last, `"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1,"tidegate":{`) {
		t.Error(last)
	}
}

// FuzzAnnounce holds that an answer stays the JSON that it was, but for the notice.
func FuzzAnnounce(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"usage":{"tidegate":1,"a":2,"tidegate":3},"tidegate":4}`, "{ \"usage\" : { } , \"usage\":{\"x\":[]} }", `{"usage":{"a":1 }}`, `{"a":{"b":`, `{"usage":`, `{"tidegate":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var before, after map[string]any
		got := AddNotice(append([]byte(nil), body...), Notice{"L2", "pin", "m\"\n"})
		if json.Unmarshal(body, &before) != nil || string(got) == string(body) {
			return
		}
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%q: %q: %v", body, got, err)
		}
		note, ok := after[noticeName].(map[string]any)
		if !ok || note["level"] != "L2" || note["served"] != "m\"\n" {
			t.Errorf("%q: %q", body, got)
		}
		if usage, ok := after["usage"].(map[string]any); ok && usage[noticeName] == nil {
			t.Errorf("%q: %q", body, got)
		}
	})
}
