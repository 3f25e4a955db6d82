package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
	"tidegate/gateway/qwen"
	"tidegate/gateway/refusal"
)

// hostileSize is the size of a hostile body in bytes.
const hostileSize = 512 << 10

// escaped spells a name with a \u escape for each of its letters.
func escaped(name string) string {
	var b strings.Builder
	for _, r := range name {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return b.String()
}

// fill repeats what item makes until size bytes are reached, with commas between.
func fill(size int, item func(i int) string) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(item(i))
	}
	return b.String()
}

// ordinaryBody is a chat as people write it: the project's own pages, in messages.
func ordinaryBody(t testing.TB) []byte {
	t.Helper()
	names, err := filepath.Glob("../docs/*.md")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	var b bytes.Buffer
	b.WriteString(`{"model":"m","stream":true,"temperature":0.7,"max_tokens":256,"messages":[`)
	role := "user"
	for turn := 0; b.Len() < hostileSize; turn++ {
		text, err := os.ReadFile(names[turn%len(names)])
		if err != nil {
			t.Fatal(err)
		}
		for part := range slices.Chunk(bytes.ToValidUTF8(text, nil), 2000) {
			if b.Bytes()[b.Len()-1] != '[' {
				b.WriteByte(',')
			}
			b.WriteString(`{"role":"` + role + `","content":`)
			b.Write(quotedText(string(bytes.ToValidUTF8(part, nil))))
			b.WriteByte('}')
			role = map[string]string{"user": "assistant", "assistant": "user"}[role]
		}
	}
	b.WriteString(`,{"role":"user","content":"And now?"}]}`)
	return b.Bytes()
}

