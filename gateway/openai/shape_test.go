package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk/jsontest"
)

// slow is a tap that never learns a shape.
func slow(v View, route Route) *Tap {
	return &Tap{View: v, Route: route, NewTally: newWords, shapes: maxShapes}
}

// sameAsSlow passes events through both taps and compares what is seen of each,
// the errors and the usage after each.
func sameAsSlow(t interface{ Fatalf(string, ...any) }, v View, route Route, events []string) (fitted int) {
	fast, long := &Tap{View: v, Route: route, NewTally: newWords}, slow(v, route)
	for i, e := range events {
		apart := &Tap{shape: fast.shape, choices: slices.Clone(fast.choices)}
		for i := range apart.choices {
			apart.choices[i].estimate = nil // it would count for both
		}
		if _, ok := apart.matchShape(nil, []byte(e)); ok {
			fitted++
		}
		out1, err1 := fast.Event(nil, []byte(e))
		out2, err2 := long.Event(nil, []byte(e))
		if string(out1) != string(out2) || fmt.Sprint(err1) != fmt.Sprint(err2) {
			t.Fatalf("%+v, event %d %s\nlearnt: %q, %v\nslow:   %q, %v", v, i, e, out1, err1, out2, err2)
		}
		u1, estimated1 := fast.Usage()
		u2, estimated2 := long.Usage()
		if u1 != u2 || estimated1 != estimated2 || fast.Faults() != long.Faults() || fast.Done() != long.Done() {
			t.Fatalf("%+v, event %d %s\nlearnt: %+v, %v\nslow:   %+v, %v", v, i, e, u1, estimated1, u2, estimated2)
		}
		if err1 != nil {
			break
		}
	}
	return fitted
}

// TestShapesChangeNothing streams chunks that resemble each other, in many ways,
// through a tap that learns and one that does not.
func TestShapesChangeNothing(t *testing.T) {
	deltas := []string{
		`{"content":%s}`, `{"content":%s}`, `{"content":%s}`, `{"reasoning":%s}`, `{"reasoning_content":%s}`, `{"reasoning":%s,"reasoning_content":%[1]s}`,
		`{"content":%s,"tool_calls":[]}`, `{"content":%s,"reasoning":null}`, `{"reasoning":null, "content": %s }`, `{"role":"assistant","content":%s}`,
		`{"content":null,"reasoning":%s}`, `{"content":null,"tool_calls":[{"index":0,"function":{"arguments":%s}}]}`, `{"content":%s,"content":%[1]s}`, `{}`,
	}
	usages := []string{
		``, `,"usage":null`, `,"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":%d}`, `,"usage":{"prompt_tokens":%d,"total_tokens":9,"completion_tokens":%[1]d}`,
		`,"usage":{"prompt_tokens":9,"completion_tokens":%d,"completion_tokens_details":{"reasoning_tokens":2}}`,
		`,"usage":{"prompt_tokens":9,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":4}},"model":"late"`, `,"usage":5`,
	}
	rapid.Check(t, func(t *rapid.T) {
		v, route := drawView(t), Route(rapid.IntRange(0, 1).Draw(t, "route"))
		kinds := rapid.SliceOfN(rapid.IntRange(0, len(deltas)-1), 1, 3).Draw(t, "kinds") // few, so that they repeat
		used := rapid.SliceOfN(rapid.IntRange(0, len(usages)-1), 1, 2).Draw(t, "usages")
		var events []string
		for i := range rapid.IntRange(1, 20).Draw(t, "events") {
			text := rapid.SampledFrom([]string{`"a"`, `""`, `"\u0041\n"`, `"\"}"`, `"reasoning"`, `null`, placeholder, `"é` + "\u2028" + `"`, `"bad` + "\x01" + `"`, `5`}).Draw(t, "text")
			if rapid.IntRange(0, 3).Draw(t, "plain") > 0 {
				text = jsontest.String(t)
			}
			d := deltas[kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")]]
			if strings.Contains(d, "%") {
				d = fmt.Sprintf(d, text)
			}
			behind := usages[used[rapid.IntRange(0, len(used)-1).Draw(t, "usage")]]
			if strings.Contains(behind, "%d") {
				behind = fmt.Sprintf(behind, i)
			}
			index := rapid.SampledFrom([]int{0, 0, 0, 0, 0, 1}).Draw(t, "index")
			finish := rapid.SampledFrom([]string{"null", "null", "null", "null", "null", "null", "null", `"stop"`, `"repetition"`, `"abort"`}).Draw(t, "finish")
			e := delta(index, d, finish, behind)
			if route == Completions {
				e = strings.Replace(e, `"delta":`+d, `"text":`+text, 1)
			}
			events = append(events, e)
		}
		sameAsSlow(t, v, route, append(events, lastChunk, "[DONE]"))
	})
}

// TestShapesThatDoNotFit: chunks that differ from the one before in one place.
func TestShapesThatDoNotFit(t *testing.T) {
	learnt := delta(0, `{"content":"a","reasoning":null}`, `null`, spent(9, 1))
	counted := delta(0, `{"reasoning":"a"}`, `null`, `,"usage":{"prompt_tokens":9,"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":3}}`)
	for name, next := range map[string]string{
		"empty text": delta(0, `{"content":"","reasoning":null}`, `null`, spent(9, 2)), "text null": delta(0, `{"content":null,"reasoning":null}`, `null`, spent(9, 2)),
		"a bad text": delta(0, "{\"content\":\"\x01\",\"reasoning\":null}", `null`, spent(9, 2)), "a text and more": delta(0, `{"content":"a","x":1,"reasoning":null}`, `null`, spent(9, 2)),
		"another choice": delta(1, `{"content":"a","reasoning":null}`, `null`, spent(9, 2)), "the end": delta(0, `{"content":"a","reasoning":null}`, `"stop"`, spent(9, 2)),
		"no usage": delta(0, `{"content":"a","reasoning":null}`, `null`, ``), "usage null": delta(0, `{"content":"a","reasoning":null}`, `null`, `,"usage":null`),
		"more behind": delta(0, `{"content":"a","reasoning":null}`, `null`, spent(9, 2)+`,"error":{"message":"x"}`), "junk behind": learnt + "x", "cut": learnt[:len(learnt)-1],
		"cut in the usage": learnt[:len(learnt)-3], "another prompt": delta(0, `{"content":"a","reasoning":null}`, `null`, spent(8, 2)), "nothing": "", "done": "[DONE]", "the last": lastChunk,
	} {
		for _, hide := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				sameAsSlow(t, View{HideReasoning: hide, Model: "qwen"}, Chat, []string{learnt, next, learnt})
			})
		}
	}
	sameAsSlow(t, View{}, Chat, []string{delta(0, `{"reasoning":"a"}`, `null`, spent(9, 1)), counted, delta(0, `{"reasoning":"a"}`, `null`, spent(9, 5))})
}