// quotedText is a JSON string.
func quotedText(s string) []byte {
	b := []byte{'"'}
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// hostile are bodies made to be slow to read, by name, each of about size bytes.
type hostile struct {
	size   int
	random *rand.Rand
	bodies map[string][]byte
}

func (b *hostile) add(name, body string) { b.bodies[name] = []byte(body) }

// chat adds a chat with more members.
func (b *hostile) chat(name, more string) {
	b.add(name, `{"model":"m","messages":[{"role":"user","content":"hi"}],`+more+"}")
}

// content adds a chat with a text, as it stands in JSON.
func (b *hostile) content(name, text string) {
	b.add(name, `{"model":"m","messages":[{"role":"user","content":"`+text+`"}]}`)
}

func (b *hostile) messages(name, list string) { b.add(name, `{"model":"m","messages":[`+list+`]}`) }

func (b *hostile) prompt(name, raw string) {
	b.add("completion: "+name, `{"model":"m","prompt":`+raw+`}`)
}

func (b *hostile) repeat(s string) string { return strings.Repeat(s, max(b.size/len(s), 1)) }

// draw is a text of characters from so many.
func (b *hostile) draw(from, count rune) string {
	var text strings.Builder
	for text.Len() < b.size {
		text.WriteRune(from + b.random.Int32N(count))
	}
	return text.String()
}

// hostileBodies are bodies made to be slow to read, each of about size bytes.
func hostileBodies(size int) map[string][]byte {
	b := &hostile{size, rand.New(rand.NewPCG(1, 2)), map[string][]byte{}}
	b.addNames()
	b.addStructures()
	b.addTexts()
	return b.bodies
}

func (b *hostile) addNames() {
	const names = 240
	long := escaped(strings.Repeat("n", b.size/names/6))
	b.chat("names: 240 long escaped", strings.TrimPrefix(fill(b.size, func(i int) string { return fmt.Sprintf(`"%s\u%04x":1`, long, i) }), ","))
	short := escaped(strings.Repeat("n", 40))
	b.chat("names: 250 escaped, then a long value", fill(250*250, func(i int) string { return fmt.Sprintf(`"%s\u%04x":1`, short, i) })+`,"x":"`+b.repeat("a ")+`"`)
	b.chat("names: 256 with one beginning", fill(240*258, func(i int) string { return fmt.Sprintf(`"%s%03d":1`, strings.Repeat("n", 250), i) }))
	b.chat("names: of extra_body", `"extra_body":{`+fill(250*250, func(i int) string { return fmt.Sprintf(`"%s\u%04x":1`, short, i) })+`}`)
	member := func(i int) string { return fmt.Sprintf(`"%s%d":1`, escaped("enable_thinkin"), i) }
	for _, name := range []string{"chat_template_kwargs", "structured_outputs", "response_format", "tool_choice", "reasoning", "thinking", "metadata", "logit_bias"} {
		kind := ""
		if name == "thinking" {
			kind = `"type":"enabled",`
		}
		b.chat("names: in "+name, `"`+name+`":{`+kind+fill(b.size, member)+`}`)
	}
	b.chat("names: in stream_options", `"stream":true,"stream_options":{`+fill(b.size, member)+`}`)
	b.messages("names: in one message", `{"role":"user","content":"hi",`+fill(b.size, member)+`}`)
	b.messages("names: escaped in all messages", fill(b.size, func(int) string {
		return fmt.Sprintf(`{"%s":"user","%s":"hi"}`, escaped("role"), escaped("content"))
	}))
	b.chat("names: in a tool", `"tools":[{"type":"function","function":{"name":"f",`+fill(b.size, member)+`}}]`)
	b.chat("names: the same in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":{`+fill(b.size, func(int) string { return `"a":1` })+`}}}]`)
	same := func(depth int, begin, end string) string {
		return strings.Repeat(begin, depth) + `"` + b.repeat("a ") + `"` + strings.Repeat(end, depth)
	}
	b.chat("names: the same at each depth", `"tools":[{"type":"function","function":{"name":"f","parameters":`+same(190, `{"a":0,"a":`, `}`)+`}}]`)
	b.chat("names: the same around each depth", `"tools":[{"type":"function","function":{"name":"f","parameters":`+same(190, `{"a":0,"b":`, `,"a":1}`)+`}}]`)
	b.messages("names: the same in arguments", `{"role":"assistant","tool_calls":[{"name":"f","arguments":`+string(quotedText(same(500, `{"a":0,"b":`, `,"a":1}`)))+`}]}`)
}

func (b *hostile) addStructures() {
	deep := strings.Repeat("[", 180) + strings.Repeat("]", 180)
	b.chat("deep arrays", `"metadata":[`+fill(b.size, func(int) string { return deep })+`]`)
	b.chat("deep arrays in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(b.size, func(int) string { return deep })+`]}}]`)
	b.chat("small arrays in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(b.size, func(int) string { return "[]" })+`]}}]`)
	b.chat("numbers in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(b.size, func(int) string { return "1e9" })+`]}}]`)
	b.chat("long numbers in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(b.size, func(int) string { return "1e15" })+`]}}]`)
	b.chat("a huge number in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":0.`+b.repeat("7")+`}}]`)
	b.chat("a huge max_tokens", `"max_tokens":1`+b.repeat("0"))
	b.chat("tools", `"tools":[`+fill(b.size, func(i int) string {
		return fmt.Sprintf(`{"type":"function","function":{"name":"f%d"}}`, i)
	})+`]`)
	b.chat("smallest tools", `"tools":[`+fill(b.size, func(int) string { return `{"function":{"name":""}}` })+`]`)
	b.chat("stop strings", `"stop":[`+fill(b.size, func(int) string { return `"a"` })+`]`)
	b.chat("bad words", `"bad_words":[`+fill(b.size, func(int) string { return `"a"` })+`]`)
	b.chat("token lists", `"stop_token_ids":[`+fill(b.size, func(int) string { return `1` })+`]`)
	b.chat("logit_bias", `"logit_bias":{`+fill(b.size, func(i int) string { return fmt.Sprintf(`"%d":1`, i) })+`}`)
	b.chat("white space", `"x":1`+b.repeat(" \n\t"))
	b.messages("messages", fill(b.size, func(int) string { return `{"role":"user","content":""}` }))
	b.messages("smallest messages", fill(b.size, func(int) string { return `{"role":""}` }))
	b.messages("tool results", fill(b.size, func(int) string { return `{"role":"tool"}` }))
	b.messages("assistants", fill(b.size, func(int) string { return `{"role":"assistant"}` }))
	b.messages("thoughts", fill(b.size, func(int) string { return `{"role":"assistant","content":"</think>"}` }))
	b.messages("developers", fill(b.size, func(int) string { return `{"role":"developer"}` }))
	b.messages("wrong messages", fill(b.size, func(int) string { return "1" }))
	b.messages("parts", `{"role":"user","content":[`+fill(b.size, func(int) string { return `{"type":"text","text":"a"}` })+`]}`)
	b.messages("parts that are strings", `{"role":"user","content":[`+fill(b.size, func(int) string { return `"a"` })+`]}`)
	b.messages("parts that are numbers", `{"role":"user","content":[`+fill(b.size, func(int) string { return `1` })+`]}`)
	b.messages("tool calls", `{"role":"assistant","tool_calls":[`+fill(b.size, func(int) string { return `{"name":"f"}` })+`]}`)
	b.messages("arguments in arguments", `{"role":"assistant","tool_calls":[{"name":"f","arguments":"{`+
		fill(b.size, func(int) string { return `\"a\":1` })+`}"}]}`)
	b.messages("not quite JSON arguments", `{"role":"assistant","tool_calls":[`+fill(b.size, func(int) string { return `{"name":"f","arguments":"[[[[[[[[["}` })+`]}`)
	b.prompt("token ids", `[`+fill(b.size, func(int) string { return "1" })+`]`)
	b.prompt("lists of token ids", `[`+fill(b.size, func(int) string { return "[1]" })+`]`)
	b.prompt("texts", `[`+fill(b.size, func(int) string { return `""` })+`]`)
	b.prompt("texts and lists", `[`+fill(b.size, func(int) string { return `"",[1]` })+`]`)
	b.prompt("empty lists", `[`+fill(b.size, func(int) string { return `[]` })+`]`)
	b.prompt("deep", `[`+fill(b.size, func(int) string { return deep })+`]`)
}