// TestShapesAreUsed: an ordinary stream goes the short way, else it is in vain.
func TestShapesAreUsed(t *testing.T) {
	for _, v := range []View{{Model: "qwen"}, {Model: "qwen", IncludeUsage: true}, {Reasoning: OnlyReasoning}, {Reasoning: OnlyReasoningContent}} {
		events := []string{delta(0, `{"role":"assistant","content":""}`, `null`, spent(9, 0))}
		for i := range 50 {
			events = append(events, delta(0, fmt.Sprintf(`{"reasoning":"r%d"}`, i), `null`, spent(9, i)))
		}
		for i := range 50 {
			events = append(events, delta(0, fmt.Sprintf(`{"content":"c%d"}`, i), `null`, spent(9, 50+i)))
		}
		events = append(events, delta(0, `{"content":""}`, `"stop"`, spent(9, 100)), lastChunk, "[DONE]")
		if n := sameAsSlow(t, v, Chat, events); n != 98 {
			t.Errorf("%+v: %d of 100 alike", v, n)
		}
	}
}

// FuzzTap: whatever a server sends, what goes on is whole events of valid JSON,
// and what was learnt of earlier ones changes nothing.
func FuzzTap(f *testing.F) {
	add := func(events ...string) { f.Add(uint8(0), strings.Join(events, "\x00")) }
	add(delta(0, `{"role":"assistant","content":""}`, `null`, spent(9, 0)), delta(0, `{"reasoning":"a"}`, `null`, spent(9, 2)), delta(0, `{"reasoning":"b"}`, `null`, spent(9, 3)),
		delta(0, `{"content":"c"}`, `null`, spent(9, 4)), delta(0, `{"content":"d"}`, `"repetition"`, spent(9, 5)), lastChunk, "[DONE]")
	add(`{"choices":[{"index":0,"text":"a"}],"usage":{}}`, `{"choices":[{"index":0,"text":"b"}],"usage":{}}`, `{"error":{"message":"x","code":400}}`)
	add(`{"error":"x"}`, `{"choices":[{"index":1,"delta":null,"finish_reason":"abort"}]}`)
	add("{\n\"usage\" : {} , \"choices\":[ {\"delta\":{\"reasoning\":\"a\",\"reasoning_content\":\"b\"}}]\n}", `{"model":1,"choices":[]}`)
	f.Fuzz(func(t *testing.T, setting uint8, joined string) {
		v := View{HideReasoning: setting&1 > 0, IncludeUsage: setting&6 > 0, ContinuousUsage: setting&6 > 2, Reasoning: Names(setting>>3&3) % 3}
		if setting&32 > 0 {
			v.Model = "qwen"
		}
		route := Route(setting >> 6 & 1)
		events := strings.Split(strings.ReplaceAll(joined, "\r", ""), "\x00") // a scanner leaves no CR
		sameAsSlow(t, v, route, events)
		tap := Tap{View: v, Route: route, NewTally: newWords}
		for _, e := range events {
			out, err := tap.Event(nil, []byte(e))
			var stream *StreamError
			if err != nil {
				if len(out) > 0 || !errors.Is(err, ErrGarbage) && !errors.Is(err, ErrUnfinished) && !errors.As(err, &stream) {
					t.Fatalf("%q, %v", out, err)
				}
				break
			}
			if len(out) == 0 {
				continue
			}
			before, ok := strings.CutSuffix(string(out), "\n\n")
			for _, event := range strings.Split(before, "\n\n") { // the end may have the usage before it
				data, ok2 := strings.CutPrefix(event, "data: ")
				if !ok || !ok2 || strings.Contains(data, "\n") || data != "[DONE]" && !json.Valid([]byte(data)) {
					t.Fatalf("%q makes %q", e, out)
				}
			}
		}
		if u, _ := tap.Usage(); tap.Done() && len(tap.choices) == 0 {
			t.Fatalf("done without an answer: %+v", u)
		}
	})
}