func (b *hostile) addTexts() {
	b.content("text: escapes of letters", b.repeat(`\u0061`))
	b.content("text: escaped quotes", b.repeat(`\"`))
	b.content("text: escaped backslashes", b.repeat(`\\`))
	b.content("text: surrogates", b.repeat(`\ud83d\ude00`))
	b.content("text: half surrogates", b.repeat(`\ud83d`))
	for name, s := range map[string]string{
		"one letter": b.repeat("a"), "random letters": b.draw('a', 26), "capitals": b.draw('A', 26), "spaces": b.repeat(" ") + "x",
		"spaces and lines": b.repeat(`\n   \t   `), "equals signs": b.repeat("="), "slashes": b.repeat("/"), "dashes": b.repeat("-"), "words of slashes": b.repeat("//////////// a"), "emoji": b.repeat("👩‍👩‍👧🏽"), "han": b.draw(0x4e00, 0x5000),
		"rare han": b.draw(0x20000, 0xa000), "marks": "a" + b.draw(0x300, 0x50), "marks not in order": "a" + b.repeat("\u0301\u0323"),
		"jamo": b.repeat("\u1112\u1161\u11ab"), "hangul": b.draw(0xac00, 11172), "angle brackets": b.repeat("<|im_<"), "smaller signs": b.repeat("<"),
		"almost tokens": b.repeat("</think"), "added tokens": b.repeat("<think>"), "digits": b.repeat("0123456789"), "apostrophes": b.repeat("'"),
		"punctuation": b.draw('#', 14), "ascii": strings.NewReplacer(`"`, "x", `\`, "y").Replace(b.draw(' ', 95)),
		"cyrillic": b.draw(0x400, 0x100), "composed": b.draw(0xc0, 0x180), "decomposed": b.repeat("e\u0301"), "compatibility": b.draw(0xf900, 0x100),
		"devanagari": b.draw(0x900, 0x80), "private": b.draw(0xe000, 0x1900), "mathematical": b.draw(0x1d400, 0x3ff),
	} {
		b.content("text: "+name, s)
	}
}

// reader is a gateway that reads bodies and sends none: its model has a server that
// nobody asks, and it remembers no message.
func reader(t testing.TB) *Gateway {
	t.Helper()
	g, _ := bare(t, func(c *Config) { c.MaxBody = 64 << 20 })
	m := backend.DefaultModel()
	m.Name, m.Backends = "m", []backend.Config{{URL: "http://127.0.0.1:1"}}
	g.Fleet.Apply([]backend.ModelConfig{m})
	g.Counter = qwen.NewCounter(g.Tokenizer, 0)
	return g
}

// readWhole does all that is done with a body until it is sent, and on every level.
func readWhole(g *Gateway, body []byte) (*call, error) {
	d := door.Chat()
	if bytes.Contains(body[:min(len(body), 64)], []byte(`"prompt":`)) {
		d = door.Completions()
	}
	r := httptest.NewRequest("POST", d.Pattern, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	c := newGeneration(g, r, d)
	if err := g.parse(c); err != nil {
		return c, err
	}
	_ = g.demand(c)
	_ = d.Language("", c.request.Body, []string{"en", "zh"})
	for level := degrade.Full; level < degrade.SmallerModel; level++ {
		p := &admission.Permit{Level: level}
		effect := g.Ladder.Effect(level)
		one := planFor(&c.request, p, effect, c.request.model, 0)
		edits := one.edits(&c.request, c.request.model.Backends[0], 1)
		_ = d.Write(c.request.Body, edits)
	}
	return c, nil
}

// TestHostileBodies: each is answered or refused, and by no fault of ours.
func TestHostileBodies(t *testing.T) {
	g := reader(t)
	for name, body := range hostileBodies(4 << 10) {
		_, err := readWhole(g, body)
		if err == nil {
			continue
		}
		if r := explain(err, &facts{}); r.Status != 400 {
			t.Errorf("%s: %d, %v", name, r.Status, err)
		}
	}
	if _, err := readWhole(g, ordinaryBody(t)); err != nil {
		t.Error(err)
	}
}

// allocatedFor is how many bytes are allocated while a body is read.
func allocatedFor(g *Gateway, body []byte) (bytes uint64, err error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = readWhole(g, body)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}

// TestHostileCounts: of prompts and of messages that are as many as a body of 8 MiB can
// have, no more are made than a request may have, and their caller is told how many those
// are. When all of them were made it took 209 to 428 MB.
func TestHostileCounts(t *testing.T) {
	g := reader(t)
	const size, most = 8 << 20, 64 << 20 // bytes
	b := &hostile{size, nil, map[string][]byte{}}
	b.prompt("texts", `[`+b.repeat(`"",`)+`""]`)
	b.prompt("lists of token ids", `[`+b.repeat(`[1],`)+`[1]]`)
	b.messages("messages", b.repeat(`{"role":"u"},`)+`{"role":"u"}`)
	b.messages("developers", b.repeat(`{"role":"developer"},`)+`{"role":"user"}`)
	b.add("messages that go on", `{"model":"m","continue_final_message":true,"add_generation_prompt":false,"messages":[`+b.repeat(`{"role":"u"},`)+`{"role":"user"}]}`)
	for name, body := range b.bodies {
		n, err := allocatedFor(g, body)
		if err == nil || !strings.Contains(err.Error(), " more than 6") { // 64, 65536
			t.Errorf("%s: %v", name, err)
		} else if r := explain(err, &facts{}); r.Status != 400 || r.Param != "messages" && r.Param != "prompt" {
			t.Errorf("%s: %+v", name, r)
		}
		if n > most {
			t.Errorf("%s: %d MB allocated for 8 MiB, expected %d at most", name, n>>20, most>>20)
		}
		t.Logf("%s: %d MB", name, n>>20)
	}
}

// TestHeldBody: a request that waits holds as many bytes as its body has come to, also
// where that is longer than what its caller sent.
func TestHeldBody(t *testing.T) {
	g := reader(t)
	for _, prompt := range []string{`[` + strings.Repeat(`1e5,`, 100_000) + `1]`, `[` + strings.Repeat(`100000,`, 100_000) + `1]`, `[` + strings.Repeat(`1.0,`, 100_000) + `1]`} {
		r := httptest.NewRequest("POST", "/v1/completions", strings.NewReader(`{"model":"m","prompt":`+prompt+`}`))
		r.Header.Set("Content-Type", "application/json")
		c := newGeneration(g, r, door.Completions())
		if err := g.parse(c); err != nil {
			t.Fatal(err)
		}
		body, _ := c.request.Body.(*openai.Request)
		if size := len(body.Bytes()); int(c.bodies.bytes) < size-200 || int(c.bodies.bytes) > size+200 { // the body is edited a little
			t.Errorf("%.10s: %d bytes are held for a body of %d", prompt, c.bodies.bytes, size)
		}
		c.bodies.release()
	}
}

// TestHostileWork: no body makes us decode or copy many times what an ordinary chat of
// the same size does, counted in bytes allocated for each byte of it. A name that is
// decoded whenever it is looked for took 600. The tokenizer's own steps are counted where
// it is tested.
func TestHostileWork(t *testing.T) {
	g := reader(t)
	perByte := func(body []byte) float64 {
		_, _ = readWhole(g, body) // what is kept for the next one
		n, _ := allocatedFor(g, body)
		return float64(n) / float64(len(body))
	}
	usual := perByte(ordinaryBody(t))
	for name, body := range hostileBodies(64 << 10) {
		if n := perByte(body); n > 8*usual {
			t.Errorf("%s: %.1f bytes allocated for each byte, and %.1f of an ordinary chat", name, n, usual)
		} else {
			t.Logf("%s: %.1f", name, n)
		}
	}
	t.Logf("ordinary: %.1f", usual)
}

// cpuTime is what the process has used of the processor's time so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHostileBodies shows what a megabyte of each hostile body costs of the
// processor's time, from its first byte until it could be sent, and how many times
// that of an ordinary chat, which is measured anew beside each.
func BenchmarkHostileBodies(b *testing.B) {
	g := reader(b)
	ordinary := ordinaryBody(b)
	perMB := func(body []byte, n int) float64 {
		from := cpuTime(b)
		for range n {
			_, _ = readWhole(g, body)
		}
		return float64(cpuTime(b)-from) / 1e6 / float64(n) / float64(len(body)) * (1 << 20)
	}
	bodies := hostileBodies(hostileSize)
	bodies["ordinary"] = ordinary
	for _, name := range slices.Sorted(maps.Keys(bodies)) {
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			usual := perMB(ordinary, 8)
			hostile := perMB(bodies[name], b.N)
			b.ReportMetric(hostile, "cpu-ms/MB")
			b.ReportMetric(hostile/usual, "x-ordinary")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// TestScoredPrompt: log probabilities of a prompt are not asked for of a long one.
func TestScoredPrompt(t *testing.T) {
	g := reader(t)
	for _, c := range []struct {
		tokens  int
		more    string
		refused bool
	}{
		{openai.MaxScored, `"echo":true,"logprobs":1`, false}, {openai.MaxScored + 1, `"echo":true,"logprobs":1`, true},
		{openai.MaxScored + 1, `"echo":true`, false}, {openai.MaxScored + 1, `"logprobs":1`, false},
	} {
		ids := "1" + strings.Repeat(",1", c.tokens-1)
		_, err := readWhole(g, []byte(`{"model":"m","prompt":[`+ids+`],`+c.more+`}`))
		var r *refusal.Refusal
		if errors.As(err, &r) != c.refused || c.refused && (r.Status != 400 || r.Param != "echo") {
			t.Errorf("%d tokens, %s: %v", c.tokens, c.more, err)
		}
	}
}
